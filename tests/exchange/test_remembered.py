"""What a connection remembers of its agents' answers is bounded in bytes."""

import random
from typing import Any

import pytest

from asgi_agents import (
    AgentConfig,
    AgentResponse,
    AuditMetadata,
    BodyMode,
    BodyMutation,
    EventType,
    FailureKind,
    HeaderOp,
)
from asgi_agents.decision import Verdict
from asgi_agents.exchange.headers import apply_header_ops
from asgi_agents.exchange.remembered import (
    MAX_VERDICT_BYTES,
    MAX_VERDICTS,
    MAX_WAITING_OP_BYTES,
    compacted,
    newest,
    remembered,
)
from asgi_agents.failures import Failure
from asgi_agents.memory.weighing import weigh
from asgi_agents.protocol import ALLOW, Block, Challenge, ForgottenMutation, Redirect, WebSocketClose
from tests.support.asgi import App, Client, Probe, body, guarded, start

from .test_context import context_of

STREAM = BodyMode.STREAM
LONG = "x" * (2 * MAX_VERDICT_BYTES)


def verdict(response: AgentResponse | None, failure: Failure | None = None) -> Verdict:
    return Verdict("a", EventType.RESPONSE_BODY_CHUNK, response, failure, True, True, 0.1)


async def test_mutated_bytes_are_applied_and_not_kept() -> None:
    writer = Probe(response_body=lambda event: AgentResponse.allow(response_body_mutation=BodyMutation(b"secret" * 9)))
    client = Client()
    config = AgentConfig("a", writer, body_access="write", response_body_mode=STREAM)
    context = await context_of(guarded(App(start(), body(b"x", more=True), body(b"y")), config), client)
    assert client.body == b"secret" * 18
    mutations = [verdict.response.response_body_mutation for verdict in context.decision.verdicts if verdict.response]
    assert mutations == [ForgottenMutation(None, 0, 54)] * 2
    assert context.decision.response_body_mutation is None
    assert context.verdicts_forgotten == 0


async def test_the_number_that_is_forgotten_stays_visible() -> None:
    said = AgentResponse.allow(audit=AuditMetadata(tags=["x" * 5000]))
    talkative = Probe(response_body=lambda event: said)
    app = App(start(), *(body(b"x", more=index < 1199) for index in range(1200)))
    context = await context_of(guarded(app, AgentConfig("a", talkative, response_body_mode=STREAM)))
    kept = len(context.decision.verdicts)
    assert 100 < kept < MAX_VERDICT_BYTES / 5000
    assert context.verdicts_forgotten == 1200 - kept


ANSWERS = [
    AgentResponse.block(451, LONG),
    AgentResponse.redirect("https://example.com/" + LONG, 307),
    AgentResponse.challenge("basic", {"realm": LONG}),
    AgentResponse.websocket_close(3000, LONG),
    AgentResponse.allow(routing_metadata={"a": LONG}),
    AgentResponse.allow(request_headers=[HeaderOp.set("a", LONG)]),
    AgentResponse.allow(response_headers=[HeaderOp.set("a", "b")] * 100_000),
    AgentResponse.allow(audit=AuditMetadata(tags=[LONG], confidence=0.5)),
    AgentResponse.allow(audit=AuditMetadata(rule_ids=["7"] * 100_000)),
    AgentResponse.allow(audit=AuditMetadata(custom={"a": [{"b": LONG}]})),
    AgentResponse.allow(audit=AuditMetadata(custom={str(number): [] for number in range(100_000)})),
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_takes_all_the_room_is_shortened_to_what_it_comes_to(answer: AgentResponse) -> None:
    kept, size, whole = remembered(verdict(answer))
    assert not whole
    assert kept.response is not None
    assert weigh(kept.response, MAX_VERDICT_BYTES) < 16 * 1024
    assert size < 16 * 1024
    assert kept.outcome == verdict(answer).outcome
    assert kept.response.audit.confidence == answer.audit.confidence
    match answer.decision, kept.response.decision:
        case (Block(status), Block(kept_status)) | (Redirect(_, status), Redirect(_, kept_status)):
            assert status == kept_status
        case Challenge(kind), Challenge(kept_kind):
            assert kind == kept_kind
    if isinstance(answer.websocket_decision, WebSocketClose):
        assert kept.response.websocket_decision == WebSocketClose(3000)


@pytest.mark.parametrize("number", [1, 1000])
def test_what_is_short_is_kept_as_it_is(number: int) -> None:
    failed = verdict(None, Failure(FailureKind.ERROR, "agent 'a' failed"))
    denied = verdict(AgentResponse.block(403, "no", audit=AuditMetadata(tags=["t"], custom={"a": 1})))
    for each in (verdict(ALLOW), failed, denied):
        assert remembered(each)[::2] == (each, True)
        kept, size, lost = newest([each] * number)
        assert (kept, lost) == ([each] * number, 0)
        assert size < MAX_VERDICT_BYTES


@pytest.mark.parametrize("seed", range(20))
def test_the_newest_are_kept_within_the_bounds(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - not a secret
    verdicts = []
    for number in range(draw.randrange(3000)):
        text = "y" * draw.choice((0, 10, 1000, 100_000 if draw.random() < 0.1 else 5))
        response = AgentResponse.allow(audit=AuditMetadata(tags=[text], reason_codes=[str(number)]))
        verdicts.append(remembered(verdict(response))[0])
    kept, size, lost = newest(verdicts)
    assert len(kept) <= MAX_VERDICTS
    assert size <= MAX_VERDICT_BYTES
    assert lost >= len(verdicts) - len(kept)
    if kept:
        codes = [each.response.audit.reason_codes for each in kept if each.response]
        assert codes == [(str(number),) for number in range(len(verdicts) - len(kept), len(verdicts))]


def test_what_leads_back_to_itself_is_weighed_up_to_the_limit() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert weigh(endless, 1000) > 1000


# --- Header operations --------------------------------------------------------------------------------------------


def operations(draw: random.Random) -> list[HeaderOp]:
    ops = []
    for _ in range(draw.randrange(1, 12)):
        name, always = draw.choice(("a", "A", "b")), draw.random() < 0.3
        value = draw.choice(("1", "2"))
        ops.append(
            draw.choice(
                (
                    HeaderOp.set(name, value, always=always),
                    HeaderOp.add(name, value, always=always),
                    HeaderOp.remove(name, always=always),
                )
            )
        )
    return ops


@pytest.mark.parametrize("seed", range(300))
def test_compacted_operations_come_to_the_same(seed: int) -> None:
    ops = operations(random.Random(seed))  # noqa: S311 - not a secret
    fewer = compacted(ops)
    assert len(fewer) <= len(ops)
    for chosen, instead in ((ops, fewer), ([op for op in ops if op.always], [op for op in fewer if op.always])):
        headers = [(b"a", b"0"), (b"b", b"0"), (b"a", b"9")]
        found, right = apply_header_ops(headers, instead), apply_header_ops(headers, chosen)
        for name in (b"a", b"b"):
            assert [v for n, v in found if n.lower() == name] == [v for n, v in right if n.lower() == name]


def upload(pieces: int) -> Client:
    return Client("POST", body=[b"x"] * pieces)


async def test_an_agent_that_sets_the_same_with_every_piece_can_go_on_for_ever() -> None:
    said = AgentResponse.allow(response_headers=[HeaderOp.set("x-seen", "y" * 200)])
    agent = Probe(request_body=lambda event: said)
    client = upload(2000)
    context = await context_of(guarded(App(), AgentConfig("a", agent, request_body_mode=STREAM)), client)
    assert context.decision.is_allow
    assert [value for name, value in client.headers if name == b"x-seen"] == [b"y" * 200]


async def test_operations_of_which_too_many_wait_are_a_failure_of_their_agent() -> None:
    agent = Probe(
        request_body=lambda event: AgentResponse.allow(
            response_headers=[HeaderOp.add(f"x-{event.chunk_index}", "y" * 1000)]
        )
    )
    client = upload(100)
    context = await context_of(guarded(App(), AgentConfig("a", agent, request_body_mode=STREAM)), client)
    failure = context.decision.failure
    assert failure is not None
    assert failure.kind is FailureKind.NOT_APPLICABLE
    assert f"more than {MAX_WAITING_OP_BYTES} bytes of them wait for a head" in failure.message
    assert client.status == 503
