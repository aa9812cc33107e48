"""Puts what a file says now in the place of what it said before, in one step, or leaves all as it was."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from anyio import to_thread
from msgspec import Struct, structs

from ..concurrency.shared_limiter import SharedLimiter
from ..config import AgentConfig
from ..errors import AgentError, ConfigurationError
from ..guard import Guard
from ..guardrails import Guardrail, ToolPolicy
from ..manager import registry_of
from ..middleware import AgentMiddleware, let_reload
from ..observability.attributes import OUTCOME
from ..observability.sources import ReloadOutcome, SourceStatus
from ..registry import Change
from ..transports.resolve import agent_of
from .configuration import Configuration
from .load import load_with
from .source import digest_of, read_bytes

logger: Final = logging.getLogger("asgi_agents")

#: Seconds that connections get to end which hold agents that were replaced or removed.
DRAIN_TIMEOUT: Final = 30.0


class FileSource(Struct, frozen=True):
    """The file, and what is given beside it: the parameters of :func:`load`, and those of ``protect`` that the file may
    have too, by name.
    """

    path: str
    agents: Sequence[AgentConfig]
    guardrails: Sequence[Guardrail | ToolPolicy]
    imports: Sequence[str]
    beside: Mapping[str, Any]

    def load(self, before: Configuration | None = None) -> Configuration:
        """What the file says now. Raises :class:`ConfigurationError`."""
        loaded = load_with(self.path, self.agents, self.guardrails, self.imports, os.environ, before)
        for name in self.beside:
            if name in loaded.arguments:
                raise ConfigurationError(f"{self.path}: {name}: given in the code too, expected it in one of them")
        return loaded

    def digest(self) -> bytes | None:
        """That of what is in the file now; None where it can't be read."""
        try:
            return digest_of(read_bytes(Path(self.path)))
        except ConfigurationError:
            return None


class _Waiting(Struct, frozen=True):
    """A file that an agent has kept from being taken: its digest, and what the log says of it."""

    digest: bytes
    reason: str


class Reloader:
    """Reloads the file of one middleware.

    :param loaded: what the middleware was made with.
    """

    def __init__(self, middleware: AgentMiddleware, source: FileSource, loaded: Configuration) -> None:
        self._prepare_routes = let_reload(middleware, self.reload)
        self._registry = registry_of(middleware.manager)
        self._source = source
        self._turn = SharedLimiter(1)
        #: What holds now.
        self.loaded = loaded
        # What was refused last, and may be taken yet.
        self._waiting: _Waiting | None = None
        self._registry.source = SourceStatus(path=source.path, loaded_at=time.time())
        for outcome in ReloadOutcome:
            # So that each is there before it has happened: the first one is an increase too.
            self._count(outcome, 0)

    async def reload(self) -> None:
        """Take the file as it is now.

        Raises :class:`ConfigurationError` or :class:`AgentError`, which say why it is refused: all stays as it was.
        """
        # Of several calls each waits for the one before it, so that the last one's file stays.
        await self._turn.acquire()
        try:
            await self._reload(None)
        finally:
            self._turn.release()

    async def retry(self) -> None:
        """Take the file again that was refused last because of an agent, if it is still the same, and was not taken.

        Raises as :meth:`reload` does. What is refused for the same reason again is neither logged nor counted.
        """
        await self._turn.acquire()
        try:
            if self._waiting is not None:
                await self._reload(self._waiting)
        finally:
            self._turn.release()

    async def _reload(self, waiting: "_Waiting | None") -> None:
        try:
            refused, change = await self._take(None if waiting is None else waiting.digest)
        except Exception:
            self._waiting = None
            self._count(ReloadOutcome.FAILED)
            raise
        if refused is not None:
            if waiting is None or waiting.reason != str(refused):
                self._count(ReloadOutcome.REFUSED)
                # One line, however many mistakes there are.
                logger.error("reload refused, all stays as it was: %s", "; ".join(str(refused).splitlines()))
            raise refused
        if change is not None:
            self._count(ReloadOutcome.TAKEN)
            logger.info("%s: taken: %s", self._source.path, _shown(change))

    async def _take(self, expected: bytes | None) -> tuple[ConfigurationError | AgentError | None, Change | None]:
        """What has changed, or why the file is refused. Neither, if its digest is not the ``expected`` one.

        An error that may show what came from a variable is not handed on, nor anything that refers to it.
        """
        before = self.loaded
        hide: Callable[[str], str] = before.hide
        self._waiting, loaded = None, None
        try:
            # Not on the event loop: certificates may have to be read, and modules imported.
            loaded = await to_thread.run_sync(self._source.load, before)
            hide = loaded.hide
            if expected not in (None, loaded.digest):
                # Whoever has changed it has it taken.
                return None, None
            _check_settings(self._source.path, loaded.settings, before.settings)
            change = await self._put_in_place(loaded, before)
        except (ConfigurationError, AgentError) as exc:
            if loaded is None and expected is not None and await to_thread.run_sync(self._source.digest) != expected:
                # Likewise where it can't be taken at all: that is refused once, when it is said to have changed.
                return None, None
            kind, text = type(exc), hide(str(exc))
            if not text.startswith(self._source.path):
                text = f"{self._source.path}: {text}"
        else:
            self.loaded = loaded
            self._note(loaded_at=time.time(), refused_at=None, refusal=None)
            return None, change
        assert self._registry.source is not None
        if expected is None or self._registry.source.refusal != text:
            self._note(refused_at=time.time(), refusal=text)
        if loaded is not None and not issubclass(kind, ConfigurationError):
            self._waiting = _Waiting(loaded.digest, text)
        return (ConfigurationError if issubclass(kind, ConfigurationError) else AgentError)(text), None

    def _note(self, **changes: Any) -> None:
        """Change what the status page says of the file."""
        assert self._registry.source is not None
        self._registry.source = structs.replace(self._registry.source, **changes)

    def _count(self, outcome: ReloadOutcome, number: int = 1) -> None:
        assert self._registry.source is not None
        reloads = self._registry.source.reloads
        self._note(reloads={**reloads, outcome.value: reloads[outcome.value] + number})
        self._registry.telemetry.metering.reloads.add(number, {OUTCOME: outcome.value})

    async def _put_in_place(self, loaded: Configuration, before: Configuration) -> Change:
        known = {agent.id: agent for agent in before.agents}
        new = {agent.id: agent for agent in loaded.agents}
        beside = self._source.beside

        def fatal(agent_id: str, _: AgentError) -> bool:
            config = new[agent_id]
            return config.require_at_startup or (agent_id in known and not _is_same_agent(agent_id, loaded, before))

        def routes(guard_of: Callable[[str], Guard]) -> Callable[[], object]:
            return self._prepare_routes(
                beside.get("routes", loaded.routes),
                beside.get("default_agents", loaded.default_agents),
                loaded.guardrails,
                guard_of,
            )

        return await self._registry.change(
            loaded.agents,
            owned=frozenset(known),
            kept={agent_id for agent_id, agent in new.items() if known.get(agent_id) is agent},
            fatal=fatal,
            routes=routes,
            drain_timeout=DRAIN_TIMEOUT,
        )


def _is_same_agent(agent_id: str, loaded: Configuration, before: Configuration) -> bool:
    """Whether what is elsewhere is the same as before, and gets the same configuration.

    Then it is down where it does not take that now, and the one before would be as well. What else has changed, such as
    its failure mode, holds all the same.
    """
    new, old = loaded.entries.get(agent_id), before.entries.get(agent_id)
    if new is None or old is None:
        return False
    config = next(agent for agent in loaded.agents if agent.id == agent_id)
    return agent_of(config.resolved_transport) is None and all(
        new.get(key) == old.get(key) for key in ("transport", "config")
    )


def _check_settings(path: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigurationError` for settings that only a restart can change."""
    changed = [name for name in dict.fromkeys([*before, *now]) if now.get(name) != before.get(name)]
    if changed:
        lines = [f"{path}: {name}: has changed, which takes a restart; expected it as it was" for name in changed]
        raise ConfigurationError("\n".join(lines))


def _shown(change: Change) -> str:
    parts = [
        f"{name} {_listed(ids)}"
        for name, ids in (("added", change.added), ("replaced", change.replaced), ("removed", change.removed))
        if ids
    ]
    return "; ".join(parts) or "all agents stay as they are"


def _listed(ids: Iterable[str]) -> str:
    return ", ".join(map(repr, ids))
