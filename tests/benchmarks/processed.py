"""Exchanges as Envoy shows them to a served agent, without gRPC's library: the messages are handed over at once.

Needs Envoy's messages (``xds-protos``).
"""

import asyncio
import gc
from collections.abc import Mapping
from typing import Any, Final

from .agents import allow

#: What a client of the benchmarks sends, as Envoy shows it.
HEADERS: Final[Mapping[str, str]] = {
    ":authority": "127.0.0.1:8000",
    ":path": "/items/42?verbose=1",
    ":method": "GET",
    ":scheme": "http",
    "user-agent": "benchmark/1",
    "accept": "application/json, text/plain, */*",
    "accept-encoding": "gzip, deflate",
    "authorization": "Bearer 0123456789abcdef0123456789abcdef",
    "x-forwarded-proto": "http",
    "x-request-id": "5c9b0b0e-7d4b-4b43-9d0f-5a2d2d9a2a11",
}


class _Rpc:
    """A call that brings one message, and has ended then."""

    metadata = ()
    peer = "unix:"

    def __init__(self, message: bytes) -> None:
        self._message = message
        self.sent: list[bytes] = []

    def wire(self, receiver: Any, *, half_open: bool = False) -> "_Rpc":
        self._receiver = receiver
        return self

    def come(self) -> None:
        self._receiver.data_received(self._message)
        self._receiver.connection_lost(None)

    # A wire

    congested = closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def pause_reading(self) -> None:
        raise AssertionError

    def resume_reading(self) -> None:
        raise AssertionError


async def exchanges(times: int) -> None:
    """So many, one after the other, each of one message with the head of a request."""
    from asgi_agents.serve.grpc.ext_proc import ExtProcService

    message = shown()
    process: Any = ExtProcService(allow).streams["Process"]
    # A server has imported all of this long before, and its garbage collector need not look through it again.
    gc.collect()
    gc.freeze()
    for _ in range(times):
        rpc = _Rpc(message)
        exchange = asyncio.ensure_future(process(rpc))
        # It begins to wait.
        await asyncio.sleep(0)
        rpc.come()
        await exchange
        if len(rpc.sent) != 1:
            raise RuntimeError(f"it has answered {rpc.sent!r}")


def shown() -> bytes:
    """The message with which an exchange begins."""
    from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
    from envoy.service.ext_proc.v3.external_processor_pb2 import HttpHeaders, ProcessingRequest

    fields = [HeaderValue(key=name, raw_value=value.encode()) for name, value in HEADERS.items()]
    request = ProcessingRequest(request_headers=HttpHeaders(headers=HeaderMap(headers=fields), end_of_stream=True))
    request.protocol_config.SetInParent()
    data: bytes = request.SerializeToString()
    return data
