"""An agent as an authorization service for reverse proxies, over HTTP."""

import logging
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import Agent, AgentConfig, AgentResponse, HeaderOp, RequestHeadersEvent
from asgi_agents.errors import ConfigurationError
from asgi_agents.serve import agent_app
from asgi_agents.transports import ForwardAuthTransport
from tests.support.asgi import Client, Held, Probe, SlowProbe
from tests.support.servers import serve
from tests.transports.test_forward_auth import head

TRAEFIK = {
    "x-forwarded-method": "POST",
    "x-forwarded-uri": "/orders?page=2",
    "x-forwarded-host": "app.example",
    "x-forwarded-proto": "https",
    "x-forwarded-for": "198.51.100.1, 192.0.2.7",
    "x-request-id": "r-1",
    "cookie": "a=b",
}
NGINX = {"x-original-method": "POST", "x-original-url": "https://app.example/orders?page=2", "x-request-id": "r-1"}
ENVOY = {"host": "app.example", "content-length": "0", "x-request-id": "r-1"}


async def ask(
    agent: Agent, api: Any = "forward_auth", headers: dict[str, str] | None = None, **given: Any
) -> httpx.Response:
    defaults: dict[str, dict[str, str]] = {"forward_auth": TRAEFIK, "auth_request": NGINX, "ext_authz": ENVOY}
    request = httpx.Request(
        given.get("method", "GET"), given.get("url", "http://agent/check"), headers=headers or defaults[api]
    )
    response = await httpx.ASGITransport(agent_app(agent, api=api)).handle_async_request(request)
    await response.aread()
    return response


def heard(agent: Probe) -> RequestHeadersEvent:
    [event] = agent.of("request_headers")
    assert isinstance(event, RequestHeadersEvent)
    return event


# --- The question -------------------------------------------------------------------------------------------------


async def test_traefik_says_in_headers_what_it_asks_about() -> None:
    agent = Probe(request_headers=None)
    assert (await ask(agent)).status_code == 200
    event = heard(agent)
    assert (event.method, event.uri, event.header("host"), event.header("cookie")) == (
        "POST",
        "/orders?page=2",
        "app.example",
        "a=b",
    )
    metadata = event.metadata
    # Whom the proxy has the request from: anybody can say what stands before.
    assert (metadata.client_ip, metadata.request_id, metadata.server_name) == ("192.0.2.7", "r-1", "app.example")


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("https://app.example/orders?page=2", "/orders?page=2"),
        ("http://app.example", "/"),
        ("http://app.example?a=b", "/?a=b"),
    ],
)
async def test_nginx_says_a_whole_url(url: str, uri: str) -> None:
    agent = Probe(request_headers=None)
    await ask(agent, "auth_request", NGINX | {"x-original-url": url})
    event = heard(agent)
    assert (event.method, event.uri, event.header("host")) == ("POST", uri, "app.example")


async def test_envoy_asks_with_the_request_itself() -> None:
    agent = Probe(request_headers=None)
    headers = ENVOY | {"x-forwarded-uri": "/public", "x-original-url": "http://app.example/public"}
    await ask(agent, "ext_authz", headers, method="PUT", url="http://agent/orders?page=2")
    event = heard(agent)
    assert (event.method, event.uri, event.header("host")) == ("PUT", "/orders?page=2", "app.example")
    assert event.header("content-length") is None


@pytest.mark.parametrize(
    ("api", "headers"),
    [
        ("forward_auth", {}),
        ("forward_auth", {"x-forwarded-method": "GET"}),
        ("forward_auth", TRAEFIK | {"x-forwarded-uri": "orders"}),
        ("forward_auth", TRAEFIK | {"x-forwarded-method": "G T"}),
        # The words of a client under another convention are none.
        ("forward_auth", NGINX),
        ("auth_request", TRAEFIK),
        ("auth_request", NGINX | {"x-original-url": "/orders"}),
        ("auth_request", NGINX | {"x-original-url": "ftp://app.example/"}),
    ],
)
async def test_a_question_that_does_not_say_what_it_is_about_is_refused(api: str, headers: dict[str, str]) -> None:
    agent = Probe(request_headers=None)
    response = await ask(agent, api, headers or {"x": "y"})
    assert (response.status_code, agent.heard) == (400, [])


async def test_so_is_one_that_says_it_twice() -> None:
    agent = Probe(request_headers=None)
    pairs = [*TRAEFIK.items(), ("x-forwarded-uri", "/public")]
    request = httpx.Request("GET", "http://agent/", headers=pairs)
    response = await httpx.ASGITransport(agent_app(agent, api="forward_auth")).handle_async_request(request)
    assert (response.status_code, agent.heard) == (400, [])


# --- The answer ---------------------------------------------------------------------------------------------------


async def test_what_the_agent_sets_is_in_the_answer() -> None:
    ops = [HeaderOp.set("x-user", "alice"), HeaderOp.set("x-group", "a"), HeaderOp.add("x-group", "b")]
    response = await ask(Probe(request_headers=AgentResponse.allow(request_headers=ops)))
    assert response.status_code == 200
    assert [pair for pair in response.headers.multi_items() if pair[0].startswith("x-")] == [
        ("x-user", "alice"),
        ("x-group", "a"),
        ("x-group", "b"),
    ]


async def test_envoy_is_told_what_to_remove() -> None:
    ops = [HeaderOp.remove("authorization"), HeaderOp.set("x-user", "alice"), HeaderOp.remove("cookie")]
    response = await ask(Probe(request_headers=AgentResponse.allow(request_headers=ops)), "ext_authz")
    assert response.status_code == 200
    assert response.headers["x-envoy-auth-headers-to-remove"] == "authorization, cookie"


@pytest.mark.parametrize(
    ("answer", "apis"),
    [
        (AgentResponse.allow(request_headers=[HeaderOp.add("x", "y")]), ["forward_auth", "auth_request", "ext_authz"]),
        (AgentResponse.allow(request_headers=[HeaderOp.remove("x")]), ["forward_auth", "auth_request"]),
        (
            AgentResponse.allow(request_headers=[HeaderOp.set("x", "1"), HeaderOp.add("x", "2")]),
            ["auth_request", "ext_authz"],
        ),
        (AgentResponse.allow(response_headers=[HeaderOp.set("x", "y")]), ["forward_auth", "auth_request", "ext_authz"]),
        # They would take it for an allow.
        (AgentResponse.block(200, "maintenance"), ["forward_auth", "auth_request", "ext_authz"]),
        (AgentResponse.block(204), ["forward_auth", "auth_request", "ext_authz"]),
    ],
)
async def test_what_a_proxy_can_not_be_told_is_an_error_and_logged(
    answer: AgentResponse, apis: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for api in apis:
        caplog.clear()
        response = await ask(Probe(request_headers=answer), api)
        assert response.status_code == 500
        assert "the answer can't be sent" in caplog.text


async def test_an_agent_that_fails_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Any) -> AgentResponse:
        raise LookupError("s3cret")

    with caplog.at_level(logging.CRITICAL):
        response = await ask(Probe(request_headers=fail))
    assert response.status_code == 500
    assert "s3cret" not in response.text


@pytest.mark.parametrize(
    ("answer", "statuses"),
    [
        (AgentResponse.block(401, "who?"), {"forward_auth": 401, "auth_request": 401, "ext_authz": 401}),
        (AgentResponse.block(404), {"forward_auth": 404, "auth_request": 403, "ext_authz": 404}),
        # What Envoy may have been told to let pass, and nginx to answer 500 to.
        (AgentResponse.block(503), {"forward_auth": 503, "auth_request": 403, "ext_authz": 403}),
        (AgentResponse.redirect("https://login/"), {"forward_auth": 302, "auth_request": 401, "ext_authz": 302}),
        (AgentResponse.challenge("basic"), {"forward_auth": 401, "auth_request": 401, "ext_authz": 401}),
    ],
)
async def test_a_denial_is_one_for_every_proxy(answer: AgentResponse, statuses: dict[str, int]) -> None:
    for api, status in statuses.items():
        response = await ask(Probe(request_headers=answer), api)
        assert response.status_code == status
        if 300 <= statuses["forward_auth"] < 400:
            assert response.headers["location"] == "https://login/"
        assert response.headers["content-length"] == str(len(response.content))


@pytest.mark.parametrize("style", ["forward_auth", "auth_request", "ext_authz"])
@pytest.mark.parametrize("kind", [Probe, SlowProbe])
async def test_the_two_ends_understand_each_other(style: Any, kind: type[Probe]) -> None:
    def judge(event: RequestHeadersEvent) -> AgentResponse:
        if event.header("x-key") != "s3cret":
            return AgentResponse.block(401, "key?", headers={"www-authenticate": "ApiKey"})
        return AgentResponse.allow(request_headers=[HeaderOp.set("x-user", f"{event.method} {event.uri}")])

    with serve(agent_app(kind(request_headers=judge), api=style)) as url:
        transport = ForwardAuthTransport(url, style=style, upstream_headers={"x-user"})
        allowed = await transport.check(head("PUT", headers={"x-key": ["s3cret"]}), None, 0.0)
        assert list(allowed.request_headers) == [HeaderOp.set("x-user", "PUT /orders?page=2")]
        denied = await transport.check(head(), None, 0.0)
        assert not denied.is_allow
        assert ("www-authenticate", "ApiKey") in [(op.name, op.value) for op in denied.response_headers]
        await transport.aclose()


async def test_it_is_an_asgi_app_like_any() -> None:
    app = agent_app(Probe(request_headers=None), api="forward_auth")
    sent: list[Any] = []
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(events)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    sent.clear()
    events = iter([{"type": "websocket.connect"}])
    await app({"type": "websocket"}, receive, send)
    assert sent == ["websocket.close"]
    with pytest.raises(ValueError, match="unknown scope type 'x'"):
        await app({"type": "x"}, receive, send)


async def test_a_hook_is_cancelled_when_the_proxy_hangs_up() -> None:
    waits = Held()
    app = agent_app(SlowProbe(request_headers=waits), api="forward_auth")
    headers = [(name.encode(), value.encode()) for name, value in TRAEFIK.items()]
    client = Client(headers=headers)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, app)
        await waits.reached.wait()
        client.leave()
    assert (waits.cancelled, client.messages) == (1, [])


def test_what_can_not_work_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="api='traefik', expected 'agent' or 'litellm' or 'forward_auth'"):
        agent_app(Probe(request_headers=None), api="traefik")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="no bodies can be shown to it here"):
        agent_app(Probe(request_headers=None, request_body=None), api="forward_auth")
    assert AgentConfig("a", ForwardAuthTransport("http://agent/")).id == "a"
