"""The recipes of docs/pages/guide/authorisers.md, with services that speak on the wire as those do that are meant."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Final

import pytest
from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_agents.agents import IpFilter
from asgi_agents.serve import agent_app
from tests.support.servers import serve

from .markdown import blocks_of
from .pages import DOCS

PAGE: Final = (DOCS / "guide" / "authorisers.md").read_text()


def recipe(title: str, shown: str, actual: str) -> Any:
    """The app of a file of the page, with the address of the service that runs in place of the one that is shown."""
    [code] = [block.code for block in blocks_of(PAGE) if block.title == title]
    assert shown in code
    module = ModuleType(title.removesuffix(".py"))
    exec(compile(code.replace(shown, actual), title, "exec"), vars(module))  # noqa: S102 - our own page
    return module.app


async def oauth2_proxy(request: Request) -> Response:
    """``/oauth2/auth``, with --set-xauthrequest: 202 for a session, 401 for none."""
    assert request.headers["x-forwarded-uri"] == "/orders?page=2"
    if request.cookies.get("_oauth2_proxy") != "session-of-alice":
        return PlainTextResponse("Unauthorized\n", 401)
    headers = {"X-Auth-Request-User": "alice", "X-Auth-Request-Email": "alice@example.org", "Gap-Auth": "alice"}
    response = Response(status_code=202, headers=headers)
    response.set_cookie("_oauth2_proxy", "renewed")
    return response


def test_oauth2_proxy() -> None:
    with serve(Starlette(routes=[Route("/oauth2/auth", oauth2_proxy)])) as url:
        client = TestClient(recipe("oauth2_proxy.py", "http://127.0.0.1:4180/", url))
        denied = client.get("/orders?page=2", headers={"X-Auth-Request-Email": "root@example.org"})
        assert (denied.status_code, denied.text) == (401, "Unauthorized\n")
        client.cookies.set("_oauth2_proxy", "session-of-alice")
        allowed = client.get("/orders?page=2", headers={"X-Auth-Request-Email": "root@example.org"})
        assert allowed.json() == {"orders_of": "alice@example.org"}
        assert "_oauth2_proxy=renewed" in allowed.headers["set-cookie"]


async def authelia(request: Request) -> Response:
    """``/api/authz/forward-auth``: 400 without its headers, 302 or 401 without a session, 200 with one."""
    told = [request.headers.get(f"x-forwarded-{name}") for name in ("method", "proto", "host", "uri")]
    if None in told or told[1] != "https":
        return PlainTextResponse("400 Bad Request", 400)
    if request.cookies.get("authelia_session") == "of-alice":
        return PlainTextResponse("200 OK", headers={"Remote-User": "alice", "Remote-Groups": "staff"})
    if "authorization" in request.headers:
        return PlainTextResponse("401 Unauthorized", 401, {"WWW-Authenticate": "Basic"})
    response = RedirectResponse(f"https://auth.example/?rd=https%3A%2F%2F{told[2]}{told[3]}&rm={told[0]}", 302)
    response.set_cookie("authelia_session", "anonymous")
    return response


def test_authelia() -> None:
    with serve(Starlette(routes=[Route("/api/authz/forward-auth", authelia)])) as url:
        client = TestClient(recipe("authelia.py", "http://127.0.0.1:9091/", url), follow_redirects=False)
        redirected = client.get("/orders", headers={"Remote-User": "root"})
        assert redirected.status_code == 302
        assert redirected.headers["location"] == "https://auth.example/?rd=https%3A%2F%2Ftestserver/orders&rm=GET"
        assert "authelia_session=anonymous" in redirected.headers["set-cookie"]
        denied = client.get("/orders", headers={"authorization": "Basic x"})
        assert (denied.status_code, denied.headers["www-authenticate"]) == (401, "Basic")
        client.cookies.clear()
        client.cookies.set("authelia_session", "of-alice")
        assert client.get("/orders", headers={"Remote-User": "root"}).json() == {"orders_of": "alice"}


@contextmanager
def opa(decide: Callable[[Any], dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Answers as the plugin does: a policy is a function of its input."""
    pytest.importorskip("envoy.service.auth.v3", reason="xds-protos is not installed: pip install '.[grpc]'")
    from asgi_agents.serve import serve_grpc
    from tests.transports.grpc.test_ext_authz import Authorizer

    authorizer = Authorizer(decide)
    with start_blocking_portal() as portal:
        serving, address = portal.start_task(partial(serve_grpc, [authorizer], "127.0.0.1:0"))
        try:
            yield address.removeprefix("grpc://"), authorizer
        finally:
            serving.cancel()


def test_open_policy_agent() -> None:
    def decide(http: Any) -> dict[str, Any]:
        if http.method == "GET" and http.headers[":path"] == "/orders" and http.headers["x-role"] == "clerk":
            return {"status": {}, "ok_response": {"headers_to_remove": ["x-role"]}, "dynamic_metadata": {"id": "7"}}
        denied = {"status": {"code": 403}, "body": "no clerk", "headers": []}
        return {"status": {"code": 7}, "denied_response": denied}

    with opa(decide) as (address, authorizer):
        client = TestClient(recipe("opa.py", "127.0.0.1:9191", address))
        assert client.get("/orders", headers={"x-role": "clerk"}).json() == []
        denied = client.get("/orders", headers={"x-role": "guest"})
        assert (denied.status_code, denied.text) == (403, "no clerk")
        assert dict(authorizer.asked[0].context_extensions) == {"app": "shop"}


def as_nginx(code: str, client: dict[str, str], peer: str) -> dict[str, str]:
    """The headers of the question about ``GET /orders``: the client's, where the configuration sets no others."""
    variables = {"$request_method": "GET", "$scheme://$http_host$request_uri": "http://shop.example/orders"}
    variables |= {"$remote_addr": peer, '""': ""}
    told = re.findall(r"^ *proxy_set_header ([\w-]+) (.*);$", code, re.MULTILINE)
    return client | {name.lower(): variables[value] for name, value in told}


def test_behind_nginx_no_client_says_where_it_comes_from() -> None:
    [code] = [block.code for block in blocks_of(PAGE) if "proxy_set_header" in block.code]
    client = TestClient(agent_app(IpFilter(allow=["192.0.2.0/24"]), api="auth_request"))
    forged = {"x-forwarded-for": "192.0.2.7"}
    assert client.get("/", headers=as_nginx(code, forged, "198.51.100.1")).status_code == 403
    assert client.get("/", headers=as_nginx(code, forged, "192.0.2.9")).status_code == 200
