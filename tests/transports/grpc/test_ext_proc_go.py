"""An external processor that is none of ours, written in Go with Envoy's own module, works as an agent.

It is built here where Go is at hand, and its modules can be had.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from asgi_agents import EventType
from asgi_agents.transports.grpc.ext_proc_answers import CARRIES
from tests.support.asgi import App, Client, body, start
from tests.transports.grpc.processors import guarded

pytestmark = pytest.mark.slow

_SOURCE: Final = Path(__file__).parent / "processor"
_GO: Final = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
_SECONDS_TO_BUILD: Final = 500


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the processor."""
    if _GO is None:
        pytest.skip("Go is not installed, so that no processor of others is built")
    program = tmp_path_factory.mktemp("go") / "processor"

    def go(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(_GO), *arguments]
        return subprocess.run(command, cwd=_SOURCE, capture_output=True, text=True, timeout=_SECONDS_TO_BUILD)

    if go("mod", "download").returncode:
        pytest.skip("the modules of the processor can't be had here")
    built = go("build", "-o", str(program), ".")
    assert built.returncode == 0, built.stderr
    with subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"grpc://{process.stdout.readline().strip()}"
        # It ends with its input.
        process.stdin.close()
        process.wait(10)


STREAMED: Final = start(200, (b"content-type", b"text/event-stream"))


@pytest.mark.parametrize("body_mode", ["streamed", "buffered", "full_duplex_streamed"])
async def test_it_changes_requests_and_responses(processor: str, body_mode: Any) -> None:
    app = App(start(200, (b"content-type", b"text/plain")), body(b"it is secret"))
    async with guarded(app, processor, CARRIES, body_mode=body_mode, body_access="write") as middleware:
        client = Client("POST", "/orders?x=1", headers=[(b"cookie", b"a=b")], body=b"some words")
        await client.call(middleware)
        decision = client.scope["state"]["asgi_agents"].decision
    assert (app.body, app.header(b"x-processor"), app.header(b"cookie")) == (b"SOME WORDS", b"go", None)
    assert (client.status, client.body, client.header(b"x-seen")) == (200, b"it is [...]", b"200")
    assert decision.routing_metadata == {"lb.canary": "true"}


@pytest.mark.parametrize("body_mode", ["streamed", "full_duplex_streamed"])
async def test_it_denies_and_redirects(processor: str, body_mode: Any) -> None:
    app = App()
    async with guarded(app, processor, {EventType.REQUEST_HEADERS}, body_mode=body_mode) as middleware:
        for path, status, text, header in (
            ("/blocked", 403, b"not here", (b"x-why", b"go")),
            ("/elsewhere", 302, b"", (b"location", b"https://go.example/")),
            ("/in-pieces", 402, b"in pieces", (b"content-type", b"text/x-go")),
        ):
            client = Client("GET", path)
            await client.call(middleware)
            assert (client.status, client.body, client.header(header[0])) == (status, text, header[1])
    assert app.calls == 0


async def test_a_stream_that_it_holds_to_the_end_comes_as_it_lets_it_go(processor: str) -> None:
    pieces = [b"data: the sec\n\n", b"data: ret\n\n", b"data: is secret\n\n"]
    app = App(STREAMED, *(body(piece, more=True) for piece in pieces), body())
    config: dict[str, Any] = {"body_access": "write", "response_body_mode": "stream"}
    events = {EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK}
    async with guarded(app, processor, events, body_mode="full_duplex_streamed", **config) as middleware:
        client = Client()
        await client.call(middleware)
    assert client.body == b"data: the sec\n\ndata: ret\n\ndata: is [...]\n\n"
    assert client.complete
