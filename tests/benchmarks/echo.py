"""A process that sends back whatever it gets: ``python -m tests.benchmarks.echo SOCKET``."""

import asyncio
import sys
from typing import cast

import uvloop


class _Echo(asyncio.Protocol):
    _transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def _serve(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(_Echo, path)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
