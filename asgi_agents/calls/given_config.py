"""What an agent in the process is given as its configuration."""

from typing import Any

from ..errors import printable
from ..failures import MissingConfigKeyError


class GivenConfig(dict[Any, Any]):
    """A copy of ``AgentConfig.config`` that says which key was missing.

    The message of an ordinary KeyError reaches no log: it can quote any value. This one quotes keys alone, and reaches
    the log from ``on_configure`` alone. Of the keys that are there it quotes only those that are identifiers. Others
    may be data, such as credentials.
    """

    def __missing__(self, key: object) -> Any:
        names = [repr(each) for each in self if isinstance(each, str) and each.isidentifier() and len(each) <= 40]
        there = ", ".join(map(printable, names)) or "none"
        raise MissingConfigKeyError(f"its config has no {printable(repr(key))}; there are: {there}")
