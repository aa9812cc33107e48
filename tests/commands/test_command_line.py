"""The command line as a whole, and how it prints."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import asgi_agents
from asgi_agents import AgentConfig, AgentManager
from asgi_agents.commands.command_line import make_parser
from asgi_agents.recording import record
from asgi_agents.terminal.output import Page, Painted, wrap
from asgi_agents.testing import FakeAgent
from tests.support.sample_events import HEAD

from .conftest import AGENTS, Command

PACKAGE = Path(asgi_agents.__file__).parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "arguments", ["", "nothing", "check", "call", "bench", "bench a:b --calls 0", "call a:b --j", "replay x"]
)
def test_what_is_no_command_has_exit_code_2(arguments: str, command: Command) -> None:
    done = command(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: python -m asgi_agents")


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__main__.py")), ids=lambda path: path.parent.name)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_program_that_is_no_command_is_named(path: Path, form: list[str], command: Command) -> None:
    name = path.parent.name
    done = command(name, "waf:Waf", *form)
    assert done.code == 2
    message = done.json["error"] if form else done.err.splitlines()[-1].removeprefix("error: ")
    assert message.startswith(f"{name!r} is a program of its own, which ")
    assert message.endswith(f": python -m asgi_agents.{name}")


def test_what_is_no_command_at_all_is_not_taken_for_a_program(command: Command) -> None:
    assert "invalid choice: 'server'" in command("server").err
    assert "is a program of its own" not in command("check", "serve", "serve").err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "--help"], ["call", "--help"], ["bench", "--help"], ["replay", "--help"]]
)
def test_help_fits_into_80_columns(arguments: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = command(*arguments)
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80


def test_each_command_sets_what_runs_it() -> None:
    for arguments in (["check", "a:b"], ["call", "a:b"], ["bench", "a:b"], ["replay", "x", "--agent", "a:b"]):
        assert callable(make_parser().parse_args(arguments).run)


def test_an_interrupt_has_exit_code_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asgi_agents.commands.call.run", interrupted)
    assert command("call", "house:Auth").code == 130


def test_importing_the_package_brings_none_of_it() -> None:
    code = (
        "import sys, asgi_agents\n"
        "new = ('asgi_agents.commands', 'asgi_agents.terminal', 'argparse')\n"
        "print([name for name in sys.modules if name.startswith(new)])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.slow
def test_whoever_reads_the_output_may_have_enough() -> None:
    script = "$0 -m asgi_agents check example_app.app:create_app --factory --offline --json | head -1"
    command = ["/bin/bash", "-euo", "pipefail", "-c", script, sys.executable]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("{\n", "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("arguments", ["check example_app.app:create_app --factory --offline", "call nothing --json"])
def test_output_that_can_not_be_written_is_a_line_and_exit_code_2(arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "asgi_agents", *arguments.split()]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2
    assert all(line.startswith("error: ") for line in found.stderr.splitlines())
    assert "No space left on device" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("closed", "said"), [(">&-", ""), ("2>&-", "request_headers     block 403"), (">&- 2>&-", "")])
def test_output_that_is_closed_is_missed_by_nobody(closed: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "house.py").write_text(AGENTS)
    script = f"exec $0 -m asgi_agents call house:Waf GET '/?q=<script>' {closed}"
    command = ["/bin/bash", "-c", script, sys.executable]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=_with_signals())
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.startswith(said)


WAITING = """
import anyio
from asgi_agents import Agent


class Waf(Agent):
    async def on_request_headers(self, event):
        print("asked", flush=True)
        await anyio.sleep_forever()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["call", "replay", "bench"])
def test_an_interrupted_process_says_nothing_but_what_it_has(name: str, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    arguments = ["waiting:Waf"]
    if name == "replay":
        arguments = ["traffic.jsonl", "--agent", "waiting:Waf"]
        anyio.run(_record, tmp_path / "traffic.jsonl")
    command = [sys.executable, "-m", "asgi_agents", name, *arguments, "--timeout", "300"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_with_signals()
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert set(err.splitlines()) <= {"asked"}
    if name == "bench":
        assert (process.returncode, "(interrupted)" in out) == (2, True)
    else:
        assert (process.returncode, out) == (130, "")


def _with_signals() -> dict[str, str]:
    # What starts tests in the background has this signal ignored, also in what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


async def _record(path: Path) -> None:
    async with AgentManager([AgentConfig("waf", FakeAgent())]) as manager, record(manager, path):
        await manager.process_request_headers(HEAD)


@pytest.mark.parametrize(
    ("variables", "terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_are_for_terminals_and_not_with_no_color(
    variables: dict[str, str], terminal: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if terminal else io.StringIO()
    page = Page(stream)
    page.line(Painted("text", "red"))
    assert (stream.getvalue() != "text\n") is coloured


def test_progress_is_drawn_over_itself_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    page = Page(stream)
    page.progress("one")
    page.progress("x" * 100)
    page.progress("")
    assert stream.getvalue() == f"\r{'one':<39}\r{'x' * 39}\r{' ' * 39}\r"
    piped = io.StringIO()
    Page(piped).progress("one")
    assert piped.getvalue() == ""


@pytest.mark.parametrize("columns", ["40", "60", "80", "200"])
def test_tables_are_as_wide_as_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    rows = [("GET", "/short", "one two three " * 6), ("POST", "/" + "long/" * 40, "four"), ("", "", "")]
    Page(stream).table(("METHOD", "PATH", "AGENTS"), rows)
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= int(columns) for line in lines if "long" not in line)
    words = stream.getvalue().split()
    assert words.count("three") == 6
    assert "four" in words
    # What is in one column begins at one place.
    assert lines[1].index("one") == lines[0].index("AGENTS")


def test_words_are_not_cut() -> None:
    assert list(wrap("a " + "b" * 90 + " c", 20)) == ["a", "b" * 90, "c"]
    assert list(wrap("", 20)) == [""]
