"""What can be told of an agent's endpoints at one moment."""

from typing import Literal

from msgspec import Struct

EndpointState = Literal["connecting", "up", "down", "ejected", "paused", "degraded", "draining", "unhealthy"]


class EndpointStatistics(Struct, frozen=True, kw_only=True):
    """One endpoint.

    ``state``: ``connecting`` before the first connection, ``down`` when it can't be reached (``fault`` says why),
    ``ejected`` when its calls fail and others have them meanwhile, ``paused`` when the agent has asked for a pause,
    ``draining``, ``unhealthy`` and ``degraded`` when it says so, else ``up``. ``in_flight`` counts calls under way, of
    which the agent still owes the answer; ``late_answers`` those that came when nobody waited any more,
    ``unmatched_answers`` those that were to no call.
    """

    address: str
    state: EndpointState
    connections: int
    in_flight: int = 0
    late_answers: int = 0
    unmatched_answers: int = 0
    fault: str = ""
