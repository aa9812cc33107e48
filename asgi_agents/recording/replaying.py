"""Replaying: an agent is asked all that was recorded, and its answers are compared with the recorded ones."""

import dataclasses
import os
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup
from msgspec.structs import replace

from ..agent import Agent
from ..audit import Redact
from ..config import AgentConfig
from ..decision import Verdict
from ..errors import AgentError, AgentsError, ConfigurationError
from ..guard import Guard
from ..messages.naming import named
from ..observability.histograms import Distribution
from ..observability.redaction import redact_secrets
from ..policy import FailureMode, require_int, require_seconds
from ..protocol import EventType, GuardrailInspectEvent, RequestHeadersEvent
from ..protocol.stream import correlation_id_of
from ..transports.base import Transport
from ..transports.resolve import learns_events, resolve_transport
from .cleaning import cleaner_of
from .comparing import NOT_ASKED, Difference, difference_of, differences, outcome_of, recorded_outcome, request_of
from .format import PLAIN_ALLOW, AgentLine, RecordingError
from .reading import RecordedExchange, Traffic
from .report import ReplayReport, timing_of

#: So many differences are kept; all are counted.
MAX_DIFFERENCES: Final = 1000
#: So many exchanges wait behind others of their connections at most.
MAX_WAITING: Final = 1000
# So many connections are remembered, so that the agent is told when the oldest of them is over.
_MAX_CONNECTIONS: Final = 10_000
# So many characters are kept of a request, for the events that follow its head.
_MAX_REQUEST: Final = 1000
# Seconds that an agent has, beside its timeout, until it is connected and configured.
_CONFIGURE_TIMEOUT: Final = 10.0
# An agent that has answered none of so many calls answers none at all.
_HOPELESS: Final = 20


async def replay(
    path: str | os.PathLike[str],
    agent: Agent | Transport | str | Sequence[str],
    *,
    agent_id: str | None = None,
    concurrency: int = 1,
    timeout: float | None = None,
    config: Any = None,
    events: Iterable[EventType] | None = None,
    ignore: Collection[str] = (),
    ignore_redacted: bool = False,
    ignore_not_replayed: bool = False,
    redact: Redact | None = redact_secrets,
) -> ReplayReport:
    """Ask ``agent`` all that the recording in ``path`` has asked one, and compare its decisions with the recorded ones.

    The events are asked about in the order in which the calls began. With ``concurrency`` above 1, connections are
    replayed beside one another, each with its events in their order. Answers are checked as they were in the app: one
    that is not allowed is a failure. What a failure says in words is not compared.

    :param agent: an agent, a URL, or whatever else :class:`AgentConfig` takes for an agent.
    :param agent_id: the agent in the recording; None: the one that is in it.
    :param concurrency: calls at a time at most.
    :param timeout: seconds for each call; None: those that the agent had.
    :param config: what the agent is configured with before it is asked.
    :param events: those that the agent receives; None: those that it has hooks for or names itself, or else all those
        that the recorded agent has received, also where it was replaced meanwhile.
    :param ignore: names of fields of :class:`FieldDifference` that may differ, such as ``{"audit"}``.
    :param ignore_redacted: ask about events in which a secret was replaced, and don't compare what comes of it: an
        agent that looks at credentials decides otherwise without them.
    :param ignore_not_replayed: call it a success, too, where the agent receives events whose content was not recorded.
    :param redact: what :func:`record` was given, where that was a function.
    :raises OSError: the file can't be opened.
    :raises RecordingError: the recording can't be read, or it has other agents than the one that is meant.
    :raises AgentError: the agent can't be reached, refuses its configuration, or has answered none of the first calls.
    """
    require_int("replay", "concurrency", concurrency, at_least=1)
    if timeout is not None:
        require_seconds("replay", "timeout", timeout)
    if isinstance(ignore, str):
        raise ConfigurationError(f"replay: ignore={ignore!r}, expected a set: {{{ignore!r}}}")
    if agent_id is not None and not isinstance(agent_id, str):
        raise ConfigurationError(f"replay: agent_id={named(agent_id)}, expected a str or None")
    transport = resolve_transport("replay", agent)
    settings = _settings_of(path, agent_id)
    if events is None and transport.events is None and not learns_events(transport):
        events = [event for event in settings.events if event in transport.carries]
    guard = Guard(
        AgentConfig(
            settings.agent,
            transport,
            events=events,
            timeout=settings.timeout if timeout is None else timeout,
            chunk_timeout=settings.chunk_timeout if timeout is None else timeout,
            max_concurrent_calls=concurrency,
            circuit_breaker=None,
            config=config,
        )
    )
    with Traffic(path) as traffic:
        replaying = _Replaying(
            traffic,
            guard,
            frozenset(ignore),
            redact,
            timeout,
            ignore_redacted=ignore_redacted,
            ignore_not_replayed=ignore_not_replayed,
        )
        try:
            await _configure(guard)
            await replaying.run(settings.agent, concurrency)
        finally:
            with CancelScope(shield=True):
                await guard.client.retire()
        return replaying.report(settings.agent)


def assert_same_decisions(
    path: str | os.PathLike[str], agent: Agent | Transport | str | Sequence[str], **options: Any
) -> ReplayReport:
    """:func:`replay` on an event loop of its own, for tests that are no coroutine functions.

    :raises AssertionError: a decision differs, or none could be compared; its message is the report.
    """
    report = anyio.run(partial(replay, path, agent, **options))
    report.check()
    return report


async def _configure(guard: Guard) -> None:
    """Connect to the agent and hand it its configuration.

    :raises AgentError: it can't be reached within its timeout, or does not take its configuration.
    """
    guard.configuring.logged = False
    try:
        with anyio.fail_after(guard.config.timeout + _CONFIGURE_TIMEOUT):
            await guard.configuring.configure()
    except TimeoutError:
        raise AgentError(f"agent {guard.config.id!r} can't be reached: {guard.client.address}") from None


def _settings_of(path: str | os.PathLike[str], agent_id: str | None) -> AgentLine:
    """The first settings of the agent that is meant, with the events of all: it may have been replaced meanwhile."""
    known: dict[str, AgentLine] = {}
    with Traffic(path) as traffic:
        for settings in traffic.settings():
            first = known.setdefault(settings.agent, settings)
            if not set(settings.events) <= set(first.events):
                events = sorted({*first.events, *settings.events})
                known[settings.agent] = replace(first, events=events)
    if agent_id in known:
        return known[agent_id]
    names = ", ".join(known) or "none"
    if agent_id is not None:
        raise RecordingError(f"{path}: no agent has the id {agent_id!r}; there are: {names}")
    if len(known) != 1:
        how = "; name one with agent_id (--id on the command line)" if known else ""
        raise RecordingError(f"{path}: expected the id of one of its agents; there are: {names}{how}")
    return next(iter(known.values()))


class _Replaying:
    """One replay: what was asked so far, and what came of it."""

    def __init__(
        self,
        traffic: Traffic,
        guard: Guard,
        ignore: Collection[str],
        redact: Redact | None,
        timeout: float | None,
        *,
        ignore_redacted: bool,
        ignore_not_replayed: bool,
    ) -> None:
        self._traffic = traffic
        self._guard = guard
        self._ignore = ignore
        self._ignore_redacted = ignore_redacted
        self._ignore_not_replayed = ignore_not_replayed
        self._cleaner = cleaner_of(traffic.opening, redact)
        self._settings: AgentLine | None = None
        self._deadline = timeout
        self._connections: OrderedDict[str, None] = OrderedDict()
        # By correlation id, of the connections whose heads were read last.
        self._requests: OrderedDict[str, str] = OrderedDict()
        self._differences: list[Difference] = []
        self._recorded = Distribution()
        self._now = Distribution()
        self._not_replayed: Counter[str] = Counter()
        self._compared = self._different = self._unheard = self._failed = 0
        self._redacted = self._not_asked = self._given_up = self._answered = 0
        self._redacted_ignored = 0

    async def run(self, agent_id: str, concurrency: int) -> None:
        """Ask about all exchanges of that agent."""
        exchanges = self._exchanges_of(agent_id)
        if concurrency == 1:
            for exchange in exchanges:
                await self._ask(exchange)
            return
        await _Lanes(self._ask, concurrency).run(exchanges)

    def _exchanges_of(self, agent_id: str) -> Iterator[RecordedExchange]:
        """Those of the agent, in their order; of all agents, the requests are noted."""
        for exchange in self._traffic.exchanges():
            if isinstance(exchange.event, RequestHeadersEvent):
                # The agent itself may not receive heads.
                self._requests[exchange.event.correlation_id] = request_of(exchange.event)[:_MAX_REQUEST]
                if len(self._requests) > _MAX_CONNECTIONS:
                    self._requests.popitem(last=False)
            if exchange.about.agent == agent_id:
                yield exchange

    def report(self, agent_id: str) -> ReplayReport:
        """What it has come to."""
        end = self._traffic.end
        return ReplayReport(
            path=str(self._traffic.path),
            agent=agent_id,
            compared=self._compared,
            same=self._compared - self._different,
            different=self._different,
            differences=sorted(self._differences, key=lambda difference: difference.n),
            unheard=self._unheard,
            failed=self._failed,
            redacted=self._redacted,
            not_replayed=dict(self._not_replayed),
            not_asked=self._not_asked,
            given_up=self._given_up,
            recorded_seconds=timing_of(self._recorded),
            replayed_seconds=timing_of(self._now),
            dropped=0 if end is None else end.dropped,
            complete=self._traffic.complete,
            redacted_ignored=self._redacted_ignored,
            not_replayed_ignored=self._ignore_not_replayed,
        )

    async def _ask(self, exchange: RecordedExchange) -> None:
        about = exchange.about
        if exchange.failure is not None and exchange.failure.kind in NOT_ASKED:
            self._not_asked += 1
            return
        if exchange.event.event_type not in self._guard.hears:
            if about.given_up:
                self._given_up += 1
            else:
                # It takes no content to know what comes of this.
                self._unheard += self._compare(exchange, dict(PLAIN_ALLOW))
            return
        if about.left_out:
            self._not_replayed[exchange.event.event_type.value] += 1
            return
        self._adopt(exchange.agent)
        self._remember(exchange)
        verdict, outcome = await self._call(exchange)
        self._now.add(verdict.duration)
        if verdict.failure is None:
            self._answered += 1
        else:
            self._failed += 1
            if not self._answered and self._failed >= _HOPELESS and exchange.failure is None:
                raise AgentError(f"none of the first {self._failed} calls was answered: {verdict.failure.message}")
        if about.given_up:
            self._given_up += 1
            return
        self._recorded.add(about.seconds)
        self._compare(exchange, outcome)

    async def _call(self, exchange: RecordedExchange) -> tuple[Verdict, dict[str, Any]]:
        event, about = exchange.event, exchange.about
        if isinstance(event, GuardrailInspectEvent):
            verdict, inspection = await self._guard.inspect(
                event, FailureMode.CLOSED, route=about.route, window=about.window
            )
            return verdict, outcome_of(verdict, inspection, self._cleaner)
        verdict = await self._guard.call(event, FailureMode.CLOSED, about.chunk, about.route)
        return verdict, outcome_of(verdict, None, self._cleaner)

    def _compare(self, exchange: RecordedExchange, outcome: dict[str, Any]) -> bool:
        """Compare it, unless it is to be left out; whether it was."""
        if exchange.about.redacted and self._ignore_redacted:
            self._redacted_ignored += 1
            return False
        self._compared += 1
        self._redacted += exchange.about.redacted
        found = differences(recorded_outcome(exchange), outcome, self._ignore)
        if found:
            self._different += 1
            if len(self._differences) < MAX_DIFFERENCES:
                request = self._requests.get(correlation_id_of(exchange.event), "")
                self._differences.append(difference_of(exchange, found, request))
        return True

    def _adopt(self, settings: AgentLine) -> None:
        """Check the answers by the settings that the agent had at the time: it may have been replaced meanwhile."""
        if settings is self._settings:
            return
        self._settings = settings
        self._guard.config = dataclasses.replace(
            self._guard.config,
            timeout=settings.timeout if self._deadline is None else self._deadline,
            chunk_timeout=settings.chunk_timeout if self._deadline is None else self._deadline,
            body_access=settings.body_access,
            may_set_host=settings.may_set_host,
        )

    def _remember(self, exchange: RecordedExchange) -> None:
        """Tell the agent's client of connections that are over, as far as that is known: it keeps something of each."""
        name = correlation_id_of(exchange.event)
        self._connections[name] = None
        self._connections.move_to_end(name)
        if len(self._connections) > _MAX_CONNECTIONS:
            self._guard.forget(self._connections.popitem(last=False)[0])


def _checks(settings: AgentLine) -> tuple[object, ...]:
    """What of an agent's settings an answer depends on."""
    return settings.body_access, settings.may_set_host, settings.timeout, settings.chunk_timeout


class _Lanes:
    """Connections beside one another: each with its exchanges in order, so many at a time."""

    def __init__(self, ask: Callable[[RecordedExchange], Awaitable[None]], concurrency: int) -> None:
        self._ask = ask
        self._concurrency = concurrency
        self._free = anyio.Semaphore(concurrency)
        self._room = anyio.Semaphore(MAX_WAITING)
        # A connection is in here while one of its exchanges is under way or waits.
        self._lanes: dict[str, deque[RecordedExchange]] = {}
        self._error: AgentsError | None = None

    async def run(self, exchanges: Iterable[RecordedExchange]) -> None:
        """Ask about all of them. What goes wrong is raised as it is, not in a group."""
        settings: AgentLine | None = None
        async with anyio.create_task_group() as tasks:
            try:
                for exchange in exchanges:
                    if settings is not None and _checks(settings) != _checks(exchange.agent):
                        # Answers are checked by the settings of the agent, which are those of all under way.
                        await self._all_done()
                    settings = exchange.agent
                    await self._room.acquire()
                    name = correlation_id_of(exchange.event)
                    lane = self._lanes.get(name)
                    if lane is not None:
                        lane.append(exchange)
                        continue
                    self._lanes[name] = deque((exchange,))
                    await self._free.acquire()
                    tasks.start_soon(self._serve, name, tasks)
            except RecordingError as exc:
                self._fail(exc, tasks)
        if self._error is not None:
            raise self._error

    async def _all_done(self) -> None:
        """Wait until nothing is under way."""
        for _ in range(self._concurrency):
            await self._free.acquire()
        for _ in range(self._concurrency):
            self._free.release()

    async def _serve(self, name: str, tasks: TaskGroup) -> None:
        lane = self._lanes[name]
        try:
            while lane:
                await self._ask(lane.popleft())
                self._room.release()
        except AgentsError as exc:
            self._fail(exc, tasks)
        finally:
            del self._lanes[name]
            self._free.release()

    def _fail(self, error: AgentsError, tasks: TaskGroup) -> None:
        self._error = self._error or error
        tasks.cancel_scope.cancel()
