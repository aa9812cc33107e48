"""The state of an agent's endpoints at one moment."""

from typing import Literal

from msgspec import Struct

EndpointState = Literal["connecting", "up", "down", "ejected", "paused", "degraded", "draining", "unhealthy"]


class EndpointStatistics(Struct, frozen=True, kw_only=True):
    """One endpoint.

    ``state``: ``connecting`` before the first connection, ``down`` when it can't be reached (``fault`` says why),
    ``ejected`` when its calls fail and other endpoints get them for a while, ``paused`` when the agent has asked for a
    pause, ``draining``, ``unhealthy`` and ``degraded`` when the agent says so, else ``up``. One whose address has left
    its name is ``draining`` until its requests are over. ``in_flight`` counts calls
    that the agent has not answered yet, ``late_answers`` answers that arrived after their call had been given up, and
    ``unmatched_answers`` answers that belong to no call.
    """

    address: str
    state: EndpointState
    connections: int
    in_flight: int = 0
    late_answers: int = 0
    unmatched_answers: int = 0
    fault: str = ""
