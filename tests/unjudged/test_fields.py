"""An agent judges the field that the app will take."""

import json
from typing import Annotated, Any

import anyio.abc
import pytest
from fastapi import Cookie, FastAPI, Header
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route as AppRoute

from asgi_agents import AgentResponse, EventType, HeaderOp, HttpTransport
from tests.support.asgi import App, Client, Probe, body, guarded, start
from tests.transports.test_http import raw_agent, raw_answer, read_request

from .asking import Echo, Session, ask, ask_again, config

COOKIES: dict[str, tuple[list[tuple[bytes, bytes]], str]] = {
    "one": ([(b"cookie", b"a=1; session=stolen")], "a=1; session=stolen"),
    "two": ([(b"cookie", b"a=1"), (b"cookie", b"session=stolen")], "a=1; session=stolen"),
    "apart": ([(b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"session=stolen")], "a=1; session=stolen"),
    "in other cases": ([(b"Cookie", b"a=1"), (b"COOKIE", b"session=stolen")], "a=1; session=stolen"),
    "many": ([(b"cookie", b"c%d=%d" % (n, n)) for n in range(50)], "; ".join(f"c{n}={n}" for n in range(50))),
    "the same twice": ([(b"cookie", b"session=good"), (b"cookie", b"session=stolen")], "session=good; session=stolen"),
    "not text": ([(b"cookie", b"a=\xff"), (b"cookie", b"session=stolen")], "a=\xff; session=stolen"),
}
each_cookie = pytest.mark.parametrize(("fields", "joined"), COOKIES.values(), ids=COOKIES)


@each_cookie
@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_cookies_are_one_field_for_agents_and_the_app(fields: Any, joined: str, version: str) -> None:
    agent, app = Probe(request_headers=None), App()
    await ask(app, config(agent), client=Client(headers=fields, http_version=version))
    (event,) = agent.of("request_headers")
    assert (event.header("Cookie"), tuple(event.headers["cookie"])) == (joined, (joined,))
    assert app.header(b"cookie") == joined.encode("latin-1")
    assert [pair for pair in app.headers if pair[0] == b"x"] == [pair for pair in fields if pair[0] == b"x"]


@each_cookie
async def test_so_they_are_in_a_handshake(fields: Any, joined: str) -> None:
    agent, app, session = Probe(request_headers=None), Echo(), Session(headers=fields)
    await session.call(guarded(app, config(agent)))
    (event,) = agent.of("request_headers")
    assert session.accepted
    assert event.header("cookie") == joined
    assert app.values(b"cookie") == [joined.encode("latin-1")]


async def test_so_they_are_on_the_wire_and_beside_operations() -> None:
    heard: list[Any] = []

    async def behave(stream: anyio.abc.ByteStream) -> None:
        heard.append(json.loads(await read_request(stream))["payload"]["headers"]["cookie"])
        await stream.send(raw_answer())

    app = App()
    adding = AgentResponse.allow(request_headers=[HeaderOp.add("cookie", "role=user")])
    async with raw_agent(behave) as agent:
        remote = config(HttpTransport(agent.url), "remote", events={EventType.REQUEST_HEADERS})
        middleware = guarded(app, remote, config(Probe(request_headers=adding)))
        async with middleware.manager:
            await ask_again(middleware, Client(headers=COOKIES["two"][0]))
    assert heard == [["a=1; session=stolen"]]
    assert b"; ".join(value for name, value in app.headers if name == b"cookie") == b"a=1; session=stolen; role=user"


@pytest.mark.parametrize("names", [{"request_headers"}, {"request_body"}, {"response_headers"}])
async def test_an_agent_that_judges_the_session_cookie_judges_what_the_app_reads(names: set[str]) -> None:
    read: list[Any] = []

    async def page(request: Request) -> JSONResponse:
        read.append(request.cookies)
        return JSONResponse({})

    def judge(event: Any) -> AgentResponse | None:
        return AgentResponse.block(403) if "stolen" in (event.header("cookie") or "") else None

    app = Starlette(routes=[AppRoute("/", page)])
    for fields, _ in (COOKIES[name] for name in ("one", "two", "apart", "in other cases", "the same twice")):
        client = await ask(app, config(Probe(request_headers=judge)), client=Client(headers=fields))
        assert (client.status, read) == (403, [])
    await ask(app, config(Probe(**dict.fromkeys(names))), client=Client(headers=COOKIES["two"][0]))
    assert read == [{"a": "1", "session": "stolen"}]


NAMES = [
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    "cache-control",
    "content-type",
    "cookie",
    "dnt",
    "forwarded",
    "host",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "origin",
    "range",
    "referer",
    "user-agent",
    "x-api-key",
    "x-csrftoken",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
    "x-requested-with",
    "x-user",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("websocket", [False, True])
async def test_of_several_fields_an_agent_gets_the_value_that_starlette_gives_the_app(
    name: str, websocket: bool
) -> None:
    fields = [(name.encode(), value) for value in (b"first=1", b"second=2", b"third=3")]
    agent, app, echo = Probe(request_headers=None), App(), Echo()
    if websocket:
        await Session(headers=fields).call(guarded(echo, config(agent)))
    else:
        await ask(app, config(agent), client=Client(headers=fields))
    (event,) = agent.of("request_headers")
    taken = HTTPConnection({"type": "http", "headers": app.headers or echo.headers}).headers.get(name)
    assert event.header(name) == taken


async def test_and_the_value_that_fastapi_gives_a_handler() -> None:
    taken: dict[str, Any] = {}
    app = FastAPI()

    @app.get("/")
    async def handler(
        x_user: Annotated[str | None, Header()] = None,
        x_forwarded_for: Annotated[str | None, Header()] = None,
        authorization: Annotated[str | None, Header()] = None,
        session: Annotated[str | None, Cookie()] = None,
    ) -> None:
        taken.update({"x-user": x_user, "x-forwarded-for": x_forwarded_for, "authorization": authorization})
        taken["session"] = session

    agent = Probe(request_headers=None)
    given = [(name, value) for name in (b"x-user", b"x-forwarded-for", b"authorization") for value in (b"a", b"b")]
    await ask(app, config(agent), client=Client(headers=[*given, *COOKIES["two"][0]]))
    (event,) = agent.of("request_headers")
    assert f"session={taken.pop('session')}" in event.header("cookie")
    assert taken == {name: event.header(name) for name in taken}


async def test_what_is_set_twice_in_a_response_is_shown_as_it_is() -> None:
    """Two set-cookie fields are two cookies (RFC 6265, section 3)."""
    agent = Probe(response_headers=None)
    client = await ask(App(start(200, (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")), body()), config(agent))
    (event,) = agent.of("response_headers")
    assert tuple(event.headers["set-cookie"]) == ("a=1", "b=2")
    assert [value for name, value in client.headers if name == b"set-cookie"] == [b"a=1", b"b=2"]
