"""An agent that holds requests and responses to the OpenAPI description of the app."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, Literal

from ...agent import Agent
from ...concurrency.own_threads import OwnThreads
from ...errors import BadInput, ConfigurationError
from ...imports.extras import from_extra
from ...messages.naming import named
from ...policy import require_int
from ...protocol import (
    AgentResponse,
    ConfigureEvent,
    EventType,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
)
from .answers import (
    HOLD,
    PASSED,
    UNDOCUMENTED,
    announces_body,
    check_actions,
    may_have_body,
    refusal,
    refusal_of_response,
    refusal_without_body,
)

if TYPE_CHECKING:
    from .description import Description
    from .exchange import JudgedExchange

#: How many requests at a time are remembered.
MAX_EXCHANGES: Final = 16_384


class OpenApiValidation(Agent):
    """Holds requests, and responses if asked to, to the OpenAPI description of the app (OpenAPI 3.1)::

        protect(app, agents=[AgentConfig("openapi", OpenApiValidation(app))])

    Path, query, headers, cookies, JSON and forms without files are judged. A request that does not conform gets 422,
    400 for JSON that can't be read, or 415, with a problem document. That says where and by which keyword of JSON
    Schema, and has nothing of what was sent. Headers that other agents set are judged once they are set. Needs the
    ``openapi`` extra.

    :param source: the FastAPI app that is guarded, or is mounted in that, whose ``openapi()`` is called once, when the
        agent starts: with those of the FastAPI apps that are mounted in it. Or a description, or the path of a file of
        JSON that has one.
    :param requests: ``"block"`` refuses what does not conform, ``"report"`` only puts it in the audit record.
    :param responses: the same of responses, which are then kept until they have been judged. A client gets 500.
    :param undocumented: ``"block"`` answers 404 where something that the description does not have would run.
    :param root_path: what stands before the app's own paths. None: what the app says, or the server. An agent that is
        served in another process has to be told.
    :param threads: how many threads of an event loop judge large bodies at a time.
    :raises ConfigurationError: for what can't work, and without the extra. What is wrong with a description of an app
        is found when the agent starts.
    """

    def __init__(
        self,
        source: Any | Mapping[str, Any] | str | PathLike[str],
        *,
        requests: Literal["block", "report", "off"] = "block",
        responses: Literal["block", "report", "off"] = "off",
        undocumented: Literal["pass", "block"] = "pass",
        root_path: str | None = None,
        threads: int = 4,
    ) -> None:
        with from_extra("OpenApiValidation", "openapi", ConfigurationError):
            from . import description, exchange
        check_actions(requests, responses, undocumented)
        if root_path is not None and not isinstance(root_path, str):
            raise ConfigurationError(f"OpenApiValidation: root_path={named(root_path)}, expected such as '/api'")
        require_int("OpenApiValidation", "threads", threads, at_least=1)
        description.check_source(source)
        self._load: Callable[[], Description] = lambda: description.Description(source, root_path)
        self._exchange = exchange.JudgedExchange
        self._description = None if description.is_app(source) else self._load()
        self._requests, self._responses, self._undocumented = requests, responses, undocumented
        self._threads = OwnThreads(threads)
        # An agent that is down is not told that a request has ended: so that the oldest are forgotten at some time.
        self._open: OrderedDict[str, JudgedExchange] = OrderedDict()

    @property
    def events(self) -> frozenset[EventType]:
        events = {EventType.CONFIGURE, EventType.REQUEST_HEADERS, EventType.REQUEST_COMPLETE}
        if self._requests != "off":
            events.add(EventType.REQUEST_BODY_CHUNK)
        if self._responses != "off":
            events |= {EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK}
        return frozenset(events)

    async def on_configure(self, event: ConfigureEvent) -> None:
        try:
            await self._described()
        except ConfigurationError as exc:
            # So that the log says why the agent is not configured.
            raise BadInput(str(exc)) from exc

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        description = self._description or await self._described()
        target = description.find(event)
        exchange = self._exchange(target, event.method)
        found, without_body = ([], []) if self._requests == "off" else exchange.request_head(event)
        # A body that is not judged may be shown all the same: not every transport carries `skip_body`.
        if self._responses != "off" or exchange.request is not None or may_have_body(event):
            self._open[event.correlation_id] = exchange
            while len(self._open) > MAX_EXCHANGES:
                self._open.popitem(last=False)
        if self._requests == "off":
            return None
        if target is not None and target.operation is None and not found:
            return refusal([UNDOCUMENTED], "block") if self._undocumented == "block" else PASSED
        if without_body and not found:
            return refusal_without_body(without_body, self._requests, announced=announces_body(event))
        return refusal(found, self._requests, skip_body=exchange.request is None)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        body = self._open[event.correlation_id].request
        found = [] if body is None else await body.found(event, self._threads)
        return HOLD if found is None else refusal(found, self._requests, skip_body=body is None)

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        exchange = self._open[event.correlation_id]
        found = exchange.response_head(event)
        return refusal_of_response(found, self._responses, skip_body=exchange.response is None)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        body = self._open[event.correlation_id].response
        found = [] if body is None else await body.found(event, self._threads)
        return HOLD if found is None else refusal_of_response(found, self._responses, skip_body=body is None)

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        self._open.pop(event.correlation_id, None)

    async def _described(self) -> "Description":
        if self._description is None:
            # Describing a large app takes a second.
            self._description = await self._threads.run(self._load)
        return self._description
