"""Calls that are served on another event loop than that of gRPC's library."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents.serve import held
from asgi_agents.serve.grpc.calls import Methods, OtherLoop, SameLoop
from asgi_agents.serve.grpc.service import GrpcService, ServedRpc, StatusError
from asgi_agents.transports.grpc.thread import AsyncioThread
from tests.support.cancelling import kept_cancellation


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_call_that_is_cancelled_before_its_method_has_begun_is_over(anyio_backend: str) -> None:
    steps: list[str] = []

    async def method() -> None:
        steps.append("began")
        try:
            await anyio.sleep_forever()
        finally:
            steps.append("ended")

    thread = AsyncioThread.acquire()
    try:
        async with anyio.create_task_group() as tasks:
            loop = OtherLoop(thread, tasks)

            async def call() -> None:
                task = asyncio.create_task(loop.run(method))
                await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

            # Nothing runs here meanwhile: both the call and its end wait to be seen.
            asyncio.run_coroutine_threadsafe(call(), thread.loop).result(10)
            with anyio.move_on_after(10):
                while len(steps) < 2:
                    await checkpoint()
            tasks.cancel_scope.cancel()
            assert steps == ["began", "ended"]
    finally:
        thread.release()


async def _fails_over_its_cancellation() -> None:
    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ConnectionError

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        await anyio.sleep_forever()


async def _fails_and_is_cancelled() -> None:
    with anyio.CancelScope(shield=True):
        await checkpoint()
    try:
        await anyio.sleep_forever()
    finally:
        raise ConnectionError


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("method", [_fails_over_its_cancellation, _fails_and_is_cancelled, anyio.sleep_forever])
@pytest.mark.parametrize("whole_server", [False, True])
async def test_a_call_that_is_cancelled_ends_alone_whatever_its_method_makes_of_that(
    method: Callable[[], Awaitable[None]], whole_server: bool, anyio_backend: str
) -> None:
    thread = AsyncioThread.acquire()
    began: list[int] = []
    ended: list[BaseException | None] = []

    async def counted() -> None:
        began.append(1)
        await method()

    async def one() -> int:
        return 1

    async def call(loop: OtherLoop) -> None:
        try:
            await loop.run(counted)
        except BaseException as exc:
            ended.append(exc)

    try:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                loop = OtherLoop(thread, tasks)
                task = asyncio.run_coroutine_threadsafe(call(loop), thread.loop)
                while not began:
                    await checkpoint()
                if whole_server:
                    tasks.cancel_scope.cancel()
                else:
                    task.cancel()
                    assert await thread.run(lambda: loop.run(one)) == 1
                    assert not tasks.cancel_scope.cancel_called
                    tasks.cancel_scope.cancel()
            while not ended:
                await checkpoint()
    finally:
        thread.release()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_cancellation_that_nobody_asked_for_fails_the_call(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = await kept_cancellation()

    async def method() -> None:
        raise kept

    thread = AsyncioThread.acquire()
    try:
        async with anyio.create_task_group() as tasks:
            loop = OtherLoop(thread, tasks)
            with pytest.raises(StatusError, match="INTERNAL: the method has failed"):
                await thread.run(lambda: loop.run(method))
            assert not tasks.cancel_scope.cancel_called
    finally:
        thread.release()
    assert [record.getMessage() for record in caplog.records] == ["a method has failed"]


class Context:
    """grpc.aio's, of a client that sends nothing and reads nothing."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def invocation_metadata(self) -> None:
        return None

    def peer(self) -> str:
        return ""

    async def read(self) -> bytes:
        await asyncio.sleep(3600)
        raise AssertionError

    async def send_initial_metadata(self, metadata: object) -> None:
        await asyncio.sleep(0)

    async def write(self, message: bytes) -> None:
        self.written.append(message)
        await asyncio.sleep(3600)


class Streams(GrpcService):
    name = "test.Streams"

    def __init__(self) -> None:
        self.streams = {"Wait": self._wait, "Answer": self._answer}
        self.ended = 0

    async def _wait(self, rpc: ServedRpc) -> None:
        stream = rpc.stream()
        try:
            await stream.receive()
        finally:
            with anyio.move_on_after(10, shield=True):
                await stream.wait_closed()
            self.ended += 1

    async def _answer(self, rpc: ServedRpc) -> None:
        await rpc.stream().send(b"answer")


def _pumps() -> int:
    return sum("MessagePump" in getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_stream_that_is_cancelled_before_its_method_has_begun_leaves_nothing_behind(anyio_backend: str) -> None:
    service = Streams()
    thread = AsyncioThread.acquire()
    try:
        async with anyio.create_task_group() as tasks:
            methods = Methods({service.name: service}, OtherLoop(thread, tasks))

            async def call() -> None:
                task = asyncio.create_task(methods._stream(service.streams["Wait"], None, Context()))
                await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

            over = threading.Event()
            made: list[asyncio.Task[None]] = []

            def start() -> None:
                made.append(thread.loop.create_task(call()))
                made[0].add_done_callback(lambda _: over.set())

            thread.call(start)
            # Nothing runs here meanwhile.
            assert over.wait(60)
            with anyio.fail_after(60):
                while not service.ended:
                    await checkpoint()

            async def pumps() -> int:
                return _pumps()

            assert await thread.run(pumps) == 0
            tasks.cancel_scope.cancel()
    finally:
        thread.release()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stream_that_is_cancelled_while_the_rest_of_it_is_sent_leaves_nothing_behind(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "READ_TIMEOUT", 3600.0)
    service, context = Streams(), Context()
    methods = Methods({service.name: service}, SameLoop())
    task = asyncio.create_task(methods._stream(service.streams["Answer"], None, context))
    while not context.written:
        await checkpoint()
    assert _pumps() == 2
    # As gRPC's library does it where the client has gone.
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    with anyio.fail_after(60):
        while _pumps():
            await checkpoint()
