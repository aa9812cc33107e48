"""``python -m asgi_agents replay``: what it prints, and its exit codes."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentResponse,
    AuditMetadata,
    ConfigureEvent,
    HeaderOp,
    RequestHeadersEvent,
)
from asgi_agents.commands.replay import add_parser
from asgi_agents.recording import RecordingError, record
from asgi_agents.terminal.loading import MistakeError
from tests.support.sample_events import QUESTION, head

from .judges import Judge


class Old(Agent):
    """Blocks what another version lets pass."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block(403) if "union" in event.uri else None


class New(Old):
    def __init__(self) -> None:
        self.word = "select"

    async def on_configure(self, event: ConfigureEvent) -> None:
        self.word = (event.config or {}).get("word", self.word)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block(403) if self.word in event.uri else None


class Broken(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        raise ValueError


HERE = "tests.recording.test_command"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "traffic.jsonl"
    anyio.run(_record, path)
    return path


async def _record(path: Path) -> None:
    async with AgentManager([AgentConfig("waf", Old())]) as manager, record(manager, path):
        for number, uri in enumerate(("/?q=union", "/?q=select", "/", "/x")):
            await manager.process_request_headers(head(f"c-{number}", uri))


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(dest="command", required=True))
    options = parser.parse_args(["replay", *map(str, arguments)])
    code = options.run(options)
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_same_decisions_are_0(concurrency: int, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "--agent", f"{HERE}:Old", "--concurrency", concurrency) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "waf: 4 exchanges compared, 4 the same, 0 different"
    assert [line.split()[0] for line in lines[1:]] == ["recorded", "now"]


def test_other_decisions_are_1_and_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "--agent", f"{HERE}:New") == 1
    out = capsys.readouterr().out
    assert out.startswith(
        "line 3: request_headers GET /?q=union\n"
        "  decision\n"
        '    recorded  {"block":{"status":403,"body":null,"headers":null}}\n'
        "    now       allow\n"
        "\n"
        "line 4: request_headers GET /?q=select\n"
        "  decision\n"
        "    recorded  allow\n"
        '    now       {"block":{"status":403,"body":null,"headers":null}}\n'
        "\n"
        "waf: 4 exchanges compared, 2 the same, 2 different\n"
    )
    assert max(map(len, out.splitlines())) <= 80
    assert run(path, "--agent", f"{HERE}:New", "--most", 1) == 1
    assert "… and 1 more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--ignore", "decision"], 0),
        (["--ignore", "audit"], 1),
        (["--config", '{"word": "union"}'], 0),
        (["--id", "waf"], 1),
        (["--timeout", "5"], 1),
    ],
)
def test_what_is_compared_can_be_said(arguments: list[str], code: int, path: Path) -> None:
    assert run(path, "--agent", f"{HERE}:New", *arguments) == code


def test_json_has_all_of_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "--agent", f"{HERE}:New", "--json") == 1
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["command"], found["format"], found["asked"]) == ("replay", 1, [f"{HERE}:New"])
    report = found["report"]
    assert (report["agent"], report["compared"], report["same"], report["different"]) == ("waf", 4, 2, 2)
    assert report["differences"][1] == {
        "line": 4,
        "n": 2,
        "agent": "waf",
        "event": "request_headers",
        "correlation_id": "c-1",
        "request": "GET /?q=select",
        "fields": [
            {
                "name": "decision",
                "recorded": "allow",
                "now": {"block": {"status": 403, "body": None, "headers": None}},
            }
        ],
        "redacted": False,
    }


class Talkative(Old):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        print("asked")
        return await super().on_request_headers(event)


def test_what_an_agent_prints_does_not_get_into_the_report(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "--agent", f"{HERE}:Talkative", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["report"]["same"] == 4
    assert captured.err == "asked\n" * 4


def test_an_agent_that_was_asked_about_nothing_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def ask() -> None:
        async with AgentManager([AgentConfig("waf", Old())]) as manager, record(manager, tmp_path / "a.jsonl"):
            await manager.process_request_headers(head("c"))

    anyio.run(ask)
    arguments = [tmp_path / "a.jsonl", "--agent", "tests.recording.judges:Judge"]
    assert run(*arguments, "--event", "response_headers") == 2
    assert "the agent was asked about nothing" in capsys.readouterr().out


class Telling(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return AgentResponse.allow(
            request_headers=[HeaderOp.set("authorization", "hunter2")],
            audit=AuditMetadata(tags=("\x1b[2J",), custom={"password": "hunter2"}),
        )


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_of_a_recording_without_redaction_no_secret_is_printed(
    form: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"

    async def ask() -> None:
        manager = AgentManager([AgentConfig("waf", Telling())])
        async with manager, record(manager, file, bodies=True, redact=None):
            await manager.process_request_headers(head("c", "/?token=hunter2&session=hunter2"))

    anyio.run(ask)
    assert "hunter2" in file.read_text()
    assert run(file, "--agent", f"{HERE}:Old", *form) == 1
    out = capsys.readouterr().out
    assert "hunter2" not in out
    assert out.count("[redacted]") >= 3
    assert "\x1b" not in out


def test_nothing_to_compare_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def ask() -> None:
        async with AgentManager([AgentConfig("pii", Judge())]) as manager, record(manager, tmp_path / "a.jsonl"):
            await manager.call_guardrail_agent("pii", QUESTION)

    anyio.run(ask)
    assert run(tmp_path / "a.jsonl", "--agent", "tests.recording.judges:Judge") == 2
    assert "nothing could be compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--agent", f"{HERE}:Missing"], MistakeError, "has no 'Missing'"),
        (["--agent", "nothing"], MistakeError, "'nothing', expected module:name"),
        (["--agent", f"{HERE}:New", "--config", "{"], MistakeError, "--config: "),
        (["--agent", f"{HERE}:New", "--id", "pii"], RecordingError, "no agent has the id 'pii'; there are: waf"),
        (["--agent", "http://127.0.0.1:1/", "--timeout", "1"], AgentError, "none of the first"),
    ],
)
def test_what_can_not_be_done_is_raised_for_the_command_line_to_say(
    arguments: list[str], kind: type[Exception], message: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_agents.recording.replaying._HOPELESS", 3)
    with pytest.raises(kind, match=message):
        run(path, *arguments)


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "none.jsonl", "--agent", f"{HERE}:New")


@pytest.mark.slow
def test_the_command_line_says_why_it_can_not_be_done(path: Path) -> None:
    for arguments, code in (
        ([str(path), "--agent", f"{HERE}:Old"], 0),
        ([str(path), "--agent", f"{HERE}:New"], 1),
        ([str(path.with_name("none")), "--agent", f"{HERE}:Old"], 2),
    ):
        command = [sys.executable, "-m", "asgi_agents", "replay", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code
        assert done.stderr.startswith("error: ") is (code == 2)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--agent", "x:y", "--concurrency", "0"], ["--agent", "x:y", "--event", "tea"], ["--agent", "x:y", "--js"]],
)
def test_arguments_that_can_not_be_are_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run("traffic.jsonl", *arguments)
    assert left.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_several_urls_are_instances_of_one_agent(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    real = sys.modules["asgi_agents.commands.replay"].replay

    async def spy(recording: str, agent: Any, **options: Any) -> Any:
        given.append((agent, options["events"]))
        return await real(recording, Old(), **options)

    monkeypatch.setattr("asgi_agents.commands.replay.replay", spy)
    urls = ["--agent", "unix:///a.sock", "--agent", "unix:///b.sock"]
    assert run(path, *urls, "--event", "request_headers") == 0
    assert given == [(["unix:///a.sock", "unix:///b.sock"], ["request_headers"])]
