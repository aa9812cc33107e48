"""Instances of one agent, each at an address of its own and all at one port, as behind a headless service."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import anyio
from anyio.abc import Listener
from anyio.streams.tls import TLSListener

from asgi_agents import EventType, StreamTransport
from asgi_agents.transports.stream import StreamClient
from tests.support.listening import serving
from tests.support.names import LOOPBACK, free_port

from .peer import Peer
from .pools import allow, pool_of


class Instance(Peer):
    """Listens by TCP."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        super().__init__(**{"behaviour": allow} | options)
        self.tls = tls
        self.host = host
        self.port = port
        self.url = f"tcp://{host}:{port}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        listener: Listener[Any] = await anyio.create_tcp_listener(local_host=self.host, local_port=self.port)
        if self.tls is not None:
            listener = TLSListener(listener, self.tls, standard_compatible=False)
        async with serving(listener, self._serve):
            yield self


class Service:
    """Five instances at one port, of which a name leads to some."""

    def __init__(self, instances: Sequence[Instance], port: int) -> None:
        self.instances = instances
        self.port = port
        self.url = f"tcp://waf.test:{port}"

    def urls(self, *numbers: int) -> list[str]:
        """The addresses of these instances, from 1."""
        return [self.instances[number - 1].url for number in numbers]

    @property
    def accepted(self) -> list[int]:
        """How many connections each has had."""
        return [instance.accepted for instance in self.instances]

    @property
    def open(self) -> list[int]:
        """How many connections each has."""
        return [len(instance.links) for instance in self.instances]


@asynccontextmanager
async def service(*absent: int, **options: Any) -> AsyncIterator[Service]:
    """A service, all of whose instances listen but those that are ``absent``."""
    port = free_port()
    instances = [Instance(host, port, **options) for host in LOOPBACK]
    async with AsyncExitStack() as stack:
        for number, instance in enumerate(instances, 1):
            if number not in absent:
                await stack.enter_async_context(instance.listening())
        yield Service(instances, port)


@asynccontextmanager
async def calling(
    *urls: str, events: frozenset[EventType] | None = None, config: Any = None, **options: Any
) -> AsyncIterator[StreamClient]:
    """A client of what is there. One connection to each address, unless it says otherwise."""
    transport = StreamTransport(list(urls), **{"connections": 1, "drain_timeout": 2.0} | options)
    client = transport.bind("waf", events=events, config=config)
    try:
        yield client
    finally:
        await client.aclose()


def endpoints(client: StreamClient) -> dict[str, str]:
    """The states of the endpoints, by address."""
    return {each.address: each.state for each in pool_of(client).statistics()}
