import asyncio
import json
import re
import socket
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
import sniffio
import trio
from anyio.lowlevel import checkpoint
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message
from starlette.websockets import WebSocketDisconnect

from asgi_agents import AgentManager, ConfigurationError, status_app
from asgi_agents.status import app as under_test
from asgi_agents.status.snapshot import take_snapshot
from tests.support.asgi import Client
from tests.support.servers import serve

from .world import head_event, scripted

PATIENCE = 60.0  # seconds after which a test that hangs has failed
INTERVAL = 0.05  # the shortest there is

ASSETS = {
    "/": "text/html; charset=utf-8",
    "/page.css": "text/css; charset=utf-8",
    "/page.js": "text/javascript; charset=utf-8",
    "/parts.js": "text/javascript; charset=utf-8",
    "/icon.svg": "image/svg+xml",
    "/status.json": "application/json",
}
SCRIPTS = ("parts.js", "page.js")
EVERYTHING = [*ASSETS, "/events"]
NOT_THERE = [
    "/nothing",
    "/page.html",
    "/page",
    "/page/page.css",
    "/PAGE.CSS",
    "/page.css/",
    "//page.css",
    "/./page.css",
    "/../app.py",
    "/../page/page.css",
    "/..%2fapp.py",
    "/%2e%2e/app.py",
    "/%70age.css",
    "/..\\app.py",
    "/page.css\0",
    "/page.css\n",
    "/snapshot.py",
    "/__init__.py",
    "/etc/passwd",
    "//etc/passwd",
    "/status.json/",
    "/status.json/x",
    "/events/",
    "/page.css;x",
]


def a_manager() -> AgentManager:
    return AgentManager([scripted("waf")])


async def ask(app: ASGIApp, path: str = "/", method: str = "GET", **scope: Any) -> Client:
    """The answer to a request of which only the first event is waited for."""
    client = Client(method, path)
    client.scope.update(scope)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                await client.call(app)
                tasks.cancel_scope.cancel()

            tasks.start_soon(call)
            while not (client.complete or (client.status == 200 and client.body)):  # noqa: ASYNC110
                await anyio.sleep(0.001)
            client.leave()
    return client


def assert_protected(client: Client) -> None:
    """Nothing but its own scripts and styles may be used by it, and nobody may keep, frame or guess it."""
    policy = (client.header(b"content-security-policy") or b"").decode()
    directives = {name: sources for name, *sources in (part.split() for part in policy.split(";"))}
    assert directives["default-src"] == ["'none'"]
    assert directives["frame-ancestors"] == ["'none'"]
    assert directives["base-uri"] == ["'none'"]
    assert directives["form-action"] == ["'none'"]
    for name, sources in directives.items():
        assert sources in (["'none'"], ["'self'"]), name
    assert client.header(b"x-content-type-options") == b"nosniff"
    assert client.header(b"cache-control") == b"no-store"
    assert client.header(b"referrer-policy") == b"no-referrer"


# What is where


@pytest.mark.parametrize("path", ASSETS)
async def test_everything_is_there_under_its_type(path: str) -> None:
    client = await ask(status_app(a_manager()), path)
    assert (client.status, client.header(b"content-type")) == (200, ASSETS[path].encode())
    assert client.body
    assert client.header(b"content-length") == b"%d" % len(client.body)
    assert_protected(client)


@pytest.mark.parametrize("path", EVERYTHING)
async def test_head_says_what_get_would(path: str) -> None:
    app = status_app(a_manager())
    get, head = await ask(app, path), await ask(app, path, "HEAD")
    assert head.status == get.status
    assert head.header(b"content-type") == get.header(b"content-type")
    assert_protected(head)


@pytest.mark.parametrize("path", ["/", "/status.json", "/events", "/nothing"])
async def test_other_methods_are_refused(path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "X"):
        client = await ask(status_app(a_manager()), path, method)
        assert (client.status, client.header(b"allow")) == (405, b"GET, HEAD"), method
        assert b"waf" not in client.body
        assert_protected(client)


@pytest.mark.parametrize("path", NOT_THERE, ids=repr)
async def test_nothing_else_is_there(path: str) -> None:
    client = await ask(status_app(a_manager()), path)
    assert (client.status, client.body) == (404, b"Not Found")
    assert_protected(client)


async def test_nothing_else_is_there_below_a_root() -> None:
    for path in NOT_THERE:
        client = await ask(status_app(a_manager()), f"/-/agents{path}", root_path="/-/agents")
        assert client.status == 404, path


async def test_the_json_is_what_the_stream_says() -> None:
    manager = a_manager()
    app = status_app(manager)
    await manager.process_request_headers(head_event("c-1", x_waf="block"))
    status = json.loads((await ask(app, "/status.json")).body)
    event = (await ask(app, "/events")).body.decode()
    assert status["agents"][0]["denials"][0]["correlation_id"] == "c-1"
    (data,) = re.findall(r"^data: (.*)$", event, re.MULTILINE)
    assert json.loads(data) == status


# The page itself


class _Html(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside = ""
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style") and data.strip():
            self.inline.append(data)


async def test_the_html_has_no_inline_script_or_style_and_no_url_of_another_origin() -> None:
    html = _Html()
    html.feed((await ask(status_app(a_manager()))).body.decode())
    assert html.inline == []
    assert "noscript" in [tag for tag, _ in html.tags]
    for tag, attributes in html.tags:
        assert tag not in ("style", "base", "iframe", "object", "embed", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            assert name != "style"
            if name in ("href", "src", "action", "data", "poster", "srcset"):
                parts = urlsplit(value or "")
                assert (parts.scheme, parts.netloc) == ("", "")
                # Else it would only work at one place.
                assert not parts.path.startswith("/")


def test_scripts_and_styles_know_no_other_origin_and_never_make_markup_of_text() -> None:
    page = files("asgi_agents.status") / "page"
    script, style = "".join((page / name).read_text() for name in SCRIPTS), (page / "page.css").read_text()
    assert re.findall(r"\b\w+://[^\"']*", script) == ["http://www.w3.org/2000/svg"]
    assert "://" not in style
    assert "@import" not in style
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", ".style"):
        assert way not in script, way


# Where it can be mounted


def starlette_app(manager: AgentManager) -> ASGIApp:
    return Starlette(routes=[Mount("/-/agents", status_app(manager))])


def fastapi_app(manager: AgentManager) -> ASGIApp:
    app = FastAPI()
    app.mount("/-/agents", status_app(manager))
    return app


def nested_app(manager: AgentManager) -> ASGIApp:
    inner = FastAPI()
    inner.mount("/agents", status_app(manager))
    return Starlette(routes=[Mount("/-", inner)])


MOUNTED = [starlette_app, fastapi_app, nested_app]


@pytest.mark.parametrize("mounted", MOUNTED)
@pytest.mark.parametrize("root", ["", "/proxy", "/-/agents", "/a/b"])
async def test_it_can_be_mounted_anywhere_below_a_root_path(
    mounted: Callable[[AgentManager], ASGIApp], root: str
) -> None:
    app = mounted(a_manager())
    for path, content_type in ASSETS.items():
        # ASGI spec: `path` includes `root_path`.
        client = await ask(app, f"{root}/-/agents{path}", root_path=root)
        assert (client.status, client.header(b"content-type")) == (200, content_type.encode()), path
    client = await ask(app, f"{root}/-/agents/events", root_path=root)
    assert client.header(b"content-type") == b"text/event-stream; charset=utf-8"
    assert (await ask(app, f"{root}/-/agents/-/agents/page.css", root_path=root)).status == 404


async def test_it_works_in_a_fastapi_app_that_names_its_root_path_behind_a_proxy_that_strips_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = FastAPI(root_path="/proxy")
    app.mount("/-/agents", status_app(a_manager()))
    for path in EVERYTHING:
        assert (await ask(app, f"/-/agents{path}")).status == 200, path


@pytest.mark.parametrize("mounted", MOUNTED)
def test_without_its_trailing_slash_the_mounted_page_is_found_too(mounted: Callable[[AgentManager], ASGIApp]) -> None:
    with TestClient(mounted(a_manager())) as client:
        response = client.get("/-/agents")
        assert (response.status_code, response.url.path) == (200, "/-/agents/")


async def test_without_its_trailing_slash_nobody_gets_a_page_whose_links_lead_nowhere() -> None:
    client = await ask(status_app(a_manager()), "/-/agents", root_path="/-/agents")
    assert client.status in (307, 308)
    location = (client.header(b"location") or b"").decode()
    assert httpx.URL("http://app.example/-/agents").join(location).path == "/-/agents/"
    assert_protected(client)


async def test_at_the_root_of_a_server_it_needs_no_slash() -> None:
    assert (await ask(status_app(a_manager()), "")).status in (200, 307, 308)


# Scopes


@pytest.mark.parametrize("path", ["/", "/events", "/status.json"])
def test_a_websocket_is_refused(path: str) -> None:
    for app, at in ((status_app(a_manager()), path), (starlette_app(a_manager()), f"/-/agents{path}")):
        client = TestClient(app)
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(at):
            pass


async def test_a_lifespan_is_survived() -> None:
    inbox = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return inbox.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await status_app(a_manager())({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert [message for message in sent if message["type"].endswith("failed")] == []


@pytest.mark.parametrize("lifespan", ["auto", "on", "off"])
def test_it_can_be_served_by_itself(lifespan: str) -> None:
    with serve(status_app(a_manager()), lifespan=lifespan) as url, httpx.Client(trust_env=False) as client:
        assert client.get(url).status_code == 200


# Who may see it


def later(answer: Any) -> Callable[[Request], Awaitable[Any]]:
    async def authorize(request: Request) -> Any:
        await checkpoint()
        return answer

    return authorize


def now(answer: Any) -> Callable[[Request], Any]:
    return lambda request: answer


@pytest.mark.parametrize("path", [*EVERYTHING, "/nothing"])
@pytest.mark.parametrize("style", [now, later])
async def test_true_lets_in(style: Callable[[Any], Any], path: str) -> None:
    client = await ask(status_app(a_manager(), authorize=style(True)), path)
    assert client.status == (404 if path == "/nothing" else 200)


@pytest.mark.parametrize("path", [*EVERYTHING, "/nothing"])
@pytest.mark.parametrize("style", [now, later])
async def test_anything_but_true_is_refused_everywhere(style: Callable[[Any], Any], path: str) -> None:
    for answer in (False, None, 1, "yes", {}, object()):
        for method in ("GET", "HEAD", "POST"):
            client = await ask(status_app(a_manager(), authorize=style(answer)), path, method)
            assert (client.status, client.body) == (403, b"Forbidden"), (answer, method)
            assert_protected(client)


REFUSALS: dict[str, Callable[[], Response]] = {
    "redirect": lambda: RedirectResponse("/login"),
    "json": lambda: JSONResponse({"who": "are you"}, 401, {"www-authenticate": "Basic"}),
    "ok": lambda: PlainTextResponse("log in first"),
    "stream": lambda: StreamingResponse(iter([b"log ", b"in"]), 402),
}


@pytest.mark.parametrize("path", EVERYTHING)
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("style", [now, later])
async def test_a_response_is_sent_as_it_is_but_for_what_protects_it(
    style: Callable[[Any], Any], refusal: str, path: str
) -> None:
    make = REFUSALS[refusal]
    plain, client = await ask(make()), await ask(status_app(a_manager(), authorize=style(make())), path)
    assert (client.status, client.body) == (plain.status, plain.body)
    assert set(plain.headers) <= set(client.headers)
    assert_protected(client)


async def test_one_response_can_refuse_many() -> None:
    app = status_app(a_manager(), authorize=now(PlainTextResponse("no", 401)))
    for _ in range(3):
        client = await ask(app)
        assert (client.status, client.body) == (401, b"no")
        assert_protected(client)


@pytest.mark.parametrize("path", EVERYTHING)
async def test_where_asking_fails_nothing_is_shown(path: str) -> None:
    def authorize(request: Request) -> bool:
        raise PermissionError("database is down")

    client = Client(path=path)
    with pytest.raises(PermissionError):
        await client.call(status_app(a_manager(), authorize=authorize))
    assert client.messages == []


async def test_it_is_asked_about_each_request_with_that_request() -> None:
    asked: list[tuple[str, str, str | None]] = []

    def authorize(request: Request) -> bool:
        asked.append((request.method, request.url.path, request.headers.get("authorization")))
        return True

    app = status_app(a_manager(), authorize=authorize)
    for path in EVERYTHING:
        client = Client(path=path, headers=[(b"authorization", b"Bearer x")])
        with anyio.move_on_after(0.02):
            await client.call(app)
    assert asked == [("GET", path, "Bearer x") for path in EVERYTHING]


async def test_a_stream_begins_only_once_it_is_authorized() -> None:
    gate = anyio.Event()

    async def authorize(request: Request) -> bool:
        await gate.wait()
        return False

    client = Client(path="/events")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, status_app(a_manager(), authorize=authorize))
        await checkpoint()
        assert client.messages == []
        gate.set()
    assert client.status == 403


# Wrong arguments


@pytest.mark.parametrize("interval", [0, -1, 0.01, 20.1, float("nan"), float("inf"), True, "1", None, [1.0]], ids=repr)
def test_an_interval_that_cant_be_is_a_configuration_error(interval: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"status_app: interval=.*, expected seconds"):
        status_app(a_manager(), interval=interval)


@pytest.mark.parametrize("interval", [0.05, 1, 20, 20.0])
def test_an_interval_that_can_be_is_fine(interval: float) -> None:
    status_app(a_manager(), interval=interval)


@pytest.mark.parametrize("authorize", [True, "admin", 5, object()], ids=["bool", "str", "int", "object"])
def test_what_cant_be_asked_is_a_configuration_error(authorize: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"status_app: authorize="):
        status_app(a_manager(), authorize=authorize)


@pytest.mark.parametrize("manager", [None, [], "waf", AgentManager], ids=repr)
def test_what_is_no_manager_is_a_configuration_error(manager: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"status_app: manager="):
        status_app(manager)


# The stream


def events(client: Client) -> list[Any]:
    """What came as data."""
    text = client.body.decode()
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait for
            await anyio.sleep(0.002)


async def test_the_stream_is_one_of_server_sent_events_that_nobody_keeps_or_holds_back() -> None:
    client = await ask(status_app(a_manager()), "/events")
    assert client.status == 200
    assert client.header(b"content-type") == b"text/event-stream; charset=utf-8"
    assert client.header(b"x-accel-buffering") == b"no"
    assert client.header(b"content-length") is None
    assert_protected(client)


async def test_the_first_event_comes_at_once_and_in_one_piece() -> None:
    client = Client(path="/events")
    app = status_app(a_manager(), interval=20)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, app)
        began = time.monotonic()
        await until(lambda: client.body)
        assert time.monotonic() - began < 1
        assert client.body.endswith(b"\n\n")
        assert len(events(client)) == 1
        client.leave()


async def test_then_they_come_every_interval_and_say_what_is_new() -> None:
    manager = a_manager()
    client = Client(path="/events")
    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, status_app(manager, interval=INTERVAL))
        await until(lambda: len(events(client)) == 1)
        await manager.process_request_headers(head_event())
        await manager.add_agent(scripted("late"))
        await until(lambda: len(events(client)) == 5)
        client.leave()
    assert time.monotonic() - began >= 4 * INTERVAL * 0.9
    seen = [(event["agents"][0]["calls"], len(event["agents"])) for event in events(client)]
    assert seen[0] == (0, 1)
    assert seen[-1] == (1, 2)


async def test_it_ends_by_itself_so_that_a_server_can_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    assert under_test._STREAM_SECONDS <= 5
    app = status_app(a_manager(), interval=INTERVAL)
    monkeypatch.setattr(under_test, "_STREAM_SECONDS", 0.2)
    client = Client(path="/events")
    with anyio.fail_after(PATIENCE):
        began = time.monotonic()
        await client.call(app)
    assert 0.15 < time.monotonic() - began < 1
    assert client.complete
    assert 2 <= len(events(client)) <= 5


async def test_a_long_interval_does_not_make_the_stream_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    app = status_app(a_manager(), interval=0.6)
    monkeypatch.setattr(under_test, "_STREAM_SECONDS", 0.7)
    client = Client(path="/events")
    began = time.monotonic()
    with anyio.fail_after(PATIENCE):
        await client.call(app)
    assert client.complete
    assert time.monotonic() - began < 0.9


def living_tasks() -> int:
    """How many there are on the running event loop."""
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


async def test_it_ends_when_the_viewer_leaves_and_leaves_no_task_behind() -> None:
    app = status_app(a_manager(), interval=20)
    before = living_tasks()
    for spec_version in ("2.3", "2.4"):
        client = Client(path="/events", spec_version=spec_version)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.call, app)
                await until(lambda client=client: client.body)  # type: ignore[misc]
                client.leave()
    await checkpoint()
    assert living_tasks() == before


async def test_it_ends_when_it_is_cancelled_and_leaves_no_task_behind() -> None:
    before = living_tasks()
    client = Client(path="/events")
    with anyio.move_on_after(0.02) as scope:
        await client.call(status_app(a_manager(), interval=INTERVAL))
    assert scope.cancelled_caught
    await checkpoint()
    assert living_tasks() == before


async def test_a_viewer_that_left_before_the_first_event_ends_it() -> None:
    client = Client(path="/events")
    client.leave()
    with anyio.fail_after(PATIENCE):
        # `http.response.start` may fail, as any send to somebody who is gone.
        with suppress(OSError):
            await client.call(status_app(a_manager()))


@pytest.mark.parametrize("reads", [0, 1, 2, "all but the last"])
async def test_a_viewer_that_does_not_read_is_not_kept_for_ever(
    monkeypatch: pytest.MonkeyPatch, reads: int | str
) -> None:
    monkeypatch.setattr(under_test, "_SEND_TIMEOUT", 0.1)
    monkeypatch.setattr(under_test, "_STREAM_SECONDS", 0.5)
    app = status_app(a_manager(), interval=0.3)
    client = Client(path="/events")
    messages = 3 if reads == "all but the last" else reads

    async def send(message: Message) -> None:
        if len(client.messages) == messages:
            client.take_nothing()
        await client.send(message)

    with anyio.move_on_after(1.2) as scope:
        await app(client.scope, client.receive, send)
    assert not scope.cancelled_caught


async def test_what_goes_wrong_while_it_streams_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(under_test, "take_snapshot", fail)
    with pytest.raises(LookupError):
        await Client(path="/events").call(status_app(a_manager()))


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When one was taken."""
    taken: list[float] = []
    take = take_snapshot

    def take_and_note(*args: Any) -> Any:
        taken.append(time.monotonic())
        return take(*args)

    monkeypatch.setattr(under_test, "take_snapshot", take_and_note)
    return taken


async def test_viewers_who_come_together_share_each_snapshot(snapshots: list[float]) -> None:
    app = status_app(a_manager(), interval=0.2)
    clients = [Client(path="/events") for _ in range(30)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.call, app)
        await until(lambda: all(len(events(client)) == 3 for client in clients))
        for client in clients:
            client.leave()
    assert len(snapshots) == 3


async def test_viewers_who_come_at_any_time_share_one_snapshot_per_interval(snapshots: list[float]) -> None:
    interval = 0.2
    app = status_app(a_manager(), interval=interval)
    clients = [Client(path="/events") for _ in range(40)]
    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.call, app)
            await anyio.sleep(interval / 20)
        await until(lambda: len(events(clients[-1])) == 4)
        for client in clients:
            client.leave()
    took = time.monotonic() - began
    assert len(snapshots) <= took / interval + 2


async def test_a_lonely_viewer_gets_something_new_every_time() -> None:
    client = Client(path="/events")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, status_app(a_manager(), interval=INTERVAL))
        await until(lambda: len(events(client)) == 5)
        client.leave()
    times = [event["time"] for event in events(client)]
    assert len(set(times)) == 5


@pytest.fixture
def url() -> Iterator[str]:
    manager = a_manager()
    with serve(status_app(manager, interval=INTERVAL)) as url:
        yield url


def test_a_real_server_sends_events_as_they_are_made(url: str) -> None:
    with (
        httpx.Client(trust_env=False, timeout=PATIENCE) as client,
        client.stream("GET", f"{url}events") as response,
    ):
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        first, second = json.loads(next(lines)[6:]), json.loads(next(lines)[6:])
    assert second["time"] > first["time"]


def test_a_real_server_with_viewers_can_shut_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(under_test, "_STREAM_SECONDS", 0.3)
    with serve(status_app(a_manager(), interval=INTERVAL), timeout_graceful_shutdown=10) as url:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE) as viewer:
            viewer.sendall(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
            assert viewer.recv(100).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            # The viewer stays where it is, but the stream ends all the same.
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += viewer.recv(65536)
                assert time.monotonic() - began < PATIENCE
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_body_with_the_request_is_no_reason_to_end() -> None:
    client = Client(path="/events", body=[b"a", b"b", b"c"])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, status_app(a_manager(), interval=INTERVAL))
        await until(lambda: len(events(client)) == 3)
        client.leave()
