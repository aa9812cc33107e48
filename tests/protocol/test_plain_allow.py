"""A plain allow is known when it comes, because its spelling is known when the event is sent."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from asgi_agents.protocol import (
    ALLOW,
    AgentResponse,
    AuditMetadata,
    Encoding,
    EventType,
    HeaderOp,
    decode_answer,
    encode_answer,
)
from asgi_agents.protocol.stream import (
    ANSWER_IDS,
    CallIds,
    FrameReader,
    Framing,
    MessageType,
    decode_answer_ids,
    encode_answer_frame,
    encode_frame,
    plain_allow,
)
from asgi_agents.protocol.validation import check_response

steady = settings(deadline=None)
TAGGED = AuditMetadata(tags=["seen"])
texts = st.text(st.characters(codec="utf-8"), max_size=20)


@steady
@given(texts, st.integers(1, 2**53))
@example('"\\\n', 1)
@example("", 1)
def test_it_is_what_our_serving_end_says_and_what_whoever_decodes_it_finds(name: str, number: int) -> None:
    ids = CallIds(name, number)
    [content] = FrameReader(Framing.V2).feed(encode_answer_frame(ALLOW, Encoding.JSON, ids))
    assert content == plain_allow(name, number)
    assert content[0] == MessageType.AGENT_RESPONSE
    assert decode_answer_ids(content[1:], Encoding.JSON) == ids
    assert decode_answer(content[1:], Encoding.JSON, EventType.REQUEST_HEADERS, without=ANSWER_IDS) is ALLOW


def test_nothing_else_is_spelt_so() -> None:
    for answer in (AgentResponse.block(403), AgentResponse.allow(needs_more=True), AgentResponse.allow(audit=TAGGED)):
        assert encode_answer_frame(answer, Encoding.JSON, CallIds("a", 1))[4:] != plain_allow("a", 1)
    unnumbered = encode_answer_frame(ALLOW, Encoding.JSON, CallIds("a", UNSET))
    assert decode_answer_ids(unnumbered[5:], Encoding.JSON) == CallIds("a", UNSET)


@steady
@given(st.lists(st.binary(max_size=9), max_size=4), st.lists(st.integers(1, 40), max_size=8))
def test_frames_come_out_as_they_went_in_however_they_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(encode_frame(0x20, payload) for payload in payloads)
    reader, start = FrameReader(Framing.V2), 0
    found: list[bytes] = []
    for cut in [*cuts, len(stream) + 1]:
        found += reader.feed(stream[start : start + cut])
        start += cut
    assert found == [b"\x20" + payload for payload in payloads]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        ALLOW,
        AgentResponse(),
        AgentResponse.allow(),
        AgentResponse.allow(request_headers=[], response_headers=(), routing_metadata={}, audit=AuditMetadata()),
        AgentResponse(audit=AuditMetadata(custom={}), routing_metadata={}),
    ],
)
def test_it_is_recognised_however_it_is_spelt(answer: AgentResponse | None) -> None:
    assert check_response(answer, may_mutate=False, may_set_host=False) is ALLOW


@pytest.mark.parametrize("encoding", Encoding)
def test_it_is_recognised_where_every_field_of_it_is_sent(encoding: Encoding) -> None:
    assert decode_answer(encode_answer(ALLOW, encoding), encoding, EventType.REQUEST_HEADERS) is ALLOW


@pytest.mark.parametrize(
    "audit",
    [
        AuditMetadata(tags=("seen",)),
        AuditMetadata(rule_ids=("r-1",)),
        AuditMetadata(confidence=0.0),
        AuditMetadata(reason_codes=("why",)),
        AuditMetadata(custom={"a": None}),
    ],
)
def test_what_is_for_the_audit_record_is_not_lost(audit: AuditMetadata) -> None:
    sent = encode_answer(AgentResponse.allow(audit=audit), Encoding.JSON)
    found = decode_answer(sent, Encoding.JSON, EventType.REQUEST_HEADERS)
    assert isinstance(found, AgentResponse)
    assert found.audit == audit


def test_the_usual_spelling_makes_no_object() -> None:
    assert AgentResponse.allow() is ALLOW


@pytest.mark.parametrize(
    "answer",
    [
        AgentResponse.allow(needs_more=True),
        AgentResponse.allow(skip_body=True),
        AgentResponse.allow(audit=AuditMetadata(tags=("seen",))),
        AgentResponse.allow(routing_metadata={"tier": "gold"}),
        AgentResponse.allow(response_headers=[HeaderOp("set", "x-a", "1")]),
        AgentResponse.websocket_drop(),
        AgentResponse.block(403),
    ],
)
def test_an_allow_that_says_more_is_no_plain_one(answer: AgentResponse) -> None:
    assert check_response(answer, may_mutate=False, may_set_host=False) is answer


def test_a_subclass_makes_its_own() -> None:
    class Ours(AgentResponse, frozen=True):
        pass

    assert type(Ours.allow()) is Ours
