"""Bodies with a content-encoding: shown decoded, or not at all, and never changed by who can't read them."""

import gzip
import logging
import random
import zlib
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from asgi_agents import AgentConfig, AgentResponse, AuditRecord, BodyMode, FailureMode, ResponseAborted
from asgi_agents.failures import FailureKind
from tests.support.asgi import App, Client, Probe, SlowProbe, body, guarded, start

from .test_body import BUFFER, STREAM, agent, each_mode, each_way, replace

NOISE = random.Random(1).randbytes(2000).hex().encode()  # noqa: S311 - not a secret
CONTENT = b"a secret, and more: " + NOISE[:1000]
ENCODED = gzip.compress(CONTENT, mtime=0)
GZIP = (b"content-encoding", b"gzip")


def cut(data: bytes, size: int = 100) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


class Passage:
    """An encoded body sent in one direction past agents."""

    def __init__(self, way: str, pieces: list[bytes], *headers: tuple[bytes, bytes], declared: bool = False) -> None:
        self.way = way
        headers = headers or (GZIP,)
        if declared:
            headers += ((b"content-length", b"%d" % sum(map(len, pieces))),)
        if way == "request":
            self.client = Client("POST", headers=headers, body=b"".join(pieces) if declared else pieces)
            self.app = App()
        else:
            self.client = Client()
            last = len(pieces) - 1
            self.app = App(
                start(200, *headers), *(body(piece, more=index < last) for index, piece in enumerate(pieces))
            )

    async def past(self, *agents: AgentConfig, **options: Any) -> bytes:
        await self.client.call(guarded(self.app, *agents, **options))
        return self.out

    @property
    def out(self) -> bytes:
        return self.app.body if self.way == "request" else self.client.body

    def header(self, name: bytes) -> bytes | None:
        return self.app.header(name) if self.way == "request" else self.client.header(name)

    @property
    def arrived(self) -> bool:
        """Whether the body got to the far side."""
        return self.app.calls > 0 if self.way == "request" else self.client.status == 200


def reader(way: str, mode: BodyMode, answer: Any = None, **options: Any) -> tuple[Probe, AgentConfig]:
    probe = Probe(**{f"{way}_body": answer})
    return probe, agent(way, probe, mode, **options)


@each_way
@each_mode
@pytest.mark.parametrize("slow", [False, True], ids=["prompt", "slow"])
async def test_who_decodes_sees_the_content_and_what_was_sent_goes_on(way: str, mode: BodyMode, slow: bool) -> None:
    probe = (SlowProbe if slow else Probe)(**{f"{way}_body": None})
    passage = Passage(way, cut(ENCODED), declared=True)
    assert await passage.past(agent(way, probe, mode, decode=True)) == ENCODED
    assert b"".join(data for _, data, _ in probe.chunks) == CONTENT
    assert [last for _, _, last in probe.chunks][-1]
    assert not any(last for _, _, last in probe.chunks[:-1])
    assert [index for index, _, _ in probe.chunks] == list(range(len(probe.chunks)))
    assert passage.header(b"content-encoding") == b"gzip"
    assert passage.header(b"content-length") == b"%d" % len(ENCODED)


@each_way
@each_mode
async def test_what_a_writer_changed_goes_on_as_the_content_itself(way: str, mode: BodyMode) -> None:
    writer = Probe(**{f"{way}_body": replace(lambda data: data.replace(b"secret", b"******"))})
    passage = Passage(way, [ENCODED], declared=True)
    out = await passage.past(agent(way, writer, mode, write=True, decode=True))
    assert out == CONTENT.replace(b"secret", b"******")
    assert passage.header(b"content-encoding") is None
    length = passage.header(b"content-length")
    assert length == b"%d" % len(out) or (length is None and mode != BUFFER)


@each_way
async def test_what_a_writer_was_shown_whole_and_left_alone_goes_on_as_it_was(way: str) -> None:
    writer = Probe(**{f"{way}_body": None})
    passage = Passage(way, cut(ENCODED), declared=True)
    assert await passage.past(agent(way, writer, BUFFER, write=True, decode=True)) == ENCODED
    assert passage.header(b"content-encoding") == b"gzip"


@each_way
@pytest.mark.parametrize("pieces", [[ENCODED], cut(ENCODED)], ids=["in one", "in pieces"])
@pytest.mark.parametrize("behind_a_buffer", [False, True])
async def test_what_streams_through_a_writer_is_the_content_itself_changed_or_not(
    way: str, pieces: list[bytes], behind_a_buffer: bool
) -> None:
    writer = Probe(**{f"{way}_body": None})
    passage = Passage(way, pieces, declared=True)
    _, before = reader(way, BUFFER)
    agents = [before] if behind_a_buffer else []
    assert await passage.past(*agents, agent(way, writer, STREAM, write=True, decode=True)) == CONTENT
    assert passage.header(b"content-encoding") is None
    assert passage.header(b"content-length") in (None, b"%d" % len(CONTENT))


def _marked(mark: bytes, data: bytes) -> bytes:
    return data.replace(b", and", mark + b", and")


CHAINS = {
    "reader behind a writer": [("writer", True), ("reader", True)],
    "writer behind a reader": [("reader", True), ("writer", True)],
    "two writers": [("writer", True), ("writer", True)],
    "one that does not decode behind a writer": [("writer", True), ("reader", False)],
    "a writer that does not decode behind one that does": [("writer", True), ("writer", False)],
}


@each_way
@each_mode
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
async def test_along_a_chain_everyone_sees_what_those_before_have_made_of_it(
    way: str, mode: BodyMode, chain: list[tuple[str, bool]]
) -> None:
    agents, probes, expected, sees = [], [], CONTENT, []
    for index, (kind, decodes) in enumerate(chain):
        sees.append(expected)
        mark = b"<%d>" % index
        answer = replace(partial(_marked, mark)) if kind == "writer" else None
        probe = Probe(**{f"{way}_body": answer})
        probes.append(probe)
        agents.append(agent(way, probe, mode, write=kind == "writer", decode=decodes, id=f"agent-{index}"))
        if kind == "writer":
            expected = _marked(mark, expected)
    passage = Passage(way, [ENCODED])
    assert await passage.past(*agents) == expected
    for probe, seen in zip(probes, sees, strict=True):
        assert b"".join(data for _, data, _ in probe.chunks) == seen


BROKEN = {
    "truncated": ENCODED[:-5],
    "trailing": ENCODED + b"surplus",
    "nonsense": b"nonsense",
    "bomb": gzip.compress(bytes(900_000), mtime=0),
    "unknown": b"whatever",
}


@each_way
@each_mode
@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("failure_mode", FailureMode)
async def test_what_can_not_be_decoded_goes_by_the_failure_mode(
    way: str, mode: BodyMode, kind: str, failure_mode: FailureMode
) -> None:
    header = (b"content-encoding", b"made-up" if kind == "unknown" else b"gzip")
    data = BROKEN[kind]
    _, config = reader(way, mode, decode=True, failure_mode=failure_mode, id="reader", circuit_breaker=None)
    passage = Passage(way, [data[:50], data[50:]] if len(data) > 50 else [data], header)
    app = guarded(passage.app, config)
    with suppress(ResponseAborted):
        await passage.client.call(app)
    if failure_mode is FailureMode.OPEN:
        assert passage.out == data
        assert passage.client.complete
    else:
        assert passage.out != data
        if way == "request":
            assert passage.client.status == 415
            assert passage.app.calls == 0 or mode != BUFFER
        elif mode == BUFFER or kind == "unknown":
            assert passage.client.status == 500
        else:
            assert passage.client.status == 500 or not passage.client.complete
    kinds = {FailureKind.REQUEST_UNREADABLE, FailureKind.RESPONSE_UNREADABLE}
    assert set(app.manager.metrics["reader"].outcomes) - {"allow"} <= {kind.value for kind in kinds}


@each_way
@pytest.mark.parametrize("failure_mode", FailureMode)
async def test_half_a_stream_of_content_never_looks_whole(way: str, failure_mode: FailureMode) -> None:
    # Even where the writer fails open: nobody could go on from content to what is encoded.
    writer = Probe(**{f"{way}_body": None})
    config = agent(way, writer, STREAM, write=True, decode=True, failure_mode=failure_mode)
    passage = Passage(way, cut(ENCODED[:-5]))
    with suppress(ResponseAborted):
        await passage.client.call(guarded(passage.app, config))
    if way == "response":
        assert not passage.client.complete
    else:
        assert passage.client.status == 415


async def test_content_counts_for_the_limit_not_what_it_was_encoded_as() -> None:
    content = NOISE
    for limit, status in ((len(content), 200), (len(content) - 1, 413)):
        _, config = reader("request", BUFFER, decode=True, max_request_body_bytes=limit)
        passage = Passage("request", cut(gzip.compress(content)))
        await passage.past(config)
        assert passage.client.status == status


async def test_what_is_encoded_counts_where_it_has_no_content_at_all() -> None:
    # Stored blocks of nothing: a body without end that decodes to an empty one.
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    empty = stream.flush(zlib.Z_FULL_FLUSH)
    _, config = reader("request", BUFFER, decode=True, max_request_body_bytes=1000)
    passage = Passage("request", [empty * 100] * 100, (b"content-encoding", b"deflate"))
    await passage.past(config)
    assert passage.client.status == 413
    assert passage.app.calls == 0


# Who does not decode


@each_mode
@pytest.mark.parametrize("failure_mode", FailureMode)
@each_way
async def test_a_writer_that_does_not_decode_fails_at_an_encoded_body(
    way: str, mode: BodyMode, failure_mode: FailureMode
) -> None:
    writer = Probe(**{f"{way}_body": replace(lambda data: b"changed")})
    passage = Passage(way, cut(ENCODED))
    await passage.past(agent(way, writer, mode, write=True, failure_mode=failure_mode))
    assert writer.chunks == []
    if failure_mode is FailureMode.OPEN:
        assert passage.out == ENCODED
    else:
        assert passage.client.status == (415 if way == "request" else 500)
        assert passage.app.calls == (0 if way == "request" else 1)


ACCEPTED = {
    "writer": ({"write": True}, None),
    "decoding writer": ({"write": True, "decode": True}, b"gzip, br"),
    "decoding reader": ({"decode": True}, b"gzip, br"),
    "reader": ({}, b"gzip, br, made-up"),
    "shadow writer": ({"write": True, "enforce": False}, b"gzip, br, made-up"),
    "shadow reader that decodes": ({"decode": True, "enforce": False}, b"gzip, br, made-up"),
}


@pytest.mark.parametrize(("options", "left"), ACCEPTED.values(), ids=ACCEPTED)
async def test_the_app_is_asked_for_no_coding_that_its_agents_can_not_read(
    options: dict[str, Any], left: bytes | None
) -> None:
    app, client = App(), Client(headers=[(b"accept-encoding", b"gzip, br, made-up")])
    await client.call(guarded(app, agent("response", Probe(response_body=None), BUFFER, **options)))
    assert app.header(b"accept-encoding") == left


@each_way
async def test_a_reader_that_does_not_decode_is_warned_of_once_a_route(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    records: list[AuditRecord] = []
    _, config = reader(way, STREAM, id="reader")
    middleware = guarded(App(), config, on_audit=records.append)
    with caplog.at_level(logging.WARNING, logger="asgi_agents"):
        for _ in range(3):
            passage = Passage(way, cut(ENCODED))
            middleware.app = passage.app
            await passage.client.call(middleware)
            assert passage.out == ENCODED
    assert [record.shown_encoded for record in records] == [("reader",)] * 3
    lines = [record.getMessage() for record in caplog.records if "content-encoding" in record.getMessage()]
    assert len(lines) == 1
    assert "'reader'" in lines[0]
    assert "decode=True" in lines[0]


async def test_a_body_that_is_not_encoded_is_nothing_to_warn_of() -> None:
    records: list[AuditRecord] = []
    _, config = reader("response", STREAM)
    client = Client()
    app = App(start(200, (b"content-encoding", b"identity")), body(b"plain"))
    await client.call(guarded(app, config, on_audit=records.append))
    assert client.body == b"plain"
    assert records[0].shown_encoded == ()


@each_mode
async def test_an_encoded_event_stream_is_decoded_as_it_streams(mode: BodyMode) -> None:
    stream = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    events = [b"data: one\n\n", b"data: two\n\n"]
    pieces = [stream.compress(event) + stream.flush(zlib.Z_SYNC_FLUSH) for event in events] + [stream.flush()]
    probe, config = reader("response", mode, decode=True)
    passage = Passage("response", pieces, GZIP, (b"content-type", b"text/event-stream"))
    assert await passage.past(config) == b"".join(pieces)
    assert [data for _, data, _ in probe.chunks if data] == events


@each_mode
@each_way
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("coding", [b"gzip", b"nonsense"])
async def test_an_encoded_body_that_is_declared_to_be_empty_is_judged_if_it_comes(
    way: str, mode: BodyMode, write: bool, coding: bytes
) -> None:
    def react(event: Any) -> AgentResponse | None:
        return AgentResponse.block(403) if b"secret" in event.data else None

    headers = ((b"content-encoding", coding), (b"content-length", b"0"))
    passage = Passage(way, cut(ENCODED), *headers)
    # Nothing in HTTP/2 says more of a body than this.
    passage.client.scope["headers"] = list(headers) if way == "request" else []
    config = agent(way, Probe(**{f"{way}_body": react}), mode, write=write, decode=True)
    with suppress(ResponseAborted):
        await passage.past(config)
    assert passage.arrived <= (mode == STREAM)
    assert ENCODED not in passage.out
    assert b"secret" not in passage.out
    if coding == b"gzip" and not write and mode == STREAM and passage.client.status == 200:
        # Of a stream that only readers hear, there may be what came before.
        assert b"secret" not in zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(passage.out)
    elif passage.client.status == 200 or way == "request":
        assert passage.out == b""


@each_way
@pytest.mark.parametrize("coding", [b"gzip", b"nonsense"])
@pytest.mark.parametrize("write", [False, True])
async def test_an_empty_body_is_not_encoded_whatever_its_head_says(way: str, coding: bytes, write: bool) -> None:
    passage = Passage(way, [b""], (b"content-encoding", coding), declared=True)
    probe = Probe(**{f"{way}_body": None})
    assert await passage.past(agent(way, probe, STREAM, write=write, decode=True)) == b""
    assert passage.arrived
    assert probe.heard == []


@each_mode
@each_way
@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("size", [100, 1000, 10**6])
async def test_a_writer_that_is_left_out_midway_leaves_a_whole_body_behind(
    way: str, mode: BodyMode, declared: bool, size: int
) -> None:
    content = b"".join(b"%d " % (number * 7919 % 10007) for number in range(60_000))
    encoded = gzip.compress(content)
    passage = Passage(way, cut(encoded, size), declared=declared)
    probe = Probe(**{f"{way}_body": replace(lambda data: data)})
    options: dict[str, Any] = {f"max_{way}_body_bytes": 100_000, "failure_mode": FailureMode.OPEN}
    out = await passage.past(agent(way, probe, mode, write=True, decode=True, **options))
    assert passage.header(b"content-length") in (None, b"%d" % len(out))
    assert (gzip.decompress(out) if passage.header(b"content-encoding") else out) == content


@pytest.mark.parametrize(
    "ends", [ENCODED[:-6], ENCODED[:-4] + b"xxxx", ENCODED + b"more"], ids=["too short", "wrong checksum", "too long"]
)
async def test_content_that_turns_out_unreadable_behind_a_writer_that_was_left_out_is_broken_off(ends: bytes) -> None:
    probe = Probe(response_body=replace(lambda data: data))
    options: dict[str, Any] = {"max_response_body_bytes": 300, "failure_mode": FailureMode.OPEN}
    passage = Passage("response", [*cut(ends), b""])
    with pytest.raises(ResponseAborted):
        await passage.past(agent("response", probe, STREAM, write=True, decode=True, **options))
    assert not passage.client.complete
    assert CONTENT.startswith(passage.out)
