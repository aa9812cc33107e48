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


def is_same_config(one: Any, other: Any) -> bool:
    """Whether agents can't tell the two apart. False for what can't be compared by what is sent."""
    if one is None or other is None:
        return one is other
    try:
        return msgspec.json.encode(one) == msgspec.json.encode(other)
    except Exception:
        # What an agent of the process may be given is any object at all.
        return False


def _addresses(client: AgentClient) -> frozenset[str]:
    """Each of them: transports to several name all, with blanks between."""
    return frozenset(client.address.split())
