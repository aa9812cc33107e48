"""The agent context as a parameter of FastAPI handlers, and bodies whose fields are judged. Needs FastAPI."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from starlette.requests import HTTPConnection

from .errors import ConfigurationError
from .exchange import AgentContext
from .messages.naming import named

try:
    from fastapi import Depends, HTTPException
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

_Model = TypeVar("_Model")


def inspected(model: type[_Model], source: object = None, /, **fields: str) -> Callable[..., Awaitable[_Model]]:
    """A dependency that is the body of the request, with its ``fields`` judged by guardrails before the handler runs.

    ::

        @app.post("/reviews")
        async def publish(review: Annotated[Review, Depends(inspected(Review, comment="pii"))]) -> Review: ...

    The handler gets the model with what was redacted. FastAPI validates it before, and not again. A block answers 400
    with the reason as its ``detail``. A fail-closed agent that gives no verdict answers 503 or 504. A field may have a
    text, a list of texts, or None.

    :param model: a Pydantic model or a dataclass.
    :param source: where FastAPI takes the model from, such as ``Form()``. None: it is the body, in JSON. Where the
        handler has another parameter that is in the body, ``Body(alias="review")`` says which member this one is.
    :param fields: the names of fields of the model, each with the name of its guardrail.
    :raises ConfigurationError: for fields that the model does not have.
    """
    _check_fields(model, fields)

    async def judged(body: Any, agents: AgentContext) -> _Model:
        changed: dict[str, Any] = {}
        for field, guardrail in fields.items():
            value = getattr(body, field)
            after = await _judged_value(value, field, guardrail, agents)
            if after != value:
                changed[field] = after
        return _with(body, changed) if changed else body  # type: ignore[no-any-return]

    given = model if source is None else Annotated[model, source]
    judged.__annotations__ = {"body": given, "agents": Agents, "return": model}
    return judged


async def _judged_value(value: object, field: str, guardrail: str, agents: AgentContext) -> object:
    if value is None:
        return None
    if isinstance(value, list):
        return [await _judged_value(one, field, guardrail, agents) for one in value]
    if not isinstance(value, str):
        raise TypeError(
            f"inspected: {field} is of type {type(value).__name__}, expected a str, a list of them, or None"
        )
    result = await agents.inspect(value, guardrail=guardrail)
    if result.blocked:
        raise HTTPException(400, result.reason)
    return result.text


def _with(body: Any, changed: dict[str, Any]) -> Any:
    if hasattr(body, "model_copy"):
        return body.model_copy(update=changed)
    return dataclasses.replace(body, **changed)


def _check_fields(model: Any, fields: dict[str, str]) -> None:
    where = f"inspected({getattr(model, '__name__', model)!s:.100})"
    known = getattr(model, "model_fields", None)
    if dataclasses.is_dataclass(model):
        known = [field.name for field in dataclasses.fields(model) if field.init]
    if not isinstance(model, type) or known is None:
        raise ConfigurationError(f"{where}: expected a Pydantic model or a dataclass, got {named(model)}")
    if not fields:
        raise ConfigurationError(f"{where}: no fields, expected the guardrail of at least one: {next(iter(known))}=...")
    for field, guardrail in fields.items():
        if field not in known:
            raise ConfigurationError(f"{where}: {field} is none of its fields; there are: {', '.join(known)}")
        if not isinstance(guardrail, str):
            raise ConfigurationError(f"{where}: {field}={named(guardrail)}, expected the name of a guardrail")
