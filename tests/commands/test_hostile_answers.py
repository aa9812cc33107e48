"""What apps, agents and arguments say is printed without its secrets, and does nothing to a terminal."""

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.commands.outcome import print_json
from asgi_agents.terminal.output import Page, Painted, complain

from .conftest import Command

# Sets the colour, clears the screen, changes the title; the control characters of eight bits; those that reverse text.
CONTROLS = (
    "\x1b[31mred",
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x08\x08",
    "\r",
    "\x00",
    "\x7f",
    "\u202e",
    "\u2066",
)
HOSTILE = """
from asgi_agents import (
    Agent, AgentResponse, AuditMetadata, BodyMutation, Detection, EventType, GuardrailResponse, HeaderOp
)

TEXT = %r


def audit():
    return AuditMetadata(tags=[TEXT], rule_ids=[TEXT], reason_codes=[TEXT], custom={TEXT: TEXT, "in": [{"a": TEXT}]})


class Blocks(Agent):
    async def on_request_headers(self, event):
        return AgentResponse.block(403, TEXT, audit=audit())


class Redirects(Agent):
    async def on_request_headers(self, event):
        return AgentResponse.redirect("/" + TEXT, audit=audit())


class Challenges(Agent):
    async def on_request_headers(self, event):
        return AgentResponse.challenge("captcha", {"realm": TEXT}, audit=audit())


class Allows(Agent):
    async def on_request_headers(self, event):
        return AgentResponse.allow(routing_metadata={TEXT: TEXT}, audit=audit())


class Changes(Agent):
    async def on_request_body_chunk(self, event):
        return AgentResponse.allow(request_body_mutation=BodyMutation(TEXT.encode(errors="replace")))


class Closes(Agent):
    async def on_websocket_frame(self, event):
        return AgentResponse.websocket_close(1008, TEXT)


class Finds(Agent):
    async def on_guardrail_inspect(self, event):
        found = [Detection(category=TEXT, description=TEXT)]
        return GuardrailResponse(detected=True, detections=found, redacted_content=TEXT)


class Fails(Agent):
    async def on_request_headers(self, event):
        return TEXT


class Refuses(Agent):
    async def on_configure(self, event):
        return AgentResponse.block(403, TEXT)

    async def on_request_headers(self, event):
        return None


class Raises:
    def __init__(self):
        raise ValueError(TEXT)
"""
CALLS = {
    "Blocks": [],
    "Redirects": [],
    "Challenges": [],
    "Allows": [],
    "Changes": ["POST", "/", "--body", "x"],
    "Closes": ["--frame", "x"],
    "Finds": ["--inspect", "x"],
    "Fails": [],
    "Refuses": [],
    "Raises": [],
}


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("name", CALLS)
def test_no_answer_does_anything_to_a_terminal(name: str, form: list[str], command: Command) -> None:
    done = command("call", f"hostile:{name}", *CALLS[name], *form, hostile=HOSTILE % "".join(CONTROLS))
    assert is_harmless(done.out)
    assert is_harmless(done.err)
    assert not form or done.json["command"] == "call"


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_no_name_in_an_app_does_anything_to_a_terminal(form: list[str], command: Command) -> None:
    app = (
        "from fastapi import FastAPI\n"
        "from asgi_agents import AgentConfig, AgentRoute, protect\n"
        "from house import Auth\n"
        f"TEXT = {''.join(CONTROLS)!r}\n"
        "app = FastAPI(openapi_url=None)\n"
        "app.get('/' + TEXT)(lambda: 1)\n"
        "protect(app, agents=[AgentConfig('waf', Auth())], routes=[AgentRoute('/x' + TEXT, agents=['waf'])])\n"
    )
    done = command("check", "named:app", "--fail-unguarded", *form, named=app)
    assert done.code == 1
    assert is_harmless(done.out)
    assert is_harmless(done.err)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(
    "arguments", [["call", "{}"], ["call", "x:y", "GET", "{}"], ["check", "{}:x"], ["bench", "{}"]]
)
def test_no_argument_does_anything_to_a_terminal(control: str, arguments: list[str], command: Command) -> None:
    done = command(*(argument.format(control) for argument in arguments))
    assert done.code == 2
    assert is_harmless(done.err)


# What prints


def as_a_line(page: Page, text: str) -> None:
    page.line("a", Painted(text, "red"), text)


def as_words(page: Page, text: str) -> None:
    page.wrapped(f"found {text}: ", text, colour="red")


def as_a_table(page: Page, text: str) -> None:
    page.table((text, "B", text), [(text, text, text), ("a", "b", "c")], ["red", None])


def as_progress(page: Page, text: str) -> None:
    page.progress(text)


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
@pytest.mark.parametrize("prints", [as_a_line, as_words, as_a_table, as_progress])
@given(text=st.text() | st.sampled_from(CONTROLS).map(lambda control: f"a {control} b"))
def test_whatever_the_text_only_the_colours_of_the_page_are_printed(
    prints: Callable[[Page, str], None], encoding: str, text: str
) -> None:
    buffer = io.BytesIO()
    stream = Terminal(buffer, encoding=encoding, newline="")
    prints(Page(stream), text)
    stream.flush()
    shown = buffer.getvalue().decode(encoding)
    for own in ("\x1b[31m", "\x1b[1m", "\x1b[0m"):
        shown = shown.replace(own, "")
    # The line of progress is over the one before, and its end at its beginning.
    assert is_harmless(shown.strip("\r") if prints is as_progress else shown)


def test_a_message_of_several_lines_stays_one_of_several_lines(capsys: pytest.CaptureFixture[str]) -> None:
    complain("one\ntwo \x1b[2J\rthree")
    assert capsys.readouterr().err == "error: one\ntwo \\x1b[2J\\rthree\n"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.text("\ud800\udfff\x1b\x9b\u202eé\U0001f600\x7f", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@given(value=VALUES)
def test_whatever_the_value_its_json_is_valid_and_harmless(encoding: str, value: Any) -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        print_json(value)
        stream.flush()
    shown = buffer.getvalue().decode(encoding)
    assert json.loads(shown) == value
    assert is_harmless(shown)


# Secrets

TELLING = """
from asgi_agents import Agent, AgentResponse, AuditMetadata, HeaderOp

CUSTOM = {
    "password": "s3cret",
    "nested": [{"session_id": ["s3cret"]}, {"name": "authorization", "value": "s3cret"}],
    "url": "https://user:s3cret@example.com/",
    "odd": {"name": 5, "value": 1},
    "headers": {"cookie": "s3cret", "x": ["a"]},
}


class Tells(Agent):
    async def on_request_headers(self, event):
        return AgentResponse.allow(
            request_headers=[HeaderOp.set("authorization", "s3cret"), HeaderOp.set("x-token", "s3cret")],
            routing_metadata={"api_key": "s3cret"},
            audit=AuditMetadata(tags=["token=s3cret"], custom=CUSTOM),
        )
"""


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_whatever_has_the_name_of_a_secret_is_not_shown(form: list[str], command: Command) -> None:
    done = command("call", "telling:Tells", *form, telling=TELLING)
    assert done.code == 0
    assert "s3cret" not in done.out + done.err
    assert done.out.count("[redacted]") >= 8
    # What is no secret is as the agent has said it.
    if form:
        custom = done.json["calls"][0]["answer"]["audit"]["custom"]
        assert (custom["odd"], custom["headers"]["x"]) == ({"name": 5, "value": 1}, ["a"])


# Errors in JSON


@pytest.mark.parametrize(
    ("arguments", "command_name"),
    [
        (["--json"], None),
        (["nothing", "--json"], None),
        (["check", "--json"], "check"),
        (["bench", "house:Auth", "--calls", "0", "--json"], "bench"),
        (["call", "house:Auth", "--body", "a", "--body-file", "b", "--json"], "call"),
        (["replay", "nowhere.jsonl", "--json"], "replay"),
        (["replay", "nowhere.jsonl", "--agent", "house:Auth", "--json"], "replay"),
        (["replay", "house.py", "--agent", "house:Auth", "--json"], "replay"),
        (["call", "house:Auth", "--config", "[" * 100_000, "--json"], "call"),
        (["call", "surprising:Waf", "--json"], "call"),
        (["call", "surprising:here.there", "--json"], "call"),
        (["call", "nowhere\udcff:Waf", "--json"], "call"),
        (["check", "house:Auth", "--json"], "check"),
    ],
)
def test_every_mistake_is_an_object_of_json(arguments: list[str], command_name: str | None, command: Command) -> None:
    surprising = (
        "class Odd:\n    @property\n    def there(self):\n        raise LookupError('no')\n\nhere = Odd()\n"
        "def __getattr__(name):\n    raise OverflowError(name)\n"
    )
    done = command(*arguments, surprising=surprising)
    assert done.code == 2
    assert list(done.json) == ["command", "format", "error"]
    assert (done.json["command"], done.json["format"]) == (command_name, 1)
    assert done.err


def test_what_nobody_has_expected_is_no_finding(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("token=s3cret")

    monkeypatch.setattr("asgi_agents.commands.call.run", fails)
    done = command("call", "house:Auth", "--json")
    assert (done.code, done.json["error"]) == (2, "ZeroDivisionError: token=[redacted]")
    assert "Traceback" in done.err
    assert "s3cret" not in done.err


ODD = """
from fastapi import FastAPI
from asgi_agents import AgentConfig, EventType, protect
from house import Auth


class Odd:
    kind, remote, events, carries = "odd", True, None, frozenset(EventType)

    def may_suspend(self, event_type):
        return True

    async def call(self, event): ...

    async def connect(self):
        raise ValueError("token=s3cret")

    async def aclose(self):
        raise ValueError("token=s3cret")


app = FastAPI(openapi_url=None)
agents = [AgentConfig("odd", Odd(), events=["request_headers"]), AgentConfig("auth", Auth())]
protect(app, agents=agents)
"""


def test_a_transport_that_raises_whatever_it_likes_is_found_and_the_others_are_asked(command: Command) -> None:
    done = command("check", "odd:app", "--json", odd=ODD)
    assert (done.code, done.err) == (1, "")
    assert [(agent["id"], agent["state"]) for agent in done.json["agents"]] == [("odd", "failed"), ("auth", "ready")]
    [finding] = done.json["findings"]
    assert finding["kind"] == "agent_unreachable"
    assert finding["message"] == "agent 'odd': ValueError: token=[redacted]"


FACTORIES = """
from functools import partial


def with_defaults(settings=None):
    return None


def with_names(*, debug=False):
    return None


bound = partial(with_defaults, settings=1)


class Maker:
    def __call__(self, name="shop"):
        return None


maker = Maker()


async def app(scope, receive, send): ...


class App:
    async def __call__(self, *args): ...


wrapped = App()
"""


@pytest.mark.parametrize("name", ["with_defaults", "with_names", "bound", "maker"])
def test_a_function_that_makes_an_app_is_told_from_one(name: str, command: Command) -> None:
    done = command("check", f"factories:{name}", factories=FACTORIES)
    message = f"error: 'factories:{name}' takes no scope, receive and send, expected an ASGI app; give --factory\n"
    assert (done.code, done.err) == (2, message)


@pytest.mark.parametrize("name", ["app", "wrapped"])
def test_an_app_of_whatever_kind_is_one(name: str, command: Command) -> None:
    done = command("check", f"factories:{name}", "--json", factories=FACTORIES)
    assert [finding["kind"] for finding in done.json["findings"]] == ["no_agents"]
