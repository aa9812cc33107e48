"""Calls to a scripted agent: started one by one, looked at, given up, and what they leave behind."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from asgi_agents import EventType, StreamTransport
from asgi_agents.concurrency.background import on_trio
from asgi_agents.protocol import Answer, Block, Event, RequestBodyChunkEvent
from asgi_agents.protocol.stream import Framing
from asgi_agents.transports.stream import AgentConnection, StreamClient
from asgi_agents.transports.stream.pool import AgentPool

from .peer import Peer, Received

# Of a request that has more than one event, all go to one connection.
CHUNK_EVENTS = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})

# No bound of a test is a matter of speed: whatever takes this many seconds never comes.
PATIENCE = 60.0


def chunk(correlation_id: str = "c", index: int = 0, *, size: int = 0) -> RequestBodyChunkEvent:
    """An event that :attr:`Received.name` tells from others of its request by ``index``."""
    return RequestBodyChunkEvent(
        correlation_id=correlation_id, data=bytes(size), is_last=False, chunk_index=index, bytes_received=size
    )


def name(correlation_id: str = "c", index: int = 0) -> str:
    """What :meth:`Received.echo` answers to :func:`chunk`."""
    return f"{correlation_id}/0x11/{index}"


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - any condition at all
            await anyio.sleep(0.001)


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await checkpoint()


class Asked:
    """A call under way."""

    def __init__(self) -> None:
        self.scope = CancelScope()
        self.cancelled = False
        self._done = anyio.Event()
        self._said: str | None = None
        self._error: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended, somehow."""
        return self._done.is_set()

    async def answer(self) -> str:
        """The body of the block that answered it, or ``allow``; raises what the call has raised."""
        with anyio.fail_after(PATIENCE):
            await self._done.wait()
        if self._error is not None:
            raise self._error
        assert self._said is not None, "it was given up"
        return self._said

    async def give_up(self) -> None:
        """Cancel it, and wait until it has ended."""
        self.scope.cancel()
        with anyio.fail_after(PATIENCE):
            await self._done.wait()

    async def run(self, client: StreamClient, event: Event) -> None:
        """Make the call."""
        try:
            with self.scope:
                self._said = said(await client.call(event))
            self.cancelled = self.scope.cancelled_caught
        except Exception as exc:
            self._error = exc
        finally:
            self._done.set()


def said(answer: Answer | None) -> str:
    """The body of a block, or ``allow``."""
    decision = getattr(answer, "decision", None)
    return (decision.body or "") if isinstance(decision, Block) else "allow"


class Talk:
    """A client and the peer that it is connected to."""

    def __init__(self, peer: Peer, client: StreamClient, tasks: TaskGroup) -> None:
        self.peer = peer
        self.client = client
        self._tasks = tasks

    @property
    def pool(self) -> AgentPool:
        """The client's connections."""
        pool = self.client._pools.peek()
        assert pool is not None
        return pool

    @property
    def connection(self) -> AgentConnection:
        """The only connection."""
        (connection,) = self.pool.connections
        return connection

    def ask(self, event: Event) -> Asked:
        """Start a call."""
        asked = Asked()
        self._tasks.start_soon(asked.run, self.client, event)
        return asked

    async def send(self, event: Event) -> tuple[Asked, Received]:
        """Start a call and wait until the peer has it."""
        asked = self.ask(event)
        return asked, await self.peer.next()

    async def is_sound(self) -> None:
        """Assert that nothing is owed or held, and that calls are answered."""
        await until(lambda: all(connection.calls == 0 for connection in self.pool.connections))
        assert self.pool.waiting == 0
        asked, received = await self.send(chunk("sound", 4711))
        await received.echo()
        assert await asked.answer() == name("sound", 4711)
        assert all(connection.calls == 0 for connection in self.pool.connections)


@contextmanager
def ungrouped() -> Iterator[None]:
    """Raise what failed rather than the groups that it comes in."""
    try:
        yield
    except BaseExceptionGroup as group:
        failed: BaseException = group
        while isinstance(failed, BaseExceptionGroup) and len(failed.exceptions) == 1:
            failed = failed.exceptions[0]
        raise failed from None


@asynccontextmanager
async def talking(
    peer: Peer, *, events: frozenset[EventType] | None = CHUNK_EVENTS, config: Any = None, **settings: Any
) -> AsyncIterator[Talk]:
    """Connect to ``peer``, over one connection unless ``settings`` of the transport say otherwise."""
    settings = {
        "connections": 1,
        "framing": peer.framing,
        "encoding": peer.encoding,
        "drain_timeout": 0.01,
        **settings,
    }
    client = StreamTransport(peer.url, **settings).bind("peer", events=events, config=config)
    with ungrouped():
        async with peer.listening():
            try:
                with anyio.fail_after(PATIENCE):
                    await client.connect()
                talk_pool = client._pools.peek()
                assert talk_pool is not None
                first = 1 if peer.framing is Framing.ENVELOPE else settings["connections"]
                await until(lambda: len(talk_pool.connections) == first)
                async with anyio.create_task_group() as tasks:
                    yield Talk(peer, client, tasks)
                    tasks.cancel_scope.cancel()
            finally:
                with CancelScope(shield=True):
                    await client.aclose()


def _tasks_alive() -> int:
    if on_trio():
        return int(sys.modules["trio"].lowlevel.current_statistics().tasks_living)
    return len(sys.modules["asyncio"].all_tasks())


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def leaving_nothing() -> AsyncIterator[None]:
    """Afterwards there are as many tasks and file descriptors as there were before."""
    # Whatever the first listener of an event loop opens for good is open.
    async with Peer().listening():
        pass
    await settle()
    before = _tasks_alive(), _descriptors()
    yield
    with anyio.move_on_after(PATIENCE):
        while (_tasks_alive(), _descriptors()) != before:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    assert (_tasks_alive(), _descriptors()) == before
