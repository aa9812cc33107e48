"""What an agent in the process is given as its configuration."""

from typing import Any

from ..errors import AgentError, printable


class MissingConfigKeyError(AgentError, KeyError):
    """The agent asked its configuration for a key that is not there. The message names it, and those that are.

    The log has that message only where it was raised in ``on_configure``. Later an agent may look up what a client has
    sent, such as an API key among those that it is configured with.
    """

    def __str__(self) -> str:
        return str(self.args[0])


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
