"""Calls that are served on another event loop than that of gRPC's library."""

import asyncio
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents.serve.grpc.calls import OtherLoop
from asgi_agents.transports.grpc.thread import AsyncioThread


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
