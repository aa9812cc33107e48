"""An agent that hears bodies hears all of them, as the client will read them."""

import gzip
import logging
import random
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import Mount
from starlette.routing import Route as AppRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient

from asgi_agents import Agent, AgentMiddleware, AgentResponse, BodyMode, BodyMutation, FailureMode, Route
from tests.support.asgi import App, Client, Probe, guarded, start
from tests.support.asgi import body as chunk

from .asking import ask, ask_again, config, outcomes

SECRET = b"secret-4711"
# Not to be compressed to less than a hundredth.
NOISE = b"".join(b"%d " % (number * 7919 % 10007) for number in range(400))
PLAIN = NOISE + SECRET + NOISE
EVIL = AgentResponse.block(451)


class Reader(Agent):
    """Blocks what has the secret in it, in either direction."""

    def __init__(self) -> None:
        self.request = self.response = b""

    async def on_request_body_chunk(self, event: Any) -> AgentResponse | None:
        self.request += event.data
        return EVIL if SECRET in self.request else None

    async def on_response_body_chunk(self, event: Any) -> AgentResponse | None:
        self.response += event.data
        return EVIL if SECRET in self.response else None


class Writer(Agent):
    """Replaces the secret, in either direction."""

    async def on_request_body_chunk(self, event: Any) -> AgentResponse:
        redacted = BodyMutation(event.data.replace(SECRET, b"***"))
        return AgentResponse.allow(request_body_mutation=redacted if SECRET in event.data else None)

    async def on_response_body_chunk(self, event: Any) -> AgentResponse:
        redacted = BodyMutation(event.data.replace(SECRET, b"***"))
        return AgentResponse.allow(response_body_mutation=redacted if SECRET in event.data else None)


WRITES: dict[str, Any] = {"body_access": "write"}
STREAM: dict[str, Any] = {"request_body_mode": BodyMode.STREAM, "response_body_mode": BodyMode.STREAM}
AGENTS: dict[str, tuple[type[Agent], dict[str, Any]]] = {
    "reader": (Reader, {}),
    "open reader": (Reader, {"failure_mode": FailureMode.OPEN}),
    "streaming reader": (Reader, STREAM),
    "writer": (Writer, WRITES),
    "streaming writer": (Writer, {**WRITES, **STREAM}),
}
each_agent = pytest.mark.parametrize(("kind", "options"), AGENTS.values(), ids=AGENTS)
MIDDLE = PLAIN.index(SECRET) + 4
RANGES = [
    "bytes=0-1000",
    f"bytes=0-{MIDDLE - 1}, {MIDDLE}-",
    f"bytes={MIDDLE}-",
    "bytes=-5",
    "BYTES=0-0",
    "bytes=99999-",
]


@pytest.fixture
def files(tmp_path: Path) -> Starlette:
    for name in ("page.txt", "image.png"):
        (tmp_path / name).write_bytes(PLAIN)

    def download(request: Any) -> FileResponse:
        media_type = request.query_params.get("type")
        return FileResponse(tmp_path / request.path_params["name"], media_type=media_type)

    return Starlette(routes=[Mount("/static", StaticFiles(directory=tmp_path)), AppRoute("/{name}", download)])


@each_agent
@pytest.mark.parametrize("asked", RANGES)
@pytest.mark.parametrize("path", ["/page.txt", "/static/page.txt"])
def test_no_part_of_a_body_goes_out_alone(
    files: Starlette, kind: type[Agent], options: dict[str, Any], asked: str, path: str
) -> None:
    client = TestClient(guarded(files, config(kind(), **options)), raise_server_exceptions=False)
    etag = TestClient(files).get(path).headers["etag"]
    for headers in ({"range": asked}, {"range": asked, "if-range": etag}):
        try:
            answer = client.get(path, headers=headers)
        except Exception:  # noqa: S112 - the connection was broken off
            continue
        # A response that is broken off ends, for this client, like any other.
        broken_off = kind is Reader and options == STREAM and not answer.content
        assert broken_off or answer.status_code == (200 if kind is Writer else 451)
        assert "content-range" not in answer.headers
        assert "accept-ranges" not in answer.headers
        assert SECRET not in answer.content
        if kind is Writer:
            assert answer.content == PLAIN.replace(SECRET, b"***")
        head = client.head(path, headers=headers)
        assert (head.status_code, "accept-ranges" in head.headers) == (200, False)


async def test_the_app_sees_no_range_that_an_enforcing_agent_s_route_does_not_serve() -> None:
    asked = [(b"range", b"bytes=0-1"), (b"If-Range", b"x"), (b"RANGE", b"bytes=1-"), (b"accept", b"*/*")]
    hears, whole = Probe(response_body=None), dict[str, Any](ranges=True)
    for agents, seen in [
        ([config(hears)], 1),
        ([config(hears, **whole)], 4),
        ([config(hears, "a", **whole), config(hears, "b")], 1),
        ([config(hears, enforce=False)], 4),
        ([config(Probe(request_headers=None, response_headers=None, request_body=None))], 4),
    ]:
        app = App()
        await ask(app, *agents, client=Client(headers=asked))
        assert len(app.headers) == seen, agents


@pytest.mark.parametrize("kind", [Reader, Writer])
def test_ranges_can_be_had_for_what_an_agent_does_not_hear(files: Starlette, kind: type[Agent]) -> None:
    options: dict[str, Any] = {"response_content_types": {"text/*"}, "body_access": "write"}
    client = TestClient(guarded(files, config(kind(), **options)))
    answer = client.get("/image.png", headers={"range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (206, PLAIN[:10])
    for path, asked in [
        ("/page.txt", "bytes=0-9"),
        ("/static/page.txt", "bytes=0-9"),
        ("/image.png?type=Text/HTML;charset=x", "bytes=0-9"),
        ("/image.png", "bytes=0-9, 20-29"),
        ("/page.txt", f"bytes=0-{MIDDLE - 1}, {MIDDLE}-"),
    ]:
        answer = client.get(path, headers={"range": asked})
        assert (answer.status_code, PLAIN[:10] in answer.content) == (416, False)


async def test_a_part_without_a_type_is_heard_and_so_refused() -> None:
    app = App(start(206, (b"content-range", b"bytes 0-4/9")), chunk(b"hello"))
    client = await ask(app, config(Probe(response_body=None), response_content_types={"text/*"}))
    assert (client.status, b"hello" in client.body) == (416, False)


def deflated(data: bytes, window: int = zlib.MAX_WBITS) -> bytes:
    packer = zlib.compressobj(wbits=window)
    return packer.compress(data) + packer.flush()


def members(data: bytes) -> bytes:
    return gzip.compress(data[:100]) + gzip.compress(data[100:MIDDLE]) + gzip.compress(data[MIDDLE:])


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "several members": ("gzip", members),
    "empty members": ("gzip", lambda data: gzip.compress(b"") + gzip.compress(data) + gzip.compress(b"")),
    "upper case": ("GZip", gzip.compress),
    "deflate": ("deflate", deflated),
    "identity": ("identity", bytes),
}
UNREADABLE: dict[str, tuple[str, bytes]] = {
    "truncated": ("gzip", gzip.compress(PLAIN)[:-9]),
    "without its checksum": ("gzip", gzip.compress(PLAIN)[:-8]),
    "wrong checksum": ("gzip", gzip.compress(PLAIN)[:-8] + bytes(8)),
    "trailing": ("gzip", gzip.compress(b"good") + SECRET),
    "trailing zeros": ("gzip", gzip.compress(b"good") + bytes(8) + SECRET),
    "half a member": ("gzip", gzip.compress(b"good") + gzip.compress(PLAIN)[:12]),
    "trailing, deflate": ("deflate", deflated(b"good") + SECRET),
    "not compressed": ("gzip", PLAIN),
    "unknown": ("compress", PLAIN),
    "unknown beside a known one": ("gzip, rot13", gzip.compress(PLAIN)),
    "nonsense": ("gzip;q=1", PLAIN),
    "a bomb": ("gzip", gzip.compress(bytes(60 * 1024 * 1024), 1)),
    "a bomb within the limit": ("gzip", gzip.compress(bytes(900_000))),
    "over the limit": ("gzip", gzip.compress(random.Random(1).randbytes(600_000).hex().encode())),  # noqa: S311
}
each_coding = pytest.mark.parametrize(("coding", "encode"), CODINGS.values(), ids=CODINGS)
each_unreadable = pytest.mark.parametrize(("coding", "data"), UNREADABLE.values(), ids=UNREADABLE)


def encoded(coding: str, data: bytes) -> App:
    step = max(97, len(data) // 50 + 1)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    head = start(200, (b"content-encoding", coding.encode()), (b"content-type", b"text/plain"), (b"etag", b'"x"'))
    return App(head, *(chunk(piece, more=True) for piece in pieces), chunk())


def upload(coding: str, data: bytes) -> Client:
    return Client("POST", headers=[(b"content-encoding", coding.encode())], body=[data[:50], data[50:]])


def decoded(headers: Any, body: bytes) -> bytes:
    """As a client or an app reads it."""
    coding = dict(headers).get(b"content-encoding", b"identity")
    unpack: dict[bytes, Callable[[Any], bytes]] = {b"\x1f\x8b": gzip.decompress, b"x\x9c": zlib.decompress}
    return body if coding == b"identity" else unpack[body[:2]](body)


@each_coding
@pytest.mark.parametrize("options", [{}, STREAM], ids=["buffer", "stream"])
async def test_a_reader_hears_what_the_client_will_read(coding: str, encode: Any, options: dict[str, Any]) -> None:
    reader, app, small = Reader(), encoded(coding, encode(PLAIN)), encode(b"good")
    client = await ask(app, config(reader, decode=True, **options), client=upload(coding, small))
    assert (reader.request, app.body, app.header(b"content-encoding")) == (b"good", small, coding.encode())
    assert SECRET in reader.response
    assert not client.complete or client.status == 451
    client = await ask(App(), config(Reader(), decode=True, **options), client=upload(coding, encode(PLAIN)))
    assert client.status == 451


@each_coding
@pytest.mark.parametrize("options", [{}, STREAM], ids=["buffer", "stream"])
async def test_a_writer_changes_what_the_client_will_read(coding: str, encode: Any, options: dict[str, Any]) -> None:
    app = encoded(coding, encode(PLAIN))
    agent = config(Writer(), decode=True, **WRITES, **options)
    client = await ask(app, agent, client=upload(coding, encode(PLAIN)))
    assert client.status == 200
    body = decoded(client.headers, client.body)
    if not options:
        assert body == decoded(app.headers, app.body) == PLAIN.replace(SECRET, b"***")
        assert client.header(b"content-length") in (None, b"%d" % len(client.body))
    else:
        assert client.header(b"content-encoding") in (None, b"identity")
        assert client.header(b"content-length") is None
        # A writer that keeps nothing may have seen the secret in two pieces.
        assert {client.body, decoded(app.headers, app.body)} <= {PLAIN, PLAIN.replace(SECRET, b"***")}


@each_coding
async def test_a_buffered_body_that_nobody_changes_goes_out_as_it_came(coding: str, encode: Any) -> None:
    data = encode(b"good")
    app = encoded(coding, data)
    client = await ask(app, config(Writer(), decode=True, **WRITES), client=upload(coding, data))
    assert (client.body, client.header(b"content-encoding")) == (data, coding.encode())
    assert client.header(b"etag") == b'"x"'
    assert (app.body, app.header(b"content-encoding")) == (data, coding.encode())


@each_unreadable
@pytest.mark.parametrize("name", ["reader", "open reader", "streaming reader", "writer", "streaming writer"])
async def test_what_can_t_be_read_goes_by_the_failure_mode(coding: str, data: bytes, name: str) -> None:
    kind, options = AGENTS[name]
    options = {**options, "max_request_body_bytes": 2**20, "max_response_body_bytes": 2**20}
    is_open = options.get("failure_mode") is FailureMode.OPEN
    tracemalloc.start()
    down = guarded(encoded(coding, data), config(kind(), decode=True, **options))
    client = await ask_again(down)
    app = App()
    up = guarded(app, config(kind(), decode=True, **options))
    uploader = await ask_again(up, upload(coding, data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 * 1024 * 1024
    if is_open:
        assert (client.status, client.body) == (200, data)
        assert (uploader.status, app.body) == (200, data)
    else:
        assert not client.complete or client.status != 200
        assert client.body == b"" or not data.startswith(client.body) or "streaming" in name
        assert uploader.status != 200
        # What streams may have passed, judged as far as it can be decoded; but nobody takes it for the whole.
        assert app.body != data or ("streaming" in name and (app.disconnected or not app.finished))
        assert app.calls == 0 or "streaming" in name
    assert sum(number for outcome, number in outcomes(down).items() if outcome != "allow") == 1
    assert sum(number for outcome, number in outcomes(up).items() if outcome != "allow") == 1


def zstandard(data: bytes) -> bytes:
    compress: Callable[[bytes], bytes] = pytest.importorskip("backports.zstd").compress
    return compress(data)


HIDDEN: dict[str, tuple[list[str], Callable[[bytes], bytes]]] = {
    "twice": (["gzip, gzip"], lambda data: gzip.compress(gzip.compress(data))),
    "said twice": (["gzip, gzip"], gzip.compress),
    "two codings": (["deflate, gzip"], lambda data: gzip.compress(deflated(data))),
    "two fields": (["gzip", "deflate"], lambda data: deflated(gzip.compress(data))),
    "two fields, one of them a lie": (["identity", "gzip"], gzip.compress),
    "an alias": (["x-gzip"], gzip.compress),
    "blanks": ([" gzip ,"], gzip.compress),
    "deflate without its envelope": (["deflate"], lambda data: deflated(data, -15)),
    "zstd": (["zstd"], zstandard),
    "two frames of zstd": (["zstd"], lambda data: zstandard(b"good") + zstandard(data)),
}


@pytest.mark.parametrize("name", ["reader", "writer", "streaming reader"])
@pytest.mark.parametrize(("codings", "encode"), HIDDEN.values(), ids=HIDDEN)
async def test_what_other_spellings_hide_is_found_or_refused(codings: list[str], encode: Any, name: str) -> None:
    kind, options = AGENTS[name]
    data, fields = encode(PLAIN), [(b"content-encoding", coding.encode()) for coding in codings]
    down, up = App(start(200, *fields), chunk(data)), App()
    client = await ask(down, config(kind(), decode=True, **options))
    assert data not in client.body
    await ask(up, config(kind(), decode=True, **options), client=Client("POST", headers=fields, body=[data]))
    assert data not in up.body


def test_the_redactor_of_readme_behind_gzip_changes_what_the_client_gets() -> None:
    async def page(request: Any) -> PlainTextResponse:
        return PlainTextResponse(PLAIN.decode())

    for order in (0, 1):
        for decode in (True, False):
            middleware = [Middleware(AgentMiddleware, agents=[config(Writer(), decode=decode, **WRITES)])]
            middleware.insert(order, Middleware(GZipMiddleware))
            client = TestClient(Starlette(routes=[AppRoute("/", page)], middleware=middleware))
            assert client.get("/", headers={"accept-encoding": "gzip"}).content == PLAIN.replace(SECRET, b"***")


async def test_a_writer_that_can_t_decode_asks_for_what_it_can_read() -> None:
    accepts = [(b"Accept-Encoding", b"br"), (b"accept-encoding", b"gzip"), (b"accept", b"*/*")]
    hears = Probe(response_body=None)
    for agent, seen in [
        (config(hears, **WRITES), 1),
        (config(hears, **WRITES, enforce=False), 3),
        (config(Probe(request_body=None), **WRITES), 3),
        (config(hears), 3),
    ]:
        app = App()
        await ask(app, agent, client=Client(headers=accepts))
        assert len(app.headers) == seen, agent


@pytest.mark.parametrize("failure_mode", FailureMode)
@pytest.mark.parametrize("options", [{}, STREAM], ids=["buffer", "stream"])
async def test_what_is_encoded_all_the_same_fails_such_a_writer(failure_mode: FailureMode, options: Any) -> None:
    data = gzip.compress(PLAIN)
    client = await ask(encoded("gzip", data), config(Writer(), failure_mode=failure_mode, **WRITES, **options))
    app = App()
    uploader = await ask(
        app, config(Writer(), failure_mode=failure_mode, **WRITES, **options), client=upload("gzip", data)
    )
    if failure_mode is FailureMode.OPEN:
        assert (client.status, client.body, uploader.status, app.body) == (200, data, 200, data)
    else:
        assert (client.complete and client.status == 200, uploader.status == 200) == (False, False)
        assert (data in client.body, app.body) == (False, b"")


async def test_a_reader_that_can_t_decode_says_so_once_for_each_route(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "asgi_agents")
    agent = config(Probe(response_body=None))
    routes = [Route("/a", ["agent"]), Route("/b", ["agent"])]
    middleware = guarded(encoded("gzip", gzip.compress(b"good")), agent, routes=routes)
    for path, number in [("/a", 1), ("/a", 1), ("/b", 2), ("/a", 2), ("/b", 2)]:
        client = await ask_again(middleware, Client(path=path))
        assert (client.status, len(caplog.records)) == (200, number)
