"""Which headers agents read before, or without, the agent that sets them."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from ..config import AgentConfig
from ..protocol import EventType
from ..protocol.headers import as_one_spelling
from ..transports.resolve import agent_of


class UnsetHeader(Struct, frozen=True):
    """A header that an agent reads where no agent before it has set it.

    ``setters`` are the ids of those that set it on the same route. Without any, clients choose what is in it; with
    some, the agent sees none, because what clients send in it is taken out and these have not been asked yet.
    """

    agent_id: str
    header: str
    setters: tuple[str, ...]


def headers_set(configs: Collection[AgentConfig]) -> frozenset[str]:
    """The headers in which those behind these agents see nothing but what agents have set."""
    return frozenset(name for config in configs if sets_heads(config) for name in (*config.sets, *config.replaces))


def sets_heads(config: AgentConfig) -> bool:
    """Whether the agent can set headers of requests that agents after it see."""
    return config.enforce and _hears_heads(config)


def unset_headers(asked: Sequence[AgentConfig], around: Collection[str] = ()) -> Iterator[UnsetHeader]:
    """Those of the agents of a route, by what the agents in this process say that they read.

    :param asked: the agents of the route.
    :param around: the headers that agents set which are asked before all of these, as those of a middleware around.
    """
    after = {config.id: config.after for config in asked}
    for config in asked:
        agent = agent_of(config.resolved_transport)
        if agent is None or not _hears_heads(config):
            continue
        trusted = [as_one_spelling(name) for name in agent.trusted_headers]
        for header in dict.fromkeys([*trusted, *map(as_one_spelling, agent.read_headers)]):
            others = [one for one in asked if one is not config and header in headers_set((one,))]
            if not others and (header not in trusted or header in around):
                continue
            before = _before(config.id, after)
            if not any(one.id in before for one in others):
                yield UnsetHeader(config.id, header, tuple(one.id for one in others))


def _hears_heads(config: AgentConfig) -> bool:
    # One that names its events once it is connected may receive all of them.
    return config.hears is None or EventType.REQUEST_HEADERS in config.hears


def _before(agent_id: str, after: Mapping[str, Iterable[str]]) -> set[str]:
    """The agents that have answered when this one is asked. Those that are not on the route are ignored."""
    found: set[str] = set()
    rest = [agent_id]
    while rest:
        new = [name for name in after[rest.pop()] if name in after and name not in found]
        found.update(new)
        rest += new
    return found
