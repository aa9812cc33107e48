"""How a response comes to its record, and that nothing of it is left."""

import logging
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import Message

from asgi_agents import AgentMiddleware, AgentResponse, AuditMetadata, AuditRecord, EventType, protect
from asgi_agents.testing import FakeAgent, assert_blocked_by, override_agents
from asgi_agents.testing.recording import HEADER, RECORDS

from .apps import GUARDED, aget, get, protected, remote, shop

BLOCK = AgentResponse.block(403)


@pytest.mark.parametrize("make", GUARDED.values(), ids=GUARDED)
def test_only_apps_that_are_recorded_have_the_header(make: Any) -> None:
    app = make()
    assert HEADER not in get(app).headers
    with override_agents(app):
        assert HEADER in get(app).headers
    assert HEADER not in get(app).headers


def nested() -> Starlette:
    """The app in the app has agents of its own."""
    inner = shop()
    inner.add_middleware(AgentMiddleware, agents=[remote("inner")])
    app = Starlette(routes=[Mount("/", inner)])
    protect(app, agents=[remote("outer", events={EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS})])
    return app


def test_a_response_has_one_header_which_no_agent_sees() -> None:
    app, outer = nested(), FakeAgent()
    with override_agents(app, outer=outer, inner=FakeAgent(BLOCK)) as recorded:
        response = get(app)
    assert len(response.headers.get_list(HEADER)) == 1
    assert_blocked_by(response, "inner")
    assert [record.decided_by for record in recorded.records] == [None, "inner"]
    assert RECORDS._open == {}
    assert not any(HEADER in getattr(event, "headers", ()) for event in outer.received)


def test_the_client_may_name_all_its_requests_the_same() -> None:
    app = nested()
    inner = FakeAgent(request_headers=[BLOCK, None])
    with override_agents(app, outer=FakeAgent(), inner=inner), TestClient(app) as client:
        first, second = (client.get("/orders", headers={"x-request-id": "same"}) for _ in range(2))
    assert_blocked_by(first, "inner")
    with pytest.raises(AssertionError, match="no agent has stopped it"):
        assert_blocked_by(second, "inner")


async def test_requests_at_the_same_time_have_records_of_their_own() -> None:
    app = protected()

    async def judge(event: Any) -> AgentResponse | None:
        await anyio.lowlevel.checkpoint()
        return BLOCK if event.uri.endswith(("1", "3", "5")) else None

    responses: dict[int, Any] = {}

    async def ask(number: int) -> None:
        responses[number] = await aget(app, f"/orders?{number}")

    with override_agents(app, waf=FakeAgent(judge)) as recorded:
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(ask, number)
    for number, response in responses.items():
        if number % 2:
            assert_blocked_by(response, "waf")
        else:
            with pytest.raises(AssertionError, match="no agent has stopped it"):
                assert_blocked_by(response, "waf")
    assert len(recorded.records) == 6


async def test_a_record_can_be_read_before_the_connection_has_ended() -> None:
    app = protected()
    messages: list[Message] = []
    found: list[AuditRecord] = []

    class Head:
        """The response, as a client of a real server has it before the app has ended."""

        @property
        def headers(self) -> dict[str, str]:
            return {name.decode(): value.decode() for name, value in messages[0]["headers"]}

    async def send(message: Message) -> None:
        messages.append(message)
        # However often: what agents say of their answers is in each of the records.
        for _ in range(20):
            record = assert_blocked_by(Head(), "waf")
            assert record.answers[0].tags == [*blocked.audit.tags]
        found.append(record)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/orders", "query_string": b"", "headers": []}
    blocked = AgentResponse.block(403, audit=AuditMetadata(tags=["x" * 128] * 16))
    with override_agents(app, waf=FakeAgent(blocked)) as recorded:
        await app(scope, receive, send)
    assert [record.complete for record in (*found, *recorded.records)] == [False, False, True]
    assert recorded.records[0].answers[0].tags == [*blocked.audit.tags]


def test_the_app_still_has_its_own_audit(caplog: pytest.LogCaptureFixture) -> None:
    own: list[AuditRecord] = []
    app = protected(on_audit=own.append, audit_headers=["x-a"])
    caplog.set_level(logging.INFO, "asgi_agents.audit")
    with override_agents(app, waf=FakeAgent(BLOCK)) as recorded:
        get(app, headers={"x-a": "1"})
    assert own == list(recorded.records)
    assert own[0].headers == {"x-a": "1"}
    assert len([entry for entry in caplog.records if entry.name == "asgi_agents.audit"]) == 1


def test_an_app_without_an_audit_gets_none(caplog: pytest.LogCaptureFixture) -> None:
    app = protected()
    with override_agents(app, waf=FakeAgent()):
        get(app)
    assert [entry for entry in caplog.records if entry.name == "asgi_agents.audit"] == []


def test_each_recording_has_what_was_recorded_while_it_lasted() -> None:
    app = protected()
    with override_agents(app, waf=FakeAgent()) as outer:
        get(app, "/1")
        with override_agents(app) as inner:
            get(app, "/2")
        get(app, "/3")
    assert [record.path for record in outer.records] == ["/1", "/2", "/3"]
    assert [record.path for record in inner.records] == ["/2"]


# Two apps with a thousand requests.
@pytest.mark.slow
def test_the_records_of_a_thousand_connections_are_kept() -> None:
    app = protected()
    with override_agents(app, waf=FakeAgent(BLOCK)), TestClient(app) as client:
        first = client.get("/orders")
        for _ in range(999):
            client.get("/orders")
        assert_blocked_by(first, "waf")
        client.get("/orders")
    with pytest.raises(AssertionError, match="no record of this response any more: only the last 1,000 are kept"):
        assert_blocked_by(first, "waf")
