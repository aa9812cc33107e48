"""The agent context as a parameter of FastAPI handlers. Needs FastAPI."""

from typing import Annotated

from starlette.requests import HTTPConnection

from .errors import ConfigurationError, NoAgentContextError, printable
from .exchange import AgentContext
from .exchange.context import STATE_KEY

try:
    from fastapi import Depends
except ImportError as exc:
    raise ConfigurationError("asgi_agents.fastapi: expected FastAPI to be there: pip install fastapi") from exc


async def agent_context(connection: HTTPConnection) -> AgentContext:
    """The :class:`AgentContext` of a request or a websocket.

    What :data:`Agents` depends on: tests can replace it in ``app.dependency_overrides``. Raises
    :class:`NoAgentContextError` where no agents are asked about the path.
    """
    context = connection.scope.get("state", {}).get(STATE_KEY)
    if isinstance(context, AgentContext):
        return context
    raise NoAgentContextError(
        f"the handler of {printable(connection.scope['path'])!r} asks for its agents, and this path has none; expected"
        " protect(app, agents=[...]) or an AgentMiddleware around the app, and where that has routes, one that gives"
        " agents to this path, or default_agents"
    )


#: The type of a handler's parameter that is to be the connection's :class:`AgentContext`.
#:
#: ::
#:
#:     @app.post("/chat")
#:     async def chat(prompt: Prompt, agents: Agents) -> Answer: ...
Agents = Annotated[AgentContext, Depends(agent_context)]
