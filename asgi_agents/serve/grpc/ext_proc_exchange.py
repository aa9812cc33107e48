"""One exchange that Envoy shows to a served agent, as a request to an app that the middleware guards.

The middleware is the one that guards apps, and all that it does for them holds here. In the place of an app is Envoy:
what reaches the app goes to Envoy as the answer about the request, and what Envoy shows of the response is what the app
sends. What the middleware sends to its client goes to Envoy as the answer about the response. What it sends when the
app has sent nothing is the reply in the app's place.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from msgspec import Struct
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import AgentProtocolError, ResponseAborted
from ...exchange.context import STATE_KEY, AgentContext
from ...exchange.reply import Reply, describe, render_reply
from ...transports.grpc.ext_proc_messages import (
    AUDIT,
    ROUTING,
    ProcessingMode,
    Side,
    are_raw,
    first,
    messages,
    metadata_of_audit,
    pairs_of,
    struct,
)
from ...transports.grpc.ext_proc_sides import TwoSides
from .ext_proc_answers import immediate_response, mode_override
from .ext_proc_half import CantApplyError, Half
from .ext_proc_head import is_open, is_tunnel, is_upgrade, scope_of, without_pseudo

# Where an exchange is in the scope of its request.
_KEY: Final = "asgi_agents.ext_proc"
# What is in the head of a response that Envoy has shown, and in none that was made here. Middlewares keep it.
_SHOWN: Final = "asgi_agents.ext_proc.shown"
_BODY_OF_UPGRADE: Final = Reply(
    400,
    [(b"content-type", b"text/plain; charset=utf-8")],
    b"Bad request: it asks for another protocol, and has a body",
)
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}


class FailedError(Exception):
    """The agent has failed, or can't be asked. The stream ends with an error: what it means is Envoy's to say.

    The message has nothing of what the exchange carries.

    :ivar logged: the log has it already.
    """

    def __init__(self, message: str, *, logged: bool = False) -> None:
        super().__init__(message)
        self.logged = logged


class Wanted(Struct, frozen=True, kw_only=True):
    """What an agent wants to be shown of an exchange, and whether it lets other protocols pass unseen.

    :ivar response_headers: the head of the response is needed, be it to change it.
    :ivar response_head_events: it has a hook for it.
    """

    response_headers: bool
    response_head_events: bool
    request_body: bool
    response_body: bool
    upgrades: bool


class ServedExchange:
    """See above.

    :param incoming: the messages of the stream.
    :param write: sends an answer.
    :ivar begins_with: the first message's kind.
    """

    def __init__(self, incoming: TwoSides[Any], write: Callable[[Any], Awaitable[None]]) -> None:
        self._incoming = incoming
        self._write = write
        self._request = Half(Side.REQUEST)
        self._response = Half(Side.RESPONSE)
        self.begins_with = ""
        self._protocol: Any = None
        self._observes = False
        self._wanted = Wanted(
            response_headers=True, response_head_events=False, request_body=True, response_body=True, upgrades=True
        )
        self._scope: Scope = {}
        # Whether more than the head of the request may come.
        self._goes_on = False
        # Whether the request asks for another protocol, whether that would follow its head, and whether it does.
        self._upgrade = self._tunnel = self._open = False
        self._reply: Reply | None = None
        self._replied = False
        self._failure: str | None = None

    @property
    def modes(self) -> tuple[int, int]:
        """How Envoy sends the bodies of request and response."""
        return self._request.mode, self._response.mode

    async def begin(self) -> Scope | None:
        """Wait for the first message, and return the scope of the request; None: there is none.

        ``scope[_KEY]`` is this exchange.
        """
        message = await self._incoming.first()
        if message is None:
            return None
        self._observes = message.observability_mode
        request, response = self._request, self._response
        if message.HasField("protocol_config"):
            self._protocol = message.protocol_config
            request.mode, response.mode = self._protocol.request_body_mode, self._protocol.response_body_mode
        else:
            # Envoy before 1.34 does not say it. Each message gets one answer then, whatever the mode is.
            request.mode = response.mode = ProcessingMode.STREAMED
        kind = message.WhichOneof("request")
        self.begins_with = kind
        if kind != "request_headers":
            # It has made an answer before it has come to this filter, or is not to show the head of the request.
            scope = scope_of(None)
            request.has_body = kind == "request_body"
            if request.has_body:
                scope["headers"].append((b"transfer-encoding", b"chunked"))
        else:
            await self._incoming.next(Side.REQUEST)
            scope = scope_of(message)
            request.has_body = not message.request_headers.end_of_stream
            request.raw = response.raw = are_raw(message.request_headers.headers)
            self._upgrade, self._tunnel = is_upgrade(scope), is_tunnel(scope)
        self._goes_on = request.has_body or kind == "request_trailers"
        request.head = scope["headers"]
        request.head_answered = kind != "request_headers"
        scope[_KEY] = self
        self._scope = scope
        return scope

    async def run(self, app: ASGIApp, scope: Scope, wanted: Wanted) -> None:
        """Take the exchange past the agent, which ``app`` asks; raises :class:`FailedError`.

        :param app: a middleware around :func:`upstream`.
        """
        self._wanted = wanted
        if self._upgrade and not wanted.upgrades:
            raise FailedError("it judges messages of websockets, which Envoy does not show")
        if self._tunnel:
            self._request.has_body = False
        elif self._upgrade and wanted.request_body and self._request.shows_body and not self._observes:
            # Envoy passes its bytes on without their length, so that an app may take them for another request.
            await self._send_reply(_BODY_OF_UPGRADE)
            return
        try:
            await app(scope, self.receive, self.send)
        except ResponseAborted as exc:
            await self._break_off(exc)
        except CantApplyError as exc:
            raise FailedError(str(exc)) from exc
        except BaseExceptionGroup as group:
            late, rest = group.split(CantApplyError)
            if rest is not None:
                raise
            raise FailedError(str(_leaf(group))) from late
        if self._failure is not None:
            raise FailedError(self._failure, logged=True)
        decision = None if self._context is None else self._context.decision
        stopped = decision is not None and not decision.is_allow and not self._replied and not self._observes
        if decision is not None and stopped and self._request.shows_body and not self._request.over:
            # The response was complete already. Envoy resets it, and passes on no more of the request.
            await self._send_reply(render_reply(decision, self._scope))
        if not self._replied and not self._incoming.exhausted:
            await self._pass_the_rest()

    # What the middleware receives, and sends

    async def receive(self) -> Message:
        """The request's body. It is asked for again when what came before was judged."""
        request = self._request
        if not request.duplex and request.shows_body:
            if not request.head_answered:
                await self._send_all(request.answer_head(None, **self._override()))
            await self._send_all(request.answer_shown())
        if not request.ended:
            if not request.shows_body:
                request.ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await self._incoming.next(Side.REQUEST)
            if message is not None:
                if message.HasField("request_trailers"):
                    request.take_trailers()
                    return {"type": "http.request", "body": b"", "more_body": False}
                data, last = request.take_body(message.request_body)
                return {"type": "http.request", "body": data, "more_body": not last}
        await self._incoming.wait_ended()
        return _DISCONNECT

    async def send(self, message: Message) -> None:
        """The response, or the reply in its place."""
        response, reply = self._response, self._reply
        match message["type"]:
            case "http.response.start" if _SHOWN in message:
                # It is known only now that there are no bodies.
                override = self._override() if self._open and not response.head_answered else {}
                await self._send_all(response.answer_head(list(message["headers"]), **override), tell=True)
            case "http.response.start":
                self._failure = self._why_failed()
                self._reply = Reply(message["status"], list(message.get("headers") or ()), b"")
            case "http.response.body":
                data, last = message.get("body", b""), not message.get("more_body", False)
                if reply is None:
                    await self._send_all(response.pass_on(data, last), tell=last)
                    return
                reply = self._reply = Reply(reply.status, reply.headers, reply.body + data)
                if last and self._failure is None:
                    await self._send_reply(reply)

    # The app

    async def play(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What an app would do: take the request, and answer it."""
        request = self._request
        override = {} if request.head_answered else self._override()
        await self._send_all(request.answer_head(scope["headers"], **override), tell=True)
        if not self._goes_on:
            await self._play_response(send)
            return
        taken = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._take_request, receive, taken)
            await self._play_response(send)
            await taken.wait()
            tasks.cancel_scope.cancel()

    async def _take_request(self, receive: Receive, taken: anyio.Event) -> None:
        try:
            # Trailers may come where the body is not shown.
            last = not self._request.shows_body
            while not last:
                message = await receive()
                if message["type"] != "http.request":
                    return
                last = not message.get("more_body", False)
                await self._send_all(self._request.pass_on(message.get("body", b""), last), tell=last)
                if last:
                    self._incoming.done(Side.REQUEST)
        finally:
            taken.set()
        # The response may be long, and Envoy passes the request on when its trailers are answered.
        await self._pass(self._request)

    async def _play_response(self, send: Send) -> None:
        response = self._response
        message = await self._incoming.next(Side.RESPONSE)
        if message is None:
            return
        status = 200
        if message.HasField("response_headers"):
            pairs = pairs_of(message.response_headers.headers)
            response.head = without_pseudo(pairs)
            given = first(pairs, b":status")
            status = int(given) if given.isdecimal() and len(given) == 3 else 200
            response.has_body = not message.response_headers.end_of_stream
            message = None
        elif self._wanted.response_head_events:
            raise CantApplyError("it has a hook for response_headers, and Envoy's response_header_mode is SKIP")
        else:
            response.head_answered = response.has_body = True
        if self._tunnel and is_open(self._scope, status):
            self._open = True
            response.has_body = False
        headers = list(response.head)
        if not response.duplex and response.mode != ProcessingMode.BUFFERED:
            # Envoy wants the answer to the head before it sends any of the body, and takes the length out by itself.
            headers = response.head = [pair for pair in headers if pair[0] != b"content-length"]
        await send({"type": "http.response.start", "status": status, "headers": headers, _SHOWN: True})
        if not response.shows_body:
            response.ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if not response.duplex and not response.head_answered and self._reply is None:
            await self._send_all(response.answer_head(None))
        # Where the agent has failed, the stream ends with an error, and Envoy may be waiting for that.
        while not response.ended and self._failure is None:
            message = message or await self._incoming.next(Side.RESPONSE)
            if message is None:
                return
            data = b""
            if message.HasField("response_trailers"):
                response.take_trailers()
            else:
                data, _ = response.take_body(message.response_body)
            message = None
            await send({"type": "http.response.body", "body": data, "more_body": not response.ended})
            self._incoming.done(Side.RESPONSE)
            # Where it was stopped, what is left of it must not look like all of it.
            await checkpoint_if_cancelled()
            if self._reply is None:
                await self._send_all(response.answer_shown())

    # What goes out

    async def _send_all(self, answers: Iterable[Any], *, tell: bool = False) -> None:
        """Send these. ``tell``: with what the agent has said beside its decision."""
        for answer in answers:
            if tell:
                self._describe(answer)
            if not self._observes and not self._replied:
                await self._write(answer)

    async def _send_reply(self, reply: Reply) -> None:
        details = "asgi_agents" if self._context is None else f"asgi_agents_{self._context.decision.decided_by}"
        immediate = immediate_response(reply, raw=self._request.raw, details=details)
        await self._send_all([messages.ProcessingResponse(immediate_response=immediate)], tell=True)
        self._replied = not self._observes

    async def _pass_the_rest(self) -> None:
        """Nobody is asked any more: what still comes passes, or was stopped."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pass, self._request)
            tasks.start_soon(self._pass, self._response)

    async def _pass(self, half: Half) -> None:
        while (message := await self._incoming.next(half.side)) is not None:
            await self._send_all(half.neutral(message))

    async def _break_off(self, exc: ResponseAborted) -> None:
        """The response has begun, and must not go on. Envoy resets it for a reply that comes so late."""
        decision = None if self._context is None else self._context.decision
        if decision is None or decision.failure is not None:
            raise FailedError(str(exc), logged=decision is not None) from exc
        await self._send_reply(render_reply(decision, self._scope))

    # What the agents have said

    @property
    def _context(self) -> AgentContext | None:
        found = self._scope["state"].get(STATE_KEY)
        return found if isinstance(found, AgentContext) else None

    def _why_failed(self) -> str | None:
        """What has failed, if that is why there is a reply."""
        decision = None if self._context is None else self._context.decision
        return None if decision is None or decision.failure is None else describe(decision)

    def _describe(self, answer: Any) -> None:
        """Put routing metadata and audit into the dynamic metadata of ``answer``."""
        context = self._context
        if context is None:
            return
        decision = context.decision
        said: dict[str, Any] = {}
        if decision.routing_metadata:
            said[ROUTING] = dict(decision.routing_metadata)
        for _, audit in decision.audit:
            said[AUDIT] = {**said.get(AUDIT, {}), **metadata_of_audit(audit)}
        if not said:
            return
        try:
            metadata = struct(said)
        except AgentProtocolError:
            # A reply is a refusal without it too, and an error may let the request pass.
            if not answer.HasField("immediate_response"):
                raise
            return
        answer.dynamic_metadata.CopyFrom(metadata)

    def _override(self) -> dict[str, Any]:
        """What Envoy need not send of this exchange, as far as it lets the processor say so."""
        wanted, decision = self._wanted, None
        if self._context is not None:
            decision = self._context.decision
        skips = decision is not None and any(
            verdict.response is not None and verdict.response.skip_body for verdict in decision.verdicts
        )
        override = mode_override(
            self._protocol,
            response_headers=wanted.response_headers or bool(decision is not None and decision.response_headers),
            request_body=wanted.request_body and not skips and not self._tunnel,
            response_body=wanted.response_body and not self._open,
        )
        return {} if override is None else {"mode_override": override}


async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
    """The app that the middleware guards: the exchange that the scope belongs to."""
    exchange: ServedExchange = scope[_KEY]
    await exchange.play(scope, receive, send)


def _leaf(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
