"""In which order agents receive the head of a request, where some are to come after others."""

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from ..config import AgentConfig
from ..errors import ConfigurationError
from ..guard import Guard


class HeadOrder(Struct, frozen=True):
    """In which order the agents that receive heads make their changes, and after which others each of them is asked.

    ``places`` are the agents' places in route order. An agent stands behind all those that it comes after; otherwise
    route order holds. ``after`` has for each of them the positions in ``places`` of those that it comes after, directly
    or not: it is asked once they have answered, and shown their changes.
    """

    places: tuple[int, ...]
    after: tuple[tuple[int, ...], ...]


def find_cycle(after: Mapping[str, Collection[str]]) -> Sequence[str] | None:
    """Agents of which each comes after the next, and the last after the first; None where there are none.

    :param after: by its id, the ids of those that each agent comes after. Ids that are no key are ignored.
    """
    done: set[str] = set()
    for start in after:
        # Depth first, without recursion: the way to where we are, and what is left to be tried at each place.
        path, rest = [start], [iter(after[start])]
        while path:
            following = next(rest[-1], None)
            if following is None:
                done.add(path.pop())
                rest.pop()
            elif following in path:
                return path[path.index(following) :]
            elif following in after and following not in done:
                path.append(following)
                rest.append(iter(after[following]))
    return None


def check_order(config: AgentConfig, guards: Mapping[str, Guard]) -> None:
    """Raise ConfigurationError where ``config`` comes after agents that there are not, or after itself."""
    unknown = [agent_id for agent_id in config.after if agent_id not in guards]
    if unknown:
        known = ", ".join(guards) or "none"
        where = f"AgentConfig({config.id!r})"
        raise ConfigurationError(f"{where}: after contains {unknown[0]!r}, which is no agent; there are: {known}")
    after = {agent_id: tuple(guard.config.after) for agent_id, guard in guards.items()}
    cycle = find_cycle({**after, config.id: tuple(config.after)})
    if cycle is not None:
        names = " -> ".join([*cycle, cycle[0]])
        raise ConfigurationError(f"AgentConfig({config.id!r}): after makes a cycle, expected none: {names}")


def order_of(after: Mapping[str, Collection[str]], head_agents: Sequence[str]) -> HeadOrder | None:
    """The order of the agents that receive heads; None where all of them are asked in parallel.

    :param after: by its id, for each agent of the route in any order, the ids of those that it comes after. It has no
        cycle. Ids of agents that are not on the route are ignored.
    :param head_agents: the ids of those that receive heads, in route order.
    """
    named = {agent_id: [name for name in names if name in after] for agent_id, names in after.items()}
    if not any(named.values()):
        return None
    before: dict[str, frozenset[str]] = {}
    levels: dict[str, int] = {}
    level = 0
    while len(levels) < len(named):
        ready = [agent_id for agent_id in named if agent_id not in levels and before.keys() >= set(named[agent_id])]
        assert ready, "agents come after each other in a cycle"
        for agent_id in ready:
            before[agent_id] = frozenset(named[agent_id]).union(*(before[name] for name in named[agent_id]))
            levels[agent_id] = level
        level += 1
    places = sorted(range(len(head_agents)), key=lambda place: (levels[head_agents[place]], place))
    positions = {head_agents[place]: position for position, place in enumerate(places)}
    waited_for = tuple(
        tuple(sorted(positions[name] for name in before[head_agents[place]] if name in positions)) for place in places
    )
    return HeadOrder(tuple(places), waited_for) if any(waited_for) else None
