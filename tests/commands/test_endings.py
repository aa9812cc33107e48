"""Agents that end the process, or raise what ends it: the exit codes stay those of the command line."""

from pathlib import Path

import pytest

from asgi_agents.testing import FakeAgent

from .conftest import Command

ENDING = """
from starlette.applications import Starlette

from asgi_agents import Agent, AgentConfig, protect


def odd():
    {raising}


class AtHead(Agent):
    async def on_request_headers(self, event):
        odd()


class AtConfigure(Agent):
    async def on_configure(self, event):
        odd()

    async def on_request_headers(self, event):
        return None


app = Starlette()
protect(app, agents=[AgentConfig("waf", AtConfigure())])
"""
RAISING = {
    "SystemExit: 0": "raise SystemExit(0)",
    "SystemExit: 1": "import sys; sys.exit(1)",
    "SystemExit: token=[redacted]": "raise SystemExit('token=s3cret')",
    "GeneratorExit: ": "raise GeneratorExit",
    "BaseExceptionGroup: of two (1 sub-exception)": "raise BaseExceptionGroup('of two', [SystemExit(0)])",
    "Own: of its own": "raise type('Own', (BaseException,), {})('of its own')",
}
COMMANDS = {
    "call": ["call", "ending_agents:AtHead"],
    "call to configure": ["call", "ending_agents:AtConfigure", "--config", "1"],
    "check": ["check", "ending_agents:app"],
    "replay": ["replay", "traffic.jsonl", "--agent", "ending_agents:AtHead"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("raised", RAISING)
def test_an_agent_that_ends_the_process_is_a_mistake_and_never_well_or_a_finding(
    raised: str, arguments: list[str], command: Command, tmp_path: Path
) -> None:
    record_traffic(tmp_path / "traffic.jsonl")
    done = command(*arguments, "--json", ending_agents=ENDING.format(raising=RAISING[raised]))
    assert done.code == 2
    assert list(done.json) == ["command", "format", "error"]
    # Several at a time are in a group.
    assert done.json["error"].startswith("what was called has raised ")
    if arguments[0] != "check":
        assert done.json["error"].endswith(raised)
    assert done.err.splitlines()[-1] == f"error: {done.json['error']}"
    assert "s3cret" not in done.out


@pytest.mark.parametrize("arguments", [["--help"], ["call", "--help"], ["--version"]])
def test_help_is_no_mistake(arguments: list[str], command: Command) -> None:
    done = command(*arguments)
    assert (done.code, done.err) == (0, "")


def record_traffic(path: Path) -> None:
    """A recording of one request."""
    from asgi_agents.recording import record

    from ..testing.apps import get, protected, remote

    app = protected(remote(transport=FakeAgent()))
    with record(app, path):
        assert get(app).status_code == 200
