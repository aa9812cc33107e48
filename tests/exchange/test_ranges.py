"""Parts of bodies: nobody can judge a whole by its parts, so that nobody gets any, unless an agent says that it can."""

from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    BodyMutation,
    ResponseBodyChunkEvent,
)
from tests.support.asgi import App, Client, Probe, body, guarded, start

from .test_body import BUFFER, STREAM, agent

ASKED = [(b"range", b"bytes=0-9"), (b"If-Range", b'"1"'), (b"x-kept", b"1")]
ACCEPTS = (b"accept-ranges", b"bytes")
JSON = frozenset({"application/json"})

WHO_SEES_RANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "reader": ({}, False),
    "streaming writer": ({"write": True, "decode": True}, False),
    "agent that takes parts": ({"ranges": True}, True),
    "agent of other types": ({"response_content_types": JSON}, True),
    "shadow agent": ({"enforce": False}, True),
}


@pytest.mark.parametrize(("options", "sees"), WHO_SEES_RANGES.values(), ids=WHO_SEES_RANGES)
@pytest.mark.parametrize("mode", [BUFFER, STREAM], ids=lambda mode: mode.name)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_app_sees_no_range_where_an_agent_judges_whole_bodies(
    options: dict[str, Any], sees: bool, mode: BodyMode, method: str
) -> None:
    app = App(start(200, ACCEPTS, (b"content-type", b"text/plain")), body(b"0123456789"))
    client = Client(method, headers=ASKED)
    await client.call(guarded(app, agent("response", Probe(response_body=None), mode, **options)))
    assert app.headers == (ASKED if sees else [(b"x-kept", b"1")])
    assert client.header(b"accept-ranges") == (b"bytes" if sees else None)


PARTIAL = {
    "heard type": (206, b"application/json", True),
    "heard type with parameters": (206, b"Application/JSON; charset=utf-8", True),
    "several parts": (206, b"multipart/byteranges; boundary=x", True),
    "several parts with another status": (200, b"multipart/byteranges; boundary=x", True),
    "no type": (206, None, True),
    "other type": (206, b"image/png", False),
    "the whole": (200, b"application/json", False),
}


@pytest.mark.parametrize(("status", "content_type", "refused"), PARTIAL.values(), ids=PARTIAL)
async def test_a_part_of_a_type_that_an_agent_hears_is_refused(
    status: int, content_type: bytes | None, refused: bool
) -> None:
    types = [] if content_type is None else [(b"content-type", content_type)]
    app = App(start(status, *types, (b"content-range", b"bytes 0-1/9"), ACCEPTS), body(b"01"))
    client = Client(headers=ASKED)
    config = agent("response", Probe(response_body=None), BUFFER, response_content_types=JSON)
    await client.call(guarded(app, config))
    assert client.status == (416 if refused else status)
    assert (client.body == b"01") is not refused
    assert client.complete


async def test_a_part_that_nobody_asked_for_is_refused_too() -> None:
    client = Client()
    app = App(start(206, (b"content-type", b"text/plain")), body(b"part"))
    await client.call(guarded(app, agent("response", Probe(response_body=None), STREAM)))
    assert client.status == 416


@pytest.mark.parametrize(
    ("options", "kept"), [({}, True), ({"write": True}, False), ({"write": True, "enforce": False}, True)]
)
async def test_head_says_nothing_of_a_body_that_an_agent_could_change(options: dict[str, Any], kept: bool) -> None:
    claims = [(b"content-length", b"10"), (b"etag", b'"1"'), (b"content-digest", b"sha-256=:x:")]
    client = Client("HEAD")
    app = App(start(200, (b"content-type", b"text/plain"), *claims), body())
    await client.call(guarded(app, agent("response", Probe(response_body=None), BUFFER, **options)))
    assert client.headers == [(b"content-type", b"text/plain"), *(claims if kept else [])]


class Redactor(Agent):
    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse:
        return AgentResponse.allow(response_body_mutation=BodyMutation(event.data.replace(b"secret", b"*")))


def test_a_download_that_is_resumed_gets_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"0123456789 secret " * 100)

    async def download(request: Any) -> FileResponse:
        return FileResponse(path)

    app = Starlette(routes=[Route("/", download)])
    app.add_middleware(AgentMiddleware, agents=[AgentConfig("redactor", Redactor(), body_access="write")])
    client = TestClient(app)
    whole = b"0123456789 * " * 100
    for ranges in ("bytes=0-9", "bytes=0-12,13-20", "bytes=5-", "bytes=99999-"):
        response = client.get("/", headers={"range": ranges})
        assert (response.status_code, response.content) == (200, whole)
        assert "content-range" not in response.headers
        assert "accept-ranges" not in response.headers
