"""OpenApiValidation in front of a real FastAPI app: what is refused, and what has to pass."""

import json
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI
from fastapi.testclient import TestClient
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from asgi_agents import AuditRecord, EventType
from asgi_agents.agents import OpenApiValidation
from asgi_agents.agents.openapi import exchange, json_bodies
from asgi_agents.serve import agent_app
from tests.support.asgi import Client
from tests.support.examples import some_are_short
from tests.support.servers import serve
from tests.unjudged.asking import PATIENCE, Session, ask_again, config, protect

from .openapi_apps import guarded_app, routes

JSON = {"content-type": "application/json"}
GOOD = {"text": "José", "number": 1}
CANARY = "c4n4ry"


class Guarded:
    """The app behind the agent, and what was recorded."""

    def __init__(self, client: TestClient, records: list[AuditRecord]) -> None:
        self.client = client
        self._records = records

    def ask(self, method: str, url: str, **request: Any) -> Any:
        self._records.clear()
        return self.client.request(method, url, **request)

    @property
    def answers(self) -> Any:
        return self._records[0].answers


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    records: list[AuditRecord] = []
    with TestClient(guarded_app(routes(FastAPI()), records)) as client:
        yield Guarded(client, records)


def post(body: Any, url: str = "/everything") -> tuple[str, str, dict[str, Any]]:
    return "POST", url, {"content": body if isinstance(body, bytes) else json.dumps(body).encode(), "headers": JSON}


def typed(body: bytes, content_type: str | None, url: str = "/everything") -> tuple[str, str, dict[str, Any]]:
    return "POST", url, {"content": body, "headers": {} if content_type is None else {"content-type": content_type}}


def get(url: str, **headers: str) -> tuple[str, str, dict[str, Any]]:
    return "GET", url, {"headers": {name.replace("_", "-"): value for name, value in headers.items()}}


def body(at: str, problem: str = "invalid") -> list[dict[str, str]]:
    return [{"in": "body", "at": at, "problem": problem}]


def at(place: str, name: str, problem: str = "invalid") -> list[dict[str, str]]:
    return [{"in": place, "at": name, "problem": problem}]


UNREADABLE = 400
REFUSED: dict[str, tuple[tuple[str, str, dict[str, Any]], int, list[dict[str, str]]]] = {
    "type": (post({**GOOD, "number": "x"}), 422, body("/number")),
    "missing": (post({"text": "a"}), 422, body("/number", "missing")),
    "two": (post({"text": ""}), 422, body("/number", "missing") + body("/text")),
    "maximum": (post({**GOOD, "number": 100}), 422, body("/number")),
    "lax number": (post({**GOOD, "number": "1"}), 422, body("/number")),
    "pattern": (post({**GOOD, "text": "a-b"}), 422, body("/text")),
    "nested": (post({**GOOD, "inner": [GOOD, {"text": "a"}]}), 422, body("/inner/1/number", "missing")),
    "a name of the client": (post({**GOOD, "table": {CANARY: "x"}}), 422, body("/table")),
    "another member": (post({**GOOD, "strict": {"a": 1, CANARY: 1}}), 422, body("/strict")),
    "no object": (post([1]), 422, body("")),
    "null": (post(b"null"), 422, body("")),
    "twice": (post(b'{"text":"a","text":"b","number":1}'), 400, body("", "duplicate_member")),
    "twice within": (post(b'[{"a":1,"a":2}]', "/list"), 400, body("", "duplicate_member")),
    "cut": (post(b'{"text":'), 400, body("", "unreadable")),
    "blank": (post(b" "), 400, body("", "unreadable")),
    "NaN": (post(b'{"text":"a","number":1,"ratio":NaN}'), 400, body("", "unreadable")),
    "Infinity": (post(b'{"text":"a","number":1,"anything":-Infinity}'), 400, body("", "unreadable")),
    "1e400": (post(b'{"text":"a","number":1,"ratio":1e400}'), 400, body("", "number_too_large")),
    "digits": (post(b"[" + b"9" * 5000 + b"]", "/list"), 400, body("", "unreadable")),
    "surrogate": (post(b'{"text":"a","number":1,"anything":"\\ud800"}'), 400, body("", "not_unicode")),
    "surrogate in a name": (post(b'{"text":"a","number":1,"anything":{"\\udfff":1}}'), 400, body("", "not_unicode")),
    "latin-1": (post(b'{"text":"\xe9","number":1}'), 400, body("", "unreadable")),
    "deep": (post(b"[" * 300 + b"]" * 300, "/list"), 400, body("", "too_deep")),
    "very deep": (post(b'{"a":' * 200_000), 400, body("", "too_deep")),
    "deep behind a string": (post(b'["' + b'\\"[' * 1000 + b'",' + b"[" * 300), 400, body("", "too_deep")),
    "UTF-16": (post('{"text":"a"}'.encode("utf-16")), 422, body("/number", "missing")),
    "UTF-32": (post('{"text":"a"}'.encode("utf-32-le")), 422, body("/number", "missing")),
    "text/plain": (typed(b"{}", "text/plain"), 415, at("content_type", "content-type", "unsupported")),
    "a form": (
        typed(b"a=1", "application/x-www-form-urlencoded"),
        415,
        at("content_type", "content-type", "unsupported"),
    ),
    "no media type": (typed(b"{}", "json"), 415, at("content_type", "content-type", "unsupported")),
    "JSON without a type": (typed(b"{}", None), 422, body("/text", "missing") + body("/number", "missing")),
    "+json": (
        typed(b"{}", "Application/Ld+Json; charset=latin-1"),
        422,
        body("/text", "missing") + body("/number", "missing"),
    ),
    "no body": (("POST", "/everything", {"headers": JSON}), 422, body("", "missing")),
    "embedded": (post({"a": 1, "b": {}}, "/two"), 422, body("/b/a", "missing")),
    "query": (get("/search?i=-1&b=2&many=1&many=x"), 422, at("query", "i") + at("query", "b") + at("query", "many")),
    "first of several": (get("/search?i=x&i=1"), 422, at("query", "i")),
    "list too long": (get("/search?many=1&many=2&many=3&many=4"), 422, at("query", "many")),
    "not finite": (get("/search?f=nan"), 422, at("query", "f")),
    "header": (get("/headers", x_count="x"), 422, at("header", "x-count")),
    "no header": (get("/headers"), 422, at("header", "x-count", "missing")),
    "cookie": (get("/headers", x_count="1", cookie="a=b; session=x"), 422, at("cookie", "session")),
    "path": (get("/paths/0/x"), 422, at("path", "n")),
    "encoded path": (get("/p%61ths/%30/abcd"), 422, at("path", "n") + at("path", "word")),
    "converted": (get("/converted/10/a/b"), 422, at("path", "n")),
    "form field": (("POST", "/form", {"data": {"n": "x", "s": "abcd"}}), 422, body("/n") + body("/s")),
    "form field missing": (("POST", "/form", {"data": {"s": "a"}}), 422, body("/n", "missing")),
    "multipart field": (("POST", "/form", {"files": {"n": (None, "x")}}), 422, body("/n")),
    "file for a field": (("POST", "/form", {"files": {"n": ("a.txt", "1")}}), 400, body("", "unreadable")),
    "surrogate in a form": (
        typed(
            b'--x\r\ncontent-disposition: form-data; name="s"\r\n\r\n\\ud800\r\n--x--\r\n',
            "multipart/form-data; boundary=x; charset=unicode_escape",
            "/form",
        ),
        422,
        body("/n", "missing") + body("/s"),
    ),
    "no such encoding": (
        typed(
            b'--x\r\ncontent-disposition: form-data; name="n"\r\n\r\n1\r\n--x--\r\n',
            "multipart/form-data; boundary=x; charset=undefined",
            "/form",
        ),
        400,
        body("", "unreadable"),
    ),
    "field not known": (("POST", "/form-model", {"data": {"n": "1", CANARY: "1"}}), 422, body("")),
    "no multipart": (typed(b"x", "multipart/form-data", "/form"), 400, body("", "unreadable")),
    "JSON for a form": (post({"n": 1}, "/form"), 415, at("content_type", "content-type", "unsupported")),
    "no form": (("POST", "/form", {}), 422, body("", "missing")),
    "JSON for an upload": (post({"n": 1}, "/upload"), 415, at("content_type", "content-type", "unsupported")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_conform_is_refused_and_nothing_of_it_is_told(guarded: Guarded, name: str) -> None:
    (method, url, request), status, errors = REFUSED[name]
    response = guarded.ask(method, url, **request)
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    for error in problem["errors"]:
        assert (error["problem"] == "invalid") == bool(error.pop("rule", ""))
        assert (error["problem"] == "unsupported") == bool(error.pop("expected", ()))
    assert (response.status_code, problem["status"], problem["errors"]) == (status, status, errors)
    assert CANARY not in response.text
    [answer] = [one for one in guarded.answers if one.reason_codes]
    assert answer.failure is None
    assert answer.reason_codes == list(dict.fromkeys(error["in"] for error in errors))
    assert answer.tags == ["openapi"]
    assert all(rule.startswith("#/") for rule in answer.rule_ids)
    assert CANARY not in repr(answer)


PASSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "good": post(GOOD),
    "whole number": post({**GOOD, "number": 1.0}),
    "more members": post({**GOOD, "more": 1}),
    "nulls": post({**GOOD, "ratio": None, "pet": None, "strict": None}),
    "alias": post({**GOOD, "re-named": 3}),
    "two fit": post({**GOOD, "shape": {"radius": 1, "corners": 1}}),
    "emoji in escapes": post(b'{"text":"a","number":1,"anything":"\\ud83d\\ude00"}'),
    "large number": post(b"[" + b"9" * 400 + b"]", "/list"),
    "byte order mark": post(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()),
    "UTF-16": post(json.dumps(GOOD).encode("utf-16")),
    "charset": typed(json.dumps(GOOD).encode(), "application/json; charset=utf-8"),
    "optional, none": ("POST", "/optional", {}),
    "optional, null": post(b"null", "/optional"),
    "defaults": get("/search"),
    "readings": get("/search?i=+1&b=On&f=1e3&z=2&many=1&many=2&mixed=1&mixed=a&mixed=true&dec=1.5&s=%C3%A9"),
    "more parameters": get("/search?utm_source=x"),
    "headers": get("/headers", x_count="1", cookie="session=1; other=x"),
    "encoded slash": get("/converted/1/a%2Fb/c"),
    "form": ("POST", "/form", {"data": {"n": "1", "b": "on", "many": ["1", "2"], "s": ""}}),
    "form, a field left empty": ("POST", "/form", {"data": {"n": "1", "b": ""}}),
    "form as multipart": ("POST", "/form", {"files": {"n": (None, "1")}}),
    "upload": ("POST", "/upload", {"files": {"file": b"x" * 3_000_000}, "data": {"n": "1"}}),
    "body that is not described": ("POST", "/raw", {"content": b"\0" * 3_000_000}),
    "body with GET": ("GET", "/search", {"content": b"{}"}),
    "hidden": get("/hidden"),
    "description": get("/openapi.json"),
    "pages": get("/docs"),
    "other pages": get("/redoc"),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_the_app_takes_passes(guarded: Guarded, name: str) -> None:
    method, url, request = PASSES[name]
    response = guarded.ask(method, url, **request)
    if name == "large number":
        # Larger than what Pydantic's int takes, which no schema says.
        assert response.headers["content-type"] == "application/json"
    else:
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [("GET", "/nothing", 404), ("DELETE", "/search", 405), ("HEAD", "/search", 405), ("OPTIONS", "/search", 405)],
)
@pytest.mark.parametrize("undocumented", ["pass", "block"])
def test_the_app_says_itself_what_it_does_not_have(method: str, url: str, status: int, undocumented: Any) -> None:
    with TestClient(guarded_app(routes(FastAPI()), undocumented=undocumented)) as client:
        response = client.request(method, url)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/json"
        assert client.post("/everything/", json=GOOD).status_code == 200, "the redirect is the app's"
        assert client.post("/everything/", json={}).status_code == 422


@pytest.mark.parametrize("requests", ["block", "report"])
def test_what_runs_and_is_not_described_is_blocked_where_that_is_asked_for(requests: Any) -> None:
    records: list[AuditRecord] = []
    app = guarded_app(routes(FastAPI()), records, requests=requests, undocumented="block")
    with TestClient(app) as client:
        refused = client.get("/hidden")
        assert (refused.status_code, refused.json()["errors"]) == (404, at("undocumented", "", "undocumented"))
        assert records[-1].answers[0].reason_codes == ["undocumented"]
        for url in ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect", "/search"):
            assert client.get(url).status_code == 200
        with client.websocket_connect("/words/ws") as session:
            assert session.receive_text() == "hello"
    with TestClient(guarded_app(routes(FastAPI()), records)) as client:
        assert client.get("/hidden").status_code == 200
        assert records[-1].answers[0].tags == ["openapi", "undocumented"]


def test_a_handshake_is_no_request_and_a_request_is_no_handshake(guarded: Guarded) -> None:
    with guarded.client.websocket_connect("/words/ws") as session:
        assert session.receive_text() == "hello"
    handshake = {
        "sec-websocket-version": "13",
        "sec-websocket-key": "x",
        "connection": "upgrade",
        "upgrade": "websocket",
    }
    assert guarded.client.get("/words/x", headers=handshake).status_code == 422
    assert guarded.client.get("/paths/0/x", headers=handshake).json()["errors"][0]["at"] == "n"


async def test_a_body_is_judged_in_whatever_pieces_it_comes() -> None:
    for mode in ("buffer", "stream"):
        agent = OpenApiValidation(app := routes(FastAPI()))
        protect(app, agents=[config(agent, "openapi", request_body_mode=mode)])
        for data, status in ((json.dumps(GOOD).encode(), 200), (b'{"text":"a"}', 422), (b"", 422)):
            for pieces in ([data], [bytes([byte]) for byte in data] or [b""], [data, b""]):
                client = Client("POST", "/everything", headers=[(b"content-type", b"application/json")], body=pieces)
                await ask_again(app, client)
                assert client.status == status, (mode, data)
        client = Client("POST", "/everything", headers=[(b"content-type", b"application/json")])
        await ask_again(app, client)
        assert client.status == 422, "no body at all"
        assert not agent._open


async def test_a_body_of_another_type_is_refused_before_it_was_sent() -> None:
    app = guarded_app(routes(FastAPI()))
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"1000")]
    client = Client("POST", "/everything", headers=headers, unfinished=True)
    await ask_again(app, client)
    assert client.status == 415
    assert client.received == 0


async def test_one_over_the_limit_is_too_large_or_passes_unjudged() -> None:
    data = json.dumps({**GOOD, "anything": "x" * 1_100_000}).encode()
    for failure_mode, status in (("closed", 413), ("open", 200)):
        app = routes(FastAPI())
        protect(app, agents=[config(OpenApiValidation(app), failure_mode=failure_mode)])
        client = Client("POST", "/everything", headers=[(b"content-type", b"application/json")], body=data)
        await ask_again(app, client)
        assert client.status == status


class Named(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    by_alias: int = Field(alias="by-alias")
    choice: int = Field(default=0, validation_alias=AliasChoices("one", "other"))
    needed: int = Field(validation_alias=AliasChoices("first", "second"))


STRICTER: dict[str, tuple[tuple[str, str, dict[str, Any]], int]] = {
    "a number as text": (post({**GOOD, "number": "1"}), 422),
    "a boolean as a number": (post({**GOOD, "number": True}), 422),
    "a number as a boolean": (post({**GOOD, "flag": 1}), 422),
    "a word as a boolean": (post({**GOOD, "flag": "yes"}), 422),
    "a whole number": (post({**GOOD, "number": 1.0}), 200),
    "a date as a number": (post({**GOOD, "day": 0}), 422),
    "an item twice": (post({**GOOD, "tags": ["a", "a"]}), 422),
    "name and alias": (post({"by-alias": 1, "other": 1, "first": 1}, "/named"), 200),
    "a name with an alias": (post({"by_alias": 1, "first": 1}, "/named"), 422),
    "another alias": (post({"by-alias": 1, "second": 1}, "/named"), 422),
    "readings of text": (get("/search?i=%2B1&b=on&f=1.0"), 200),
    "the last of two": (get("/search?i=x&i=1"), 422),
    "not a number": (get("/search?f=nan"), 422),
    "NaN": (post(b'{"text":"a","number":1,"ratio":NaN}'), 400),
    "1e400": (post(b'{"text":"a","number":1,"ratio":1e400}'), 400),
    "twice": (post(b'{"text":"b","text":"a","number":1}'), 400),
    "a surrogate": (post(b'{"text":"a","number":1,"anything":"\\ud800"}'), 400),
    "UTF-16": (post(json.dumps(GOOD).encode("utf-16")), 200),
    "UTF-32": (post(json.dumps(GOOD).encode("utf-32")), 200),
    "deep": (post(b'{"text":"a","number":1,"anything":' + b"[" * 210 + b"]" * 210 + b"}"), 400),
    "text": (typed(b"x", "text/plain", "/text"), 415),
}


@pytest.mark.parametrize("name", some_are_short(STRICTER, one_in=3))
def test_where_it_is_stricter_than_the_app(guarded: Guarded, name: str) -> None:
    """The table of the page: the app alone takes all of them."""
    (method, url, request), status = STRICTER[name]
    for app, expected in ((routes(FastAPI()), 200), (guarded_app(routes(FastAPI())), status)):

        @app.post("/named")
        async def named(body: Named) -> str:
            return "ok"

        @app.post("/text")
        async def text(body: Annotated[str, Body()]) -> str:
            return "ok"

        with TestClient(app) as client:
            assert client.request(method, url, **request).status_code == expected


async def test_an_agent_that_is_served_sees_events_alone() -> None:
    source = routes(FastAPI())
    agent = OpenApiValidation(source)
    with serve(agent_app(agent)) as url:
        app = routes(FastAPI())
        protect(app, agents=[config(url, "openapi", events=agent.events - {EventType.CONFIGURE})])
        for method, path, data, status in (
            ("POST", "/everything", json.dumps(GOOD).encode(), 200),
            ("POST", "/everything", b"{}", 422),
            ("GET", "/paths/0/x", b"", 422),
        ):
            headers = [(b"content-type", b"application/json")]
            client = Client(method, path, headers=headers, body=data)
            await ask_again(app, client)
            assert client.status == status
        handshake = [(b"sec-websocket-version", b"13"), (b"upgrade", b"websocket"), (b"connection", b"upgrade")]
        session = Session(path="/sockets/a", headers=handshake)
        await session.call(app)
        assert session.texts == ["hello"]
        # A client may say that anything is a handshake, also where there is a websocket route.
        for path in ("/words/x", "/words/ws", "/paths/0/x"):
            client = Client("GET", path, headers=handshake)
            await ask_again(app, client)
            # Not the app's own.
            assert (client.status, client.header(b"content-type")) == (422, b"application/problem+json")


def test_reports_let_pass_and_say_the_same() -> None:
    records: list[AuditRecord] = []
    with TestClient(guarded_app(routes(FastAPI()), records, requests="report")) as client:
        for url, request, codes in (
            ("/everything", {"json": {"text": "a"}}, ["body"]),
            ("/everything", {}, ["body"]),
            ("/everything", {"content": b"x", "headers": {"content-type": "text/plain"}}, ["content_type"]),
        ):
            response: Any = client.post(url, **request)
            assert response.headers["content-type"] == "application/json", "the app's own"
            assert [code for answer in records[-1].answers for code in answer.reason_codes] == codes
        client.get("/search?i=x")
        assert records[-1].answers[0].reason_codes == ["query"]


def test_a_shadow_agent_stops_nothing() -> None:
    records: list[AuditRecord] = []
    app = routes(FastAPI())
    protect(app, agents=[config(OpenApiValidation(app), enforce=False)], on_audit=records.append)
    with TestClient(app) as client:
        assert client.post("/everything", json={}).json()["detail"][0]["type"] == "missing"
        assert client.post("/everything", json=GOOD).status_code == 200


def test_large_bodies_are_judged_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def noting(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return json_bodies.json_violations(*given)

    monkeypatch.setattr(exchange, "json_violations", noting)
    with TestClient(guarded_app(routes(FastAPI()))) as client:
        for size in (10, 900_000):
            assert client.post("/everything", json={**GOOD, "anything": "x" * size}).status_code == 200
    small, large = threads
    assert "worker" not in small.lower()
    assert "worker" in large.lower()


def test_the_same_under_uvicorn() -> None:
    with serve(guarded_app(routes(FastAPI()))) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        assert client.post("/everything", json=GOOD).status_code == 200
        assert client.post("/everything", json={}).json()["errors"][0] == body("/text", "missing")[0]
        assert client.post("/everything", content=iter([b"{", b"}"]), headers=JSON).status_code == 422
        assert client.get("/p%61ths/0/x").json()["errors"][0]["at"] == "n"
        assert client.get("/converted/1/a%2Fb/c").json() == "a/b/c"
        assert client.post("/upload", files={"file": b"x" * 3_000_000}).json() == 3_000_000
        assert client.get("/nothing").status_code == 404
