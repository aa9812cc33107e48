"""A plain allow is told at a glance, and never where a decoder would find something else."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from asgi_agents.protocol import ALLOW, AgentResponse, Encoding, EventType, decode_answer
from asgi_agents.protocol.stream import (
    ANSWER_IDS,
    CallIds,
    FrameReader,
    Framing,
    decode_answer_ids,
    encode_answer_frame,
    encode_frame,
    read_plain_allow,
)

steady = settings(deadline=None)
BEGINNING = b'{"version":2,"decision":"allow","audit":{"custom":{"correlation_id":"'
texts = st.text(st.characters(codec="utf-8"), max_size=20)


def payload_of(frame: bytes) -> bytes:
    [content] = FrameReader(Framing.V2).feed(frame)
    return content[1:]


@steady
@given(texts, st.integers(1, 2**53))
def test_what_our_serving_end_says_is_the_same_to_whoever_decodes_it(name: str, number: int) -> None:
    ids = CallIds(name, number)
    payload = payload_of(encode_answer_frame(ALLOW, Encoding.JSON, ids))
    assert decode_answer_ids(payload, Encoding.JSON) == ids
    assert decode_answer(payload, Encoding.JSON, EventType.REQUEST_HEADERS, without=ANSWER_IDS) is ALLOW
    assert read_plain_allow(payload) in (ids, None)


def test_the_ids_that_we_make_are_read_at_a_glance() -> None:
    ids = CallIds("0199f5c4-1b2c-7def-8123-456789abcdef", 42)
    assert read_plain_allow(payload_of(encode_answer_frame(ALLOW, Encoding.JSON, ids))) == ids


@steady
@given(
    st.one_of(
        st.tuples(st.binary(max_size=30), st.sampled_from([b'","call_id":', b'"', b'","x":', b'","call_id": '])).map(
            lambda parts: BEGINNING + b"".join(parts) + b"1}}}"
        ),
        st.binary(max_size=40).map(lambda middle: BEGINNING + middle + b"}}}"),
        st.tuples(texts, st.integers(-5, 10**20)).map(
            lambda ids: BEGINNING + ids[0].encode() + b'","call_id":%d}}}' % ids[1]
        ),
    )
)
@example(BEGINNING + b'a","call_id":007}}}')
@example(BEGINNING + b'a","call_id":1}},"decision":{"block":{"status":403}},"audit":{"custom":{"call_id":1}}}')
@example(BEGINNING + b'a","call_id":2,"correlation_id":"b","call_id":1}}}')
@example(BEGINNING + b'\\u0061","call_id":1}}}')
@example(BEGINNING + b'a\n","call_id":1}}}')
@example(BEGINNING + b'\xff","call_id":1}}}')
def test_what_is_read_at_a_glance_is_what_a_decoder_reads(payload: bytes) -> None:
    ids = read_plain_allow(payload)
    if ids is not None:
        assert decode_answer_ids(payload, Encoding.JSON) == ids
        assert decode_answer(payload, Encoding.JSON, EventType.REQUEST_HEADERS, without=ANSWER_IDS) is ALLOW


def test_nothing_else_is_a_plain_allow() -> None:
    block = payload_of(encode_answer_frame(AgentResponse.block(403), Encoding.JSON, CallIds("a", 1)))
    assert read_plain_allow(block) is None
    unnumbered = payload_of(encode_answer_frame(ALLOW, Encoding.JSON, CallIds("a", UNSET)))
    assert read_plain_allow(unnumbered) is None
    assert decode_answer_ids(unnumbered, Encoding.JSON) == CallIds("a", UNSET)


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
