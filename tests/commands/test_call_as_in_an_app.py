"""What ``call`` shows an agent is what the agent is shown in front of an app: also behind a block, and in the end."""

from typing import Any

import anyio
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    Event,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
)
from asgi_agents.commands.command_line import main
from tests.support.asgi import App, Client, body, start

from .conftest import Command

HERE = "tests.commands.test_call_as_in_an_app"
#: What the agents were shown: ``call`` makes its own from the class.
SHOWN: list[Event] = []


class Noting(Agent):
    """Is shown everything of a request."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return self.answer(event)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return self.answer(event)

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        return self.answer(event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return self.answer(event)

    async def on_request_complete(self, event: RequestCompleteEvent) -> AgentResponse | None:
        return self.answer(event)

    def answer(self, event: Event) -> AgentResponse | None:
        SHOWN.append(event)
        return self.react(event)

    def react(self, event: Event) -> AgentResponse | None:
        return None


class BlocksHeads(Noting):
    def react(self, event: Event) -> AgentResponse | None:
        return AgentResponse.block(451, "not here") if isinstance(event, RequestHeadersEvent) else None


class Redirects(Noting):
    def react(self, event: Event) -> AgentResponse | None:
        return AgentResponse.redirect("/elsewhere", 307) if isinstance(event, RequestHeadersEvent) else None


class Challenges(Noting):
    def react(self, event: Event) -> AgentResponse | None:
        return AgentResponse.challenge("bearer", {}) if isinstance(event, RequestHeadersEvent) else None


class Fails(Noting):
    def react(self, event: Event) -> AgentResponse | None:
        if isinstance(event, RequestHeadersEvent):
            raise LookupError
        return None


class BlocksBodies(Noting):
    def react(self, event: Event) -> AgentResponse | None:
        return AgentResponse.block(422) if isinstance(event, RequestBodyChunkEvent) else None


class BlocksAnswers(Noting):
    def react(self, event: Event) -> AgentResponse | None:
        return AgentResponse.block(502) if isinstance(event, ResponseHeadersEvent) else None


class BlocksAnsweredBodies(Noting):
    def react(self, event: Event) -> AgentResponse | None:
        return AgentResponse.block(502, "leak") if isinstance(event, ResponseBodyChunkEvent) else None


class Waits(Noting):
    """Blocks at first, and takes it back when it has seen the body."""

    def react(self, event: Event) -> AgentResponse | None:
        if isinstance(event, RequestHeadersEvent):
            return AgentResponse.block(403, needs_more=True)
        return AgentResponse.allow() if isinstance(event, RequestBodyChunkEvent) else None


class WaitsAndBlocks(Noting):
    def react(self, event: Event) -> AgentResponse | None:
        if isinstance(event, RequestHeadersEvent):
            return AgentResponse.block(403, needs_more=True)
        return AgentResponse.block(422) if isinstance(event, RequestBodyChunkEvent) else None


AGENTS = [
    Noting,
    BlocksHeads,
    Redirects,
    Challenges,
    Fails,
    BlocksBodies,
    BlocksAnswers,
    BlocksAnsweredBodies,
    Waits,
    WaitsAndBlocks,
]


def parts_of(event: Event) -> dict[str, Any]:
    """What has to be the same: not ids and times."""
    names = {
        RequestHeadersEvent: ["method", "uri"],
        RequestBodyChunkEvent: ["data", "is_last"],
        ResponseHeadersEvent: ["status"],
        ResponseBodyChunkEvent: ["data", "is_last"],
        RequestCompleteEvent: [
            *("status", "request_body_size", "response_body_size", "upstream_attempts"),
        ],
    }[type(event)]
    return {"event": event.event_type.value, **{name: getattr(event, name) for name in names}}


async def in_front_of_an_app(agent: Agent, data: bytes | None) -> tuple[int | None, list[dict[str, Any]]]:
    SHOWN.clear()
    app = App(start(200, (b"content-type", b"text/plain")), body(b"hello"))
    middleware = AgentMiddleware(app, agents=[AgentConfig("agent", agent)])
    client = Client("GET" if data is None else "POST", "/a", body=data)
    await client.call(middleware)
    return client.status, [parts_of(event) for event in SHOWN]


@pytest.mark.parametrize("data", [None, b"some data"])
@pytest.mark.parametrize("kind", AGENTS)
async def test_an_agent_is_shown_the_same_as_in_front_of_an_app(
    kind: type[Noting], data: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    status, expected = await in_front_of_an_app(kind(), data)
    # Behind what stops a request comes nothing but the end.
    stopping = {BlocksHeads: 1, Redirects: 1, Challenges: 1, Fails: 1, BlocksAnsweredBodies: len(expected) - 1}
    assert [one["event"] for one in expected][stopping.get(kind, -1) :] == ["request_complete"]
    assert expected[-1]["status"] == status

    SHOWN.clear()
    arguments = ["call", f"{HERE}:{kind.__name__}", "GET" if data is None else "POST", "/a"]
    arguments += [] if data is None else ["--body", data.decode()]
    code = await anyio.to_thread.run_sync(main, [*arguments, "--response-body", "hello"])
    assert [parts_of(event) for event in SHOWN] == expected
    assert code == (2 if kind is Fails else 0 if status == 200 else 1)
    out = capsys.readouterr().out
    assert f"request_complete    told of the end: {status} " in out
    assert "request_complete    allow" not in out


def test_the_json_has_the_status_that_the_agent_was_told(command: Command) -> None:
    report = command("call", f"{HERE}:BlocksHeads", "--json").json
    assert [(one["event"], one["outcome"], one["status"]) for one in report["calls"]] == [
        ("request_headers", "block", None),
        ("request_complete", "allow", 451),
    ]
    assert (report["outcome"], report["request"]) == ("block", "GET /")


def test_a_provisional_block_holds_where_no_body_follows(command: Command) -> None:
    assert command("call", f"{HERE}:Waits").code == 1
    assert command("call", f"{HERE}:Waits", "POST", "--body", "x").code == 0


class BreaksAtTheEnd(Noting):
    def react(self, event: Event) -> AgentResponse | None:
        if isinstance(event, RequestCompleteEvent):
            raise LookupError
        return None


def test_an_agent_that_fails_at_the_end_is_said_to(command: Command) -> None:
    done = command("call", f"{HERE}:BreaksAtTheEnd")
    assert "request_complete    error " in done.out
    assert done.code == 2


# The target


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("/?q=1 or 1=1", "/?q=1%20or%201=1"),
        ("/?q=1%20or\t1", "/?q=1%20or%091"),
        ("/caf\u00e9", "/caf%C3%A9"),
        ("/\udcff", "/%FF"),
        ("/a\r\nx: y", "/a%0D%0Ax:%20y"),
        ("/?q=<script>&a[]={b}|\\^`\"'#+%", "/?q=<script>&a[]={b}|\\^`\"'#+%"),
        ("*", "*"),
    ],
)
def test_what_no_client_can_send_is_encoded_and_the_rest_stays(given: str, sent: str, command: Command) -> None:
    SHOWN.clear()
    done = command("call", f"{HERE}:Noting", "GET", given)
    assert [event.uri for event in SHOWN if isinstance(event, RequestHeadersEvent)] == [sent]
    assert done.out.startswith(f"request             GET {sent}\n") is (given != sent)
    assert command("call", f"{HERE}:Noting", "GET", given, "--json").json["request"] == f"GET {sent}"


def test_credentials_in_the_target_are_not_shown(command: Command) -> None:
    for given in ("/?token=s3cret", "/a b?token=s3cret"):
        for form in ([], ["--json"]):
            done = command("call", f"{HERE}:Noting", "GET", given, *form)
            assert "s3cret" not in done.out
        assert ("request  " in command("call", f"{HERE}:Noting", "GET", given).out) is (" " in given)
