"""Authorization services over HTTP: what they are asked, what their answers do, and what no client can do to either."""

from collections.abc import Callable, Mapping
from typing import Any

import anyio.abc
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from asgi_agents import AgentConfig, AgentResponse, EventType, HeaderOp, protect
from asgi_agents.errors import AgentConnectionError, AgentError, ConfigurationError
from asgi_agents.protocol import Block, Headers, Redirect, RequestBodyChunkEvent, RequestHeadersEvent, RequestMetadata
from asgi_agents.transports import ForwardAuthTransport, Transport
from asgi_agents.transports.authorization import HEADS
from tests.support.servers import serve
from tests.transports.test_http import Pki, pki, raw_agent, stall

__all__ = ["pki"]

URL = "http://authorizer:4180/oauth2/auth?x=1"


def head(
    method: str = "GET",
    uri: str = "/orders?page=2",
    headers: Mapping[str, list[str]] | None = None,
    *,
    client_ip: str = "192.0.2.7",
    tls_version: str | None = None,
) -> RequestHeadersEvent:
    return RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id="c-1",
            request_id="r-1",
            client_ip=client_ip,
            client_port=40000,
            server_name="app.example",
            protocol="HTTP/1.1",
            tls_version=tls_version,
            timestamp="2026-01-01T00:00:00.000+00:00",
        ),
        method=method,
        uri=uri,
        headers=Headers({"host": ["app.example"]} | dict(headers or {})),
    )


class Service:
    """An authorization service that remembers what it was asked and answers as it is told."""

    def __init__(self, *answer: Any, **fields: Any) -> None:
        self._answer: Callable[[], httpx.Response] = lambda: httpx.Response(*answer, **fields)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self._answer()

    @property
    def fields(self) -> dict[str, str]:
        """The headers of the one question; none of them is there twice."""
        [request] = self.asked
        pairs = [(name.lower().decode(), value.decode("latin-1")) for name, value in request.headers.raw]
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)


def transport_to(service: Callable[[httpx.Request], httpx.Response], url: str = URL, **options: Any) -> Any:
    return ForwardAuthTransport(url, transport=httpx.MockTransport(service), **options)


async def ask(service: Service, event: RequestHeadersEvent | None = None, **options: Any) -> AgentResponse:
    transport = transport_to(service, **options)
    answer: AgentResponse = await transport.check(event or head(), None, 0.0)
    return answer


# --- What is asked ------------------------------------------------------------------------------------------------


def test_is_a_transport_that_needs_no_events() -> None:
    config = AgentConfig("sso", ForwardAuthTransport("http://127.0.0.1:4180/oauth2/auth"))
    transport = config.resolved_transport
    assert isinstance(transport, Transport)
    assert (transport.kind, transport.remote, config.hears) == ("forward_auth", True, HEADS)
    assert getattr(transport, "address") == "127.0.0.1:4180"  # noqa: B009 - the protocol doesn't name it


async def test_forward_auth_tells_the_service_as_traefik_does() -> None:
    service = Service(200)
    await ask(service, head("POST", headers={"cookie": ["a=b"], "accept": ["text/html"], "user-agent": ["curl"]}))
    assert (service.asked[0].method, str(service.asked[0].url)) == ("GET", URL)
    assert service.asked[0].content == b""
    assert service.fields == {
        "host": "authorizer:4180",
        "user-agent": "curl",
        "accept": "text/html",
        "accept-encoding": "identity",
        "cookie": "a=b",
        "x-forwarded-method": "POST",
        "x-forwarded-proto": "http",
        "x-forwarded-host": "app.example",
        "x-forwarded-uri": "/orders?page=2",
        "x-forwarded-for": "192.0.2.7",
    }


async def test_auth_request_tells_the_service_as_nginx_is_made_to() -> None:
    service = Service(200)
    await ask(service, head("DELETE", tls_version="TLSv1.3"), style="auth_request")
    assert service.asked[0].method == "GET"
    told = {name: value for name, value in service.fields.items() if name.startswith("x-")}
    assert told == {
        "x-original-method": "DELETE",
        "x-original-url": "https://app.example/orders?page=2",
        "x-forwarded-method": "DELETE",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "app.example",
        "x-forwarded-uri": "/orders?page=2",
        "x-forwarded-for": "192.0.2.7",
    }


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://authorizer/api/authz/ext-authz", "/api/authz/ext-authz/orders?page=2"),
        ("http://authorizer/", "/orders?page=2"),
        ("http://authorizer", "/orders?page=2"),
    ],
)
async def test_ext_authz_puts_the_path_behind_that_of_the_service_as_envoy_does(url: str, target: str) -> None:
    service = Service(200)
    await ask(service, head("PATCH"), url=url, style="ext_authz")
    assert (service.asked[0].method, service.asked[0].url.raw_path.decode()) == ("PATCH", target)
    told = {name: value for name, value in service.fields.items() if name not in ("user-agent", "accept-encoding")}
    assert told == {
        "host": "app.example",
        "content-length": "0",
        "x-forwarded-proto": "http",
        "x-forwarded-for": "192.0.2.7",
    }


async def test_headers_of_the_configuration_come_with_each_question() -> None:
    service = Service(200)
    await ask(service, head(headers={"x-key": ["forged"]}), headers={"X-Key": "s3cret"}, scheme="https")
    assert (service.fields["x-key"], service.fields["x-forwarded-proto"]) == ("s3cret", "https")


async def test_no_spelling_of_a_configured_header_comes_from_the_client() -> None:
    service = Service(200)
    forged = {"x_service_key": ["evil"], "x-service_key": ["evil"], "x-service-key": ["evil"], "x-servicekey": ["no"]}
    await ask(service, head(headers=forged), headers={"X-Service-Key": "s3cret"})
    about_it = {name: value for name, value in service.fields.items() if name.startswith(("x-s", "x_s"))}
    assert about_it == {"x-service-key": "s3cret", "x-servicekey": "no"}


async def test_the_service_is_shown_the_headers_that_are_allowed() -> None:
    service = Service(200)
    given = {"cookie": ["a"], "authorization": ["b"], "x-other": ["c"]}
    await ask(service, head(headers=given), request_headers={"Cookie"})
    assert "cookie" in service.fields
    assert service.fields.keys().isdisjoint({"authorization", "x-other"})


# What must not reach a service from a client, or would make it answer another question.
HOP_BY_HOP = [
    "connection",
    "content-length",
    "expect",
    "if-none-match",
    "keep-alive",
    "proxy-authorization",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
]
TOLD = [
    "forwarded",
    "x-auth-request-redirect",
    "x-authelia-url",
    "x-envoy-original-path",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-proto",
    "x-forwarded-uri",
    "x-forwarded-user",
    "x-original-method",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
]


@pytest.mark.parametrize("style", ["forward_auth", "auth_request", "ext_authz"])
@pytest.mark.parametrize("name", [*HOP_BY_HOP, *TOLD])
async def test_a_client_can_not_speak_for_the_proxy(name: str, style: str) -> None:
    for spelling in {name, name.replace("-", "_"), name.replace("-", "_", 1)}:
        service = Service(200)
        url = "http://authorizer/" if style == "ext_authz" else URL
        await ask(service, head(headers={spelling: ["evil"]}), style=style, url=url)
        assert "evil" not in service.fields.values()
        assert spelling not in service.fields or "_" not in spelling


async def test_what_the_client_calls_hop_by_hop_is_judged_as_the_app_sees_it() -> None:
    service = Service(200)
    await ask(service, head(headers={"connection": ["x-tenant, cookie"], "x-tenant": ["evil"], "cookie": ["a"]}))
    assert (service.fields["x-tenant"], service.fields["cookie"]) == ("evil", "a")


async def test_a_trusted_proxy_speaks_for_the_client_but_not_of_what_is_asked() -> None:
    service = Service(200)
    given = {
        "x-forwarded-proto": ["https"],
        "x-forwarded-host": ["shop.example"],
        "x-forwarded-for": ["203.0.113.9"],
        "x-forwarded-port": ["443"],
        "x-forwarded-uri": ["/public"],
        "x-forwarded-method": ["OPTIONS"],
    }
    await ask(service, head(headers=given), trust_forwarded_headers=True)
    told = {name: value for name, value in service.fields.items() if name.startswith("x-")}
    assert told == {
        "x-forwarded-proto": "https",
        "x-forwarded-host": "shop.example",
        "x-forwarded-for": "203.0.113.9, 192.0.2.7",
        "x-forwarded-port": "443",
        "x-forwarded-uri": "/orders?page=2",
        "x-forwarded-method": "GET",
    }


async def test_where_the_trusted_proxy_says_nothing_the_connection_does() -> None:
    service = Service(200)
    await ask(service, head(headers={"x-forwarded-proto": ["gopher"]}, client_ip=""), trust_forwarded_headers=True)
    told = {name: value for name, value in service.fields.items() if name.startswith("x-")}
    assert told == {
        "x-forwarded-proto": "http",
        "x-forwarded-host": "app.example",
        "x-forwarded-uri": "/orders?page=2",
        "x-forwarded-method": "GET",
    }


@pytest.mark.parametrize(
    "host",
    [
        "app.example/public?",
        "app.example#",
        "user@app.example",
        "app.example\\evil",
        "app example",
        "a\r\nx: y",
        "app.example:80:81",
        "",
        "%2f",
    ],
)
async def test_a_host_that_could_change_the_url_is_refused_before_anybody_is_asked(host: str) -> None:
    service = Service(200)
    answer = await ask(service, head(headers={"host": [host]}), style="auth_request")
    assert isinstance(answer.decision, Block)
    assert (answer.decision.status, answer.audit.reason_codes, service.asked) == (400, ("bad_input",), [])


@pytest.mark.parametrize("host", ["app.example:8000", "[2001:db8::1]:80", "localhost", "my_app"])
async def test_a_host_is_told_as_it_came(host: str) -> None:
    service = Service(200)
    await ask(service, head(headers={"host": [host]}))
    assert service.fields["x-forwarded-host"] == host


ESCAPING = [
    "/../admin",
    "/a/../../admin",
    "/%2e%2e/admin",
    "/.%2E/admin",
    "/%252e%252e/admin",
    "/..%2fadmin",
    "/..%5cadmin",
    "/..\\admin",
    "/..;/admin",
    "/..;x=y/admin",
    "/./admin",
    "/" + ("%" + "25" * 5 + "2e") * 2 + "/admin",
]


@pytest.mark.parametrize("uri", [*ESCAPING, "*", "http://elsewhere/orders"])
async def test_no_path_leads_to_another_endpoint_of_the_service(uri: str) -> None:
    service = Service(200)
    answer = await ask(service, head(uri=uri), url="http://authorizer/check", style="ext_authz")
    assert isinstance(answer.decision, Block)
    assert (answer.decision.status, service.asked) == (400, [])


# What some servers take for the target of a request; frameworks find "/admin" in most of it.
NO_PATHS = ["%2fadmin", "admin", "", "@other.example/admin", ".other.example/admin", "http://other.example/admin", "**"]


@pytest.mark.parametrize("style", ["forward_auth", "auth_request", "ext_authz"])
@pytest.mark.parametrize("uri", NO_PATHS)
async def test_no_service_is_asked_about_what_it_could_not_tell_to_be_a_path(uri: str, style: str) -> None:
    service = Service(200)
    url = "http://authorizer/" if style == "ext_authz" else URL
    answer = await ask(service, head(uri=uri), style=style, url=url)
    assert isinstance(answer.decision, Block)
    assert (answer.decision.status, service.asked) == (400, [])


async def test_options_of_the_whole_server_can_be_asked_about() -> None:
    service = Service(200)
    assert (await ask(service, head("OPTIONS", "*"))).is_allow
    assert service.fields["x-forwarded-uri"] == "*"


@pytest.mark.parametrize("uri", ["/a..b/.hidden", "/...", "/a?next=/../b", "/%zz", "/a%2fb", "/%25"])
async def test_a_path_without_dot_segments_is_asked_about(uri: str) -> None:
    service = Service(200)
    assert (await ask(service, head(uri=uri), url="http://authorizer/check", style="ext_authz")).is_allow
    assert service.asked[0].url.raw_path.decode() == f"/check{uri}"


async def test_bytes_that_are_in_no_uri_are_percent_encoded() -> None:
    service = Service(200)
    await ask(service, head(uri="/a b#c\\d\xc3\xa9\x01|?x=\x7f"))
    assert service.fields["x-forwarded-uri"] == "/a%20b%23c%5Cd%C3%A9%01%7C?x=%7F"


async def test_values_beyond_ascii_reach_the_service_and_control_characters_are_refused() -> None:
    service = Service(200)
    assert (await ask(service, head(headers={"x-name": ["J\xc3\xbcrgen"]}))).is_allow
    assert service.fields["x-name"] == "J\xc3\xbcrgen"
    for bad in ("a\x01b", "a\x00", "a\r\nx: y", "a\x7f"):
        service = Service(200)
        answer = await ask(service, head(headers={"x-name": [bad]}))
        assert isinstance(answer.decision, Block)
        assert (answer.decision.status, service.asked) == (400, [])
        assert answer.decision.body is not None
        assert bad not in answer.decision.body


# --- What answers do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
async def test_2xx_allows(status: int) -> None:
    assert await ask(Service(status, headers={"x-user": "alice"})) == AgentResponse()


async def test_chosen_headers_of_an_allow_go_to_the_app_and_cookies_to_the_client() -> None:
    answer = [
        ("Remote-User", "alice"),
        ("Remote-Groups", "a"),
        ("Remote-Groups", "b"),
        ("X-Other", "1"),
        ("Set-Cookie", "session=1"),
        ("Set-Cookie", "other=2"),
    ]
    names = ("remote-user", "Remote-Groups", "Remote-Email", "Authorization")
    found = await ask(Service(200, headers=answer), upstream_headers=names)
    assert list(found.request_headers) == [
        HeaderOp.set("remote-user", "alice"),
        HeaderOp.set("remote-groups", "a"),
        HeaderOp.add("remote-groups", "b"),
        # Another's would be the client's.
        HeaderOp.remove("authorization"),
    ]
    assert list(found.response_headers) == [
        HeaderOp.add("set-cookie", "session=1"),
        HeaderOp.add("set-cookie", "other=2"),
    ]


async def test_envoys_list_of_headers_to_remove_holds_in_its_style_only() -> None:
    answer = {"x-envoy-auth-headers-to-remove": "authorization, X-Key ,host,"}
    found = await ask(Service(200, headers=answer), url="http://authorizer/", style="ext_authz")
    assert list(found.request_headers) == [HeaderOp.remove("authorization"), HeaderOp.remove("x-key")]
    assert await ask(Service(200, headers=answer)) == AgentResponse()


async def test_a_denial_is_what_the_client_gets() -> None:
    headers = [
        ("www-authenticate", "Basic"),
        ("www-authenticate", "Bearer"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("connection", "close"),
        ("x-internal", "secret"),
        ("server", "go"),
    ]
    found = await ask(Service(401, headers=headers, html="<h1>Sign in</h1>"))
    assert found.decision == Block(401, "<h1>Sign in</h1>")
    assert [(op.kind, op.name, op.value) for op in found.response_headers] == [
        ("set", "www-authenticate", "Basic"),
        ("add", "www-authenticate", "Bearer"),
        ("set", "set-cookie", "a=1"),
        ("add", "set-cookie", "b=2"),
        ("set", "content-type", "text/html; charset=utf-8"),
    ]


async def test_all_headers_of_a_denial_can_be_let_through_apart_from_those_of_the_connection() -> None:
    headers = {"x-internal": "1", "connection": "close", "transfer-encoding": "x", "date": "now", "server": "go"}
    found = await ask(Service(403, headers=headers), client_headers=None)
    assert [op.name for op in found.response_headers] == ["x-internal"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_one_for_the_client_and_is_not_followed(status: int) -> None:
    service = Service(status, headers=[("location", "/oauth2/start?rd=%2F"), ("set-cookie", "csrf=1")], html="moved")
    found = await ask(service)
    assert found.decision == Redirect("/oauth2/start?rd=%2F", status)
    assert list(found.response_headers) == [HeaderOp.set("set-cookie", "csrf=1")]
    assert len(service.asked) == 1


async def test_a_redirect_needs_no_permission_for_its_location() -> None:
    found = await ask(Service(302, headers={"location": "https://login.example/"}), client_headers={"set-cookie"})
    assert found.decision == Redirect("https://login.example/", 302)


@pytest.mark.parametrize(
    ("status", "headers"), [(302, {}), (304, {"location": "/x"}), (300, {}), (302, {"location": "/a b"})]
)
async def test_a_redirect_to_nowhere_is_a_denial_all_the_same(status: int, headers: dict[str, str]) -> None:
    assert (await ask(Service(status, headers=headers))).decision == Block(403, None)


@pytest.mark.parametrize("status", [500, 502, 503, 199, 600])
async def test_every_other_status_is_a_failure(status: int) -> None:
    with pytest.raises(AgentError, match=f"answered {status}"):
        await ask(Service(status))


@pytest.mark.parametrize(
    ("content", "content_type", "body", "sent_type"),
    [
        (b"J\xfcrgen", "text/plain; charset=ISO-8859-1", "Jürgen", "text/plain; charset=utf-8"),
        (b"J\xc3\xbcrgen", "text/plain", "Jürgen", "text/plain"),
        (b"J\xfcrgen", "text/plain", None, None),
        (b"+ADw-script+AD4-", "text/html; charset=utf-7", None, None),
        (b"\x89PNG", "image/png", None, None),
        (b"{}", "application/json", "{}", "application/json"),
    ],
)
async def test_a_denial_is_one_whatever_its_content(
    content: bytes, content_type: str, body: str | None, sent_type: str | None
) -> None:
    found = await ask(Service(403, content=content, headers={"content-type": content_type}))
    assert found.decision == Block(403, body)
    assert [op.value for op in found.response_headers if op.name == "content-type"] == (
        [sent_type] if sent_type else []
    )


async def test_a_denial_that_is_compressed_or_too_long_has_no_content() -> None:
    headers = {"content-encoding": "x-snappy", "content-type": "text/html"}
    assert await ask(Service(401, headers=headers, content=b"???")) == AgentResponse.block(401)
    assert await ask(Service(401, content=b"x" * 11), max_answer_bytes=10) == AgentResponse.block(401)
    with pytest.raises(AgentError, match="longer than 10 bytes"):
        await ask(Service(200, content=b"x" * 11), max_answer_bytes=10)


# --- On the wire --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 202 Accepted\r\nremote-user: alice\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nremote-user: alice\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nremote-user: alice\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nremote-user: mallory\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nRemote-User: alice\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nremote-user: alice\r\ntransfer-encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nremote-user: mallory\r\n\r\n",
    ],
    ids=["length 0", "204", "chunked", "interim", "trailers"],
)
async def test_answers_come_over_one_connection_however_they_are_framed(answer: bytes, http_client: str) -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        while True:
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += await stream.receive()
            await stream.send(answer)

    async with raw_agent(behave) as agent:
        transport = ForwardAuthTransport(f"{agent.url}auth", upstream_headers={"remote-user"})
        for _ in range(3):
            found = await transport.check(head(), None, 0.0)
            assert list(found.request_headers) == [HeaderOp.set("remote-user", "alice")]
        await transport.aclose()
        await agent.has_open(0)
    # Where line ends may follow a trailer nobody can tell.
    assert agent.accepted == (
        3 if b"mallory\r\n\r\n" in answer and http_client == "http1" and b"0\r\nr" in answer else 1
    )


async def test_head_is_asked_with_head_and_its_answer_has_no_content(http_client: str) -> None:
    seen: list[bytes] = []

    async def behave(stream: anyio.abc.ByteStream) -> None:
        while True:
            seen.append(await stream.receive())
            await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")

    async with raw_agent(behave) as agent:
        transport = ForwardAuthTransport(agent.url, style="ext_authz")
        for _ in range(2):
            assert (await transport.check(head("HEAD"), None, 0.0)).is_allow
        assert all(each.startswith(b"HEAD /orders?page=2 HTTP/1.1\r\n") for each in seen)
        assert b"content-length" not in seen[0].lower()
        await transport.aclose()


async def test_an_answer_of_any_length_ends_at_the_limit(http_client: str) -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 403 No\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await stream.send(b"400\r\n" + b" " * 1024 + b"\r\n")

    async with raw_agent(behave) as agent:
        transport = ForwardAuthTransport(agent.url, max_answer_bytes=10_000)
        assert await transport.check(head(), None, 0.0) == AgentResponse.block(403)
        await transport.aclose()
        await agent.has_open(0)


async def test_over_tls_and_over_a_unix_socket(pki: Pki, tmp_path: Any, http_client: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ok", headers={"x-host": dict(scope["headers"])[b"host"].decode()})(
            scope, receive, send
        )

    with serve(app, **pki.uvicorn_options) as url:
        transport = ForwardAuthTransport(url, verify=pki.authority, upstream_headers={"x-host"})
        await transport.connect()
        [op] = (await transport.check(head(), None, 0.0)).request_headers
        assert op.value == url.removeprefix("https://").removesuffix("/")
        await transport.aclose()
    path = str(tmp_path / "s")
    with serve(app, uds=path):
        transport = ForwardAuthTransport("http://sso/", uds=path, upstream_headers={"x-host"})
        assert transport.address == f"unix://{path}"
        [op] = (await transport.check(head(), None, 0.0)).request_headers
        assert op.value == "sso"
        await transport.aclose()


async def test_a_service_that_is_not_there_is_a_connection_error() -> None:
    async with raw_agent(stall) as agent:
        url = agent.url
    transport = ForwardAuthTransport(url)
    with pytest.raises(AgentConnectionError):
        await transport.check(head(), None, 0.0)
    with pytest.raises(AgentConnectionError):
        await transport.connect()
    await transport.aclose()


# --- Bodies -------------------------------------------------------------------------------------------------------

BOTH = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})
BODY = RequestBodyChunkEvent(correlation_id="c-1", data=b"{}", is_last=True, bytes_received=2)


async def test_a_service_in_envoys_style_is_asked_about_the_head_and_then_with_the_body() -> None:
    def judge(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.content, request.headers.get("x-envoy-auth-partial-body")))
        return httpx.Response(200 if request.content else 403)

    asked: list[tuple[str, bytes, str | None]] = []
    client = transport_to(judge, "http://authorizer/", style="ext_authz").bind(
        "opa", events=BOTH, config=None, max_concurrent_calls=1
    )
    answer = await client.call(head("POST", headers={"content-type": ["application/json"]}))
    # Denied, unless the body that follows is allowed.
    assert (answer.decision, answer.needs_more) == (Block(403, ""), True)
    assert await client.call(BODY) == AgentResponse()
    assert asked == [("POST", b"", None), ("POST", b"{}", "false")]
    client.forget("c-1")
    with pytest.raises(AgentError, match="the head before it was not shown"):
        await client.call(BODY)


async def test_pieces_of_a_body_are_refused() -> None:
    client = transport_to(Service(200), "http://authorizer/", style="ext_authz").bind(
        "opa", events=BOTH, config=None, max_concurrent_calls=1
    )
    await client.call(head("POST"))
    with pytest.raises(AgentError, match="whole bodies"):
        await client.call(RequestBodyChunkEvent(correlation_id="c-1", data=b"{", is_last=False))


def test_a_body_that_is_announced_and_does_not_come_is_no_way_past_a_service() -> None:
    def judge(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if request.content == b"please" else 403)

    config = AgentConfig("opa", transport_to(judge, "http://authorizer/", style="ext_authz"), events=BOTH)
    client = TestClient(guarded(config), raise_server_exceptions=False)
    assert client.post("/", content=b"please").status_code == 200
    assert client.post("/", content=b"no").status_code == 403
    assert client.post("/", content=b"").status_code == 403
    assert client.post("/", content=iter([])).status_code == 403
    assert client.get("/").status_code == 403


# --- In front of an app -------------------------------------------------------------------------------------------


def guarded(config: AgentConfig) -> ASGIApp:
    async def show(request: Request) -> JSONResponse:
        await request.body()
        return JSONResponse(
            {name: value for name, value in request.headers.items() if name.startswith(("remote", "x-", "auth"))}
        )

    app = Starlette(routes=[Route("/{rest:path}", show, methods=["GET", "POST"])])
    protect(app, agents=[config])
    return app


def test_a_client_can_not_pretend_what_the_service_says() -> None:
    service = Service(200, headers={"remote-user": "alice"})
    config = AgentConfig("sso", transport_to(service, upstream_headers={"Remote-User", "Remote-Groups"}))
    assert config.sets == {"remote-user", "remote-groups"}
    forged = {"Remote-User": "root", "Remote_User": "root", "remote-groups": "admins", "REMOTE_GROUPS": "admins"}
    found = TestClient(guarded(config)).get("/", headers=forged)
    assert found.json() == {"remote-user": "alice"}
    assert not any(name.lower().replace(b"_", b"-").startswith(b"remote") for name, _ in service.asked[0].headers.raw)


def test_nor_when_the_service_fails_open() -> None:
    config = AgentConfig(
        "sso", transport_to(Service(503), upstream_headers={"Remote-User"}), failure_mode="open", sets={"x-also"}
    )
    forged = {"Remote-User": "root", "Remote_User": "root", "x-also": "1"}
    assert TestClient(guarded(config)).get("/", headers=forged).json() == {}


def test_a_credential_is_shown_to_the_service_and_replaced_for_the_app() -> None:
    service = Service(200, headers={"authorization": "Bearer inner"})
    config = AgentConfig("sso", transport_to(service, upstream_headers={"Authorization"}))
    found = TestClient(guarded(config)).get("/", headers={"authorization": "Basic outer"})
    assert service.fields["authorization"] == "Basic outer"
    assert found.json() == {"authorization": "Bearer inner"}


def test_a_shadow_agent_takes_nothing_out() -> None:
    service = Service(401, headers={"remote-user": "alice"})
    config = AgentConfig("sso", transport_to(service, upstream_headers={"Remote-User"}), enforce=False)
    assert TestClient(guarded(config)).get("/", headers={"Remote-User": "x"}).json() == {"remote-user": "x"}


@pytest.mark.parametrize(
    ("answer", "status", "headers"),
    [
        (
            {"status_code": 401, "text": "sign in", "headers": {"www-authenticate": "Basic"}},
            401,
            {"www-authenticate": "Basic"},
        ),
        (
            {"status_code": 302, "headers": {"location": "https://login.example/?rd=/"}},
            302,
            {"location": "https://login.example/?rd=/"},
        ),
        ({"status_code": 429, "headers": {"retry-after": "7"}}, 429, {"retry-after": "7"}),
        ({"status_code": 500}, 503, {}),
    ],
)
def test_what_the_client_gets(answer: dict[str, Any], status: int, headers: dict[str, str]) -> None:
    client = TestClient(guarded(AgentConfig("sso", transport_to(Service(**answer)))))
    found = client.get("/", follow_redirects=False)
    assert found.status_code == status
    assert {name: found.headers[name] for name in headers} == headers


def test_a_handshake_is_asked_about_as_a_request() -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.headers["remote-user"])
        await websocket.close()

    def judge(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        known = request.headers.get("cookie") == "session=1"
        return httpx.Response(200, headers={"remote-user": "alice"}) if known else httpx.Response(401, text="who?")

    asked: list[httpx.Request] = []
    app = Starlette(routes=[WebSocketRoute("/ws", echo)])
    protect(app, agents=[AgentConfig("sso", transport_to(judge, upstream_headers={"remote-user"}))])
    client = TestClient(app)
    with client.websocket_connect("/ws", headers={"cookie": "session=1", "remote-user": "root"}) as session:
        assert session.receive_text() == "alice"
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/ws"):
        pass
    assert (denied.value.status_code, denied.value.text) == (401, "who?")
    assert asked[0].headers["x-forwarded-uri"] == "/ws"
    assert {"upgrade", "connection"}.isdisjoint(asked[0].headers)


# --- Mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("ftp://sso/", {}, "ForwardAuthTransport: address='ftp://sso/', expected an http:// or https:// URL"),
        (
            "http://sso/",
            {"style": "traefik"},
            "style='traefik', expected 'forward_auth', 'auth_request' or 'ext_authz'",
        ),
        ("http://sso/", {"scheme": "ftp"}, "scheme='ftp', expected 'http', 'https' or None"),
        ("http://sso/", {"trust_forwarded_headers": 1}, "trust_forwarded_headers=1, expected True or False"),
        ("http://sso/?a=b", {"style": "ext_authz"}, "expected a URL without a query"),
        ("http://sso/", {"upstream_headers": "Remote-User"}, "upstream_headers='Remote-User', expected a set"),
        ("http://sso/", {"upstream_headers": {"X-Auth-*"}}, "upstream_headers='X-Auth-.*without wildcards"),
        ("http://sso/", {"upstream_headers": {"Host"}}, "upstream_headers='Host', expected none that belong"),
        ("http://sso/", {"client_headers": {"Connection"}}, "client_headers='Connection', expected none that belong"),
        ("http://sso/", {"request_headers": 5}, "request_headers=5, expected a set of header names"),
        (
            "http://sso/",
            {"headers": {"accept": "x"}},
            "headers='accept', expected none of those that the transport sets",
        ),
        ("http://sso/", {"max_answer_bytes": 0}, "max_answer_bytes=0, expected a whole number"),
    ],
)
def test_what_can_not_work_is_refused(url: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected.replace("?", r"\?") if "?" in url else expected):
        ForwardAuthTransport(url, **options)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("https:/sso?token=s3cret", {}),
        ("sso/?token=s3cret", {}),
        ("http://sso/?token=s3cret", {"verify": False}),
        ("http://sso/?token=s3cret", {"style": "ext_authz"}),
    ],
)
def test_no_message_has_the_query_of_the_url(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"address='.*sso/?\?…'") as refused:
        ForwardAuthTransport(url, **options)
    assert "s3cret" not in str(refused.value)


def test_bodies_are_for_envoys_style_and_need_their_heads() -> None:
    with pytest.raises(ConfigurationError, match=r"request_body_chunk, which its transport can't carry"):
        AgentConfig("sso", ForwardAuthTransport("http://sso/"), events=BOTH)
    transport = ForwardAuthTransport("http://sso/", style="ext_authz")
    with pytest.raises(ConfigurationError, match="events lack request_headers"):
        transport.bind("sso", events=frozenset({EventType.REQUEST_BODY_CHUNK}), config=None, max_concurrent_calls=1)
    with pytest.raises(ConfigurationError, match="config, expected None"):
        transport.bind("sso", events=None, config={"a": 1}, max_concurrent_calls=1)
