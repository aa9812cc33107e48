"""What a file says, loaded and checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import AgentConfig
from ..evaluation.route_agent import AgentReference
from ..guardrails import Guardrail, ToolPolicy
from ..routing.routes import AgentRoute


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Configuration:
    """What a file says, as :func:`load` has found it, together with what was given beside it.

    ``protect(app, **configuration.arguments)`` guards an app with it.

    :ivar path: the file, as it was given.
    :ivar agents: those that were given, then those of the file.
    :ivar routes: None: the file has none.
    :ivar default_agents: None: the file has none.
    :ivar guardrails: those that were given, then those of the file.
    :ivar settings: the other arguments of ``protect`` that the file has, by name.
    """

    path: str
    agents: Sequence[AgentConfig]
    routes: Sequence[AgentRoute] | None
    default_agents: Sequence[AgentReference] | None
    guardrails: Sequence[Guardrail | ToolPolicy]
    settings: Mapping[str, Any]
    # What the file says of each of its agents, by id, to compare it with what it says later.
    entries: Mapping[str, Mapping[str, Any]] = field(compare=False)
    digest: bytes = field(compare=False)
    # Puts the names of variables in place of their values.
    hide: Callable[[str], str] = field(compare=False)

    def __repr__(self) -> str:
        return f"<Configuration {self.path!r}: agents {[agent.id for agent in self.agents]}>"

    @property
    def arguments(self) -> dict[str, Any]:
        """All of it, as arguments of ``protect`` and :class:`AgentMiddleware`."""
        given: dict[str, Any] = {**self.settings, "agents": self.agents or None, "guardrails": self.guardrails}
        for name in ("routes", "default_agents"):
            if getattr(self, name) is not None:
                given[name] = getattr(self, name)
        return given
