"""From an app to the managers of the agents that guard it."""

from ..errors import ConfigurationError
from ..manager import AgentManager
from ..messages.naming import named
from ..placement import middlewares_of


def managers_of(where: str, app: object) -> list[AgentManager]:
    """The managers of all agents in front of ``app`` or of what is mounted in it, or the manager that ``app`` is.

    An app that has not started has no middlewares yet. It makes them here, as it would with its first connection.

    :raises ConfigurationError: there are none; the message begins with ``where``.
    """
    if isinstance(app, AgentManager):
        return [app]
    found = dict.fromkeys(middleware.manager for middleware in middlewares_of(app))
    if not found:
        raise ConfigurationError(
            f"{where}: app={named(app)}, in which there are no agents; expected a guarded app, its AgentMiddleware or"
            " its AgentManager"
        )
    return list(found)
