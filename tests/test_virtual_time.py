import threading
import time

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents.breaker import CircuitBreaker
from asgi_agents.policy import CircuitBreakerConfig
from tests.transports.stream.pools import port_of

MINUTE = 60.0


async def test_a_day_passes_at_once_and_in_order() -> None:
    began, woken = time.perf_counter(), []

    async def sleep(hours: int) -> None:
        await anyio.sleep(hours * 60 * MINUTE)
        woken.append(hours)

    async with anyio.create_task_group() as tasks:
        for hours in (24, 1, 12):
            tasks.start_soon(sleep, hours)
    assert woken == [1, 12, 24]
    assert time.perf_counter() - began < 10 * MINUTE


async def test_time_does_not_pass_while_a_task_goes_on() -> None:
    with anyio.move_on_after(0.01) as scope:
        for _ in range(1000):
            await checkpoint()
    assert not scope.cancelled_caught


async def test_a_deadline_comes_when_everybody_waits() -> None:
    began = anyio.current_time()
    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - began == pytest.approx(0.01, abs=0.0001)


async def test_what_happens_later_is_later() -> None:
    times = [clock() for _ in range(100) for clock in (anyio.current_time, time.monotonic)]
    assert times == sorted(set(times))


async def test_both_clocks_tell_the_same_time_and_breakers_go_by_it() -> None:
    assert time.monotonic() == pytest.approx(anyio.current_time(), abs=0.0001)
    breaker = CircuitBreaker(CircuitBreakerConfig(reset_timeout=MINUTE))
    before = breaker._clock()
    await anyio.sleep(MINUTE)
    assert breaker._clock() - before == pytest.approx(MINUTE, abs=0.001)
    assert time.monotonic() == pytest.approx(anyio.current_time(), abs=0.0001)


async def test_what_goes_through_a_socket_arrives_before_time_passes() -> None:
    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(await stream.receive())

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        with anyio.fail_after(0.01):
            async with await anyio.connect_tcp("127.0.0.1", port_of(listener)) as stream:
                await stream.send(b"x" * 10_000)
                assert await stream.receive()
        tasks.cancel_scope.cancel()


async def test_a_thread_is_waited_for() -> None:
    with anyio.fail_after(0.01):
        assert await anyio.to_thread.run_sync(lambda: threading.Event().wait(0.1)) is False


@pytest.mark.real_time
async def test_time_is_real_where_a_test_says_so(anyio_backend: object) -> None:
    assert anyio_backend in ("asyncio", "trio")
