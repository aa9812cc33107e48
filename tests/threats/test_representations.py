"""What a client can do with the form in which it gets a response: parts of it, compressed, in trailers."""

import gzip
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route as AppRoute

from asgi_agents import Agent, AgentConfig, AgentResponse, BodyMode, BodyMutation, ResponseBodyChunkEvent, protect
from tests.support.servers import serve

from .raw import get, status_of

SECRET = b"4111 1111 1111 1111"
TEXT = b"order: " + SECRET + b", " + b"thank you. " * 100
MODES = [BodyMode.BUFFER, BodyMode.STREAM, BodyMode.hybrid(threshold=100)]


class Redactor(Agent):
    """Finds a secret that is not cut in two; in one piece, as these responses are."""

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse:
        return AgentResponse.allow(response_body_mutation=BodyMutation(event.data.replace(SECRET, b"[card]")))


class Refuser(Agent):
    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(451, "no") if SECRET in event.data else None


def shop(tmp_path: Any) -> Starlette:
    file = tmp_path / "order.txt"
    file.write_bytes(TEXT)

    def download(request: Request) -> Response:
        return FileResponse(file)

    def page(request: Request) -> Response:
        return PlainTextResponse(TEXT)

    app = Starlette(routes=[AppRoute("/file", download), AppRoute("/page", page)])
    app.add_middleware(GZipMiddleware, minimum_size=10)
    return app


def body_of(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        pieces, rest = [], body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            pieces.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        body = b"".join(pieces)
    return gzip.decompress(body) if b"content-encoding: gzip" in head.lower() else body


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("agent", [Redactor, Refuser])
def test_parts_of_a_response_bring_no_secret_past_an_agent(tmp_path: Any, agent: type[Agent], mode: BodyMode) -> None:
    app = shop(tmp_path)
    write = "write" if agent is Redactor else "read"
    protect(app, agents=[AgentConfig("agent", agent(), body_access=write, response_body_mode=mode)])  # type: ignore[arg-type]
    got = b""
    with serve(app) as url:
        for ranges in (b"0-15", b"16-", b"0-15,16-40", b"-1200"):
            answer = get(url, b"/file", b"range: bytes=" + ranges)
            assert status_of(answer) in (200, 451)
            assert b"content-range" not in answer.lower()
            assert b"accept-ranges" not in answer.lower()
            got += body_of(answer)
    assert SECRET not in got


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("decode", [False, True], ids=["as it is", "decoded"])
def test_a_response_that_the_app_could_compress_is_changed_all_the_same(
    tmp_path: Any, decode: bool, mode: BodyMode
) -> None:
    app = shop(tmp_path)
    config = AgentConfig("agent", Redactor(), body_access="write", decode=decode, response_body_mode=mode)
    protect(app, agents=[config])
    with serve(app) as url:
        answer = get(url, b"/page", b"accept-encoding: gzip, br")
    assert status_of(answer) == 200
    assert body_of(answer) == TEXT.replace(SECRET, b"[card]")
