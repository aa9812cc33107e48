"""The routes that clients ask for, and which agents stand on them."""

from typing import NamedTuple


class Target(NamedTuple):
    """A path, below which everything goes through ``agents``, in this order; those of ``closed`` fail closed."""

    path: str
    agents: tuple[str, ...]
    closed: frozenset[str]

    @property
    def fails_closed(self) -> bool:
        """Whether a failure of any agent may stop a request."""
        return bool(self.closed)

    @property
    def hears_messages(self) -> bool:
        """Whether any agent hears the messages of websockets."""
        return not READERS.issuperset(self.agents)


def _target(path: str, *agents: str, closed: tuple[str, ...] = ()) -> Target:
    return Target(path, agents, frozenset(closed))


#: ``pool`` is three processes behind the stream transport, ``lone`` is one and is reached without a proxy, ``line``
#: speaks the older framing, ``post`` is behind HTTP, ``rpc`` behind gRPC.
AGENTS = ("pool", "lone", "line", "post", "rpc")
#: Those that read bodies and change none, and hear no messages of websockets: gRPC has no message for their answers.
READERS = frozenset({"rpc"})
TARGETS = (
    *(_target(f"/closed/{agent}", agent, closed=(agent,)) for agent in AGENTS),
    *(_target(f"/open/{agent}", agent) for agent in AGENTS),
    _target("/closed/chain", "pool", "post", closed=("pool", "post")),
    _target("/open/chain", "pool", "post"),
    _target("/mixed/chain", "pool", "lone", closed=("pool",)),
)
