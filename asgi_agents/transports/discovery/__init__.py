"""Names that lead to several addresses: what these are now, which of them takes a call, and which is left alone.

Nothing in here knows how an agent is called: a transport has a :class:`Watch` of a name, and connects to its members.
"""

from .choice import less_loaded
from .ejection import Ejection, can_be_spared
from .members import Member
from .resolver import Resolver, has_to_be_looked_up
from .watch import RESOLVE_INTERVAL, Watch

__all__ = [
    "RESOLVE_INTERVAL",
    "Ejection",
    "Member",
    "Resolver",
    "Watch",
    "can_be_spared",
    "has_to_be_looked_up",
    "less_loaded",
]
