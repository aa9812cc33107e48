"""Authorization services over HTTP, as reverse proxies ask them: forward auth, auth_request and ext_authz."""

import re
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, get_args
from urllib.parse import quote, unquote

import httpx

from ..errors import AgentError, ConfigurationError
from ..protocol import TOKEN, AgentResponse, EventType, HeaderOp, RequestHeadersEvent
from ..protocol.headers import as_one_spelling, without_blanks
from ..protocol.target import NO_PATH
from ..protocol.validation import REDIRECT_STATUSES, is_untouchable
from .authorization import (
    AUTHORIZED_EVENTS,
    HEADS,
    WORD_OF_A_PROXY,
    AuthorizationClient,
    denial,
    is_asked_about,
    refusal_of_input,
)
from .base import AgentClient
from .discovery import RESOLVE_INTERVAL
from .http1.request import RequestHead
from .http_answer import AnswerTooLongError, HttpAnswer
from .http_origin import USER_AGENT, HttpOrigin, TransportFactory, checked_headers, without_query
from .tls import ClientCertificate

#: How a service is asked: as Traefik and Caddy do, as nginx does, or as Envoy does.
ForwardAuthStyle = Literal["forward_auth", "auth_request", "ext_authz"]

#: What of a denial reaches the client, unless it is configured; the type of its content always does.
CLIENT_HEADERS: Final = frozenset({"cache-control", "location", "retry-after", "set-cookie", "www-authenticate"})
#: What of an answer that allows reaches the client, unless it is configured: renewed sessions.
CLIENT_HEADERS_ON_SUCCESS: Final = frozenset({"set-cookie"})

MAX_ANSWER_BYTES: Final = 1024 * 1024
#: How Envoy's ext_authz names, over HTTP, the headers that the request is to lose.
REMOVED_BY_ENVOY: Final = "x-envoy-auth-headers-to-remove"

# Not the service's business, in any spelling: hop-by-hop (RFC 9110, section 7.6.1), about the body, which is not sent,
# or about the app's representation, so that the service would answer 206, 304 or 412; and what is written anew.
_NEVER_FORWARDED: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# With trust_forwarded_headers a proxy's word counts for these. What is asked for is never left to it.
_TRUSTED: Final = frozenset({"x-forwarded-port", "forwarded"})
# A service needs to see those of a client, in order to say something about them.
_ALSO_OF_CLIENTS: Final = frozenset({"authorization", "cookie"})

# The server that answers the client says those itself.
_OF_A_SERVER: Final = frozenset({"date", "server"})

# RFC 9110, section 7.2, less what no name has that can be looked up. Whatever else could end the host in the URL that a
# service makes of it, and so change which path is judged.
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
# RFC 3986, appendix A: all that may be in a path and a query. "#", "\" and the like are percent-encoded.
_OF_A_URI: Final = "/?:@!$&'()*+,;=-._~%[]"
_MAX_DECODINGS: Final = 3
_SEPARATORS: Final = re.compile(r"[/\\]")
# Of the content of a denial; of no other charset is it certain that it decodes to what a client would have seen.
_CHARSETS: Final = {
    "": "utf-8",
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "iso-8859-1": "latin-1",
    "windows-1252": "cp1252",
}


class ForwardAuthTransport(HttpOrigin):
    """Asks an authorization service that reverse proxies ask: oauth2-proxy, Authelia, Ory Oathkeeper, and the like.

    2xx lets a request pass, with ``upstream_headers`` of the answer in it. A redirect, or 4xx, is what the client gets.
    5xx and everything else is a failure of the service. Redirects are not followed.

    A client can't pretend ``upstream_headers``: they are added to ``AgentConfig.sets``, so that those of the client
    reach neither the service nor the app, even when the service fails open. ``authorization`` and ``cookie`` among them
    reach the service, and the app only as the service sets them (``AgentConfig.replaces``).

    In style ``"ext_authz"`` ``AgentConfig.events`` may name ``request_body_chunk`` as well: each request with a body is
    then asked about twice, without and with it. Its ``request_body_mode`` has to be ``"buffer"``, without ``decode``.

    The service is asked with the client's headers, in the one of three styles that it is made for:

    ===================  =====================  ======================  ========================================
    style                who asks like that     request                 what it says
    ===================  =====================  ======================  ========================================
    ``"forward_auth"``   Traefik, Caddy         GET of ``address``      ``X-Forwarded-Method``, ``-Proto``,
                                                                        ``-Host``, ``-Uri``, ``-For``
    ``"auth_request"``   nginx                  GET of ``address``      the same, ``X-Original-URL``,
                                                                        ``X-Original-Method``
    ``"ext_authz"``      Envoy, with an HTTP    the request's method,   ``Host``, ``X-Forwarded-Proto``, ``-For``
                         service                its path behind that
                                                of ``address``
    ===================  =====================  ======================  ========================================

    Headers of a client that say such things, in any spelling (``X_Forwarded_Uri``), are not passed on. Neither are
    those that are hop-by-hop, about a body that is not sent, or about ranges and conditions. A request that can't be
    asked about without ambiguity is answered 400: a ``Host`` that is none, control characters in headers, a target
    that is no path (``%2fadmin``), and in style ``"ext_authz"`` a path with ``..`` segments, however encoded, which
    could lead to another endpoint of the service.

    :param address: the endpoint, an ``http://`` or ``https://`` URL.
    :param style: see above.
    :param upstream_headers: names of headers of an answer that allows, which are copied to the request:
        ``{"Remote-User", "Remote-Groups"}``.
    :param client_headers: names of headers of a denial or a redirect that reach the client. None: all but those about
        the connection.
    :param client_headers_on_success: names of headers of an answer that allows, which are added to the response.
    :param request_headers: names of headers of the client that the service is sent. None: all.
    :param headers: sent with each question; ASCII.
    :param scheme: of the app's URLs, for ``X-Forwarded-Proto``. None: ``https`` where the server tells of TLS, which
        few do, else ``http``.
    :param trust_forwarded_headers: take scheme and host from ``X-Forwarded-Proto`` and ``-Host``, and add to
        ``X-Forwarded-For``. Only where all requests come through a proxy that sets them.
    :param max_answer_bytes: a longer answer that allows is a failure. Of a longer denial the content is left out.
    :param resolve_interval: as of :class:`~asgi_agents.HttpTransport`.

    The other parameters are those of :class:`HttpTransport`.

    :raises ConfigurationError: for arguments that can't work.
    """

    kind = "forward_auth"
    remote = True
    events: frozenset[EventType] | None = None
    default_events = HEADS
    whole_bodies = True
    _keeps_headers = True
    _url_field = "address"
    _where = "ForwardAuthTransport"

    def __init__(
        self,
        address: str,
        *,
        style: ForwardAuthStyle = "forward_auth",
        upstream_headers: Iterable[str] = (),
        client_headers: Iterable[str] | None = CLIENT_HEADERS,
        client_headers_on_success: Iterable[str] = CLIENT_HEADERS_ON_SUCCESS,
        request_headers: Iterable[str] | None = None,
        headers: Mapping[str, str] | None = None,
        scheme: Literal["http", "https"] | None = None,
        trust_forwarded_headers: bool = False,
        verify: ssl.SSLContext | bool | str = True,
        cert: ClientCertificate | None = None,
        uds: str | None = None,
        transport: httpx.AsyncBaseTransport | TransportFactory | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        resolve_interval: float | None = RESOLVE_INTERVAL,
    ) -> None:
        super().__init__(
            address,
            verify=verify,
            cert=cert,
            uds=uds,
            transport=transport,
            max_answer_bytes=max_answer_bytes,
            resolve_interval=resolve_interval,
        )
        if style not in get_args(ForwardAuthStyle):
            raise self._wrong("style", style, "'forward_auth', 'auth_request' or 'ext_authz'")
        if scheme not in (None, "http", "https"):
            raise self._wrong("scheme", scheme, "'http', 'https' or None")
        if type(trust_forwarded_headers) is not bool:
            raise self._wrong("trust_forwarded_headers", trust_forwarded_headers, "True or False")
        if style == "ext_authz" and self._url.query:
            raise self._wrong("address", without_query(address), "a URL without a query, which the path is put behind")
        self._style = style
        self._scheme = scheme
        self._trusts = trust_forwarded_headers
        self._upstream_headers = self._names("upstream_headers", upstream_headers)
        self._client_headers = None if client_headers is None else self._names("client_headers", client_headers)
        self._client_headers_on_success = self._names("client_headers_on_success", client_headers_on_success)
        self._request_headers = None if request_headers is None else self._names("request_headers", request_headers)
        self._fixed = checked_headers(self._where, headers or {})
        self._fixed_spellings = frozenset(map(as_one_spelling, self._fixed))
        path = self._url.raw_path.decode()
        # As Envoy does with its path_prefix: the two are put together as they are.
        self._prefix = "" if path == "/" else path
        # Only of Envoy services expect bodies.
        self.carries = AUTHORIZED_EVENTS if style == "ext_authz" else HEADS
        #: What clients may not send: see ``AgentConfig.sets``.
        names = frozenset(map(as_one_spelling, self._upstream_headers))
        self.sets = names - _ALSO_OF_CLIENTS
        #: What the app gets of the service alone: see ``AgentConfig.replaces``.
        self.replaces = names & _ALSO_OF_CLIENTS

    def bind(
        self, agent_id: str, *, events: frozenset[EventType] | None, config: Any, max_concurrent_calls: int
    ) -> AgentClient:
        """A client for one agent.

        :raises ConfigurationError: for a configuration, for which there is no place in a question.
        """
        where = f"AgentConfig({agent_id!r})"
        if config is not None:
            raise ConfigurationError(f"{where}: config, expected None: a service over HTTP is configured by itself")
        return AuthorizationClient(where, self, HEADS if events is None else events)

    async def check(
        self, head: RequestHeadersEvent, body: bytes | None, deadline: float, *, more: bool = False
    ) -> AgentResponse:
        """Ask whether the request may pass. The guard keeps the ``deadline``.

        :raises AgentError: the service could not be reached, has failed, or has allowed the request with more content
            than ``max_answer_bytes``.
        """
        question = self._question(head, with_body=body is not None)
        if isinstance(question, str):
            return refusal_of_input(question)
        if body is None and question.method not in (b"GET", b"HEAD"):
            body = b""
        try:
            answer = await self._send(question, body, deadline)
        except AnswerTooLongError as exc:
            if 300 <= exc.status <= 499:
                return denial(exc.status, None, ())
            raise
        if 200 <= answer.status <= 299:
            return self._allowed(answer)
        if 300 <= answer.status <= 499:
            return self._denied(answer)
        self._note_unreadable()
        raise AgentError(f"it answered {answer.status}, expected 2xx, 3xx or 4xx")

    # The question

    def _question(self, head: RequestHeadersEvent, *, with_body: bool) -> RequestHead | str:
        """The head of the request to the service; or what of the client's request can't be asked about."""
        host = self._host_of(head)
        if host is None:
            return "a Host header that is none"
        uri = _as_uri(head.uri)
        if not is_asked_about(uri) or (uri == "*" and self._style != "forward_auth"):
            return NO_PATH
        if self._style == "ext_authz" and _has_dot_segments(uri):
            return "a path with dot segments"
        fields = self._forwarded(head, with_body=with_body)
        fields |= self._told(head, host, uri)
        if with_body:
            fields["x-envoy-auth-partial-body"] = ["false"]
        fields |= {name: [value] for name, value in self._fixed.items()}
        as_envoy = self._style == "ext_authz"
        fields["host"] = [host if as_envoy else self._url.netloc.decode()]
        method = head.method.encode() if as_envoy else b"GET"
        target = f"{self._prefix}{uri}".encode() if as_envoy else self._url.raw_path
        pairs = [(name, value) for name, values in fields.items() for value in values]
        try:
            encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
            return RequestHead(method, target, encoded, of_client=True)
        except ValueError as exc:
            return str(exc)

    def _forwarded(self, head: RequestHeadersEvent, *, with_body: bool) -> dict[str, list[str]]:
        """What the service is shown of the client's headers.

        Those that the client's ``connection`` names are not left out: the app sees them, so the service has to.
        """
        fields = {"user-agent": [USER_AGENT], "accept-encoding": ["identity"]}
        for name, values in head.headers.items():
            spelling = as_one_spelling(name)
            if self._request_headers is not None and name not in self._request_headers:
                continue
            if spelling in self._fixed_spellings:
                # A service that reads them as WSGI and CGI do would take the client's for ours.
                continue
            if WORD_OF_A_PROXY.match(spelling) and not (self._trusts and name in _TRUSTED):
                continue
            if spelling not in _NEVER_FORWARDED or (with_body and name == "content-encoding"):
                fields[name] = [without_blanks(value) for value in values]
        return fields

    def _told(self, head: RequestHeadersEvent, host: str, uri: str) -> dict[str, list[str]]:
        """What a proxy tells of the request that it asks about."""
        scheme = self._scheme_of(head)
        peers = list(head.headers.get("x-forwarded-for", ())) if self._trusts else []
        if head.metadata.client_ip:
            peers.append(head.metadata.client_ip)
        told = {"x-forwarded-proto": scheme}
        if peers:
            told["x-forwarded-for"] = ", ".join(peers)
        if self._style != "ext_authz":
            told |= {"x-forwarded-method": head.method, "x-forwarded-host": host, "x-forwarded-uri": uri}
        if self._style == "auth_request":
            told |= {"x-original-method": head.method, "x-original-url": f"{scheme}://{host}{uri}"}
        return {name: [value] for name, value in told.items()}

    def _scheme_of(self, head: RequestHeadersEvent) -> str:
        if self._trusts:
            given = (head.header("x-forwarded-proto") or "").partition(",")[0].strip().lower()
            if given in ("http", "https"):
                return given
        return self._scheme or ("http" if head.metadata.tls_version is None else "https")

    def _host_of(self, head: RequestHeadersEvent) -> str | None:
        """The host that the client has asked for; None where that can't be said."""
        hosts = head.headers.get("host", (head.metadata.server_name or "",))
        if self._trusts:
            hosts = [each.partition(",")[0].strip() for each in head.headers.get("x-forwarded-host", hosts)]
        return hosts[0] if len(hosts) == 1 and _HOST.match(hosts[0]) else None

    # The answer

    def _allowed(self, answer: HttpAnswer) -> AgentResponse:
        fields = _fields(answer)
        request: list[HeaderOp] = []
        for name in self._upstream_headers:
            values = [value for each, value in fields if each == name]
            if values or name in _ALSO_OF_CLIENTS:
                request.append(HeaderOp.set(name, values[0]) if values else HeaderOp.remove(name))
            request += [HeaderOp.add(name, value) for value in values[1:]]
        if self._style == "ext_authz":
            removed = ",".join(value for name, value in fields if name == REMOVED_BY_ENVOY)
            # As Envoy does: the host of a request can't be removed.
            names = {name.strip().lower() for name in removed.split(",")} - {"", "host"}
            request += [HeaderOp.remove(name) for name in sorted(names)]
        response = [HeaderOp.add(name, value) for name, value in fields if name in self._client_headers_on_success]
        return AgentResponse.allow(request_headers=request, response_headers=response)

    def _denied(self, answer: HttpAnswer) -> AgentResponse:
        content_type = ""
        kept: list[tuple[str, str]] = []
        encoded = False
        for name, value in _fields(answer):
            if name == "content-type":
                content_type = value
            elif name == "content-encoding":
                encoded = encoded or value.strip().lower() != "identity"
            elif self._reaches_client(name, answer.status):
                kept.append((name, value))
        text, content_type = (None, "") if encoded else _text_of(answer.content, content_type)
        if content_type:
            kept.append(("content-type", content_type))
        return denial(answer.status, text, kept)

    def _reaches_client(self, name: str, status: int) -> bool:
        if self._client_headers is None:
            return name not in _OF_A_SERVER
        return name in self._client_headers or (name == "location" and status in REDIRECT_STATUSES)

    def _names(self, field: str, given: object) -> tuple[str, ...]:
        """Names of headers, in lower case."""
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise self._wrong(field, given, "a set of header names")
        names: dict[str, None] = {}
        for name in given:
            if not isinstance(name, str) or not TOKEN.match(name) or "*" in name:
                raise self._wrong(field, name, "names of headers such as 'Remote-User', without wildcards")
            if is_untouchable(name.lower()) or name.lower() == "host":
                raise self._wrong(field, name, "none that belong to the connection")
            names[name.lower()] = None
        return tuple(names)


def _fields(answer: HttpAnswer) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers]


def _as_uri(given: str) -> str:
    """A target with nothing in it but what a URI may have (RFC 3986); the rest is percent-encoded."""
    try:
        received = given.encode("latin-1")
    except UnicodeEncodeError:
        received = given.encode("utf-8", "surrogatepass")
    return quote(received, safe=_OF_A_URI)


def _has_dot_segments(uri: str) -> bool:
    """Whether a server could take the path for another one (RFC 3986, section 6.2.2.3), however it decodes it."""
    path = uri.partition("?")[0]
    for _ in range(_MAX_DECODINGS):
        path = unquote(path, "latin-1")
    # What is still encoded then is nobody's path, and decoding it to the end could take long.
    return unquote(path, "latin-1") != path or any(
        segment.partition(";")[0].strip() in (".", "..") for segment in _SEPARATORS.split(path)
    )


def _text_of(content: bytes, content_type: str) -> tuple[str | None, str]:
    """The content of a denial as text, and its type as UTF-8; no text where it can't be read for certain."""
    essence, _, parameters = content_type.partition(";")
    charset = ""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"').lower()
    codec = _CHARSETS.get(charset)
    if codec is None:
        return None, ""
    try:
        text = content.decode(codec)
    except UnicodeDecodeError:
        return None, ""
    if charset and codec != "utf-8":
        content_type = f"{essence.strip()}; charset=utf-8"
    return text, content_type
