"""``call``: what one agent answers, and the exit code that follows from it."""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from asgi_agents import Agent, AgentResponse, Framing, RequestHeadersEvent
from asgi_agents.serve import agent_app, serve_stream
from tests.support.names import free_port
from tests.support.servers import serve

from .conftest import Command


class Served(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block(403, event.header("x-test") or "") if "script" in event.uri else None


@contextmanager
def served(directory: Path, framing: Framing = Framing.V2) -> Iterator[str]:
    """The address of the agent on a Unix socket, served by a thread."""
    address = f"unix://{directory}/agent.sock"
    ready = threading.Event()
    stop: list[object] = []

    async def main() -> None:
        shutdown = anyio.Event()
        stop.append(partial(anyio.from_thread.run_sync, shutdown.set, token=anyio.lowlevel.current_token()))
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(serve_stream, Served(), address, framing=framing, shutdown=shutdown))
            ready.set()

    thread = threading.Thread(target=anyio.run, args=(main,))
    thread.start()
    try:
        assert ready.wait(60)
        assert stat.S_ISSOCK((directory / "agent.sock").stat().st_mode)
        yield address
    finally:
        stop[0]()  # type: ignore[operator]
        thread.join()


CALLS: dict[str, tuple[list[str], int, str]] = {
    "allow": (["house:Auth"], 0, "request_headers     allow "),
    "block": (["house:Waf", "GET", "/?q=<script>"], 1, "request_headers     block 403 "),
    "redirect": (["house:Waf", "GET", "/login"], 1, "request_headers     redirect 302 "),
    "challenge": (["house:Waf", "GET", "/key"], 1, "request_headers     challenge bearer "),
    "a body": (["house:Waf", "POST", "/", "--body", "is bad"], 1, "request_body_chunk  block 403 "),
    "a body that passes": (["house:Waf", "POST", "/", "--body", "is good"], 0, "request_body_chunk  allow "),
    "a body from a file": (["house:Waf", "POST", "/", "--body-file", "house.py"], 1, "request_body_chunk  block 403 "),
    "a response": (["house:Waf", "--response-body", "a secret"], 1, "response_body_chunk block 502 "),
    "a frame": (["house:Waf", "--frame", "bye"], 1, "websocket_frame     close 1008 "),
    "a frame that is dropped": (["house:Waf", "--frame", "hello"], 1, "websocket_frame     drop "),
    "a text": (["house:Waf", "--inspect", "to a@b.c"], 1, "guardrail_inspect   detected "),
    "a clean text": (["house:Waf", "--inspect", "to you"], 0, "guardrail_inspect   allow "),
    "an event that it does not receive": (
        ["house:Auth", "POST", "/", "--body", "x"],
        0,
        "request_body_chunk  not asked: the agent does not receive it",
    ),
    "an event behind a block": (
        ["house:Waf", "POST", "/?q=<script>", "--body", "x"],
        1,
        "request_body_chunk  not asked: the request was stopped before: block",
    ),
    "an agent that raises": (["house:Broken"], 2, "request_headers     error "),
    "an agent that answers too late": (["house:Late", "--timeout", "0.01"], 2, "request_headers     timeout "),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_answer_and_the_exit_code(name: str, command: Command) -> None:
    arguments, code, line = CALLS[name]
    done = command("call", *arguments)
    assert (done.code, done.err.count("\n")) == (code, code == 2)
    assert line in done.out
    report = command("call", *arguments, "--json").json
    assert list(report) == ["command", "format", "agent", "request", "outcome", "connect_ms", "calls", "not_asked"]
    assert all(list(one) == ["event", "outcome", "ms", "answer", "failure", "status"] for one in report["calls"])
    assert (report["outcome"] == "allow") is (code == 0)
    assert any(one["failure"] is not None for one in report["calls"]) is (code == 2)


def test_details_of_the_answer_are_shown(command: Command) -> None:
    out = command("call", "house:Waf", "GET", "/?q=<script>").out
    assert [line.split(maxsplit=1) for line in out.splitlines()[1:]] == [
        ["body", "No scripts"],
        ["header", "x-waf: 1"],
        ["header", "set-cookie: [redacted]"],
        ["reason", "xss"],
        ["rule", "941"],
    ]


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize("arguments", [["house:Waf"], ["house:Waf", "GET", "/login"], ["house:Broken"]])
def test_credentials_are_not_shown(arguments: list[str], form: list[str], command: Command) -> None:
    done = command("call", *arguments, "--header", "authorization: Bearer s3cret", *form)
    assert "s3cret" not in done.out + done.err


MISTAKES: list[tuple[list[str], str]] = [
    (["house"], "'house', expected module:name"),
    (["nowhere:waf"], "can't import 'nowhere': ModuleNotFoundError: No module named 'nowhere'"),
    (["broken:waf"], "can't import 'broken': ZeroDivisionError: division by zero (PLACE/broken.py:3)"),
    (["house:words"], "'house:words' is a str, expected an Agent, or what makes one when it's called without"),
    (["house:fail"], "'house:fail' can't be called: LookupError: no such luck (PLACE/house.py:"),
    (["ftp://a"], "agent: transport='ftp://a', expected"),
    (["unix:///nowhere/a.sock"], "unix:///nowhere/a.sock: FileNotFoundError: No such file or directory"),
    (["tcp://127.0.0.1:9"], "tcp://127.0.0.1:9: ConnectionRefusedError: "),
    (["http://user:s3cret@127.0.0.1:9"], "HttpTransport: url has credentials in it, expected 'http://127.0.0.1:9'"),
    (["house:Waf", "GET", "items"], "'items' is no path, expected one that begins with '/'"),
    (
        ["house:Waf", "GET", "http://a/b?c=d"],
        "'http://a/b?c=d' is no path, expected one that begins with '/': '/b",
    ),
    (["house:Waf", "G T"], "'G T' is no method, expected GET, POST or the like"),
    (["house:Waf", "--header", "x"], "--header 'x', expected 'name: value'"),
    (["house:Waf", "--response-header", "x y: 1"], "--response-header 'x y', expected 'name: value'"),
    (["house:Waf", "--status", "42"], "--status 42, expected 100 to 599"),
    (["house:Waf", "--status", "0"], "--status 0, expected 100 to 599"),
    (["house:Waf", "--timeout", "0"], "--timeout 0, expected seconds above 0"),
    (["house:Waf", "--config", "NaN"], "--config: NaN is no JSON, expected JSON such as"),
    (["house:Waf", "--config", "[-Infinity]"], "--config: -Infinity is no JSON, expected JSON such as"),
    (["house:Waf", "--config", "{"], "--config: Expecting property name enclosed in double quotes"),
    (
        ["house:Waf", "--inspect", "x", "--inspection-type", "a b"],
        "--inspection-type: inspection_type: expected",
    ),
    (["house:Waf", "--body-file", "nowhere.txt"], "[Errno 2] No such file or directory: 'nowhere.txt'"),
    (["house:Refusing"], "not configured: agent 'agent', configure: refused its configuration: no level given"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value)[:30])
def test_mistakes_are_one_line_and_exit_code_2(arguments: list[str], message: str, command: Command) -> None:
    done = command("call", *arguments)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith(f"error: {message}")
    assert "s3cret" not in done.err
    as_json = command("call", *arguments, "--json")
    assert list(as_json.json) == ["command", "format", "error"]


@pytest.mark.parametrize("arguments", [["call"], ["bench", "--calls", "3"]], ids=["call", "bench"])
def test_an_agent_that_needs_a_configuration_is_said_the_option_for_it(arguments: list[str], command: Command) -> None:
    done = command(*arguments, "house:Limit")
    assert done.code == 2
    assert done.err.endswith("; it has no configuration, expected --config JSON\n")
    assert command(*arguments, "house:Limit", "--config", '{"rate": 1}').code == 0


@pytest.mark.parametrize("arguments", [["call"], ["bench", "--calls", "3"]], ids=["call", "bench"])
@pytest.mark.parametrize("scheme", ["http", "tcp"])
def test_an_agent_that_can_not_be_reached_is_said_on_standard_error_whatever_its_transport(
    scheme: str, arguments: list[str], command: Command
) -> None:
    agent = f"{scheme}://127.0.0.1:{free_port()}"
    for options in ([], ["--json"]):
        done = command(arguments[0], agent, *arguments[1:], "--timeout", "5", *options)
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert done.err.startswith("error: ")
        assert "127.0.0.1" in done.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("option", ["--body-file", "--response-body-file"])
def test_a_body_is_not_waited_for_at_a_pipe(option: str, command: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = command("call", "house:Waf", option, str(tmp_path / "pipe"))
    assert (done.code, done.out) == (2, "")
    assert "pipe: no regular file, expected a file, or - for standard input" in done.err


SAYS_SECRETS = """
import json

from asgi_agents import *

BODY = json.dumps({"otp": "zq9S3cretZq9", "session": "zq9S3cretZq9", "lamp": 1})


class Block(Agent):
    async def on_request_headers(self, event):
        return AgentResponse.block(403, BODY, headers={"x-a": "sid=zq9S3cretZq9"})

    async def on_guardrail_inspect(self, event):
        found = Detection(category="x", description=BODY, replacement=BODY)
        return GuardrailResponse(detected=True, redacted_content=BODY, detections=[found])


class Audit(Agent):
    async def on_request_headers(self, event):
        custom = {"sid": "zq9S3cretZq9", "query": "session=zq9S3cretZq9", "body": BODY, "prompt_tokens": 5}
        custom["author"] = "anna"
        return AgentResponse(audit=AuditMetadata(custom=custom), routing_metadata={"sig": "zq9S3cretZq9"})
"""


@pytest.mark.parametrize("arguments", [["says:Block"], ["says:Block", "--inspect", "x"], ["says:Audit"]])
def test_what_is_named_like_a_secret_is_not_printed(arguments: list[str], command: Command) -> None:
    for options in ([], ["--json"]):
        done = command("call", *arguments, *options, says=SAYS_SECRETS)
        assert "zq9S3cretZq9" not in done.out + done.err
        assert "lamp" in done.out
        assert ("prompt_tokens" in done.out) is ("anna" in done.out) is (arguments == ["says:Audit"])


@pytest.mark.parametrize("framing", [Framing.V2, Framing.ENVELOPE])
def test_an_agent_on_a_unix_socket_is_called(framing: Framing, command: Command, short: Path) -> None:
    with served(short, framing) as address:
        arguments = ["call", address, "GET", "/?q=<script>", "--header", "x-test: seen", "--framing", framing, "--json"]
        done = command(*arguments)
    assert done.code == 1
    assert done.json["calls"][0]["answer"]["decision"] == {"block": {"status": 403, "body": "seen", "headers": None}}
    assert done.json["connect_ms"] > 0


def test_an_agent_over_http_is_called(command: Command) -> None:
    with serve(agent_app(Served())) as url:
        done = command("call", url, "GET", "/?q=<script>", "--json")
    assert (done.code, done.json["outcome"], done.json["connect_ms"]) == (1, "block", None)


def test_what_a_module_prints_does_not_get_into_the_json(command: Command) -> None:
    done = command("call", "talkative:Waf", "--json")
    assert (done.json["outcome"], done.err) == ("allow", "hello\nasked\n")
