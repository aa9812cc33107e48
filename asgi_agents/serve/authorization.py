"""An agent as an authorization service: a proxy asks once about a request, and the agent is shown its head and body.

Whatever a proxy can't be told is a failure, which is logged, and never an allow.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import anyio
from msgspec import Struct

from ..agent import Agent
from ..concurrency.shared_limiter import SharedLimiter
from ..decision import AgentDecision
from ..errors import AgentProtocolError, ConfigurationError
from ..exchange.reply import Reply, render_reply
from ..protocol import (
    AgentResponse,
    Answer,
    EventType,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
)
from ..protocol.applicability import changes_something, check_applicable
from ..transports.authorization import declares_body
from .hooks import Hooks, NoAnswer, logger, require_agent, require_positive

#: What a proxy asks about.
ASKED: Final = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})
# What comes of a request later, which a proxy tells an authorization service nothing about.
_NEVER_SHOWN: Final = frozenset({EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK, EventType.WEBSOCKET_FRAME})
# What counts until the body is shown, and where it turns out to be empty: its length was not declared then (RFC 9110,
# section 15.5.12).
_TO_COME: Final = AgentResponse.block(411, "The length of the body is required for security inspection")


class ShownBody(Struct, frozen=True):
    """What a proxy shows of a body. ``partial``: there is more of it. Nothing at all and more: it asks again later."""

    data: bytes
    partial: bool = False


class Permission(Struct, frozen=True, kw_only=True):
    """What a question comes to: ``reply`` is the response in the app's place; None: the request goes on, changed."""

    reply: Reply | None = None
    request_headers: Sequence[HeaderOp] = ()
    response_headers: Sequence[HeaderOp] = ()
    routing_metadata: Mapping[str, str] = {}


class Authorizations:
    """The questions to one agent.

    :param carries: the events that the proxies can ask about, :data:`ASKED` at most.
    :raises ConfigurationError: for an agent that would never be asked, or would miss bodies that it is to judge.
    """

    def __init__(
        self, where: str, agent: Agent, max_concurrency: int | None, *, carries: frozenset[EventType] = ASKED
    ) -> None:
        require_agent(where, agent)
        if max_concurrency is not None:
            require_positive(where, "max_concurrency", max_concurrency)
        self._hooks = Hooks(agent)
        self._limiter = None if max_concurrency is None else SharedLimiter(max_concurrency)
        hears, name = self._hooks.events, self._hooks.name
        if not hears & ASKED:
            raise ConfigurationError(
                f"{where}: {name} receives neither request_headers nor request_body_chunk, which is what it would be"
                " asked about"
            )
        if not hears & ASKED <= carries:
            raise ConfigurationError(
                f"{where}: {name} receives request_body_chunk, and no bodies can be shown to it here; expected"
                " ext_authz over gRPC, or ext_proc"
            )
        missed = sorted(hears & _NEVER_SHOWN)
        if missed:
            logger.warning("%s: %s also receives %s, which it is never shown here", where, name, ", ".join(missed))
        self._hears_heads = EventType.REQUEST_HEADERS in hears
        self._hears_bodies = EventType.REQUEST_BODY_CHUNK in hears
        self._hears_completion = EventType.REQUEST_COMPLETE in hears

    async def ask(
        self, head: RequestHeadersEvent, body: ShownBody | None, caller: Mapping[str, list[str]]
    ) -> Permission:
        """Show the agent a request, and return what it comes to.

        An agent with :meth:`~asgi_agents.Agent.on_request_complete` is told afterwards that the request is over, as far
        as it can know: with the status of its reply, or 0 where the request goes on.

        :param body: None: the proxy shows none.
        :param caller: the ``traceparent`` and ``tracestate`` that came with the question.
        :raises NoAnswer: the agent has failed, or has answered what a proxy can't be told.
        """
        if self._limiter is not None:
            await self._limiter.acquire()
        began = time.monotonic()
        status, error = 0, None
        try:
            permission = await self._ask(head, body, caller)
            status = 0 if permission.reply is None else permission.reply.status
            return permission
        except BaseException as exc:
            error = type(exc).__name__
            raise
        finally:
            try:
                if self._hears_completion:
                    with anyio.CancelScope(shield=True):
                        await self._complete(head, body, status, time.monotonic() - began, error)
            finally:
                if self._limiter is not None:
                    self._limiter.release()

    async def _ask(
        self, head: RequestHeadersEvent, body: ShownBody | None, caller: Mapping[str, list[str]]
    ) -> Permission:
        answers: list[AgentResponse] = []
        shows_body = self._hears_bodies
        if self._hears_heads:
            answer = await self._hooks.answer(head, _sayable_of_head, caller)
            shows_body = shows_body and not answer.skip_body
            has_body = shows_body and body is not None and bool(body.data)
            if not answer.is_allow and not (answer.needs_more and has_body):
                return self._denied(answer, head)
            if answer.is_allow:
                answers.append(answer)
        if shows_body:
            if body is not None and body.data:
                answer = await self._show(head, body, caller)
                if not answer.is_allow:
                    return self._denied(answer, head)
                answers.append(answer)
            elif body is not None and body.partial:
                return self._denied(_TO_COME, head)
            elif declares_body(head):
                self._fail("the proxy has not shown it the body: in Envoy, with_request_body does that")
        return Permission(
            request_headers=[op for answer in answers for op in answer.request_headers],
            response_headers=[op for answer in answers for op in answer.response_headers],
            routing_metadata={name: text for answer in answers for name, text in answer.routing_metadata.items()},
        )

    async def _show(self, head: RequestHeadersEvent, body: ShownBody, caller: Mapping[str, list[str]]) -> AgentResponse:
        chunk = RequestBodyChunkEvent(
            correlation_id=head.correlation_id,
            data=body.data,
            is_last=not body.partial,
            total_size=None if body.partial else len(body.data),
            bytes_received=len(body.data),
        )
        answer = await self._hooks.answer(chunk, _sayable_of_body, caller)
        if body.partial and answer.is_allow:
            self._fail("it has allowed the beginning of a body, and nobody would judge the rest")
        return answer

    def _denied(self, answer: AgentResponse, head: RequestHeadersEvent) -> Permission:
        decision = AgentDecision(
            decision=answer.decision,
            websocket_decision=answer.websocket_decision,
            decided_by=self._hooks.name,
            response_headers=answer.response_headers,
        )
        accept = [(b"accept", value.encode("latin-1")) for value in head.headers.get("accept", ())]
        reply = render_reply(decision, {"type": "http", "headers": accept})
        return Permission(reply=reply, routing_metadata=answer.routing_metadata)

    async def _complete(
        self, head: RequestHeadersEvent, body: ShownBody | None, status: int, seconds: float, error: str | None
    ) -> None:
        event = RequestCompleteEvent(
            correlation_id=head.correlation_id,
            status=status,
            duration_ms=round(seconds * 1000),
            request_body_size=0 if body is None else len(body.data),
            response_body_size=0,
            upstream_attempts=0,
            error=error,
        )
        # It was logged, and changes nothing.
        with suppress(NoAnswer):
            await self._hooks.answer(event, lambda answer: answer, {})

    def _fail(self, fault: str) -> None:
        logger.error("%s: %s", self._hooks.name, fault)
        raise NoAnswer(fault)


def _sayable_of_head(answer: Answer) -> AgentResponse:
    return _sayable(answer, EventType.REQUEST_HEADERS)


def _sayable_of_body(answer: Answer) -> AgentResponse:
    return _sayable(answer, EventType.REQUEST_BODY_CHUNK)


def _sayable(answer: Answer, event_type: EventType) -> AgentResponse:
    """The answer, if a proxy can be told all that it changes; raises :class:`AgentProtocolError`."""
    assert isinstance(answer, AgentResponse)
    check_applicable(event_type, answer)
    if answer.is_allow and changes_something(answer.request_body_mutation):
        raise AgentProtocolError("request_body_mutation: an authorization service can't change a body")
    return answer


class FinalHeader(Struct, frozen=True):
    """What header operations come to for one name, in whatever order they were.

    ``replaces``: what was there is gone; without ``values`` it is removed, else these follow it.
    """

    name: str
    replaces: bool
    values: Sequence[str]


def final_headers(ops: Iterable[HeaderOp]) -> list[FinalHeader]:
    """The operations, name by name."""
    found: dict[str, FinalHeader] = {}
    for op in ops:
        name = op.name.lower()
        before = found.get(name, FinalHeader(name, False, ()))
        if op.kind == "add":
            found[name] = FinalHeader(name, before.replaces, (*before.values, op.value))
        else:
            found[name] = FinalHeader(name, True, (op.value,) if op.kind == "set" else ())
    return list(found.values())
