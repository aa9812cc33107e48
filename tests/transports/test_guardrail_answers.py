"""What remote agents answer to guardrail questions: wrong shapes, and spans in bytes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import Any

import httpx
import msgspec
import pytest

from asgi_agents import (
    AgentConfig,
    ConfigurationError,
    Encoding,
    EventType,
    FailureKind,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailResponse,
    HttpTransport,
    StreamTransport,
    TextSpan,
    Transport,
)
from asgi_agents.guard import Guard
from asgi_agents.protocol.stream import MessageType, encode_frame
from tests.transports.stream.peer import Peer, Received

CONTENT = "é a@b.c 😀 d@e.f"
QUESTION = GuardrailInspectEvent(correlation_id="c", inspection_type="pii_detection", content=CONTENT)
ENCODERS: dict[Encoding, Callable[[Any], bytes]] = {
    Encoding.JSON: msgspec.json.encode,
    Encoding.MSGPACK: msgspec.msgpack.encode,
}


class Remote:
    """What the agent answers."""

    def __init__(self) -> None:
        self.answer: Any = {}


Reached = Callable[[Remote, Encoding, Any], Any]


@asynccontextmanager
async def over_http(remote: Remote, encoding: Encoding, span_unit: Any) -> AsyncIterator[Transport]:
    def respond(request: httpx.Request) -> httpx.Response:
        content = ENCODERS[encoding](remote.answer)
        return httpx.Response(200, headers={"content-type": encoding.content_type}, content=content)

    yield HttpTransport("http://agent/", encoding=encoding, transport=httpx.MockTransport(respond), span_unit=span_unit)


@asynccontextmanager
async def over_a_stream(remote: Remote, encoding: Encoding, span_unit: Any) -> AsyncIterator[StreamTransport]:
    async def respond(event: Received) -> None:
        answer = remote.answer
        if isinstance(answer, dict):
            answer = {**answer, "audit": {"custom": {"correlation_id": event.correlation_id}}}
        await event.link.send(encode_frame(MessageType.AGENT_RESPONSE, ENCODERS[encoding](answer)))

    async with Peer(encoding=encoding, behaviour=respond).listening() as peer:
        yield StreamTransport(peer.url, encoding=encoding, span_unit=span_unit)


@asynccontextmanager
async def asking(reached: Reached, remote: Remote, encoding: Encoding, span_unit: Any) -> AsyncIterator[Guard]:
    """A guard whose agent is reached so, and gives the ``remote`` answer."""
    async with reached(remote, encoding, span_unit) as transport:
        config = AgentConfig("a", transport, events={EventType.GUARDRAIL_INSPECT}, timeout=60, circuit_breaker=None)
        guard = Guard(config)
        yield guard
        await guard.client.aclose()


everywhere = pytest.mark.parametrize("reached", [over_http, over_a_stream])
encodings = pytest.mark.parametrize("encoding", Encoding)


def detected(**fields: Any) -> dict[str, Any]:
    detection = {"category": "email", "description": "an address", "severity": "high", "confidence": 0.9, **fields}
    return {"detected": True, "confidence": 1.0, "detections": [detection]}


# Paths to the fields of an answer, and the names of the values that are right there.
PATHS: dict[tuple[Any, ...], set[str]] = {
    ("detected",): {"true"},
    ("confidence",): {"int", "half"},
    ("detections",): {"empty"},
    ("detections", 0): set(),
    ("detections", 0, "category"): {"str"},
    ("detections", 0, "description"): {"str"},
    ("detections", 0, "severity"): set(),
    ("detections", 0, "confidence"): {"none", "int", "half"},
    ("detections", 0, "span"): {"none"},
    ("detections", 0, "span", "start"): {"int"},
    ("detections", 0, "span", "end"): {"int"},
    ("redacted_content",): {"none", "str"},
}
VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "int": 3,
    "half": 0.5,
    "str": "x",
    "empty": [],
    "list": [1],
    "map": {"a": 1},
    # msgpack has them.
    "nan": float("nan"),
    "infinite": float("inf"),
    "bytes": b"x",
}


def changed(path: tuple[Any, ...], value: object) -> dict[str, Any]:
    answer = deepcopy(detected(span={"start": 0, "end": 8}))
    parent: Any = answer
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    return answer


@everywhere
@encodings
@pytest.mark.parametrize("span_unit", ["codepoints", "bytes"])
async def test_a_wrong_shape_on_the_wire_is_an_agent_error_that_names_the_field(
    reached: Reached, encoding: Encoding, span_unit: str
) -> None:
    remote = Remote()
    async with asking(reached, remote, encoding, span_unit) as guard:
        for path, right in PATHS.items():
            for name, value in VALUES.items():
                if encoding is Encoding.JSON and name in ("nan", "infinite", "bytes"):
                    continue  # null, null and a string
                remote.answer = changed(path, value)
                verdict, found = await guard.inspect(QUESTION, FailureMode.OPEN)
                if name in right:
                    assert verdict.failure is None, (path, name, verdict.failure)
                    assert found.detected
                    continue
                assert verdict.failure is not None, (path, name)
                assert verdict.failure.kind is FailureKind.ERROR
                assert str(path[-1]) in verdict.failure.message, (path, name, verdict.failure.message)


@everywhere
@encodings
@pytest.mark.parametrize("span_unit", ["codepoints", "bytes"])
async def test_a_handler_gets_spans_in_code_points(reached: Reached, encoding: Encoding, span_unit: str) -> None:
    spans = [TextSpan(2, 7), TextSpan(10, 15), TextSpan(0, len(CONTENT))]
    texts = [CONTENT[span.start : span.end] for span in spans]
    assert texts[:2] == ["a@b.c", "d@e.f"]

    def counted(offset: int) -> int:
        return offset if span_unit == "codepoints" else len(CONTENT[:offset].encode())

    remote = Remote()
    remote.answer = {
        "detected": True,
        "confidence": 1,
        "detections": [
            {"category": "x", "description": "y", "span": {"start": counted(span.start), "end": counted(span.end)}}
            for span in spans
        ],
    }
    async with asking(reached, remote, encoding, span_unit) as guard:
        verdict, found = await guard.inspect(QUESTION, FailureMode.CLOSED)

    assert verdict.failure is None
    assert [detection.span for detection in found.detections] == spans


@everywhere
@pytest.mark.parametrize(
    ("start", "end", "fault"),
    [
        (1, 3, "detections[0].span.start: expected the beginning of a character, got byte 1 within one"),
        (0, 99, "detections[0].span.end: expected at most 19, the bytes of the content, got 99"),
        (-1, 3, "detections[0].span.start: expected at least 0, got -1"),
    ],
)
async def test_a_span_in_bytes_that_means_no_text_is_an_agent_error(
    reached: Reached, start: int, end: int, fault: str
) -> None:
    remote = Remote()
    remote.answer = detected(span={"start": start, "end": end})
    async with asking(reached, remote, Encoding.JSON, "bytes") as guard:
        verdict, _ = await guard.inspect(QUESTION, FailureMode.CLOSED)
    assert verdict.failure is not None
    assert verdict.failure.message == f"agent 'a', guardrail_inspect: {fault}"


async def test_an_answer_in_the_general_shape_has_no_spans_to_convert() -> None:
    remote = Remote()
    remote.answer = {"decision": {"block": {"status": 403, "body": "no"}}}
    async with asking(over_http, remote, Encoding.JSON, "bytes") as guard:
        _, found = await guard.inspect(QUESTION, FailureMode.CLOSED)
    assert isinstance(found, GuardrailResponse)
    assert [detection.span for detection in found.detections] == [None]


@pytest.mark.parametrize("span_unit", ["utf-16", "", None, 1, ["bytes"]])
@pytest.mark.parametrize(("kind", "address"), [(HttpTransport, "http://a/"), (StreamTransport, "tcp://a:1")])
def test_what_spans_count_is_one_of_two(kind: Callable[..., object], address: str, span_unit: object) -> None:
    with pytest.raises(ConfigurationError) as refused:
        kind(address, span_unit=span_unit)
    assert str(refused.value) == f"{kind.__name__}: span_unit={span_unit!r}, expected 'codepoints' or 'bytes'"
