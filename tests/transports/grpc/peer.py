"""An agent behind gRPC as the Rust kit is one, by the published numbers: a server of grpcio's other API.

It answers the events of a stream one after the other. It names the first event in the handshake, whatever it answers.
"""

import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from tests.support.wire_fields import Fields, message, read

SERVICE = "zentinel.agent.v2.AgentServiceV2"

# ProxyToAgent.
HANDSHAKE, REQUEST_HEADERS, REQUEST_BODY, RESPONSE_HEADERS, RESPONSE_BODY = 1, 2, 3, 4, 5
WEBSOCKET, GUARDRAIL, COMPLETE, CANCEL, CONFIGURE, PING = 6, 7, 8, 9, 10, 11
# AgentToProxy.
RESPONSE, HEALTH, METRICS, CONFIG_UPDATE, FLOW, PONG, LOG = 2, 3, 4, 5, 6, 7, 8
ALLOW = message((2, b""))


def block(status: int = 403, body: str | None = None) -> bytes:
    """A decision."""
    return message((3, message((1, status), *([] if body is None else [(2, body)]))))


def answer(correlation_id: str, decision: bytes = ALLOW, *rest: tuple[int, Any]) -> bytes:
    """An ``AgentToProxy`` with a response; ``rest`` are further fields of the response."""
    return message((RESPONSE, message((1, correlation_id)) + decision + message(*rest)))


def greeting(
    *,
    events: tuple[int, ...] = (1,),
    version: int = 2,
    success: bool = True,
    error: str = "",
    features: bytes = message((7, 1)),
    limits: bytes = message((1, 10 * 1024 * 1024), (2, 100), (3, 65536)),
) -> bytes:
    """An ``AgentToProxy`` with the answer to a handshake."""
    capabilities = message((1, 2), (2, "peer"), (3, "Peer"), (4, "1.0"), *((5, number) for number in events))
    capabilities += message((6, features), (7, limits))
    fields: list[tuple[int, Any]] = [(1, version), (2, capabilities)]
    if success:
        fields.append((3, 1))
    if error:
        fields.append((4, error))
    return message((1, message(*fields)))


def health(state: int, multiplier: float = 1.0) -> bytes:
    return message((HEALTH, message((1, "peer"), (2, state), (11, multiplier))))


@dataclass
class Heard:
    """An event: the number of its field, and its own fields."""

    kind: int
    fields: Fields
    stream: "Stream"

    @property
    def correlation_id(self) -> str:
        found = read(self.fields[1][0])[1][0] if self.kind == REQUEST_HEADERS else self.fields[1][0]
        return str(found, "utf-8")


@dataclass
class Stream:
    """One stream, from this end of it."""

    number: int
    handshake: Fields
    metadata: dict[str, Any]
    unsent: "queue.Queue[bytes | None]" = field(default_factory=queue.Queue)
    ended: threading.Event = field(default_factory=threading.Event)

    def say(self, data: bytes) -> None:
        self.unsent.put(data)

    def end(self) -> None:
        """End the stream in order."""
        self.unsent.put(None)


Behaviour = Callable[[Heard], bytes | None]


def allow(event: Heard) -> bytes:
    return answer(event.correlation_id)


class Peer:
    """The server. ``behave`` returns the answer to an event, or None, in the thread of its stream.

    :ivar heard: all events so far; ``cancelled`` the ids of cancellations, and ``pings`` how many there were.
    """

    def __init__(self, behave: Behaviour = allow, *, greet: Callable[[Fields], bytes] | None = None) -> None:
        self.behave = behave
        self.greet = greet or (lambda request: greeting())
        self.heard: list[Heard] = []
        self.streams: list[Stream] = []
        self.cancelled: list[str] = []
        self.pings = 0
        self.calls = 0
        self._server: Any = None
        self._workers: ThreadPoolExecutor | None = None

    # A GenericRpcHandler

    def service(self, details: Any) -> Any:
        if details.method != f"/{SERVICE}/ProcessStream":
            return None
        return grpc.stream_stream_rpc_method_handler(self._process)

    def _process(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self.calls += 1
        first = read(next(requests))
        assert list(first) == [HANDSHAKE]
        handshake = read(first[HANDSHAKE][0])
        stream = Stream(len(self.streams), handshake, dict(context.invocation_metadata()))
        self.streams.append(stream)
        context.add_callback(stream.end)
        yield self.greet(handshake)
        reader = threading.Thread(target=self._read, args=(requests, stream), daemon=True)
        reader.start()
        while (data := stream.unsent.get()) is not None:
            yield data
        stream.ended.set()

    def _read(self, requests: Iterator[bytes], stream: Stream) -> None:
        try:
            for data in requests:
                [(kind, [value])] = read(data).items()
                fields = read(value)
                if kind == PING:
                    self.pings += 1
                    stream.say(message((PONG, message((1, fields.get(1, [0])[0])))))
                elif kind == CANCEL:
                    self.cancelled.append(str(fields[1][0], "utf-8"))
                else:
                    event = Heard(kind, fields, stream)
                    self.heard.append(event)
                    found = self.behave(event)
                    if found is not None:
                        stream.say(found)
        except grpc.RpcError:
            pass
        finally:
            stream.end()

    # Its life

    def start(self, address: str, *, credentials: grpc.ServerCredentials | None = None) -> int:
        self._workers = ThreadPoolExecutor(max_workers=40)
        handlers: list[Any] = [self]
        self._server = grpc.server(self._workers, handlers=handlers, options=[("grpc.so_reuseport", 0)])
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        self._server.start()
        return int(port)

    def stop(self) -> None:
        """Break every stream off."""
        if self._server is None:
            return
        for stream in self.streams:
            stream.end()
        self._server.stop(None).wait()
        assert self._workers is not None
        self._workers.shutdown()
        self._server = self._workers = None

    @contextmanager
    def on_a_socket(self) -> Iterator[str]:
        """The peer on a Unix socket; the path."""
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory, "s"))
            self.start(f"unix:{path}")
            try:
                yield path
            finally:
                self.stop()

    def restart(self, path: str) -> Self:
        self.stop()
        self.start(f"unix:{path}")
        return self
