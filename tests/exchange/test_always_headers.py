"""Header operations that are done to every response, one in the app's place too."""

from typing import Any

import anyio
import pytest

from asgi_agents import (
    AgentConfig,
    AgentDecision,
    AgentMiddleware,
    AgentResponse,
    Block,
    BodyMode,
    Challenge,
    CircuitBreakerConfig,
    FailureMode,
    HeaderOp,
    Redirect,
)
from asgi_agents.exchange.reply import Reply, render_reply
from tests.support.asgi import App, Client, Probe, SlowProbe, body, guarded, start

LIMIT = HeaderOp.set("x-ratelimit-remaining", "7", always=True)
PHASES = ("request_headers", "request_body", "response_headers", "response_body")
STREAM = BodyMode.STREAM


def allow(*ops: HeaderOp) -> AgentResponse:
    return AgentResponse.allow(response_headers=ops)


def fails(event: object) -> AgentResponse:
    raise RuntimeError("broken")


STOPS: dict[str, tuple[Any, int]] = {
    "block": (AgentResponse.block(429, "slow down"), 429),
    "redirect": (AgentResponse.redirect("/elsewhere"), 302),
    "challenge": (AgentResponse.challenge("bearer"), 401),
    "captcha": (AgentResponse.challenge("captcha"), 403),
    "drop": (AgentResponse.websocket_drop(), 403),
    "failure": (fails, 503),
}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    ("said_at", "stopped_at"),
    [(said, stopped) for index, said in enumerate(PHASES) for stopped in PHASES[index:]],
)
async def test_what_one_agent_says_for_every_response_is_on_anothers_denial(
    probe: type[Probe], said_at: str, stopped_at: str, stop: str
) -> None:
    answer, status = STOPS[stop]
    limiter = probe(**{said_at: allow(LIMIT, HeaderOp.set("x-allowed", "1"))})
    client = Client("POST", body=b"body")
    await client.call(
        guarded(App(), AgentConfig("limiter", limiter), AgentConfig("decider", probe(**{stopped_at: answer})))
    )
    assert client.status == status
    assert client.complete
    assert client.header(b"x-ratelimit-remaining") == b"7"
    assert client.header(b"x-allowed") is None


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM, BodyMode.hybrid(2)])
async def test_it_is_on_a_denial_in_every_body_mode(probe: type[Probe], mode: BodyMode) -> None:
    modes: Any = {"request_body_mode": mode, "response_body_mode": mode}
    limiter = probe(request_headers=allow(LIMIT))
    decider = probe(request_body=lambda event: AgentResponse.block(422) if event.is_last else None)
    client = Client("POST", body=[b"one", b"two", b"three"])
    await client.call(
        guarded(App(), AgentConfig("limiter", limiter, **modes), AgentConfig("decider", decider, **modes))
    )
    assert client.status == 422
    assert client.header(b"x-ratelimit-remaining") == b"7"


async def test_it_is_on_a_reply_that_a_failure_makes_before_any_agent_is_asked(probe: type[Probe]) -> None:
    """A body over the limit of an agent, by what its head declares."""
    client = Client("POST", body=b"x" * 100)
    await client.call(
        guarded(
            App(),
            AgentConfig("limiter", probe(request_headers=allow(LIMIT))),
            AgentConfig("reader", probe(request_body=None), max_request_body_bytes=10),
        )
    )
    assert client.status == 413
    assert client.header(b"x-ratelimit-remaining") == b"7"


async def test_it_is_once_on_the_response_where_nobody_denies(probe: type[Probe]) -> None:
    client = Client()
    op = HeaderOp.add("x-seen", "1", always=True)
    await client.call(guarded(App(), AgentConfig("a", probe(request_headers=allow(op), response_headers=None))))
    assert [value for name, value in client.headers if name == b"x-seen"] == [b"1"]


@pytest.mark.parametrize("options", [{"enforce": False}, {"failure_mode": FailureMode.OPEN}])
async def test_shadow_agents_and_those_that_fail_add_nothing(probe: type[Probe], options: dict[str, Any]) -> None:
    answer = allow(LIMIT) if options == {"enforce": False} else fails
    client = Client()
    await client.call(
        guarded(
            App(),
            AgentConfig("limiter", probe(request_headers=answer), **options),
            AgentConfig("decider", probe(request_headers=AgentResponse.block())),
        )
    )
    assert client.status == 403
    assert client.header(b"x-ratelimit-remaining") is None


async def test_the_order_is_that_of_the_events_and_then_of_the_route(probe: type[Probe]) -> None:
    def agent(*names: str, **more: Any) -> Probe:
        return probe(
            **{at: allow(HeaderOp.add("x", f"{name} {at}", always=True)) for name in names for at in PHASES[:2]}
        )

    decider = probe(request_body=AgentResponse.block(response_headers=[HeaderOp.add("x", "decider")]))
    client = Client("POST", body=b"body")
    await client.call(
        guarded(App(), AgentConfig("a", agent("a")), AgentConfig("b", agent("b")), AgentConfig("decider", decider))
    )
    assert [value.decode() for name, value in client.headers if name == b"x"] == [
        "a request_headers",
        "b request_headers",
        "a request_body",
        "b request_body",
        "decider",
    ]


async def test_an_agent_before_the_one_that_denies_is_waited_for() -> None:
    """However late it answers, its headers are there: the reply is the same whoever is first."""

    async def late(event: object) -> AgentResponse:
        await anyio.sleep(0.01)
        return allow(LIMIT)

    client = Client()
    await client.call(
        guarded(
            App(),
            AgentConfig("limiter", SlowProbe(request_headers=late), timeout=30),
            AgentConfig("decider", SlowProbe(request_headers=AgentResponse.block()), timeout=30),
        )
    )
    assert client.status == 403
    assert client.header(b"x-ratelimit-remaining") == b"7"


@pytest.mark.parametrize("taken_back", [False, True])
async def test_a_provisional_answer_is_applied_once(probe: type[Probe], taken_back: bool) -> None:
    """It is part of the decision on the head, and where nothing follows, of that on the body."""
    op = HeaderOp.add("x-seen", "1", always=True)
    provisional = AgentResponse.block(403, response_headers=[op], needs_more=True)
    agent = probe(request_headers=provisional, request_body=None)
    client = Client("POST", body=[b"body"] if taken_back else [b""])
    await client.call(guarded(App(), AgentConfig("a", agent)))
    assert client.status == (200 if taken_back else 403)
    assert [value for name, value in client.headers if name == b"x-seen"] == [b"1"]


async def test_the_headers_of_one_connection_are_not_on_anothers(probe: type[Probe]) -> None:
    answers = iter([allow(LIMIT), None])
    limiter = probe(request_headers=lambda event: next(answers))
    middleware = guarded(
        App(), AgentConfig("limiter", limiter), AgentConfig("d", probe(request_body=STOPS["block"][0]))
    )
    seen = []
    for _ in range(2):
        client = Client("POST", body=b"body")
        await client.call(middleware)
        seen.append(client.header(b"x-ratelimit-remaining"))
    assert seen == [b"7", None]


async def test_nothing_is_added_to_a_response_that_has_begun(probe: type[Probe]) -> None:
    app = App(
        start(200, (b"content-type", b"text/event-stream")), body(b"data: 1\n\n", more=True), body(b"data: 2\n\n")
    )
    agent = probe(response_body=lambda event: AgentResponse.block() if b"2" in event.data else allow())
    client = Client()
    await client.call(
        guarded(app, AgentConfig("limiter", probe(request_headers=allow(LIMIT))), AgentConfig("decider", agent))
    )
    assert len(client.starts) == 1
    assert client.header(b"x-ratelimit-remaining") == b"7"
    assert client.body.startswith(b"data: 1\n\n")


async def test_an_open_breaker_says_when_to_come_again_whatever_others_say(probe: type[Probe]) -> None:
    breaker = CircuitBreakerConfig(failure_threshold=1, reset_timeout=1000)
    limiter = probe(request_headers=allow(HeaderOp.set("retry-after", "1", always=True), LIMIT))
    middleware: AgentMiddleware = guarded(
        App(),
        AgentConfig("limiter", limiter),
        AgentConfig("broken", probe(request_headers=fails), circuit_breaker=breaker),
    )
    await Client().call(middleware)
    client = Client()
    await client.call(middleware)
    assert (client.status, client.header(b"retry-after")) == (503, b"1000")
    assert client.header(b"x-ratelimit-remaining") == b"7"


# Who wins


def always(kind: Any, name: str, value: str = "") -> HeaderOp:
    return HeaderOp(kind, name, value, True)


def fields(reply: Reply, name: str) -> list[str]:
    return [value.decode() for key, value in reply.headers if key == name.encode()]


@pytest.mark.parametrize(
    ("decision", "own", "others", "name", "expected"),
    [
        # Nobody else says anything of it.
        (Block(), [], [always("set", "x", "o")], "x", ["o"]),
        (Block(), [], [always("set", "x", "o"), always("set", "x", "p")], "x", ["p"]),
        (Block(), [], [always("set", "x", "o"), always("add", "X", "p")], "x", ["o", "p"]),
        (Block(), [], [always("set", "x", "o"), always("remove", "X")], "x", []),
        # What the deciding answer says itself stands; more can be added to it.
        (Block(403, "", {"x": "d"}), [], [always("set", "X", "o")], "x", ["d"]),
        (Block(403, "", {"X": "d"}), [], [always("remove", "x")], "x", ["d"]),
        (Block(403, "", {"x": "d"}), [], [always("add", "x", "o")], "x", ["d", "o"]),
        (Redirect("/there"), [], [always("set", "location", "/evil")], "location", ["/there"]),
        (Redirect("/there"), [], [always("remove", "location")], "location", ["/there"]),
        (Challenge("basic"), [], [always("set", "www-authenticate", "o")], "www-authenticate", ["Basic"]),
        (
            Challenge("basic"),
            [],
            [always("add", "www-authenticate", "Bearer")],
            "www-authenticate",
            ["Basic", "Bearer"],
        ),
        # Its own operations come last.
        (Block(), [HeaderOp.set("x", "d")], [always("set", "x", "o")], "x", ["d"]),
        (Block(), [HeaderOp.add("x", "d")], [always("set", "x", "o")], "x", ["o", "d"]),
        (Block(), [HeaderOp.remove("x")], [always("set", "x", "o")], "x", []),
        # What the body is, only the one that has made it knows.
        (
            Block(403, "no"),
            [],
            [always("set", "content-type", "text/html")],
            "content-type",
            ["text/plain; charset=utf-8"],
        ),
        (Block(403, "no"), [], [always("remove", "content-type")], "content-type", ["text/plain; charset=utf-8"]),
        (Block(403, "no"), [], [always("set", "content-encoding", "gzip")], "content-encoding", []),
        (Block(403, "no"), [], [always("set", "content-security-policy", "o")], "content-security-policy", ["o"]),
    ],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_the_agent_that_decides_has_the_last_word(
    decision: Any, own: list[HeaderOp], others: list[HeaderOp], name: str, expected: list[str], earlier: bool
) -> None:
    made = AgentDecision(decision=decision, response_headers=own, always_headers=() if earlier else others)
    assert fields(render_reply(made, Client().scope, earlier=others if earlier else ()), name) == expected
