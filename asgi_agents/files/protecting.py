"""``protect`` with a file: what comes from there and what from the code, and when the file is taken anew."""

import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..errors import AgentError, ConfigurationError
from ..guardrails.guardrail import checked_guardrails
from ..manager import registry_of
from ..messages.naming import named
from ..middleware import AgentMiddleware
from .hangup import SIGHUP, on_hangup
from .reload import FileSource, Reloader
from .watch import FileWatch, on_change

logger: Final = logging.getLogger("asgi_agents")

# What adds up: the code's come first.
_BOTH: Final = frozenset({"agents", "guardrails"})


class FileProtection:
    """An app that a file protects.

    :param path: the file; ``imports`` and ``reload`` are those of ``protect``.
    :param given: the arguments of the middleware that the code has given, or their defaults.

    Raises :class:`ConfigurationError` where the file is refused, or can't be combined with what is given.
    """

    def __init__(self, path: object, imports: Iterable[str], reload: object, given: Mapping[str, Any]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise ConfigurationError(f"protect: config={named(path)}, expected the path of a file")
        if reload not in (None, "on-change", "on-sighup"):
            raise ConfigurationError(f"protect: reload={named(reload)}, expected 'on-change', 'on-sighup' or None")
        if reload == "on-sighup" and SIGHUP is None:
            raise ConfigurationError("protect: reload='on-sighup', expected 'on-change' where there is no such signal")
        if given.get("manager") is not None:
            raise ConfigurationError("protect: both config and manager are given, expected one of them")
        if isinstance(imports, str) or not isinstance(imports, Iterable):
            raise ConfigurationError(f"protect: imports={named(imports)}, expected a list of names of modules")
        parameters = inspect.signature(AgentMiddleware).parameters
        beside = {
            name: value
            for name, value in given.items()
            if name not in _BOTH and value is not parameters[name].default and value != parameters[name].default
        }
        agents = given.get("agents")
        if agents is not None and (isinstance(agents, str) or not isinstance(agents, Iterable)):
            raise ConfigurationError(f"protect: agents={named(agents)}, expected a list of AgentConfig")
        self._reload = reload
        # Where the process goes to another directory later, the file stays the same.
        self._path = Path(path).absolute()
        self._source = FileSource(
            str(self._path),
            tuple(agents or ()),
            checked_guardrails("protect: guardrails", given.get("guardrails") or ()),
            tuple(imports),
            beside,
        )
        self._loaded = self._source.load()
        #: The arguments of the middleware.
        self.arguments: Mapping[str, Any] = {**given, **self._loaded.arguments}

    def attach(self, middleware: AgentMiddleware) -> None:
        """Have the middleware, which was made with :attr:`arguments`, take the file anew when that is asked for."""
        reloader = Reloader(middleware, self._source, self._loaded)

        async def taken(take: Callable[[], Awaitable[None]]) -> bool:
            """Returns whether it is to be tried again."""
            try:
                await take()
            except ConfigurationError:
                pass  # the log has it
            except AgentError:
                return True
            except Exception:
                logger.exception("%s: could not be taken, all stays as it was", self._path)
            return False

        take, again = partial(taken, reloader.reload), partial(taken, reloader.retry)

        companions = registry_of(middleware.manager).lifecycle.companions
        if self._reload == "on-sighup":
            companions.append(partial(on_hangup, take, again))
        elif self._reload == "on-change":
            # Each event loop looks from what holds by then.
            companions.append(lambda: on_change(FileWatch(self._path, lambda: reloader.loaded.digest), take, again))
