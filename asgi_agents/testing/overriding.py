"""Other agents in the places of those of an app, for a while.

What is replaced is the guard of an agent, with all that it keeps: its transport, its breaker, its limit, its counts.
The new guard has the same configuration but for the transport. So everything around the agent is as in production: its
routes, its failure mode and those of the routes, its deadlines, the limit, the breaker, the events that it receives.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any, Final
from weakref import WeakKeyDictionary

from starlette.types import ASGIApp

from ..agent import HOOKS, Agent, check_agent
from ..breaker import BreakerState
from ..config import AgentConfig
from ..errors import AgentConnectionError, ConfigurationError, UnknownAgentError
from ..guard import Guard
from ..manager import registry_of
from ..messages.naming import named
from ..placement import middlewares_of
from ..protocol import Answer, Event, EventType
from ..registry import AgentRegistry
from ..transports.base import AgentClient
from .fake_agent import FakeAgent
from .recording import RECORDS, Recording

_CONFIGURE: Final = frozenset({EventType.CONFIGURE})
_REAL_CLOCK: Final = time.monotonic
#: Makes the guard that is to take the place of one.
_Make = Callable[[AgentRegistry, Guard], Guard]


@contextmanager
def override_agents(app: ASGIApp, agents: Mapping[str, Agent] | None = None, /, **more: Agent) -> Iterator[Recording]:
    """Put other agents in the places of those with these ids, until the end of the ``with`` block.

    ::

        with override_agents(app, waf=FakeAgent(AgentResponse.block(403))), TestClient(app) as client:
            response = client.get("/orders")
        assert_blocked_by(response, "waf")

    The new agent takes over everything but the agent itself: routes, failure modes, deadlines, limit, events and bodies
    as they are configured. Its breaker is closed and its counts are 0. It receives those of the replaced agent's events
    that it has hooks for. Where the replaced one is remote, it is treated as remote.

    It may be entered before the app has started, while it runs, in any thread, and more than once: the one that was
    entered last counts. Requests that have begun before keep their agents. An agent that is replaced before the app
    starts is not connected.

    Meanwhile the decisions of all agents of the app are recorded, of those too that are not replaced, or if none is:
    :func:`assert_blocked_by` needs that. So each response carries the header ``x-asgi-agents-recorded``.

    :param app: the guarded app, or the :class:`AgentMiddleware` itself where it can't be found in the app. It is looked
        for in mounted apps and routers as well. Of several that have an agent of that id, all get the new one.
        Middlewares that the app would make with its first connection are made here: add none to it afterwards.
    :param agents: the new agents by id; for ids that are no Python names, such as ``{"api-key": FakeAgent()}``.
    :raises UnknownAgentError: the app has no agent with such an id.
    :raises ConfigurationError: for an app without agents, for what is no agent, and for an agent that would receive
        none of the events, or has a script for an event that the replaced one does not receive. Nothing is replaced.
    """
    given = dict(agents or {})
    for agent_id, agent in more.items():
        if agent_id in given:
            raise ConfigurationError(f"override_agents: {agent_id!r} is given twice, expected once")
        given[agent_id] = agent
    makers = {agent_id: partial(_stand_in, agent) for agent_id, agent in given.items()}
    with _changed("override_agents", app, makers) as recording:
        yield recording


@contextmanager
def agent_down(app: ASGIApp, *agent_ids: str) -> Iterator[Recording]:
    """Make agents unreachable until the end of the ``with`` block: each call fails as if its connection was refused.

    So the failure mode applies, and after a few calls the breaker opens, as configured. Everything else is as in
    :func:`override_agents`.
    """
    makers = dict.fromkeys(_some("agent_down", agent_ids), _down)
    with _changed("agent_down", app, makers) as recording:
        yield recording


@contextmanager
def breaker_open(app: ASGIApp, *agent_ids: str) -> Iterator[Recording]:
    """Open the breakers of agents until the end of the ``with`` block, however long that takes.

    The agents are not called. Each refused call says to try again after all of the breaker's ``reset_timeout``.
    Everything else is as in :func:`override_agents`.

    :raises ConfigurationError: also for an agent without a circuit breaker.
    """
    makers = dict.fromkeys(_some("breaker_open", agent_ids), _with_open_breaker)
    with _changed("breaker_open", app, makers) as recording:
        yield recording


class _Layers:
    """For each agent whose place is taken: its own guard, and those that were put there, the last of them in place."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._guards: WeakKeyDictionary[AgentRegistry, dict[str, list[Guard]]] = WeakKeyDictionary()

    def own(self, registry: AgentRegistry, agent_id: str) -> Guard:
        """The guard of the agent itself."""
        layers = self._guards.get(registry, {}).get(agent_id)
        return registry.guard(agent_id) if layers is None else layers[0]

    def put(self, registry: AgentRegistry, guard: Guard) -> None:
        """Put a guard in the place of an agent, over all others."""
        agent_id = guard.config.id
        with self._lock:
            own = self.own(registry, agent_id)
            registry.put(guard)
            self._guards.setdefault(registry, {}).setdefault(agent_id, [own]).append(guard)

    def take_away(self, registry: AgentRegistry, guard: Guard) -> None:
        """The last of those that are left has the place then."""
        agent_id = guard.config.id
        with self._lock:
            layers = self._guards[registry][agent_id]
            layers.remove(guard)
            registry.put(layers[-1])
            registry.forget(guard)
            if len(layers) == 1:
                del self._guards[registry][agent_id]


_LAYERS: Final = _Layers()


@contextmanager
def _changed(where: str, app: object, makers: Mapping[str, _Make]) -> Iterator[Recording]:
    """Put what ``makers`` make in the places of the agents, and record."""
    middlewares = middlewares_of(app)
    if not middlewares:
        raise ConfigurationError(
            f"{where}: no AgentMiddleware was found in {named(app)}, expected a guarded app, or its AgentMiddleware,"
            " which protect(...) returns"
        )
    registries = list(dict.fromkeys(registry_of(middleware.manager) for middleware in middlewares))
    # All are made before one of them is in place: what is wrong with one changes nothing.
    guards = [
        (registry, make(registry, _LAYERS.own(registry, agent_id)))
        for agent_id, make in makers.items()
        for registry in _having(where, agent_id, registries)
    ]
    recording = Recording()
    # Whatever goes wrong in between, each thing that was changed is put back.
    with ExitStack() as changed:
        RECORDS.start(recording, middlewares)
        changed.callback(RECORDS.stop, recording, middlewares)
        for registry, guard in guards:
            _LAYERS.put(registry, guard)
            changed.callback(_LAYERS.take_away, registry, guard)
        yield recording


def _having(where: str, agent_id: str, registries: Iterable[AgentRegistry]) -> list[AgentRegistry]:
    having = [registry for registry in registries if registry.find(agent_id) is not None]
    if not having:
        known = dict.fromkeys(each for registry in registries for each in registry.agent_ids)
        raise UnknownAgentError(f"{where}: no agent has the id {agent_id!r}; there are: {', '.join(known) or 'none'}")
    return having


def _some(where: str, agent_ids: tuple[str, ...]) -> tuple[str, ...]:
    if not agent_ids:
        raise ConfigurationError(f"{where}: no agent, expected the id of at least one")
    return agent_ids


def _stand_in(agent: object, registry: AgentRegistry, own: Guard) -> Guard:
    where = f"override_agents: {own.config.id}"
    if not isinstance(agent, Agent):
        raise ConfigurationError(f"{where}={named(agent)}, expected an Agent, such as FakeAgent()")
    check_agent(where, agent)
    events = own.hears & agent.events
    names = ", ".join(sorted(own.hears - _CONFIGURE))
    if not events - _CONFIGURE:
        kind = type(agent).__name__
        raise ConfigurationError(f"{where}: {kind} would receive no events, expected hooks for any of: {names}")
    unheard = sorted(agent.scripted - own.hears - _CONFIGURE) if isinstance(agent, FakeAgent) else []
    if unheard:
        raise ConfigurationError(
            f"{where}: there is a script for {unheard[0]}, which this agent does not receive, expected any of: {names}"
        )
    transport = agent if own.local else _StandIn(agent, own.client)
    guard = _made(registry, replace(own.config, transport=transport, events=events))
    registry.check_guardrails(guard)
    return guard


def _down(registry: AgentRegistry, own: Guard) -> Guard:
    guard = _made(registry, replace(own.config, transport=_Refusing(own.client), events=own.hears))
    # An agent that has its configuration and goes down has been configured.
    guard.configuring.done = own.configured
    return guard


def _with_open_breaker(registry: AgentRegistry, own: Guard) -> Guard:
    now = time.monotonic()
    # Its breaker has a clock that stands still: it stays open.
    guard = _made(registry, replace(own.config, transport=_Refusing(own.client), events=own.hears), clock=lambda: now)
    guard.configuring.done = True
    breaker = guard.breaker
    if breaker is None:
        raise ConfigurationError(f"breaker_open: {own.config.id!r} has circuit_breaker=None, expected it to have one")
    while breaker.state is not BreakerState.OPEN:
        began = breaker.acquire()
        assert began is not None
        breaker.failure(began)
    return guard


def _made(registry: AgentRegistry, config: AgentConfig, clock: Callable[[], float] | None = None) -> Guard:
    if clock is None and registry.clock is _REAL_CLOCK:
        clock = _clock_of_now
    guard = registry.make_guard(config, clock=clock)
    guard.stands_in = True
    return guard


def _clock_of_now() -> float:
    """The time, be it virtual or not. The app may have been made in real time."""
    return time.monotonic()


class _Elsewhere:
    """A transport to what is treated as if it was where the agent itself is."""

    def __init__(self, client: AgentClient, events: frozenset[EventType] | None) -> None:
        self.kind = client.kind
        self.remote = client.remote
        self.address = client.address
        self.events = events
        self.carries = frozenset(EventType)

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def aclose(self) -> None:
        pass


class _StandIn(_Elsewhere):
    """Calls an agent in this process in the place of a remote one."""

    def __init__(self, agent: Agent, client: AgentClient) -> None:
        super().__init__(client, agent.events)
        self._agent = agent

    async def call(self, event: Event) -> Answer | None:
        hook: Any = getattr(self._agent, HOOKS[event.event_type])
        answer: Answer | None = await hook(event)
        return answer


class _Refusing(_Elsewhere):
    """Reaches nobody."""

    def __init__(self, client: AgentClient) -> None:
        super().__init__(client, None)

    async def call(self, event: Event) -> Answer | None:
        raise AgentConnectionError("connection refused, as the test wants it")
