"""An agent as an authorization service over HTTP, for reverse proxies."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

from starlette.datastructures import Headers as RequestHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope

from ..agent import Agent
from ..errors import AgentProtocolError
from ..exchange.reply import Reply
from ..exchange.scope import new_id, timestamp_now, uri
from ..protocol import TOKEN, Headers, RequestHeadersEvent, RequestMetadata
from ..protocol.target import NoPathError
from ..transports.authorization import HEADS
from .authorization import Authorizations, Permission, final_headers
from .hooks import NoAnswer, logger
from .posting import HttpApp, unless_disconnected

#: How proxies ask: as Traefik and Caddy do, as nginx does, or as Envoy does with an HTTP service.
ForwardAuthApi = Literal["forward_auth", "auth_request", "ext_authz"]

#: How Envoy's ext_authz is told, over HTTP, which headers the request is to lose.
REMOVED_BY_ENVOY: Final = "x-envoy-auth-headers-to-remove"

# About the question itself, or about a body that does not come with it.
_OF_THE_QUESTION: Final = frozenset({"connection", "content-length", "host", "keep-alive", "te", "transfer-encoding"})
_URL: Final = re.compile(r"(https?)://([^/?#]+)([/?].*)?\Z", re.IGNORECASE)


class ForwardAuthApp(HttpApp):
    """Answers the questions of one kind of reverse proxies."""

    def __init__(self, agent: Agent, api: ForwardAuthApi, max_concurrency: int | None) -> None:
        self._api = api
        self._where = f"agent_app(api={api!r})"
        self._authorizations = Authorizations(self._where, agent, max_concurrency, carries=HEADS)

    async def _http(self, scope: Scope, receive: Receive) -> Response | None:
        try:
            head = question_of(scope, self._api)
        except HTTPException as exc:
            return JSONResponse({"error": exc.detail}, exc.status_code)
        return await unless_disconnected(partial(self._ask, head), receive)

    async def _ask(self, head: RequestHeadersEvent) -> Response:
        caller = {name: list(head.headers.get(name, ())) for name in ("traceparent", "tracestate")}
        try:
            return answer_of(await self._authorizations.ask(head, None, caller), self._api)
        except NoAnswer as exc:
            return JSONResponse({"error": str(exc)}, 500)
        except AgentProtocolError as exc:
            logger.error("%s: the answer can't be sent: %s", self._where, exc)
            return JSONResponse({"error": "the agent's answer can't be sent to a proxy"}, 500)


def question_of(scope: Scope, api: ForwardAuthApi) -> RequestHeadersEvent:
    """The head of the request that a proxy asks about.

    :raises HTTPException: 400, for a question that does not say what it is about, or says it twice.
    """
    given = RequestHeaders(scope=scope)
    host: str | None
    match api:
        case "forward_auth":
            method, target, host = (
                _only(given, "x-forwarded-method"),
                _only(given, "x-forwarded-uri"),
                _only(given, "x-forwarded-host"),
            )
        case "auth_request":
            method = _only(given, "x-original-method")
            found = _URL.match(_only(given, "x-original-url"))
            if found is None:
                raise HTTPException(400, "x-original-url: expected an http:// or https:// URL")
            host, target = found[2], found[3] or "/"
            target = target if target.startswith("/") else f"/{target}"
        case "ext_authz":
            try:
                method, target, host = scope["method"], uri(scope), given.get("host")
            except NoPathError as exc:
                raise HTTPException(400, str(exc)) from exc
    if not TOKEN.match(method) or (not target.startswith("/") and target != "*"):
        raise HTTPException(400, "expected the method and the path of a request")
    fields: dict[str, list[str]] = {} if host is None else {"host": [host]}
    for name, value in given.items():
        if name not in _OF_THE_QUESTION:
            fields.setdefault(name, []).append(value)
    headers = Headers(fields)
    # The proxy appends whom it has the request from; what stands before that is what others say.
    peers = headers.get("x-forwarded-for", ())
    client_ip = peers[-1].rpartition(",")[2].strip() if peers else ""
    correlation_id = new_id()
    return RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id=correlation_id,
            request_id=headers.first("x-request-id") or correlation_id,
            client_ip=client_ip,
            client_port=0,
            server_name=host,
            protocol=f"HTTP/{scope.get('http_version', '1.1')}",
            timestamp=timestamp_now(),
            traceparent=headers.first("traceparent"),
        ),
        method=method,
        uri=target,
        headers=headers,
    )


def answer_of(permission: Permission, api: ForwardAuthApi) -> Response:
    """What the proxy is told.

    :raises AgentProtocolError: for what it can't be told.
    """
    if permission.reply is not None:
        return _denied(permission.reply, api)
    if permission.response_headers:
        raise AgentProtocolError("response_headers: a proxy that asks over HTTP copies none to the response")
    response = Response()
    removed: list[str] = []
    for final in final_headers(permission.request_headers):
        if not final.replaces:
            raise AgentProtocolError(f"request_headers: {final.name!r} added, and proxies only replace headers")
        if not final.values:
            removed.append(final.name)
        elif len(final.values) > 1 and api != "forward_auth":
            raise AgentProtocolError(f"request_headers: several values of {final.name!r}, expected one")
        response.raw_headers += [(final.name.encode("latin-1"), value.encode("latin-1")) for value in final.values]
    if removed and api != "ext_authz":
        raise AgentProtocolError(f"request_headers: {removed[0]!r} removed, which only Envoy can be told")
    if removed:
        response.headers[REMOVED_BY_ENVOY] = ", ".join(removed)
    return response


def _denied(reply: Reply, api: ForwardAuthApi) -> Response:
    status = reply.status
    if 200 <= status <= 299:
        raise AgentProtocolError(f"decision.block.status: {status}, which a proxy takes for an allow")
    if api == "ext_authz" and status >= 500:
        # Envoy takes it for a failure of the service, which it may have been told to let pass.
        status = 403
    if api == "auth_request":
        # nginx knows these two. A redirect is 401 with a location, which its configuration can make one of.
        status = 401 if status == 401 or 300 <= status <= 399 else 403
    response = Response(reply.body, status)
    response.raw_headers = [*_without_length(reply.headers), (b"content-length", b"%d" % len(reply.body))]
    return response


def _without_length(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name != b"content-length"]


def _only(headers: RequestHeaders, name: str) -> str:
    values = headers.getlist(name)
    if len(values) != 1:
        raise HTTPException(400, f"{name}: expected it once, got it {len(values)} times")
    return values[0]
