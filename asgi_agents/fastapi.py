"""FastAPI's own ways: the agent context as a parameter of handlers, bodies whose fields are judged, agents in OpenAPI.

Needs FastAPI.
"""

import dataclasses
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

from starlette.requests import HTTPConnection

from .errors import ConfigurationError
from .exchange import AgentContext
from .messages.naming import named
from .middleware import AgentMiddleware, finder_of
from .routing.survey import SurveyedEndpoint, survey_of

try:
    from fastapi import Depends, FastAPI, HTTPException
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
# A path of the document, and a method in lower case.
_Operation = tuple[str, str]

# What agents answer in the app's place, where an operation says nothing else of that status.
_RESPONSES: Final = {
    "401": "An agent asks for credentials",
    "403": "An agent has denied the request",
    "429": "An agent limits the rate of requests",
    "503": "An agent is unavailable",
}
_TYPE_OF_PARAMETER: Final = re.compile(r"\{(\w+):\w+\}")


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


def describe_agents(app: FastAPI, guard: AgentMiddleware) -> None:
    """Have the OpenAPI document of an app say which agents guard each operation.

    ::

        guard = protect(app, agents=[...])
        describe_agents(app, guard)

    An operation that has agents gets ``x-agents``, their ids in order, and the responses 401, 403, 429 and 503, unless
    it has its own of these. The document is made when it is asked for, as ever, by what ``app.openapi`` is now: call
    this after replacing that. It tells everybody who may read it which operations have no agents.

    :param app: the app, or one that is mounted in it and has a document of its own.
    :param guard: what guards it: what :func:`protect` has returned.
    :raises ConfigurationError: for anything else.
    """
    if not isinstance(app, FastAPI):
        raise ConfigurationError(f"describe_agents: app is {named(app)}, expected a FastAPI app")
    if not isinstance(guard, AgentMiddleware):
        raise ConfigurationError(f"describe_agents: guard is {named(guard)}, expected what protect(app, ...) returns")
    document = app.openapi
    agents = _OperationAgents(app, guard)

    def openapi() -> dict[str, Any]:
        return _described(document(), agents.by_operation())

    app.openapi = openapi  # type: ignore[method-assign]


class _OperationAgents:
    """The agents of each operation of an app, which are looked up again when its routes have changed, or the agents."""

    def __init__(self, app: FastAPI, guard: AgentMiddleware) -> None:
        self._app = app
        self._guard = guard
        self._basis: tuple[object, object] | None = None
        self._endpoints: Sequence[SurveyedEndpoint] = ()
        self._found: Mapping[_Operation, tuple[str, ...]] = {}

    def by_operation(self) -> Mapping[_Operation, tuple[str, ...]]:
        """The ids of all agents that are asked on any path of an operation."""
        finder = finder_of(self._guard)
        basis = finder, finder.routes_now({"type": "lifespan", "app": self._app})
        if basis != self._basis or any(asked.retired for one in self._endpoints for asked in one.asked):
            self._endpoints = survey_of(self._guard, finder, self._app)
            self._found = self._of(self._endpoints)
            self._basis = basis
        return self._found

    def _of(self, endpoints: Iterable[SurveyedEndpoint]) -> Mapping[_Operation, tuple[str, ...]]:
        found: dict[_Operation, dict[str, None]] = {}
        for endpoint in endpoints:
            if endpoint.example is None:
                continue  # nobody can tell
            for path in _paths_in(endpoint, self._app):
                for method in endpoint.methods or ():
                    # What is there several times is so in different mounts: all agents of any of them are named.
                    ids = (agent.guard.config.id for asked in endpoint.asked for agent in asked.agents)
                    found.setdefault((path, method.lower()), {}).update(dict.fromkeys(ids))
        return {operation: tuple(ids) for operation, ids in found.items()}


def _described(schema: dict[str, Any], agents: Mapping[_Operation, tuple[str, ...]]) -> dict[str, Any]:
    """A copy of the document. That of FastAPI stays as it is: it keeps it, and users may too."""
    paths = {
        path: {
            method: _described_operation(operation, agents.get((path, method), ()))
            for method, operation in operations.items()
        }
        for path, operations in (schema.get("paths") or {}).items()
    }
    return {**schema, "paths": paths}


def _paths_in(endpoint: SurveyedEndpoint, app: FastAPI) -> Iterator[str]:
    """The path of an endpoint as the app's document has it, where it is in that app."""
    for router, pattern in endpoint.within:
        if router is app.router:
            yield _TYPE_OF_PARAMETER.sub(r"{\1}", pattern)


def _described_operation(operation: Any, agents: tuple[str, ...]) -> Any:
    if not agents or not isinstance(operation, dict):
        return operation
    responses = {**(operation.get("responses") or {})}
    for status, description in _RESPONSES.items():
        responses.setdefault(status, {"description": description})
    return {**operation, "responses": responses, "x-agents": list(agents)}
