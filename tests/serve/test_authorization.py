"""An agent as an authorization service: what it is shown, and what its answers come to."""

import logging
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from asgi_agents import Agent, AgentResponse, BodyMutation, EventType, HeaderOp
from asgi_agents.errors import BadInput, ConfigurationError
from asgi_agents.serve.authorization import (
    Authorizations,
    FinalHeader,
    Permission,
    ShownBody,
    final_headers,
)
from asgi_agents.serve.hooks import NoAnswer
from asgi_agents.transports.authorization import HEADS, declares_body
from tests.support.asgi import Probe, SlowProbe
from tests.transports.test_forward_auth import head

POST = head("POST", headers={"content-length": ["2"]})
BODY = ShownBody(b"{}")


async def ask(agent: Agent, event: Any = None, body: ShownBody | None = None) -> Permission:
    return await Authorizations("here", agent, None).ask(event or head(), body, {})


async def test_an_allow_has_all_that_the_agent_changes() -> None:
    agent = Probe(
        request_headers=AgentResponse.allow(
            request_headers=[HeaderOp.set("x-user", "alice")],
            response_headers=[HeaderOp.set("x-a", "1")],
            routing_metadata={"a": "1"},
        ),
        request_body=AgentResponse.allow(request_headers=[HeaderOp.set("x-size", "2")], routing_metadata={"b": "2"}),
    )
    found = await ask(agent, POST, BODY)
    assert found.reply is None
    assert list(found.request_headers) == [HeaderOp.set("x-user", "alice"), HeaderOp.set("x-size", "2")]
    assert list(found.response_headers) == [HeaderOp.set("x-a", "1")]
    assert found.routing_metadata == {"a": "1", "b": "2"}
    [chunk] = agent.of("request_body")
    assert (chunk.data, chunk.is_last, chunk.total_size, chunk.bytes_received) == (b"{}", True, 2, 2)
    assert chunk.correlation_id == POST.correlation_id


@pytest.mark.parametrize(
    ("answer", "status", "headers", "body"),
    [
        (AgentResponse.block(), 403, {"content-type": "text/plain; charset=utf-8"}, b"Forbidden"),
        (
            AgentResponse.block(401, "key?", headers={"www-authenticate": "ApiKey"}),
            401,
            {"content-type": "text/plain; charset=utf-8", "www-authenticate": "ApiKey"},
            b"key?",
        ),
        (AgentResponse.redirect("https://login.example/", 303), 303, {"location": "https://login.example/"}, b""),
        (
            AgentResponse.challenge("bearer", {"realm": "api"}),
            401,
            {"content-type": "text/plain; charset=utf-8", "www-authenticate": 'Bearer realm="api"'},
            b"Unauthorized",
        ),
        (AgentResponse.websocket_close(1008), 403, {"content-type": "text/plain; charset=utf-8"}, b"Forbidden"),
    ],
)
async def test_a_denial_is_the_reply_that_the_middleware_would_send(
    answer: AgentResponse, status: int, headers: dict[str, str], body: bytes
) -> None:
    reply = (await ask(Probe(request_headers=answer))).reply
    assert reply is not None
    shown = {name.decode(): value.decode() for name, value in reply.headers if name != b"content-length"}
    assert (reply.status, shown, reply.body) == (status, headers, body)


async def test_what_an_agent_raises_may_be_an_answer() -> None:
    def refuse(event: Any) -> AgentResponse:
        raise BadInput("no such thing")

    reply = (await ask(Probe(request_headers=refuse))).reply
    assert reply is not None
    assert (reply.status, reply.body) == (400, b"no such thing")


async def test_a_provisional_denial_is_for_the_body_to_take_back() -> None:
    later = AgentResponse.block(403, needs_more=True)
    for body_answer, allowed in ((None, True), (AgentResponse.block(422), False)):
        agent = Probe(request_headers=later, request_body=body_answer)
        assert ((await ask(agent, POST, BODY)).reply is None) is allowed
        # No body, and nothing takes it back.
        assert (await ask(agent)).reply is not None
        assert (await ask(agent, head(), ShownBody(b""))).reply is not None
    assert (await ask(Probe(request_headers=later))).reply is not None


async def test_an_agent_may_look_away_from_the_body() -> None:
    agent = Probe(request_headers=AgentResponse.allow(skip_body=True), request_body=AgentResponse.block())
    assert (await ask(agent, POST, BODY)).reply is None
    assert (await ask(agent, POST)).reply is None


UNSAYABLE = [
    AgentResponse.allow(request_body_mutation=BodyMutation(b"x")),
    AgentResponse.allow(response_body_mutation=BodyMutation(b"x")),
]


@pytest.mark.parametrize("answer", UNSAYABLE)
async def test_what_a_proxy_can_not_be_told_is_a_failure_and_logged(
    answer: AgentResponse, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NoAnswer):
        await ask(Probe(request_body=answer), POST, BODY)
    assert "the answer can't be sent" in caplog.text
    # A denial changes nothing of what does not pass.
    denial = replace(answer, decision=AgentResponse.block().decision)
    assert (await ask(Probe(request_body=denial), POST, BODY)).reply is not None


async def test_an_agent_that_fails_has_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Any) -> AgentResponse:
        raise LookupError("s3cret")

    with pytest.raises(NoAnswer, match="agent raised LookupError") as caught:
        await ask(Probe(request_headers=fail))
    assert "s3cret" not in str(caught.value)


async def test_a_body_that_is_not_shown_is_never_allowed(caplog: pytest.LogCaptureFixture) -> None:
    for event in (POST, head("POST", headers={"transfer-encoding": ["chunked"]})):
        with pytest.raises(NoAnswer, match="with_request_body"):
            await ask(Probe(request_headers=None, request_body=None), event)
    assert "the proxy has not shown it the body" in caplog.text
    assert (await ask(Probe(request_headers=None), POST)).reply is None


async def test_the_beginning_of_a_body_can_be_denied_and_not_allowed() -> None:
    beginning = ShownBody(b"{", partial=True)
    agent = Probe(request_body=AgentResponse.block())
    assert (await ask(agent, POST, beginning)).reply is not None
    [chunk] = agent.of("request_body")
    assert (chunk.is_last, chunk.total_size) == (False, None)
    for answer in (None, AgentResponse.allow(needs_more=True)):
        with pytest.raises(NoAnswer, match="nobody would judge the rest"):
            await ask(Probe(request_body=answer), POST, beginning)


@pytest.mark.parametrize(
    ("method", "headers", "declared"),
    [
        ("GET", {}, False),
        # Envoy shows no transfer-encoding, and HTTP/2 has none.
        ("POST", {}, True),
        ("DELETE", {}, False),
        ("POST", {"content-length": ["0"]}, False),
        ("POST", {"content-length": ["1"]}, True),
        ("GET", {"content-length": ["1"]}, True),
        ("POST", {"content-length": ["x"]}, True),
        ("POST", {"content-length": ["9" * 5000]}, True),
        ("POST", {"transfer-encoding": ["chunked"]}, True),
    ],
)
def test_which_heads_may_be_followed_by_a_body(method: str, headers: dict[str, list[str]], declared: bool) -> None:
    assert declares_body(head(method, headers=headers)) is declared


async def test_an_agent_that_cleans_up_is_told_that_the_request_is_over() -> None:
    agent = Probe(request_headers=None, complete=None)
    await ask(agent)
    agent2 = Probe(request_headers=AgentResponse.block(429), complete=None)
    await ask(agent2)

    def fail(event: Any) -> AgentResponse:
        raise LookupError

    agent3 = Probe(request_headers=fail, complete=None)
    with pytest.raises(NoAnswer):
        await ask(agent3)
    found = [(each.complete.status, each.complete.error) for each in (agent, agent2, agent3)]
    assert found == [(0, None), (429, None), (0, "NoAnswer")]
    assert agent.complete.correlation_id == agent.of("request_headers")[0].correlation_id


async def test_also_when_nobody_waits_for_the_answer_any_more() -> None:
    class Waits(SlowProbe):
        pass

    async def wait(event: Any) -> None:
        await anyio.sleep_forever()

    agent = Waits(request_headers=wait, complete=None)
    with anyio.move_on_after(0.01):
        await ask(agent)
    assert agent.complete.error is not None


async def test_only_so_many_hooks_are_at_work_at_a_time() -> None:
    at_work, most = 0, 0

    async def work(event: Any) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await checkpoint()
        at_work -= 1

    authorizations = Authorizations("here", SlowProbe(request_headers=work), 2)
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(authorizations.ask, head(), None, {})
    assert (at_work, most) == (0, 2)


def test_an_agent_that_would_not_be_asked_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigurationError, match="receives neither request_headers nor request_body_chunk"):
        Authorizations("here", Probe(response_headers=None), None)
    with pytest.raises(ConfigurationError, match="no bodies can be shown to it here"):
        Authorizations("here", Probe(request_headers=None, request_body=None), None, carries=HEADS)
    with pytest.raises(ConfigurationError, match="max_concurrency=0"):
        Authorizations("here", Probe(request_headers=None), 0)
    with pytest.raises(ConfigurationError, match="expected an instance of an Agent"):
        Authorizations("here", object(), None)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        Authorizations("here", Probe(request_headers=None, response_body=None, response_headers=None), None)
    assert "here: Probe also receives response_body_chunk, response_headers, which it is never shown" in caplog.text
    assert EventType.RESPONSE_HEADERS in Probe(response_headers=None).events


def test_what_operations_come_to() -> None:
    ops = [
        HeaderOp.set("X-A", "1"),
        HeaderOp.add("x-a", "2"),
        HeaderOp.add("x-b", "1"),
        HeaderOp.add("x-b", "2"),
        HeaderOp.set("x-c", "1"),
        HeaderOp.remove("x-c"),
        HeaderOp.remove("x-d"),
        HeaderOp.add("x-d", "1"),
    ]
    assert final_headers(ops) == [
        FinalHeader("x-a", True, ("1", "2")),
        FinalHeader("x-b", False, ("1", "2")),
        FinalHeader("x-c", True, ()),
        FinalHeader("x-d", True, ("1",)),
    ]


async def test_where_the_body_comes_later_the_head_alone_is_denied() -> None:
    to_come = ShownBody(b"", partial=True)
    agent = Probe(request_headers=None, request_body=None)
    permission = await ask(agent, POST, to_come)
    assert permission.reply is not None
    assert permission.reply.status == 411
    assert agent.of("request_body") == []
    # What the agent says of the head holds.
    denying = Probe(request_headers=AgentResponse.block(403), request_body=None)
    permission = await ask(denying, POST, to_come)
    assert permission.reply is not None
    assert permission.reply.status == 403
    # One that judges no bodies, or not this one, has said all.
    for agent in (
        Probe(request_headers=None),
        Probe(request_headers=AgentResponse.allow(skip_body=True), request_body=None),
    ):
        assert (await ask(agent, POST, to_come)).reply is None
