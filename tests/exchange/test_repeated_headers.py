"""Of several fields of a name, agents are given what Starlette and FastAPI take."""

import random
from typing import Annotated, Any

import pytest
from fastapi import Cookie, Depends, FastAPI, Header, Request, WebSocket
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer
from fastapi.testclient import TestClient
from starlette.requests import Request as StarletteRequest
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentResponse, HeaderOp, RequestHeadersEvent
from asgi_agents.protocol import Headers
from tests.support.asgi import App, Client, Probe, body, guarded, start

NAMES = [b"x-key", b"authorization", b"host", b"cookie", b"accept", b"content-type", b"x-forwarded-for", b"x_key"]
VALUES = [b"a", b"", b"b, c", b"Bearer one", b"Bearer two", b"one.example", b"two.example", b"\xff"]
COOKIES = [b"a=1", b"session=stolen", b"a=2; b=3", b"", b"c", b'b="x;y"', b"a=1;", b" d = 4 "]


def fields(dice: random.Random) -> list[tuple[bytes, bytes]]:
    names = [dice.choice(NAMES) for _ in range(dice.randrange(10))]
    return [(name, dice.choice(COOKIES if name == b"cookie" else VALUES)) for name in names]


def joined(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What is right, said in another way."""
    cookies = [value for name, value in headers if name == b"cookie"]
    first = next((at for at, (name, _) in enumerate(headers) if name == b"cookie"), None)
    return [
        (name, b"; ".join(cookies)) if at == first else (name, value)
        for at, (name, value) in enumerate(headers)
        if name != b"cookie" or at == first
    ]


class Taking:
    """An app that remembers all that Starlette takes out of a request's headers."""

    def __init__(self) -> None:
        self.raw: list[tuple[bytes, bytes]] = []
        self.first: dict[str, str | None] = {}
        self.every: dict[str, list[str]] = {}
        self.cookies: dict[str, str] = {}
        self.hostname: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = StarletteRequest(scope)
        self.raw = list(scope["headers"])
        for name in {name.decode() for name in NAMES}:
            self.first[name] = request.headers.get(name)
            self.every[name] = request.headers.getlist(name)
        self.cookies, self.hostname = request.cookies, request.url.netloc
        await send(start())
        await send(body())


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("what", ["head", "body", "changed"])
async def test_an_agent_is_given_what_a_starlette_app_takes(seed: int, what: str) -> None:
    headers = fields(random.Random(seed))  # noqa: S311 - not for secrets
    answer = AgentResponse.allow(request_headers=[HeaderOp.set("x-new", "1")]) if what == "changed" else None
    agent, app, bare = Probe(request_headers=answer), Taking(), Taking()
    more = [AgentConfig("b", Probe(request_body=None))] if what == "body" else []
    await Client(headers=headers).call(guarded(app, AgentConfig("a", agent), *more))
    await Client(headers=headers).call(bare)

    (event,) = agent.of("request_headers")
    assert isinstance(event, RequestHeadersEvent)
    for name, value in app.first.items():
        assert event.header(name) == value
        assert list(event.headers.get(name, ())) == app.every[name]
    assert app.raw == [*joined(headers), *([(b"x-new", b"1")] if what == "changed" else [])]
    # The agents make no difference to what the app takes.
    assert (app.cookies, app.hostname) == (bare.cookies, bare.hostname)
    if (event.header("host") or "").endswith(".example"):
        assert event.header("host") == app.hostname
    assert {**app.first, "cookie": None} == {**bare.first, "cookie": None}
    assert len(app.every["cookie"]) <= 1


@pytest.mark.parametrize("seed", range(20))
async def test_a_websocket_app_is_given_the_same(seed: int) -> None:
    headers = fields(random.Random(seed))  # noqa: S311 - not for secrets
    agent, seen = Probe(request_headers=None), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await send({"type": "websocket.close"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        pass

    scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": headers}
    call: Any = guarded(app, AgentConfig("a", agent))
    await call(scope, receive, send)
    assert seen == joined(headers)
    (event,) = agent.of("request_headers")
    for name in NAMES:
        assert list(event.headers.get(name.decode(), ())) == [
            value.decode("latin-1") for key, value in seen if key == name
        ]
    assert scope["headers"] is headers


def fastapi_app() -> FastAPI:
    app = FastAPI()
    bearer, key, cookie = HTTPBearer(auto_error=False), APIKeyHeader(name="x-key"), APIKeyCookie(name="session")

    @app.get("/")
    def show(
        request: Request,
        token: Annotated[Any, Depends(bearer)],
        api_key: Annotated[str, Depends(key)],
        api_cookie: Annotated[str, Depends(cookie)],
        x_key: Annotated[str, Header()],
        every_key: Annotated[list[str], Header(alias="x-key")],
        session: Annotated[str, Cookie()],
        accept: Annotated[str, Header()] = "",
    ) -> dict[str, Any]:
        return {
            "x-key": [api_key, x_key, request.headers["x-key"]],
            "every": every_key,
            "authorization": None if token is None else token.credentials,
            "session": [api_cookie, session, request.cookies["session"]],
            "accept": accept,
        }

    @app.websocket("/ws")
    async def ws(websocket: WebSocket, x_key: Annotated[str, Header()], session: Annotated[str, Cookie()]) -> None:
        await websocket.accept()
        await websocket.send_json([x_key, session, websocket.headers["x-key"]])
        await websocket.close()

    return app


REPEATED = [
    ("x-key", "one"),
    ("cookie", "a=1"),
    ("x-key", "two"),
    ("authorization", "Bearer one"),
    ("cookie", "session=stolen"),
    ("authorization", "Bearer two"),
    ("accept", "text/plain"),
    ("accept", "text/html"),
]


def test_an_agent_is_given_what_fastapi_takes() -> None:
    agent = Probe(request_headers=None)
    with TestClient(guarded(fastapi_app(), AgentConfig("a", agent)), headers={}) as client:
        del client.headers["accept"]
        answered = client.get("/", headers=REPEATED).json()
        with client.websocket_connect("/ws", headers=type(client.headers)(REPEATED)) as websocket:
            over_websocket = websocket.receive_json()

    for event in agent.of("request_headers"):
        assert event.header("x-key") == "one"
        assert event.headers["x-key"] == ("one", "two")
        assert event.header("cookie") == "a=1; session=stolen"
        assert event.headers["cookie"] == ("a=1; session=stolen",)
        assert event.header("authorization") == "Bearer one"
    assert len(agent.of("request_headers")) == 2
    assert answered == {
        "x-key": ["one", "one", "one"],
        "every": ["one", "two"],
        "authorization": "one",
        "session": ["stolen", "stolen", "stolen"],
        "accept": "text/plain",
    }
    assert over_websocket == ["one", "stolen", "one"]


async def test_where_no_agent_hears_requests_cookies_stay_as_they_came() -> None:
    app = App()
    headers = [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
    client = Client(headers=headers)
    await client.call(guarded(app, routes=[]))
    assert app.headers == headers


async def test_a_cookie_that_an_agent_adds_is_joined_to_the_clients_own() -> None:
    app, late = App(), Probe(request_headers=None)
    adding = Probe(request_headers=AgentResponse.allow(request_headers=[HeaderOp.add("Cookie", "b=2")]))
    middleware = guarded(app, AgentConfig("a", adding), AgentConfig("late", late, after=["a"]))
    await Client(headers=[(b"cookie", b"a=1"), (b"x", b"1")]).call(middleware)
    assert app.headers == [(b"cookie", b"a=1; b=2"), (b"x", b"1")]
    assert late.of("request_headers")[0].header("cookie") == "a=1; b=2"


@pytest.mark.parametrize(
    "headers",
    [
        Headers({"Cookie": ["a=1", "b=2"]}),
        Headers({"cookie": ["a=1"], "COOKIE": ["b=2"]}),
        Headers.from_raw([(b"cookie", b"a=1"), (b"Cookie", b"b=2")]),
        Headers.from_raw([(b"cookie", b"a=1"), (b"x", b"1"), (b"cookie", b"b=2")], whole=True),
        Headers.of_request([(b"cookie", b"a=1"), (b"cookie", b"b=2")]),
    ],
    ids=range(5),
)
def test_wherever_fields_come_from_cookies_are_one(headers: Headers) -> None:
    assert headers.first("cookie") == headers.first("Cookie") == "a=1; b=2"
    assert headers["cookie"] == ("a=1; b=2",)
    assert headers.first("cookie") == "a=1; b=2"
