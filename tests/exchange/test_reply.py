"""Decisions as answers in the app's place."""

from typing import Any

import msgspec
import pytest
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from asgi_agents import (
    AgentConfig,
    AgentDecision,
    AgentResponse,
    Allow,
    Block,
    Challenge,
    Failure,
    FailureKind,
    HeaderOp,
    Redirect,
    WebSocketClose,
    WebSocketDrop,
)
from asgi_agents.exchange import Renderers
from asgi_agents.exchange.reply import Reply, close_message, describe, render_reply
from tests.support.asgi import App, Client, Probe, guarded


def scope(accept: str | None = None) -> Scope:
    headers = [] if accept is None else [(b"accept", accept.encode("latin-1"))]
    return Client(headers=headers).scope


def render(decision: Any, accept: str | None = None, **options: Any) -> Reply:
    return render_reply(AgentDecision(decision=decision, decided_by="a", **options), scope(accept))


def header(reply: Reply, name: bytes) -> bytes | None:
    values = [value for key, value in reply.headers if key == name]
    assert len(values) <= 1
    return values[0] if values else None


# Block


def test_a_block_is_text_unless_the_client_prefers_json() -> None:
    reply = render(Block(403, "nope"))
    assert (reply.status, reply.body) == (403, b"nope")
    assert reply.headers == [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"4")]


@pytest.mark.parametrize(
    ("status", "text"), [(403, b"Forbidden"), (418, b"I'm a Teapot"), (429, b"Too Many Requests"), (599, b"Blocked")]
)
def test_a_block_without_a_body_says_what_its_status_means(status: int, text: bytes) -> None:
    assert render(Block(status)).body == text


def test_a_block_with_an_empty_body_has_none() -> None:
    reply = render(Block(403, ""))
    assert reply.body == b""
    assert reply.headers == [(b"content-length", b"0")]


def test_the_body_is_utf_8_and_counted_in_bytes() -> None:
    reply = render(Block(403, "gesperrt \u2013 \u20ac"))
    assert reply.body == "gesperrt \u2013 \u20ac".encode()
    assert header(reply, b"content-length") == b"%d" % len(reply.body)


@pytest.mark.parametrize("status", [204, 205, 304])
def test_a_status_without_content_has_none(status: int) -> None:
    reply = render(Block(status, "text"), "application/json")
    assert reply.body == b""
    assert header(reply, b"content-type") is None
    assert header(reply, b"content-length") == (b"0" if status == 205 else None)


def test_problem_details_for_a_client_that_prefers_json() -> None:
    reply = render(Block(429, "slow down"), "application/json")
    assert header(reply, b"content-type") == b"application/problem+json"
    assert header(reply, b"content-length") == b"%d" % len(reply.body)
    assert msgspec.json.decode(reply.body) == {
        "type": "about:blank",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "slow down",
    }


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("application/json", True),
        ("application/problem+json", True),
        ("application/*", True),
        ("application/vnd.api+json", True),
        ("APPLICATION/JSON", True),
        ("application/json, text/plain", False),
        ("text/plain;q=0.5, application/json;q=0.9", True),
        ("text/plain;q=0.9, application/json;q=0.5", False),
        ("text/plain; q=0.5 , application/json ; q=0.9", True),
        ("application/json;q=0", False),
        ("application/json;Q=0.3", True),
        ("application/json;charset=utf-8;q=0.5, text/plain;q=0.4", True),
        ("application/json, text/*;q=0.1, */*;q=0.1", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/json;q=nonsense", False),
        ("application/json;q=nan", False),
        ("application/json;q=", False),
        (",;,=;q", False),
        ("\xff\xfe", False),
    ],
)
def test_json_is_for_those_who_like_it_better_than_text(accept: str | None, json: bool) -> None:
    content_type = header(render(Block(), accept), b"content-type")
    assert content_type == (b"application/problem+json" if json else b"text/plain; charset=utf-8")


def test_several_accept_headers_are_one_list() -> None:
    client = Client(headers=[(b"accept", b"*/*;q=0.1"), (b"accept", b"application/json")])
    reply = render_reply(AgentDecision(decision=Block()), client.scope)
    assert header(reply, b"content-type") == b"application/problem+json"


@pytest.mark.parametrize("accept", [None, "application/json"])
def test_headers_that_the_agent_gave_win(accept: str | None) -> None:
    reply = render(Block(403, "<b>no</b>", {"Content-Type": "text/html", "x-rule": "7"}), accept)
    assert reply.body == b"<b>no</b>"
    assert header(reply, b"content-type") == b"text/html"
    assert header(reply, b"x-rule") == b"7"
    assert header(reply, b"content-length") == b"9"


@pytest.mark.parametrize("accept", [None, "application/json"])
def test_a_content_type_that_the_agent_sets_by_an_operation_fits_the_body(accept: str | None) -> None:
    reply = render(Block(403, "<b>no</b>"), accept, response_headers=[HeaderOp.set("content-type", "text/html")])
    assert header(reply, b"content-type") == b"text/html"
    assert reply.body == b"<b>no</b>"


def test_response_header_operations_are_applied_to_the_reply() -> None:
    ops = [HeaderOp.set("x-rule", "8"), HeaderOp.add("x-more", "1"), HeaderOp.remove("x-gone")]
    reply = render(Block(403, "no", {"x-rule": "7", "x-gone": "1"}), response_headers=ops)
    assert header(reply, b"x-rule") == b"8"
    assert header(reply, b"x-more") == b"1"
    assert header(reply, b"x-gone") is None


def test_retry_after_of_an_agent_is_kept() -> None:
    assert header(render(Block(429, "no", {"retry-after": "7"})), b"retry-after") == b"7"


# Redirect


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_points_elsewhere(status: int) -> None:
    reply = render(Redirect("https://login.example/?next=%2F", status), "application/json")
    assert (reply.status, reply.body) == (status, b"")
    assert reply.headers == [(b"content-length", b"0"), (b"location", b"https://login.example/?next=%2F")]


def test_a_redirect_to_a_url_beyond_ascii_is_percent_encoded() -> None:
    assert header(render(Redirect("/caf\xe9?q=\u20ac&x=%41")), b"location") == b"/caf%C3%A9?q=%E2%82%AC&x=%41"


# Challenge


@pytest.mark.parametrize(
    ("challenge", "expected"),
    [
        (Challenge("basic"), b"Basic"),
        (Challenge("BEARER"), b"Bearer"),
        (Challenge("dpop", {"algs": "ES256"}), b'DPoP algs="ES256"'),
        (Challenge("basic", {"realm": "api", "charset": "UTF-8"}), b'Basic realm="api", charset="UTF-8"'),
        (Challenge("digest", {"realm": 'a"b\\c'}), b'Digest realm="a\\"b\\\\c"'),
        (Challenge("scram-sha-256"), b"SCRAM-SHA-256"),
        (Challenge("bearer", {"realm": "caf\xe9"}), b'Bearer realm="caf\xe9"'),
    ],
    ids=lambda value: value.challenge_type if isinstance(value, Challenge) else "",
)
def test_a_challenge_of_an_http_scheme_is_401_with_www_authenticate(challenge: Challenge, expected: bytes) -> None:
    reply = render(challenge)
    assert (reply.status, reply.body) == (401, b"Unauthorized")
    assert header(reply, b"www-authenticate") == expected


def test_a_challenge_of_an_http_scheme_is_json_for_those_who_like_it_better() -> None:
    assert msgspec.json.decode(render(Challenge("basic"), "application/json").body)["status"] == 401


@pytest.mark.parametrize("accept", [None, "application/json"])
def test_any_other_challenge_is_403_with_its_type_and_params(accept: str | None) -> None:
    reply = render(Challenge("captcha", {"site_key": "k"}), accept)
    assert reply.status == 403
    assert header(reply, b"content-type") == b"application/json"
    assert header(reply, b"content-length") == b"%d" % len(reply.body)
    assert msgspec.json.decode(reply.body) == {"challenge_type": "captcha", "params": {"site_key": "k"}}


def test_a_renderer_replaces_both() -> None:
    seen = []

    def renderer(challenge: Challenge, scope: Scope) -> Response:
        seen.append((challenge, scope["path"]))
        return JSONResponse({"please": challenge.challenge_type}, status_code=428, headers={"x-renderer": "1"})

    for kind in ("basic", "captcha"):
        decision = AgentDecision(decision=Challenge(kind), response_headers=[HeaderOp.set("x-agent", "1")])
        reply = render_reply(decision, scope(), Renderers(renderer))
        assert reply.status == 428
        assert msgspec.json.decode(reply.body) == {"please": kind}
        assert header(reply, b"x-renderer") == b"1"
        assert header(reply, b"x-agent") == b"1"
    assert seen == [(Challenge("basic"), "/"), (Challenge("captcha"), "/")]


def test_a_renderer_is_not_asked_about_anything_else() -> None:
    def renderer(challenge: Challenge, scope: Scope) -> Response:
        raise AssertionError

    assert render_reply(AgentDecision(decision=Block()), scope(), Renderers(renderer)).status == 403


@pytest.mark.parametrize("params", [{"realm": "a\r\nx: 1"}, {"re alm": "1"}, {"realm": "\u20ac"}])
async def test_a_challenge_that_would_split_its_header_is_an_agent_error(params: dict[str, str]) -> None:
    client = Client()
    answer = AgentResponse.challenge("basic", params)
    await client.call(guarded(App(), AgentConfig("a", Probe(request_headers=answer))))
    assert client.status == 503


async def test_a_renderer_that_fails_lets_nothing_through(probe: type[Probe]) -> None:
    def renderer(challenge: Challenge, scope: Scope) -> Response:
        raise KeyError("the renderer's own")

    for event in ("request_headers", "request_body", "response_headers", "response_body"):
        client = Client("POST", body=b"x")
        agent = probe(**{event: AgentResponse.challenge("captcha")})
        with pytest.raises(KeyError, match="the renderer's own"):
            await client.call(guarded(App(), AgentConfig("a", agent), challenge_renderer=renderer))
        assert client.messages == []


# Websockets


@pytest.mark.parametrize("size", [0, 122, 123, 124, 200])
def test_the_reason_of_a_close_fits_into_a_control_frame(size: int) -> None:
    message = close_message(WebSocketClose(4001, "x" * size))
    assert message == {"type": "websocket.close", "code": 4001, "reason": "x" * min(size, 123)}


def test_the_reason_of_a_close_is_not_cut_within_a_character() -> None:
    reason = close_message(WebSocketClose(4001, "\u20ac" * 100))["reason"]
    assert reason == "\u20ac" * 41


def test_a_websocket_decision_answered_with_a_response_is_a_plain_403() -> None:
    reply = render_reply(AgentDecision(decision=Allow(), websocket_decision=WebSocketDrop()), scope())
    assert (reply.status, reply.body) == (403, b"Forbidden")


async def test_a_websocket_decision_on_a_request_denies_it(probe: type[Probe]) -> None:
    for answer in (AgentResponse.websocket_close(4001, "no"), AgentResponse.websocket_drop()):
        app, client = App(), Client()
        await client.call(guarded(app, AgentConfig("a", probe(request_headers=answer))))
        assert client.status == 403
        assert app.calls == 0


def test_messages_of_a_denial_response_have_the_websocket_prefix() -> None:
    head, content = Reply(403, [(b"a", b"b")], b"no").messages("websocket.")
    assert head == {"type": "websocket.http.response.start", "status": 403, "headers": [(b"a", b"b")]}
    assert content == {"type": "websocket.http.response.body", "body": b"no"}


# Words


def test_a_description_names_who_and_what_and_none_of_the_agents_words() -> None:
    assert describe(AgentDecision(decision=Block(403, "secret"), decided_by="waf")) == "agent 'waf': block"
    assert describe(AgentDecision(decision=Redirect("/secret"), decided_by="waf")) == "agent 'waf': redirect"
    closing = AgentDecision(websocket_decision=WebSocketClose(4001, "secret"), decided_by="waf")
    assert describe(closing) == "agent 'waf': WebSocketClose"
    failure = Failure(FailureKind.TIMEOUT, "agent 'waf', request_headers: no answer")
    assert describe(AgentDecision(decision=Block(504), failure=failure)) == "agent 'waf', request_headers: no answer"
