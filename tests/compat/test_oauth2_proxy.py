"""oauth2-proxy itself as an agent: built where Go is at hand, or the one that is installed."""

import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_agents import AgentConfig, ForwardAuthTransport, protect

# It builds a program of others, which takes minutes for the first time, and starts it.
pytestmark = pytest.mark.slow

_MODULE: Final = "github.com/oauth2-proxy/oauth2-proxy/v7"
_VERSION: Final = "v7.15.6"
_BUILDING: Final = 1800.0
# Of alice, whose password is "s3cret" (Apache's {SHA}).
_HTPASSWD: Final = "alice:{SHA}/vNB+F2HQ559kaLUZbmHHvZrXpg=\n"
_ALICE: Final = ("alice", "s3cret")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = shutil.which("oauth2-proxy")
    if found is not None:
        return found
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None or "BUILD_PROGRAMS" not in os.environ:
        pytest.skip("there is no oauth2-proxy here; with BUILD_PROGRAMS=1 it is built where Go is, which takes minutes")
    directory = tmp_path_factory.mktemp("oauth2-proxy")
    (directory / "go.mod").write_text("module example.org/build\n\ngo 1.24\n")
    environment = {**os.environ, "GOFLAGS": "-mod=mod"}
    for command in (["get", f"{_MODULE}@{_VERSION}"], ["build", "-o", "oauth2-proxy", _MODULE]):
        made = subprocess.run(
            [go, *command],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_BUILDING,
            check=False,
        )
        if made.returncode != 0:
            pytest.skip(f"oauth2-proxy can't be built here: {made.stderr.strip()[-200:]}")
    return str(directory / "oauth2-proxy")


@pytest.fixture(scope="module")
def url(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("running")
    (directory / "htpasswd").write_text(_HTPASSWD)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "http-address": f"127.0.0.1:{port}",
        "reverse-proxy": "true",
        "set-xauthrequest": "true",
        "upstream": "static://202",
        "provider": "github",
        "client-id": "app",
        "client-secret": "secret",
        "cookie-secret": "0123456789abcdef0123456789abcdef",
        "cookie-secure": "false",
        "email-domain": "*",
        "htpasswd-file": str(directory / "htpasswd"),
        "skip-provider-button": "true",
    }
    log = (directory / "log").open("wb")
    process = subprocess.Popen(
        [program, *(f"--{name}={value}" for name, value in options.items())], stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 30
        while not _answers(port):
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def _answers(port: int) -> bool:
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        finally:
            connection.close()
    return False


def guarded(endpoint: str) -> TestClient:
    async def show(request: Request) -> JSONResponse:
        return JSONResponse(
            {name: value for name, value in request.headers.items() if name.startswith("x-auth-request")}
        )

    app = Starlette(routes=[Route("/{rest:path}", show)])
    sso = ForwardAuthTransport(endpoint, upstream_headers={"X-Auth-Request-User", "X-Auth-Request-Email"})
    protect(app, agents=[AgentConfig("sso", sso, timeout=10.0)])
    return TestClient(app, follow_redirects=False)


def test_whom_it_knows_is_let_in_under_its_name_and_no_other(url: str) -> None:
    client = guarded(f"{url}/oauth2/auth")
    forged = {"X-Auth-Request-User": "root", "X_Auth_Request_User": "root", "X-Auth-Request-Email": "root@example.org"}
    allowed = client.get("/orders", auth=_ALICE, headers=forged)
    assert (allowed.status_code, allowed.json()) == (200, {"x-auth-request-user": "alice"})


def test_whom_it_does_not_know_is_told_so(url: str) -> None:
    client = guarded(f"{url}/oauth2/auth")
    assert client.get("/orders").status_code == 401
    assert client.get("/orders", auth=("alice", "wrong")).status_code in (401, 403)
    assert client.get("/orders", headers={"X-Auth-Request-User": "root"}).status_code == 401


def test_its_root_sends_browsers_to_the_sign_in_page_with_its_cookies(url: str) -> None:
    client = guarded(f"{url}/")
    response = client.get("/orders?page=2", headers={"accept": "text/html"})
    assert response.status_code == 302
    assert response.headers["location"].startswith("https://github.com/login/oauth/authorize?")
    assert "_oauth2_proxy_csrf" in response.headers["set-cookie"]
    assert client.get("/orders", auth=_ALICE).status_code == 200
