"""Whether two guards lead to one agent, which has one configuration: the one that it was given last."""

from typing import Any

import msgspec

from ..config import AgentConfig
from ..transports.base import AgentClient


def lead_to_one_agent(config: AgentConfig, client: AgentClient, other: AgentConfig, other_client: AgentClient) -> bool:
    """Whether it is one object of this process, or at one address.

    An address that is written in two ways, or a service that listens at two, can't be told from two agents.
    """
    if client.agent is not None or other_client.agent is not None:
        return client.agent is other_client.agent
    if config.resolved_transport is other.resolved_transport:
        return True
    return not _addresses(client).isdisjoint(_addresses(other_client))


def is_same_config(one: Any, other: Any, *, sent: bool) -> bool:
    """Whether agents can't tell the two apart. False where that is not known.

    :param sent: whether an agent is given what is sent, in one encoding or the other, and not the objects themselves.
    """
    if one is other:
        return True
    if one is None or other is None:
        return False
    try:
        if sent:
            return all(encode(one) == encode(other) for encode in (msgspec.json.encode, msgspec.msgpack.encode))
        return _are_alike(one, other)
    except Exception:
        # What an agent of the process may be given is any object at all.
        return False


def _are_alike(one: Any, other: Any) -> bool:
    """Whether all in them is the same object, or of the same type and value. Objects of other classes may hide some."""
    kind = type(one)
    if one is other or kind is not type(other):
        return one is other
    if kind is dict:
        # Their order can be told, too.
        return _are_alike([*one.items()], [*other.items()])
    if kind in (list, tuple):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    return kind in (str, int, float, bool, bytes) and repr(one) == repr(other)


def _addresses(client: AgentClient) -> frozenset[str]:
    """Each of them: transports to several name all, with blanks between."""
    return frozenset(client.address.split())
