"""Deadlines, breakers and delays of a guarded app pass in no time."""

import asyncio
import inspect
import sys
import threading
import time
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI

from asgi_agents import (
    AgentConfig,
    AgentResponse,
    CircuitBreakerConfig,
    ConfigurationError,
    protect,
)
from asgi_agents.testing import (
    FakeAgent,
    agent_down,
    assert_failed_closed,
    assert_failed_open,
    override_agents,
    run_in_virtual_time,
    virtual_time,
)

from .apps import aget, get, protected, remote

BACKENDS = ("asyncio", "trio")
DAY = 24 * 60 * 60.0
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@each_backend
def test_a_day_passes_at_once_and_in_order(backend: Any) -> None:
    woken: list[float] = []

    async def main() -> float:
        async def sleep(days: float) -> None:
            await anyio.sleep(days * DAY)
            woken.append(days)

        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for days in (3, 1, 2.5):
                tasks.start_soon(sleep, days)
        return anyio.current_time() - began

    began = time.perf_counter()
    assert run_in_virtual_time(main, backend=backend) == pytest.approx(3 * DAY)
    assert time.perf_counter() - began < DAY
    assert woken == [1, 2.5, 3]


@each_backend
def test_both_clocks_tell_the_same_and_go_on_from_the_real_time(backend: Any) -> None:
    async def main() -> tuple[float, float]:
        shift = time.monotonic() - anyio.current_time()
        await anyio.sleep(DAY)
        assert time.monotonic() - anyio.current_time() == pytest.approx(shift, abs=1e-6)
        return shift, time.monotonic()

    real = time.monotonic()
    shift, virtual = run_in_virtual_time(main, backend=backend)
    assert shift == pytest.approx(0, abs=1e-6)
    assert virtual >= real + DAY - 1e-6


@each_backend
def test_time_does_not_pass_while_a_task_goes_on(backend: Any) -> None:
    async def main() -> bool:
        with anyio.move_on_after(0.001) as scope:
            for _ in range(1000):
                await anyio.lowlevel.checkpoint()
        return scope.cancelled_caught

    assert not run_in_virtual_time(main, backend=backend)


@each_backend
@pytest.mark.parametrize("delay", [0.9, 1.1, DAY])
def test_an_agent_is_late_exactly_from_its_deadline_on(backend: Any, delay: float) -> None:
    app = protected(remote(timeout=1.0))
    with override_agents(app, waf=FakeAgent(delay=delay)) as recorded:
        response = run_in_virtual_time(aget, app, backend=backend)
    assert response.status_code == (200 if delay < 1 else 504)
    [answer] = recorded.records[0].answers
    assert answer.failure == (None if delay < 1 else "timeout")
    assert answer.seconds == pytest.approx(min(delay, 1.0), abs=1e-3)


@each_backend
@pytest.mark.parametrize("made", ["before", "within"])
def test_a_breaker_closes_again_without_a_wait(backend: Any, made: str) -> None:
    breaker = CircuitBreakerConfig(failure_threshold=2, reset_timeout=60.0, success_threshold=1)
    app = protected(remote(circuit_breaker=breaker))
    fake = FakeAgent(request_headers=[ConnectionError(), ConnectionError(), None])

    async def main() -> list[int]:
        asked = [(await aget(app)).status_code for _ in range(3)]
        await anyio.sleep(59)
        asked.append((await aget(app)).status_code)
        await anyio.sleep(1.1)
        asked.append((await aget(app)).status_code)
        return asked

    async def override_within() -> list[int]:
        with override_agents(app, waf=fake):
            return await main()

    if made == "within":
        statuses = run_in_virtual_time(override_within, backend=backend)
    else:
        with override_agents(app, waf=fake):
            statuses = run_in_virtual_time(main, backend=backend)
    assert statuses == [503, 503, 503, 503, 200]
    assert len(fake.received) == 3


@each_backend
def test_the_breaker_of_an_agent_that_is_down_lets_a_trial_through_again(backend: Any) -> None:
    app = protected(remote(circuit_breaker=CircuitBreakerConfig(failure_threshold=1, reset_timeout=60.0)))

    async def main() -> list[str]:
        texts = [(await aget(app)).text for _ in range(2)]
        await anyio.sleep(61)
        return [*texts, *[(await aget(app)).text for _ in range(2)]]

    with agent_down(app, "waf"):
        assert run_in_virtual_time(main, backend=backend) == ["Agent unavailable", "Service unavailable"] * 2


@each_backend
def test_calls_that_wait_for_a_permit_time_out_too(backend: Any) -> None:
    app = protected(remote(max_concurrent_calls=1, timeout=10.0, circuit_breaker=None))

    async def main() -> list[Any]:
        responses: list[Any] = []

        async def ask() -> None:
            responses.append(await aget(app))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask)
        return responses

    with override_agents(app, waf=FakeAgent(delay=6)):
        responses = run_in_virtual_time(main, backend=backend)
    late = [response for response in responses if response.status_code != 200]
    assert len(late) == 2
    for response in late:
        assert assert_failed_closed(response, "waf").decision in ("timeout", "queue_timeout")


@each_backend
def test_handlers_in_threads_are_waited_for(backend: Any) -> None:
    app = FastAPI()
    gone_on = threading.Event()

    @app.get("/orders")
    def orders() -> str:
        # Longer than an event loop would wait for it in silence.
        gone_on.wait(0.05)
        return "lamp"

    protect(app, agents=[AgentConfig("waf", FakeAgent(response_headers=[None]))])

    async def main() -> tuple[str, float]:
        began = anyio.current_time()
        with anyio.fail_after(0.5):
            text = (await aget(app)).text
        return text, anyio.current_time() - began

    text, took = run_in_virtual_time(main, backend=backend)
    assert text == '"lamp"'
    assert took < 0.5


@each_backend
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_real_time_is_back_afterwards(backend: Any, error: type[BaseException]) -> None:
    before = time.monotonic, anyio.to_thread.run_sync

    async def main() -> None:
        assert (time.monotonic, anyio.to_thread.run_sync) != before
        raise error

    with pytest.raises(error):
        run_in_virtual_time(main, backend=backend)
    assert (time.monotonic, anyio.to_thread.run_sync) == before


class Elsewhere(threading.Thread):
    """A thread in which time is virtual from :meth:`start` until it is told to end."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self._backend = backend
        self._begun, self._go_on = threading.Event(), threading.Event()
        self.passed = 0.0

    def run(self) -> None:
        with virtual_time(self._backend) as (name, options):
            self._begun.set()
            assert self._go_on.wait(30)
            began = time.monotonic()
            anyio.run(anyio.sleep, DAY, backend=name, backend_options=options)
            self.passed = time.monotonic() - began

    def begin(self) -> None:
        self.start()
        assert self._begun.wait(30)

    def end(self) -> None:
        self._go_on.set()
        self.join(30)
        assert self.passed == pytest.approx(DAY)


@each_backend
@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
def test_the_time_of_each_thread_is_its_own_in_whatever_order_they_end(backend: Any, order: list[int]) -> None:
    before = time.monotonic, anyio.to_thread.run_sync
    threads = [Elsewhere(backend) for _ in order]
    for thread in threads:
        thread.begin()
    for number in order:
        real = time.perf_counter() - time.monotonic()
        threads[number].end()
        # Here it is real meanwhile.
        assert time.perf_counter() - time.monotonic() == pytest.approx(real, abs=1.0)
    assert (time.monotonic, anyio.to_thread.run_sync) == before


@each_backend
def test_a_time_within_another_goes_on_from_there_and_leaves_it_as_it_was(backend: Any) -> None:
    with virtual_time(backend) as (name, options):
        anyio.run(anyio.sleep, DAY, backend=name, backend_options=options)
        outer = time.monotonic()
        with virtual_time(backend) as (inner, inner_options):
            anyio.run(anyio.sleep, DAY, backend=inner, backend_options=inner_options)
            assert time.monotonic() - outer == pytest.approx(DAY, abs=1e-3)
        assert time.monotonic() == pytest.approx(outer, abs=1e-3)


@each_backend
def test_arguments_and_results_are_passed(backend: Any) -> None:
    async def add(left: int, right: int) -> int:
        return left + right

    assert run_in_virtual_time(add, 1, 2, backend=backend) == 3


@each_backend
def test_a_test_client_goes_by_the_real_time(backend: Any) -> None:
    app = protected(remote(timeout=0.001))
    with override_agents(app, waf=FakeAgent(delay=DAY)), virtual_time(backend):
        assert get(app).status_code == 504


@each_backend
def test_a_coroutine_in_place_of_its_function_is_refused(backend: Any) -> None:
    async def main() -> None: ...

    called = main()
    with pytest.raises(ConfigurationError, match=r"a coroutine, expected .* run_in_virtual_time\(main\)"):
        run_in_virtual_time(called, backend=backend)  # type: ignore[arg-type]
    assert inspect.getcoroutinestate(called) == inspect.CORO_CLOSED


def test_another_backend_is_refused() -> None:
    with (
        pytest.raises(ConfigurationError, match="backend='curio', expected 'asyncio' or 'trio'"),
        virtual_time("curio"),
    ):
        pass


def test_trio_has_to_be_installed_for_trio_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio", None)
    monkeypatch.delitem(sys.modules, "trio.testing", raising=False)
    with virtual_time("asyncio") as (backend, _):
        assert backend == "asyncio"
    with pytest.raises(ConfigurationError, match=r"needs trio, .*; expected pip install trio$"), virtual_time("trio"):
        pass


@each_backend
def test_an_agent_that_fails_open_does_so_at_its_deadline(backend: Any) -> None:
    app = protected(remote(failure_mode="open", timeout=2.0), remote("auth"))

    async def main() -> tuple[Any, float]:
        began = anyio.current_time()
        return await aget(app), anyio.current_time() - began

    with override_agents(app, waf=FakeAgent(delay=3), auth=FakeAgent(AgentResponse.allow())):
        response, took = run_in_virtual_time(main, backend=backend)
    assert_failed_open(response, "waf")
    assert took == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_event_loop_without_the_options_goes_by_the_real_time(backend: str) -> None:
    """As that of pytest-asyncio, in its mode that takes all coroutine functions. It would wait for ever."""

    async def passes() -> bool:
        before, waited = time.monotonic(), anyio.current_time()
        await anyio.to_thread.run_sync(time.sleep, 0.001)
        return time.monotonic() > before and anyio.current_time() > waited

    with virtual_time(backend) as (name, options):
        assert asyncio.run(passes())
        assert anyio.run(anyio.sleep, 3600, backend=name, backend_options=options) is None
