"""Why a side closes a websocket is text that reaches the other side. Time is virtual."""

import json
from typing import Any, Final

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import FailureMode
from tests.exchange.test_websocket import App, Server, accept, run, send_frame
from tests.guardrails.wired.exchanging import Finder, blocking, failing, one
from tests.guardrails.wired.test_websockets import finders, finding

pytestmark = pytest.mark.anyio

_REASON: Final = "the policy says no"

#: Why somebody closes a session, and what the other side is told.
REASONS: Final = (
    ("mail alice@example.com", "mail [0]"),
    ("alice@example.com", "[0]"),
    ("nobody", "nobody"),
    ("", ""),
    ('{"to": "alice@example.com"}', '{"to": "[0]"}'),
    # What fits into a frame: 123 bytes.
    ("a@b.co " * 30, ("[0] " * 30)),
    ("\u00e9" * 100, "\u00e9" * 100),
)


class Closes:
    """Says what it is given, and closes the session for a reason."""

    def __init__(self, reason: str | None, *says: str, code: int = 4001, accepts: bool = True) -> None:
        self.reason, self.says, self.code, self.accepts = reason, says, code, accepts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.accepts:
            await accept(receive, send)
        for piece in self.says:
            await send_frame(send, piece)
        await send({"type": "websocket.close", "code": self.code, "reason": self.reason})


def cut(text: str) -> str:
    return text.encode()[:123].decode(errors="ignore")


@finders
@pytest.mark.parametrize(("reason", "told"), REASONS, ids=range(len(REASONS)))
async def test_the_client_is_told_why_as_the_judges_say(reason: str, told: str, finder: str) -> None:
    for says in ((), ("hello, alice@exam",), ("hello\\u0020alice@example.com",)):
        server = Server()
        await run(one(Closes(reason, *says), finding(finder)).middleware, server)
        assert server.close == (4001, cut(told))
        assert len(server.frames) == len(says)
        # It is no part of what was said before.
        assert server.frames in ([], ["hello, alice@exam"], ["hello [0]"])


@finders
@pytest.mark.parametrize(("reason", "told"), REASONS, ids=range(len(REASONS)))
async def test_the_app_is_told_why_as_the_judges_say(reason: str, told: str, finder: str) -> None:
    for says in ((), ("hello, alice@exam",)):
        app, server = App(), Server(*says)
        server.hands_on({"type": "websocket.disconnect", "code": 4001, "reason": reason})
        await run(one(app, finding(finder)).middleware, server)
        assert app.disconnect == {"type": "websocket.disconnect", "code": 4001, "reason": cut(told)}
        assert app.got == list(says)


@finders
async def test_a_reason_that_is_blocked_is_told_to_nobody(finder: str) -> None:
    guarded = one(Closes("the secret", "hello "), finding(finder, blocking("secret")))
    server = Server()
    await run(guarded.middleware, server)
    assert server.frames in ([], ["hello "])
    assert server.close == (1008, _REASON)
    assert guarded.record.guardrails[0].found == {"output": 1}

    app, server = App(), Server()
    server.hands_on({"type": "websocket.disconnect", "code": 4001, "reason": "the secret"})
    guarded = one(app, finding(finder, blocking("secret")))
    await run(guarded.middleware, server)
    assert app.disconnect == {"type": "websocket.disconnect", "code": 1008, "reason": _REASON}
    assert guarded.record.guardrails[0].found == {"input": 1}


@pytest.mark.parametrize("mode", FailureMode)
async def test_a_reason_that_nobody_can_judge_passes_by_the_failure_mode(mode: FailureMode) -> None:
    server = Server()
    await run(one(Closes("alice@example.com"), Finder(failing), failure_mode=mode).middleware, server)
    assert server.close == ((4001, "alice@example.com") if mode is FailureMode.OPEN else (1011, "Agent error"))


@finders
async def test_a_session_that_is_not_accepted_is_refused_for_a_judged_reason(finder: str) -> None:
    server = Server()
    await run(one(Closes("mail alice@example.com", accepts=False), finding(finder)).middleware, server)
    assert (server.types, server.close) == (["close"], (4001, "mail [0]"))


@pytest.mark.parametrize("message", [{"reason": None}, {}])
async def test_a_close_without_a_reason_stays_one(message: dict[str, Any]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close", "code": 1000, **message})

    server = Server()
    await run(one(app, Finder()).middleware, server)
    assert server.sent[-1] == {"type": "websocket.close", "code": 1000, **message}


async def test_an_app_that_gives_up_closing_may_close_again() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send_frame(send, "hello alice@example.com")
        close = {"type": "websocket.close", "code": 4001, "reason": "mail bob@example.com"}
        with anyio.move_on_after(0.001):
            await send(close)
        await send(close)

    server = Server()
    await run(one(app, finding("slow")).middleware, server)
    assert (server.frames, server.close) == (["hello [0]"], (4001, "mail [0]"))


@pytest.mark.parametrize("on", [{"input"}, {"output"}], ids=str)
async def test_a_reason_is_judged_by_those_who_judge_its_direction(on: set[Any]) -> None:
    app, server = App(), Server()
    server.hands_on({"type": "websocket.disconnect", "code": 4001, "reason": "alice@example.com"})
    await run(one(app, Finder(), on).middleware, server)
    assert app.disconnect["reason"] == ("[0]" if on == {"input"} else "alice@example.com")

    server = Server()
    await run(one(Closes("alice@example.com"), Finder(), on).middleware, server)
    assert server.close == (4001, "alice@example.com" if on == {"input"} else "[0]")


async def test_a_reason_behind_events_is_no_event() -> None:
    reason = json.dumps({"type": "session.created", "x": "alice@example.com"})
    server = Server()
    await run(one(Closes(reason), Finder()).middleware, server, "/v1/realtime")
    assert server.close == (4001, reason.replace("alice@example.com", "[0]"))
