"""Where a target leads the app, the agents have looked: on every server, however the target is written."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pytest

from tests.support.servers import serve

from . import aimed
from .raw import get, status_of

TARGETS = [
    b"/admin",
    b"%2fadmin",
    b"%2Fadmin",
    b"%2f%2fadmin",
    b"//admin",
    b"http://host/admin",
    b"HTTP://host/admin",
    b"http://host",
    b"http:/admin",
    b"http:%2fadmin",
    b"//host/admin",
    b"admin",
    b"host:443",
    b"*",
    b"%2a",
    b"/%2e%2e/admin",
    b"/a/../admin",
    b"./admin",
    b";/admin",
    b"/admin;x",
    b"\\admin",
    b"/\\admin",
    b"%5cadmin",
    b"/admin%00",
    b"/admin%0a",
    b"/admin%3fx",
    b"/admin%23",
    b"/admin#x",
    b"#/admin",
    b"?/admin",
    b"?",
    b"/%61dmin",
    b"/%2561dmin",
    b"/admin%",
    b"/admin%zz",
    b"/caf%C3%A9",
    b"/caf\xc3\xa9",
    b"/caf%E9",
    b"/\xff",
    b"\xff",
    b"/%ff%2fadmin",
    b"/%F0%9F%98%80",
    b"/outer/admin",
    b"/outer%2fadmin",
    b"outer/admin",
    b"/admin\x00",
]


@contextmanager
def _process(module: str, name: str, *options: str) -> Iterator[str]:
    """A server in a process of its own; gives the URL of its root."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, f"tests.threats.aimed:{name}"]
    process = subprocess.Popen(
        [*command, *(option.format(port=port) for option in options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        for _ in range(600):
            assert process.poll() is None, f"{module} has ended"
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _served(server: str, name: str) -> Iterator[str]:
    match server.split():
        case ["uvicorn", http]:
            with serve(getattr(aimed, name), http=http, loop="asyncio") as url:
                yield url
        case ["uvicorn", http, root_path]:
            with serve(getattr(aimed, name), http=http, loop="asyncio", root_path=root_path) as url:
                yield url
        case ["hypercorn"]:
            with _process("hypercorn", name, "-b", "127.0.0.1:{port}") as url:
                yield url
        case ["granian"]:
            with _process("granian", name, "--interface", "asgi", "--port", "{port}") as url:
                yield url


SERVERS = [
    "uvicorn h11",
    "uvicorn httptools",
    "uvicorn h11 /outer",
    "uvicorn httptools /outer",
    *(pytest.param(server, marks=pytest.mark.slow) for server in ("hypercorn", "granian")),
]


@pytest.mark.parametrize("server", SERVERS)
def test_where_a_target_leads_the_app_the_agents_have_looked(server: str) -> None:
    led = 0
    with _served(server, "app") as everywhere, _served(server, "routed") as routed:
        for target in TARGETS:
            for method in (b"GET", b"OPTIONS", b"FOO"):
                answer = get(everywhere, target, method=method)
                assert status_of(answer) in (200, 400), target
                if status_of(answer) == 200:
                    led += 1
                    seen = _body(answer)
                    judged = seen["judged"].partition("?")[0]
                    if judged != "*":
                        assert judged[0] == "/"
                        # A root path of the server's stands before both, or before what agents see.
                        assert unquote(judged) in (seen["went"], f"/outer{seen['went']}"), (target, seen)
                answer = get(routed, target, method=method)
                if status_of(answer) == 200 and (seen := _body(answer))["went"] == "/admin":
                    assert unquote(seen["judged"]).partition("?")[0] in ("/admin", "/outer/admin"), (target, seen)
    assert led > 20


def _body(answer: bytes) -> dict[str, Any]:
    found = re.search(rb"\{.*\}", answer)
    assert found is not None
    seen: dict[str, Any] = json.loads(found[0])
    return seen
