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
from typing import Any, Final, TypeGuard
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
from ..transports.base import AgentClient, BindableTransport, PlainTransport
from .fake_agent import FakeAgent
from .recording import RECORDS, Recording

_CONFIGURE: Final = frozenset({EventType.CONFIGURE})
_REAL_CLOCK: Final = time.monotonic
#: What may take the place of an agent: an agent, or a transport that keeps nothing for it, such as a recording of one.
Replacement = Agent | PlainTransport
#: Makes the guard that is to take the place of one.
_Make = Callable[[AgentRegistry, Guard], Guard]


@contextmanager
def override_agents(
    app: ASGIApp, agents: Mapping[str, Replacement] | None = None, /, **more: Replacement
) -> Iterator[Recording]:
    """Put other agents in the places of those with these ids, until the end of the ``with`` block.

    ::

        with override_agents(app, waf=FakeAgent(AgentResponse.block(403))), TestClient(app) as client:
            response = client.get("/orders")
        assert_blocked_by(response, "waf")

    The new agent takes over everything but the agent itself: routes, failure modes, deadlines, limit, events and bodies
    as they are configured. Its breaker is closed and its counts are 0. It receives those of the replaced agent's events
    that it has hooks for. Where the replaced one is remote, it is treated as remote.

    A :class:`~asgi_agents.recording.RecordedAgent` may take the place as well, and so may any other transport that has
    no ``bind``. It receives those of the replaced agent's events that it names.

    It may be entered before the app has started, while it runs, in any thread, and more than once: the one that was
    entered last counts. Requests that have begun before keep their agents. An agent that is replaced before the app
    starts is not connected.

    Where the app itself replaces or removes such an agent meanwhile, as it does when it takes its file anew, that holds
    at once, and afterwards. A configuration that it pushes goes to the new agent, and to the replaced one before
    its next call.

    Meanwhile the decisions of all agents of the app are recorded, of those too that are not replaced, or if none is:
    :func:`assert_blocked_by` needs that. So each response carries the header ``x-asgi-agents-recorded``.

    :param app: the guarded app, or the :class:`AgentMiddleware` itself where it can't be found in the app. It is looked
        for in mounted apps and routers as well. Of several that have an agent of that id, all get the new one.
        Middlewares that the app would make with its first connection are made here: add none to it afterwards.
    :param agents: the new agents by id; for ids that are no Python names, such as ``{"api-key": FakeAgent()}``.
    :raises UnknownAgentError: the app has no agent with such an id.
    :raises ConfigurationError: for an app without agents, for what can't take the place of one, and for an agent that
        would receive none of the events, or has a script for an event that the replaced one does not receive. Nothing
        is replaced.
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
    """For each agent whose place is taken: its own guard, and those that were put there, the last of them in place.

    Where the app itself has put another agent there meanwhile, or none, that holds: all of them are out of it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._guards: WeakKeyDictionary[AgentRegistry, dict[str, list[Guard]]] = WeakKeyDictionary()

    def own(self, registry: AgentRegistry, agent_id: str) -> Guard:
        """The guard of the agent itself."""
        with self._lock:
            layers = self._find(registry, agent_id)
            return layers[0] if layers else registry.guard(agent_id)

    def put(self, registry: AgentRegistry, guard: Guard) -> None:
        """Put a guard in the place of an agent, over all others."""
        agent_id = guard.config.id
        with self._lock:
            layers = self._find(registry, agent_id) or [registry.guard(agent_id)]
            registry.put(guard)
            self._guards.setdefault(registry, {})[agent_id] = [*layers, guard]

    def take_away(self, registry: AgentRegistry, guard: Guard) -> None:
        """The last of those that are left has the place then."""
        agent_id = guard.config.id
        with self._lock:
            layers = self._find(registry, agent_id)
            if guard in layers:
                layers.remove(guard)
                registry.put(layers[-1])
                if len(layers) == 1:
                    del self._guards[registry][agent_id]
            registry.forget(guard)

    def _find(self, registry: AgentRegistry, agent_id: str) -> list[Guard]:
        """The guards for that place, if one of them has it; none where nothing was put over the agent's own."""
        known = self._guards.get(registry, {})
        layers = known.get(agent_id, [])
        if layers and registry.find(agent_id) is not layers[-1]:
            del known[agent_id]
            return []
        return layers


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
    names = ", ".join(sorted(own.hears - _CONFIGURE))
    transport: Agent | _Elsewhere
    config = own.config.config
    if isinstance(agent, Agent):
        check_agent(where, agent)
        events, wanted = own.hears & agent.events, "hooks for any of"
        transport = agent if own.local else _StandIn(agent, own.client)
    elif _is_plain(agent):
        known = agent.carries if agent.events is None else agent.carries & agent.events
        events, wanted = own.hears & known, "any of"
        transport = _StandInTransport(agent, own.client)
        config = config if EventType.CONFIGURE in agent.carries else None
    else:
        raise ConfigurationError(
            f"{where}={named(agent)}, expected an Agent, such as FakeAgent(), or a transport that keeps no connections,"
            " such as RecordedAgent(path)"
        )
    if not events - _CONFIGURE:
        raise ConfigurationError(f"{where}: {type(agent).__name__} would receive no events, expected {wanted}: {names}")
    unheard = sorted(agent.scripted - own.hears - _CONFIGURE) if isinstance(agent, FakeAgent) else []
    if unheard:
        raise ConfigurationError(
            f"{where}: there is a script for {unheard[0]}, which this agent does not receive, expected any of: {names}"
        )
    guard = _made(registry, replace(own.config, transport=transport, events=events, config=config))
    registry.check_guardrails(guard)
    return guard


def _is_plain(given: object) -> TypeGuard[PlainTransport]:
    # A class has the members of its instances.
    return isinstance(given, PlainTransport) and not isinstance(given, BindableTransport | type)


def _down(registry: AgentRegistry, own: Guard) -> Guard:
    guard = _made(registry, replace(own.config, transport=_Refusing(own.client), events=own.hears))
    # An agent that has its configuration and goes down has been configured.
    guard.configuring.done = own.configured
    return guard


def _with_open_breaker(registry: AgentRegistry, own: Guard) -> Guard:
    now = time.monotonic()
    # It needs no configuration, however often the app is started: it has taken it before its breaker has opened.
    config = replace(own.config, transport=_Refusing(own.client), events=own.hears - _CONFIGURE, config=None)
    # Its breaker has a clock that stands still: it stays open.
    guard = _made(registry, config, clock=lambda: now)
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


class _StandInTransport(_Elsewhere):
    """Calls a transport in the place of an agent, wherever that is."""

    def __init__(self, transport: PlainTransport, client: AgentClient) -> None:
        super().__init__(client, transport.events)
        self.carries = transport.carries
        self.aclose = transport.aclose  # type: ignore[method-assign]
        self.call = transport.call


class _Refusing(_Elsewhere):
    """Reaches nobody."""

    def __init__(self, client: AgentClient) -> None:
        super().__init__(client, None)

    async def call(self, event: Event) -> Answer | None:
        raise AgentConnectionError("connection refused, as the test wants it")
