"""The official clients read every stream that was touched: text, an exception of their own, or a filtered end."""

import http.server
import os
import re
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import pytest

from asgi_agents.guardrails.dialect import Stop
from asgi_agents.guardrails.judges import Judges
from asgi_agents.guardrails.slots import Block, Decision, Window
from asgi_agents.guardrails.stream import Stream
from tests.guardrails.clients import (
    FILTERED,
    FILTERED_ERROR,
    PARAMETERS,
    REDACTED,
    REDACTED_ARGUMENTS,
    WAYS,
    Client,
    connected,
    events_of,
)
from tests.guardrails.driving import EVERYTHING, LOCAL, Driver
from tests.guardrails.samples import Sample

# The client of Gemini says so whenever it is async and aiohttp is there.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

REASON: Final = "the policy says no"
#: Whether streams are cut at every byte. Otherwise, longer ones are cut at every seventh.
EVERY_BYTE: Final = bool(os.environ.get("GUARDRAIL_EVERY_BYTE"))
_SHORT: Final = 3500
# Of a text in an event. Fewer events are fewer bytes.
LONGEST: Final = 12 if EVERY_BYTE else 40
BY_NAME: Final = {way.sample.name: way.sample for way in WAYS}


class _Server(http.server.ThreadingHTTPServer):
    body: bytes = b""
    media_type: str = ""
    status: int = 200


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(self.server.status)
        self.send_header("content-type", self.server.media_type)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    """Answers everything with the body that it is given."""
    with _Server(("127.0.0.1", 0), _Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture(scope="module", params=PARAMETERS)
def client(request: pytest.FixtureRequest, server: _Server) -> Iterator[Client]:
    way, asynchronous = request.param
    with connected(way, f"http://127.0.0.1:{server.server_address[1]}", asynchronous=asynchronous) as client:
        yield client


def serve(server: _Server, media_type: str, body: bytes, status: int = 200) -> None:
    server.body, server.media_type, server.status = body, media_type, status


class Stopped(NamedTuple):
    """What a client is sent of a stream that was stopped.

    :ivar at: how much the app had sent.
    """

    at: int
    body: bytes


def driver_of(sample: Sample, check: Any = EVERYTHING) -> Driver:
    return Driver(Stream([sample.dialect], sample.media_type, Judges([LOCAL])), {"local": check})


def stopped(sample: Sample, how: str, before: Sequence[bytes], after: Sequence[bytes]) -> bytes | None:
    """What is sent of a stream that is stopped between these. None: it is not stopped."""
    stopping = False

    def check(window: Window) -> Sequence[Decision]:
        return [Block(REASON)] if stopping else EVERYTHING(window)

    driver = driver_of(sample, check)
    for data in before:
        driver.feed(data)
    if how == "failed":
        driver.stream.fail(Stop(REASON, 503))
    elif how != "cut":
        stopping = True
        for data in after if how == "blocked" else ():
            driver.feed(data)
    driver.end()
    return driver.sent if driver.stream.ending is not None else None


def cuts(data: bytes) -> range:
    """Where a stream is cut."""
    return range(0, len(data), 1 if EVERY_BYTE or len(data) <= _SHORT else 7)


@cache
def stopped_at_bytes(name: str, how: str) -> Sequence[Stopped]:
    """All that clients may be sent of a stream that is stopped at a byte, but for the numbers in it."""
    sample = BY_NAME[name]
    data = b"".join(events_of(sample, longest=LONGEST)[0])
    bodies: dict[bytes, Stopped] = {}
    for at in cuts(data):
        body = stopped(sample, how, [data[:at]], [data[at:]])
        if body is not None:
            # It says at which byte it can't be read.
            bodies.setdefault(re.sub(rb"\d+", b"0", body), Stopped(at, body))
    return list(bodies.values())


def check_stopped(client: Client, at: int, body: bytes, *, reasons: Sequence[str], failed: bool) -> None:
    """The client makes of what was stopped what it is."""
    try:
        reading = client.read()
    except client.errors as exc:
        if not any(reason in str(exc) for reason in reasons):
            raise
        return
    assert not failed, f"at {at}, the client takes the part for the whole: {body!r}"
    assert reading.end in FILTERED or reading.text == REDACTED, (at, reading, body)
    assert REDACTED.startswith(reading.text), (at, reading, body)
    assert all(arguments == REDACTED_ARGUMENTS for arguments in reading.arguments), (at, reading, body)


def test_a_redacted_stream_is_read(client: Client, server: _Server) -> None:
    sample = client.sample
    driver = driver_of(sample)
    for event in events_of(sample)[0]:
        driver.feed(event)
    driver.end()
    serve(server, sample.media_type, driver.sent)
    reading = client.read()
    assert reading.text == REDACTED
    assert reading.arguments
    assert all(arguments == REDACTED_ARGUMENTS for arguments in reading.arguments)
    assert reading.end not in {"", *FILTERED}


@pytest.mark.parametrize("how", ["blocked", "failed", "blocked late"])
def test_a_stream_that_ends_at_any_event_is_understood(client: Client, server: _Server, how: str) -> None:
    sample = client.sample
    events = events_of(sample)[0]
    for count in range(len(events) + 1):
        body = stopped(sample, how, events[:count], events[count:])
        if body is not None:
            serve(server, sample.media_type, body)
            # A tool call that is cut off is a failure.
            failures = (REASON, "the arguments of a tool call")
            reasons = failures if how == "failed" else (*failures, FILTERED_ERROR)
            # Behind its last event, a stream is complete whatever fails then.
            check_stopped(client, count, body, reasons=reasons, failed=how == "failed" and count < len(events))


@pytest.mark.parametrize("how", ["blocked", "cut", "failed"])
def test_a_stream_that_is_stopped_at_any_byte_is_understood(client: Client, server: _Server, how: str) -> None:
    sample = client.sample
    bodies = stopped_at_bytes(sample.name, how)
    assert bodies
    reasons = {
        "blocked": (REASON, FILTERED_ERROR),
        "cut": ("expected JSON", "the arguments of a tool call"),
        "failed": (REASON,),
    }[how]
    events = events_of(sample, longest=LONGEST)[0]
    # Behind its last event, a stream is complete whatever fails then; a blank line may lack its end.
    complete = len(b"".join(events)) - len(b"\n")
    for at, body in bodies:
        serve(server, sample.media_type, body)
        check_stopped(client, at, body, reasons=reasons, failed=how != "blocked" and at < complete)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_a_stream_that_arrives_in_two_pieces_is_redacted_wherever_it_is_cut(name: str) -> None:
    sample = BY_NAME[name]
    data = b"".join(events_of(sample, longest=40)[0])
    driver = driver_of(sample)
    driver.feed(data)
    driver.end()
    for at in range(0, len(data), 1 if EVERY_BYTE else 7):
        pieces = driver_of(sample)
        pieces.feed(data[:at])
        pieces.feed(data[at:])
        pieces.end()
        # Of an event that was left out, the last byte of its blank line may stay, which is a blank line.
        assert sample.read(pieces.sent) == sample.read(driver.sent), at


@pytest.mark.parametrize("status", [400, 503])
def test_a_call_that_is_stopped_before_its_answer_is_understood(client: Client, server: _Server, status: int) -> None:
    reply = client.sample.dialect.reply(Stop(REASON, status))
    serve(server, reply.media_type, reply.body, reply.status)
    with pytest.raises(client.errors, match=REASON):
        client.read()
