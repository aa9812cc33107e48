"""The agent that Envoy's ext_proc asks: ``python -m tests.benchmarks.ext_proc SOCKET``.

Envoy's protobuf definitions are not needed: it is shown request headers and nothing else, and what means "go on" is a
``ProcessingResponse`` whose ``request_headers`` (field 1) is an empty message. It doesn't even decode what it is shown,
so whatever it costs is less than any real one does.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

_GO_ON: Final = b"\x0a\x00"


async def _process(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield _GO_ON


async def _serve(path: str) -> None:
    import grpc

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Process": grpc.stream_stream_rpc_method_handler(_process)}
    service = "envoy.service.ext_proc.v3.ExternalProcessor"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
