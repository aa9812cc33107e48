"""Bodies that stream in units: cut between them, and ended behind one."""

import re
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents import (
    AgentConfig,
    AgentDecision,
    AgentResponse,
    Block,
    BodyMode,
    BodyMutation,
    Failure,
    FailureKind,
    FailureMode,
    ResponseAborted,
)
from asgi_agents.exchange.units import MAX_UNIT_BYTES, error_object, last_unit, streamed_type
from tests.support.asgi import App, Client, Probe, SlowProbe, body, guarded, start

from .test_body import agent, each_mode

reproducible = settings(deadline=None, derandomize=True, database=None)

_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
_FIELDS = st.sampled_from([b"data: x", b"data", b"event: e", b"id: 1", b": comment", b"data: y\xc3\xa9", b""])
_EVENT_STREAM = st.lists(st.tuples(_FIELDS, _ENDS), max_size=30).map(lambda lines: b"".join(map(b"".join, lines)))


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place for place in places if place < len(data))})
    return [data[a:b] for a, b in pairwise(edges)]


def lines_of(data: bytes) -> list[bytes]:
    """By the grammar, to the letter: WHATWG HTML, section 9.2.5."""
    lines, start = [], 0
    for match in re.finditer(rb"\r\n|\n|\r", data):
        lines.append(data[start : match.start()])
        start = match.end()
    return lines


def is_between_events(data: bytes) -> bool:
    """Whether an event may begin behind ``data``, with nothing before it but whole events and comments."""
    if not data.endswith((b"\n", b"\r")):
        return not data
    pending = [line for line in _latest_event(lines_of(data)) if not line.startswith(b":")]
    return pending == []


def _latest_event(lines: list[bytes]) -> list[bytes]:
    latest: list[bytes] = []
    for line in lines:
        latest = [] if line == b"" else [*latest, line]
    return latest


@reproducible
@given(stream=_EVENT_STREAM, places=st.lists(st.integers(1, 200), max_size=20))
def test_events_are_cut_between_them_wherever_the_app_cut_them(stream: bytes, places: list[int]) -> None:
    streamed = streamed_type("text/event-stream")
    assert streamed is not None
    cutter = streamed.cutter("")
    out = b""
    pieces = cut_at(stream, places)
    for index, piece in enumerate(pieces):
        got = cutter.feed(piece, index == len(pieces) - 1)
        out += got
        assert index == len(pieces) - 1 or is_between_events(out), (stream, out)
        # And nothing is held that has ended, but for a line end whose second half may be still to come.
        held = stream[len(out) : len(out) + cutter.held]
        assert not re.search(rb"\n\n|\r\r|\r\n\r\n", held), (stream, held)
    assert out == stream


@reproducible
@given(
    lines=st.lists(st.sampled_from([b'{"a": 1}', b"", b"x" * 50]), max_size=20),
    places=st.lists(st.integers(1, 300), max_size=20),
    media_type=st.sampled_from(["application/x-ndjson", "application/jsonl", "application/json-seq"]),
)
def test_lines_and_records_are_cut_behind_their_ends(lines: list[bytes], places: list[int], media_type: str) -> None:
    begin = b"\x1e" if media_type == "application/json-seq" else b""
    stream = b"".join(begin + line + b"\n" for line in lines) + b"rest"
    streamed = streamed_type(media_type)
    assert streamed is not None
    cutter = streamed.cutter(media_type)
    out = b""
    pieces = cut_at(stream, places)
    for index, piece in enumerate(pieces):
        out += cutter.feed(piece, index == len(pieces) - 1)
        assert out == stream or out == b"" or out.endswith(b"\n")
    assert out == stream


@reproducible
@given(
    parts=st.lists(st.binary(max_size=40).filter(lambda part: b"--frame" not in part), min_size=1, max_size=6),
    places=st.lists(st.integers(1, 400), max_size=20),
    boundary=st.sampled_from(["frame", '"frame"', "--frame"]),
)
def test_parts_are_cut_before_the_next_delimiter(parts: list[bytes], places: list[int], boundary: str) -> None:
    stream = (
        b"".join(b"--frame\r\ncontent-type: image/jpeg\r\n\r\n" + part + b"\r\n" for part in parts) + b"--frame--\r\n"
    )
    streamed = streamed_type("multipart/x-mixed-replace")
    assert streamed is not None
    cutter = streamed.cutter(f"multipart/x-mixed-replace; boundary={boundary}")
    out = b""
    pieces = cut_at(stream, places)
    for index, piece in enumerate(pieces):
        out += cutter.feed(piece, index == len(pieces) - 1)
        assert out == stream or stream[len(out) :].startswith(b"--frame")
    assert out == stream


@pytest.mark.parametrize("media_type", ["text/plain", "application/json", None, "multipart/form-data"])
def test_other_types_have_no_units(media_type: str | None) -> None:
    assert streamed_type(media_type) is None


# Endings

DECISIONS: dict[str, tuple[AgentDecision, dict[str, str]]] = {
    "block": (AgentDecision(decision=Block(451, "no")), {"message": "no", "type": "blocked", "code": "451"}),
    "line ends": (
        AgentDecision(decision=Block(403, "line\n\ndata: fake")),
        {"message": "line\n\ndata: fake", "type": "blocked", "code": "403"},
    ),
    "failure": (
        AgentDecision(decision=Failure(FailureKind.TIMEOUT, "…").block, failure=Failure(FailureKind.TIMEOUT, "…")),
        {"message": "Gateway timeout", "type": "timeout", "code": "504"},
    ),
}


@pytest.mark.parametrize(("decision", "error"), DECISIONS.values(), ids=DECISIONS)
def test_an_ending_says_why_in_the_shape_that_clients_raise_on(decision: AgentDecision, error: dict[str, str]) -> None:
    said = error_object(decision)
    assert msgspec.json.decode(said) == {"type": "error", "error": error}
    assert not {b"\n", b"\r"} & {said[i : i + 1] for i in range(len(said))}
    for media_type, begin, end in (
        ("text/event-stream", b"event: error\ndata: ", b"\n\n"),
        ("application/x-ndjson", b"", b"\n"),
        ("application/json-seq", b"\x1e", b"\n"),
    ):
        streamed = streamed_type(media_type)
        assert streamed is not None
        assert last_unit(streamed, decision, media_type, sent=b"") == begin + said + end
        assert last_unit(streamed, decision, media_type, sent=b"data: x\n\n"[-4:]) == begin + said + end
        separated = last_unit(streamed, decision, media_type, sent=b"half")
        assert separated is not None
        assert separated.endswith(begin + said + end)
        assert separated.startswith(b"\n")


@pytest.mark.parametrize("own", ["event: done\ndata: {}\n\n", "event: done\ndata: {}"])
def test_a_block_of_the_same_type_brings_its_own_last_event(own: str) -> None:
    streamed = streamed_type("text/event-stream")
    assert streamed is not None
    block = Block(403, own, {"Content-Type": "Text/Event-Stream; charset=utf-8"})
    ending = last_unit(streamed, AgentDecision(decision=block), "text/event-stream", sent=b"")
    assert ending == b"event: done\ndata: {}\n\n"


def test_parts_have_no_ending_that_a_client_would_understand() -> None:
    streamed = streamed_type("multipart/x-mixed-replace")
    assert streamed is not None
    assert last_unit(streamed, DECISIONS["block"][0], "multipart/x-mixed-replace", sent=b"") is None


# In an exchange


def deny(word: bytes, answer: AgentResponse | None = None) -> Any:
    return lambda event: (answer or AgentResponse.block(403, "denied")) if word in event.data else None


STREAMS = {
    "text/event-stream": (b"data: %d\n\n", b"event: error\ndata: %b\n\n"),
    "application/x-ndjson": (b'{"n": %d}\n', b"%b\n"),
    "application/jsonl": (b'{"n": %d}\n', b"%b\n"),
    "application/json-seq": (b'\x1e{"n": %d}\n', b"\x1e%b\n"),
}


@pytest.mark.parametrize("media_type", STREAMS)
@each_mode
@pytest.mark.parametrize("kind", [Probe, SlowProbe])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_a_stream_that_is_blocked_ends_behind_a_whole_unit(
    media_type: str, mode: BodyMode, kind: type[Probe], size: int
) -> None:
    unit, ending = STREAMS[media_type]
    stream = b"".join(unit % number for number in range(5)) + b"never sent"
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    head = start(200, (b"content-type", media_type.encode()), (b"content-length", b"%d" % len(stream)))
    client = Client()
    probe = kind(response_body=deny(unit % 3))
    app = App(head, *(body(piece, more=True) for piece in pieces), body())
    await client.call(guarded(app, agent("response", probe, mode)))
    error = b'{"type":"error","error":{"message":"denied","type":"blocked","code":"403"}}'
    whole = b"".join(unit % number for number in range(3 if size < 1000 else 0))
    assert client.body == whole + ending % error
    assert client.complete
    assert client.header(b"content-length") is None


@each_mode
async def test_streams_are_never_buffered(mode: BodyMode) -> None:
    for media_type, (unit, _) in STREAMS.items():
        client, seen = Client(), []

        async def app(scope: Any, receive: Any, send: Any, unit: bytes = unit, media_type: str = media_type) -> None:
            await send(start(200, (b"content-type", media_type.encode())))
            for number in range(3):
                await send(body(unit % number, more=True))
                seen.append(client.body)  # noqa: B023
            await send(body())

        await client.call(guarded(app, agent("response", Probe(response_body=None), mode)))
        assert seen == [b"".join(unit % n for n in range(count)) for count in (1, 2, 3)]


@each_mode
async def test_a_writers_agents_behind_it_are_shown_whole_events_too(mode: BodyMode) -> None:
    """A writer may hold anything back, and let it go at any time."""
    held: list[bytes] = []

    def hold_back(event: Any) -> AgentResponse:
        held.append(event.data)
        data = b"" if not event.is_last else b"".join(held)
        if len(held) == 2 and not event.is_last:
            data, held[:] = b"".join(held)[:5], [b"".join(held)[5:]]
        return AgentResponse.allow(response_body_mutation=BodyMutation(data))

    reader, client = Probe(response_body=None), Client()
    events = [b"data: %d\n\n" % number for number in range(4)]
    app = App(start(200, (b"content-type", b"text/event-stream")), *(body(e, more=True) for e in events), body())
    writer = agent("response", Probe(response_body=hold_back), mode, write=True, id="writer")
    await client.call(guarded(app, writer, agent("response", reader, mode)))
    assert client.body == b"".join(events)
    for _, data, last in reader.chunks:
        assert last or is_between_events(data)


async def test_parts_that_are_blocked_break_the_connection_off() -> None:
    head = start(200, (b"content-type", b"multipart/x-mixed-replace; boundary=b"))
    app = App(head, body(b"--b\r\n\r\none\r\n--b\r\n\r\nevil\r\n", more=True), body(b"--b--\r\n"))
    client = Client()
    with pytest.raises(ResponseAborted):
        await client.call(guarded(app, AgentConfig("a", Probe(response_body=deny(b"evil")))))
    assert client.body == b"--b\r\n\r\none\r\n"
    assert not client.complete


async def test_an_encoded_stream_that_nobody_decodes_is_broken_off() -> None:
    head = start(200, (b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip"))
    client = Client()
    config = AgentConfig("a", Probe(response_body=deny(b"evil")))
    with pytest.raises(ResponseAborted):
        await client.call(guarded(App(head, body(b"fine", more=True), body(b"evil")), config))
    assert client.body == b"fine"


@pytest.mark.parametrize("failure_mode", FailureMode)
async def test_an_event_that_never_ends_is_held_up_to_a_limit(failure_mode: FailureMode) -> None:
    piece = b"x" * 1000
    count = MAX_UNIT_BYTES // len(piece) + 2
    app = App(
        start(200, (b"content-type", b"text/event-stream")), *(body(piece, more=True) for _ in range(count)), body()
    )
    client = Client()
    await client.call(guarded(app, AgentConfig("a", Probe(response_body=None), failure_mode=failure_mode)))
    if failure_mode is FailureMode.OPEN:
        assert client.body == piece * count
    else:
        assert client.body.startswith(b"event: error\ndata: ")
        assert b"response_too_large" in client.body
    assert client.complete


# The head, and the body's first piece


def answer(*, length: bool, media_type: bytes = b"application/json") -> Any:
    headers = [(b"content-type", media_type)] + ([(b"content-length", b"2")] if length else [])
    return start(200, *headers)


@pytest.mark.parametrize("kind", [Probe, SlowProbe])
@pytest.mark.parametrize(
    ("length", "options", "status"),
    [(True, {}, 403), (False, {}, 200), (False, {"hold_head": True}, 403)],
    ids=["declared", "stream", "stream whose agent wants the head held"],
)
async def test_a_first_piece_that_is_blocked_is_answered_where_its_head_could_wait(
    kind: type[Probe], length: bool, options: dict[str, Any], status: int
) -> None:
    client = Client()
    config = agent("response", kind(response_body=deny(b"{}")), BodyMode.STREAM, **options)
    app = guarded(App(answer(length=length), body(b"{}")), config)
    if status == 200:
        with pytest.raises(ResponseAborted):
            await client.call(app)
    else:
        await client.call(app)
    assert client.status == status
    assert client.complete is (status == 403)


async def test_a_head_waits_for_the_first_verdict_and_no_more() -> None:
    client, seen = Client(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(answer(length=True))
        seen.append(client.status)
        await send(body(more=True))
        seen.append(client.status)
        await send(body(b"{", more=True))
        seen.append(client.status)
        await send(body(b"}"))

    await client.call(guarded(app, agent("response", Probe(response_body=None), BodyMode.STREAM)))
    assert seen == [None, None, 200]
    assert client.body == b"{}"
    assert client.header(b"content-length") == b"2"


@pytest.mark.parametrize("kind", [Probe, SlowProbe])
@pytest.mark.parametrize("mode", [BodyMode.STREAM, BodyMode.BUFFER])
@pytest.mark.parametrize("options", [{}, {"hold_head": True}], ids=["declared", "held"])
@pytest.mark.parametrize("sent", [[], [body(more=True)], [body(b"{", more=True)]], ids=["nothing", "empty", "a part"])
@pytest.mark.parametrize("raises", [False, True])
async def test_a_denied_head_that_only_the_body_could_save_goes_out_with_none(
    kind: type[Probe], mode: BodyMode, options: dict[str, Any], sent: list[Any], raises: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(answer(length=not options))
        for message in sent:
            await send(message)
        if raises:
            raise LookupError

    denial = AgentResponse.block(451, needs_more=True)
    undecided = agent("response", kind(response_headers=denial, response_body=denial), mode, **options)
    client = Client()
    with pytest.raises(LookupError) if raises else nullcontext():
        await client.call(guarded(app, undecided))
    assert client.status == 451
    assert client.complete


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304), ("GET", 204)])
async def test_a_head_without_a_body_waits_for_nothing(method: str, status: int) -> None:
    client = Client(method)
    app = App(start(status, (b"content-length", b"2")), body())
    await client.call(guarded(app, agent("response", Probe(response_body=None), BodyMode.STREAM)))
    assert client.status == status


async def test_the_head_of_a_buffered_response_does_not_go_before_its_agents_have_judged_the_body() -> None:
    client = Client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(answer(length=True))
        raise ValueError("the app's own")

    with pytest.raises(ValueError, match="the app's own"):
        await client.call(guarded(app, agent("response", Probe(response_body=None), BodyMode.BUFFER)))
    assert client.messages == []


@pytest.mark.parametrize("raises", [True, False])
async def test_an_app_that_ends_before_its_first_piece_is_the_servers_to_deal_with(raises: bool) -> None:
    client = Client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(answer(length=True))
        if raises:
            raise ValueError("the app's own")

    config = agent("response", Probe(response_body=None), BodyMode.STREAM)
    if raises:
        with pytest.raises(ValueError, match="the app's own"):
            await client.call(guarded(app, config))
    else:
        await client.call(guarded(app, config))
    # As without agents: the head is out, and the body isn't.
    assert client.status == 200
    assert not client.complete
