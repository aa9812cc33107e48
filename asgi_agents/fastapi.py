"""The agent context as a parameter of FastAPI handlers. Needs FastAPI."""

from typing import Annotated

from starlette.requests import HTTPConnection

from .errors import ConfigurationError
from .exchange import AgentContext

try:
    from fastapi import Depends
except ImportError as exc:
    raise ConfigurationError("asgi_agents.fastapi: expected FastAPI to be there: pip install fastapi") from exc


async def agent_context(connection: HTTPConnection) -> AgentContext:
    """The :class:`AgentContext` of a request or a websocket.

    What :data:`Agents` depends on: tests can replace it in ``app.dependency_overrides``. Raises
    :class:`NoAgentContextError` where no agents are asked about the path.
    """
    return AgentContext.of(connection)


#: The type of a handler's parameter that is to be the connection's :class:`AgentContext`.
#:
#: ::
#:
#:     @app.post("/chat")
#:     async def chat(prompt: Prompt, agents: Agents) -> Answer: ...
Agents = Annotated[AgentContext, Depends(agent_context)]
