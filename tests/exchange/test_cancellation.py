"""Requests that are cancelled, wherever they are: nothing is taken, nothing is left, and the next one works."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    BreakerState,
    CircuitBreakerConfig,
    GuardrailInspectEvent,
    GuardrailResponse,
    ResponseAborted,
)
from asgi_agents.manager import registry_of
from tests.support.asgi import (
    DISCONNECT,
    VIRTUAL_TIME,
    App,
    Client,
    Held,
    Probe,
    SlowProbe,
    assert_nothing_left,
    body,
    settle,
    start,
)

STREAM = BodyMode.STREAM


@dataclass(frozen=True)
class Phase:
    """Where a request is when it is cancelled."""

    event: str
    options: dict[str, Any] = field(default_factory=dict)


PHASES = {
    "request headers": Phase("request_headers"),
    "buffered request body": Phase("request_body"),
    "streamed request body": Phase("request_body", {"request_body_mode": STREAM}),
    "hybrid request body": Phase("request_body", {"request_body_mode": BodyMode.hybrid(2)}),
    "response headers": Phase("response_headers"),
    "buffered response body": Phase("response_body"),
    "streamed response body": Phase("response_body", {"response_body_mode": STREAM}),
    "hybrid response body": Phase("response_body", {"response_body_mode": BodyMode.hybrid(2)}),
}
each_phase = pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)


def _app() -> App:
    return App(start(), body(b"one", more=True), body(b"two"))


def _client() -> Client:
    return Client("POST", body=[b"one", b"two"])


def _living() -> int:
    """How many tasks there are."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return trio.lowlevel.current_statistics().tasks_living


class _FirstHeld:
    """Holds the first call, and lets all others through."""

    def __init__(self) -> None:
        self.held = Held()
        self._calls = 0

    async def __call__(self, event: Any) -> AgentResponse | None:
        self._calls += 1
        return await self.held(event) if self._calls == 1 else None


async def _assert_the_next_one_works(middleware: AgentMiddleware) -> None:
    client = _client()
    await client.call(middleware)
    assert client.status == 200
    assert client.body == b"onetwo"
    assert_nothing_left(middleware.manager)


@pytest.mark.parametrize("agents", [1, 2], ids=["one agent", "two agents"])
@each_phase
async def test_a_cancelled_request_leaves_nothing_behind(phase: Phase, agents: int) -> None:
    first = _FirstHeld()
    middleware = AgentMiddleware(
        _app(),
        agents=[
            AgentConfig("a", SlowProbe(**{phase.event: first}), max_concurrent_calls=1, **phase.options),
            *(AgentConfig(f"b{i}", SlowProbe(**{phase.event: None}), **phase.options) for i in range(agents - 1)),
        ],
    )
    before = _living()
    client = _client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await first.held.reached.wait()
        await settle()
        tasks.cancel_scope.cancel()
    assert first.held.cancelled == 1
    assert_nothing_left(middleware.manager)
    await checkpoint()
    assert _living() == before
    assert not client.complete
    await _assert_the_next_one_works(middleware)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@each_phase
async def test_a_task_cancelled_by_asyncio_leaves_nothing_behind(phase: Phase, anyio_backend: str) -> None:
    first = _FirstHeld()
    middleware = AgentMiddleware(
        _app(), agents=[AgentConfig("a", SlowProbe(**{phase.event: first}), max_concurrent_calls=1, **phase.options)]
    )
    before = len(asyncio.all_tasks())
    task = asyncio.ensure_future(_client().call(middleware))
    await first.held.reached.wait()
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.held.cancelled == 1
    assert_nothing_left(middleware.manager)
    await checkpoint()
    assert len(asyncio.all_tasks()) == before
    await _assert_the_next_one_works(middleware)


@each_phase
async def test_a_cancelled_trial_gives_its_half_open_slot_back(phase: Phase) -> None:
    now = 0.0
    first = _FirstHeld()
    manager = AgentManager(
        [
            AgentConfig(
                "a",
                SlowProbe(**{phase.event: first}),
                circuit_breaker=CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout=1.0),
                **phase.options,
            )
        ],
        clock=lambda: now,
    )
    breaker = registry_of(manager).guard("a").breaker
    assert breaker is not None
    breaker.failure(breaker.acquire() or 0)
    now = 2.0
    middleware = AgentMiddleware(_app(), manager=manager)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_client().call, middleware)
        await first.held.reached.wait()
        assert breaker.trials == 1
        tasks.cancel_scope.cancel()
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.trials == 0
    await _assert_the_next_one_works(middleware)
    assert registry_of(manager).guard("a").breaker is breaker
    assert_nothing_left(manager)


@each_phase
async def test_a_cancelled_request_counts_for_nothing(phase: Phase) -> None:
    first = _FirstHeld()
    middleware = AgentMiddleware(
        _app(),
        agents=[
            AgentConfig(
                "a",
                SlowProbe(**{phase.event: first}),
                circuit_breaker=CircuitBreakerConfig(failure_threshold=1),
                **phase.options,
            )
        ],
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_client().call, middleware)
        await first.held.reached.wait()
        tasks.cancel_scope.cancel()
    breaker = registry_of(middleware.manager).guard("a").breaker
    assert breaker is not None
    assert breaker.state is BreakerState.CLOSED
    assert middleware.manager.metrics["a"].calls == 0


@each_phase
async def test_a_request_cancelled_while_it_waits_for_a_permit_leaves_the_queue(phase: Phase) -> None:
    middleware = AgentMiddleware(
        _app(),
        agents=[AgentConfig("a", SlowProbe(**{phase.event: None}), max_concurrent_calls=1, **phase.options)],
    )
    limiter = registry_of(middleware.manager).guard("a")._limiter
    assert limiter.try_acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_client().call, middleware)
        while not limiter.waiting:
            await checkpoint()
        tasks.cancel_scope.cancel()
    assert (limiter.taken, limiter.waiting) == (1, 0)
    limiter.release()
    await _assert_the_next_one_works(middleware)


async def test_a_request_cancelled_while_the_client_sends_leaves_nothing_behind(probe: type[Probe]) -> None:
    app = _app()
    middleware = AgentMiddleware(app, agents=[AgentConfig("a", probe(request_body=None))])
    client = Client("POST", body=[b"part"], unfinished=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await settle()
        tasks.cancel_scope.cancel()
    assert app.calls == 0
    assert client.messages == []
    await _assert_the_next_one_works(middleware)


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM], ids=lambda mode: mode.name)
async def test_a_request_cancelled_while_the_client_does_not_read_leaves_nothing_behind(
    mode: BodyMode, probe: type[Probe]
) -> None:
    middleware = AgentMiddleware(
        _app(),
        agents=[AgentConfig("a", probe(response_headers=None, response_body=None), response_body_mode=mode)],
    )
    client = _client()
    client.take_nothing()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await settle()
        assert client.sending == 1
        tasks.cancel_scope.cancel()
    assert client.messages == []
    await _assert_the_next_one_works(middleware)


async def test_a_request_cancelled_while_its_app_works_leaves_nothing_behind(probe: type[Probe]) -> None:
    cancelled = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
            await anyio.sleep_forever()
        finally:
            cancelled.append(True)

    agent = probe(request_headers=None, request_body=None, response_headers=None, response_body=None, complete=None)
    middleware = AgentMiddleware(app, agents=[AgentConfig("a", agent, request_body_mode=STREAM)])
    before = _living()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_client().call, middleware)
        await settle()
        tasks.cancel_scope.cancel()
    assert cancelled == [True]
    assert agent.complete.status == 500
    assert agent.complete.error in ("CancelledError", "Cancelled")
    assert_nothing_left(middleware.manager)
    await checkpoint()
    assert _living() == before


async def test_a_request_cancelled_from_the_start_tells_its_agents_of_the_end(probe: type[Probe]) -> None:
    agent = probe(request_headers=None, complete=None)
    middleware = AgentMiddleware(_app(), agents=[AgentConfig("a", agent)])
    client = _client()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await client.call(middleware)
        await checkpoint()
    assert scope.cancelled_caught
    assert len(agent.of("complete")) == 1
    assert_nothing_left(middleware.manager)


async def test_agents_hear_of_the_end_of_a_cancelled_request() -> None:
    held = Held()
    agent = SlowProbe(response_body=held, complete=None)
    middleware = AgentMiddleware(_app(), agents=[AgentConfig("a", agent, response_body_mode=STREAM)])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_client().call, middleware)
        await held.reached.wait()
        tasks.cancel_scope.cancel()
    assert agent.complete.error in ("CancelledError", "Cancelled")
    assert (agent.complete.status, agent.complete.response_body_size) == (200, 0)
    assert agent.complete.request_body_size == 6


async def test_telling_of_the_end_outlasts_a_cancellation_but_not_its_deadline() -> None:
    held = Held()
    middleware = AgentMiddleware(
        _app(), agents=[AgentConfig("a", SlowProbe(complete=held), timeout=0.02, max_concurrent_calls=1)]
    )
    client = _client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await held.reached.wait()
        tasks.cancel_scope.cancel()
    assert client.complete
    assert middleware.manager.metrics["a"].outcomes == {"timeout": 1}
    assert_nothing_left(middleware.manager)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_telling_of_the_end_can_be_cancelled_by_asyncio(anyio_backend: str) -> None:
    held = Held()
    middleware = AgentMiddleware(_app(), agents=[AgentConfig("a", SlowProbe(complete=held))])
    client = _client()
    task = asyncio.ensure_future(client.call(middleware))
    await held.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.complete
    assert held.cancelled == 1
    assert_nothing_left(middleware.manager)


async def test_a_reply_whose_head_is_out_is_finished_by_a_cancelled_request() -> None:
    """A half-sent reply would leave the connection in an undefined state."""
    middleware = AgentMiddleware(
        _app(), agents=[AgentConfig("a", Probe(request_headers=AgentResponse.block(403, "no")))]
    )
    client = _client()
    client.take_nothing()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await settle()
        tasks.cancel_scope.cancel()
        client.take_everything()
    assert client.body == b"no"
    assert client.complete


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], ids=["virtual time"])
async def test_a_cancelled_request_does_not_wait_for_ever_for_its_client_to_read_the_reply(
    anyio_backend: object,
) -> None:
    agent = Probe(request_headers=AgentResponse.block(403, "no"))
    middleware = AgentMiddleware(_app(), agents=[AgentConfig("a", agent)])
    client = _client()
    client.take_nothing()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await settle()
        tasks.start_soon(_rescue, client)
        await settle()
        tasks.cancel_scope.cancel()
    assert client.messages == []


async def _rescue(client: Client) -> None:
    """Let a client read on that has kept everybody waiting for a minute."""
    with anyio.CancelScope(shield=True):
        await anyio.sleep(60)
        client.take_everything()


async def test_a_cancelled_denial_gives_nothing_away() -> None:
    """The agent has denied, and the request is cancelled before its reply is out."""
    first, second = Held(AgentResponse.block(403, "denied")), Held()
    app = _app()
    middleware = AgentMiddleware(
        app,
        agents=[
            AgentConfig("a", SlowProbe(request_headers=second)),
            AgentConfig("b", SlowProbe(request_headers=first)),
        ],
    )
    client = _client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await first.reached.wait()
        await second.reached.wait()
        first.gate.set()
        await settle()
        tasks.cancel_scope.cancel()
    assert app.calls == 0
    assert client.messages == []
    assert_nothing_left(middleware.manager)


async def test_agents_that_are_no_longer_needed_give_everything_back() -> None:
    hanging = Held()
    middleware = AgentMiddleware(
        _app(),
        agents=[
            AgentConfig("a", SlowProbe(request_headers=AgentResponse.block())),
            AgentConfig("b", SlowProbe(request_headers=hanging), circuit_breaker=CircuitBreakerConfig()),
        ],
    )
    client = _client()
    await client.call(middleware)
    assert client.status == 403
    assert hanging.cancelled == 1
    assert middleware.manager.metrics["b"].calls == 0
    assert_nothing_left(middleware.manager)


async def test_a_cancelled_guardrail_inspection_leaves_nothing_behind() -> None:
    reached = anyio.Event()

    class Guardrail(Agent):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
            reached.set()
            await anyio.sleep_forever()
            raise AssertionError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["state"]["agents"].inspect_guardrail("a", "text", inspection_type="pii_detection")

    middleware = AgentMiddleware(app, agents=[AgentConfig("a", Guardrail())])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_client().call, middleware)
        await reached.wait()
        tasks.cancel_scope.cancel()
    assert_nothing_left(middleware.manager)


@pytest.mark.parametrize("expires", [True, False], ids=["deadline", "cancel"])
async def test_a_cancelled_request_ends_the_task_that_judges_beside_it(expires: bool) -> None:
    first = _FirstHeld()
    middleware = AgentMiddleware(
        _app(), agents=[AgentConfig("a", SlowProbe(request_body=first), request_body_mode=STREAM)]
    )
    client, scope = _client(), anyio.CancelScope()

    async def serve() -> None:
        with scope:
            await client.call(middleware)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await first.held.reached.wait()
        if expires:
            scope.deadline = anyio.current_time()
        else:
            scope.cancel()
    assert scope.cancelled_caught
    assert first.held.cancelled == 1
    assert client.messages == []
    await _assert_the_next_one_works(middleware)


async def test_an_app_that_gave_up_a_send_is_not_left_waiting_for_a_body_that_is_refused(probe: type[Probe]) -> None:
    agent = probe(
        request_body=lambda event: AgentResponse.block() if event.data == b"two" else None, response_headers=None
    )
    received: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as given_up:
            given_up.cancel()
            await send(start())
        received.extend([await receive() for _ in range(3)])

    client = _client()
    client.take_nothing()
    with anyio.move_on_after(1), pytest.raises(ResponseAborted, match="the app cancelled a send"):
        await client.call(AgentMiddleware(app, agents=[AgentConfig("a", agent, request_body_mode=STREAM)]))
    assert received[1:] == [DISCONNECT, DISCONNECT]
