"""Shadow agents as guardrails: they judge copies beside the text, and hold up nothing. Time is virtual."""

import gc
import json
from typing import Any, Final

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import AgentConfig, FailureMode
from asgi_agents.exchange import shadow_text
from asgi_agents.guardrails import Guardrail
from asgi_agents.guardrails.backlog import Backlog
from tests.guardrails.detectors import EMAIL, detector
from tests.guardrails.wired.exchanging import (
    CHAT,
    ENTITY,
    SSE,
    Finder,
    Guarded,
    Sending,
    SlowFinder,
    asking,
    blocking,
    failing,
    one,
)
from tests.guardrails.wired.test_endings import event
from tests.guardrails.wired.test_overlap import Asker
from tests.support.asgi import assert_nothing_left, body, start
from tests.support.virtual_time import nothing_comes_from_outside

pytestmark = pytest.mark.anyio

_ANSWER: Final = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": ENTITY}}]}).encode()
_WORDS: Final = "some words of an answer, "


def late(seconds: float, find: Any = detector(EMAIL)) -> SlowFinder:  # noqa: B008
    return SlowFinder(find, lambda: seconds)


def shadowed(app: Any, agent: Any, **options: Any) -> Guarded:
    return one(app, agent, enforce=False, circuit_breaker=None, **options)


def streaming() -> Sending:
    return Sending([event("I am alice.smith"), event("@example.com, "), event("bye.")])


def whole() -> Sending:
    return Sending([_ANSWER], "application/json")


def waiting() -> int:
    """How many bytes wait for shadow agents."""
    return sum(item.size for item in gc.get_objects() if isinstance(item, Backlog))


@pytest.mark.parametrize("make", [streaming, whole])
@pytest.mark.parametrize(("find", "would"), [(detector(EMAIL), "would redact"), (blocking(ENTITY), "would block")])
async def test_the_client_waits_for_nothing_and_what_would_have_been_done_is_recorded(
    make: Any, find: Any, would: str
) -> None:
    app = make()
    guarded = shadowed(app, late(0.3, find))
    client = Asker()
    await guarded.call(client)
    # Nothing but looks at the clock.
    assert client.times[-1][0] < 0.001
    assert client.body == b"".join(app.pieces)
    assert client.complete
    (entry,) = guarded.record.guardrails
    assert entry.counts == {"flag": 2}
    assert [(span[0], span[3]) for span in map(tuple, entry.spans)] == [("input", would), ("output", would)]
    assert (entry.held, entry.delay) == (0, 0.0)
    assert guarded.record.decision == "allow"


async def test_the_app_does_not_wait_for_what_is_said_of_its_request() -> None:
    began: list[float] = []

    class Noting(Sending):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            began.append(anyio.current_time())
            await super().__call__(scope, receive, send)

    client = Asker()
    guarded = one(Noting([event("fine")]), late(0.3, blocking(ENTITY)), {"input"}, enforce=False)
    await guarded.call(client)
    assert began[0] - client.began < 0.001
    assert guarded.record.guardrails[0].counts == {"flag": 1}


async def test_the_exchange_waits_for_late_verdicts_no_longer_than_the_agents_timeout() -> None:
    client = Asker()
    guarded = shadowed(streaming(), late(10**6), timeout=2.0)
    await guarded.call(client)
    assert client.times[-1][0] < 0.001
    assert 2.0 <= anyio.current_time() - client.began <= 2.0 + 2 * shadow_text._MARGIN
    counts = guarded.record.guardrails[0].counts
    # Of the request and of the answer.
    assert counts.get("failure", 0) + counts.get("dropped", 0) == 2
    assert_nothing_left(guarded.middleware.manager)


async def test_the_exchange_does_not_wait_for_each_of_many_late_verdicts() -> None:
    text = _WORDS * 400
    app = Sending([event(text[at : at + 100]) for at in range(0, len(text), 100)])
    guarded = one(app, late(0.9), {"output"}, enforce=False, timeout=1.0, window=400, hold=80)
    client = Asker()
    await guarded.call(client)
    assert client.times[-1][0] < 0.001
    assert anyio.current_time() - client.began <= 1.0 + 2 * shadow_text._MARGIN
    assert guarded.record.guardrails[0].counts == {"dropped": 1}
    assert_nothing_left(guarded.middleware.manager)


@pytest.mark.slow
async def test_a_judge_that_never_answers_takes_no_memory_that_grows_with_the_stream() -> None:
    nothing_comes_from_outside()
    piece = event("x" * 1000)
    pieces: list[bytes | float] = []
    for _ in range(4000):
        pieces += [piece, 0.0001]
    app = Sending(pieces)
    client = Asker()
    guarded = shadowed(app, late(10**6), timeout=10**5)
    most: list[int] = []

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded.call, client)
        while not app.finished:
            await anyio.sleep(0.01)
            most.append(waiting())
        assert anyio.current_time() - client.began < 1
        assert client.complete
        # The agent is asked about as many windows as always, and the request.
        assert guarded.middleware.manager.metrics["g"].in_flight <= 3
        tasks.cancel_scope.cancel()
    assert 0 < max(most) <= shadow_text.MAX_WAITING_BYTES
    assert waiting() == 0
    assert guarded.record.guardrails[0].counts["dropped"] == 2
    assert guarded.middleware.manager.metrics["g"].finds["dropped"] == 2


async def test_what_was_dropped_ends_no_wait_of_others() -> None:
    # Each shadow agent judges at its own pace.
    nothing_comes_from_outside()
    text = _WORDS * 4000
    app = Sending([piece for at in range(0, len(text), 100) for piece in (event(text[at : at + 100]), 0.01)])
    app.pieces.append(event(f" {ENTITY} "))
    agents = [
        AgentConfig("hangs", late(10**6), enforce=False, timeout=10**5),
        AgentConfig("quick", late(0.01), enforce=False),
    ]
    guarded = Guarded(app, agents, [Guardrail(name, on={"output"}) for name in ("hangs", "quick")])
    client = Asker()
    with anyio.move_on_after(100):
        await guarded.call(client)
    by_agent = {entry.agent: entry.counts for entry in guarded.record.guardrails}
    assert by_agent["quick"] == {"flag": 1}
    assert client.complete


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("make", [streaming, whole])
async def test_a_failure_stops_nothing_and_is_counted(mode: FailureMode, make: Any) -> None:
    for agent in (Finder(failing), late(0.1, failing)):
        app = make()
        guarded = shadowed(app, agent, failure_mode=mode)
        client = Asker()
        await guarded.call(client)
        assert client.body == b"".join(app.pieces)
        assert guarded.record.guardrails[0].counts["failure"] >= 2
        assert guarded.record.decision == "allow"


@pytest.mark.parametrize("mode", FailureMode)
async def test_what_it_can_not_read_passes_and_is_counted(mode: FailureMode, caplog: pytest.LogCaptureFixture) -> None:
    app = Sending([b'{"broken'], "application/json")
    guarded = shadowed(app, Finder(), failure_mode=mode)
    client = await guarded.call(asking(CHAT, b'{"broken'))
    assert app.body == b'{"broken'
    assert client.status == 200
    assert client.body == b'{"broken'
    assert guarded.record.guardrails[0].counts == {"unreadable": 2}
    assert "only shadow agents" in caplog.text
    # Who is not a shadow agent still refuses it.
    both = Guarded(
        Sending([]),
        [AgentConfig("g", Finder(), failure_mode=mode), AgentConfig("shadow", Finder(), enforce=False)],
        [Guardrail("g", on={"input"}), Guardrail("shadow", on={"input"})],
    )
    client = await both.call(asking(CHAT, b'{"broken'))
    assert client.status == 400
    assert [entry.counts for entry in both.record.guardrails] == [{"unreadable": 1}] * 2


async def test_a_stream_that_would_be_ended_goes_on() -> None:
    # The arguments of a tool call that are no JSON.
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": '}}
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    pieces = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in (chunk, last)]
    app = Sending([*pieces, event("more"), b"data: [DONE]\n\n"])
    for agent in (Finder(), late(0.1)):
        guarded = shadowed(app, agent)
        client = Asker()
        await guarded.call(client)
        assert client.body == b"".join(app.pieces)  # type: ignore[arg-type]
        assert guarded.record.decision == "allow"
        assert guarded.record.guardrails[0].counts["unreadable"] >= 1


async def test_it_sees_the_text_as_it_came_and_others_redact_beside_it() -> None:
    shadow = late(0.2)
    agents = [AgentConfig("g", Finder()), AgentConfig("shadow", shadow, enforce=False)]
    guardrails = [Guardrail(name, on={"input", "output"}) for name in ("g", "shadow")]
    app = streaming()
    guarded = Guarded(app, agents, guardrails)
    client = Asker()
    await guarded.call(client)
    assert client.text_by(10) == "I am [0], bye."
    assert json.loads(app.body)["messages"][0]["content"] == "I am [0]"
    assert client.times[-1][0] < 0.001
    assert {entry.agent: entry.counts for entry in guarded.record.guardrails} == {
        "g": {"redact": 2},
        "shadow": {"flag": 2},
    }
    assert sorted(window.text for window in shadow.windows) == [f"I am {ENTITY}", f"I am {ENTITY}, bye."]


async def test_an_answer_that_is_stopped_ends_its_judging() -> None:
    shadow = late(0.2)
    agents = [AgentConfig("g", Finder(blocking("bye"))), AgentConfig("shadow", shadow, enforce=False)]
    guarded = Guarded(streaming(), agents, [Guardrail(name, on={"output"}) for name in ("g", "shadow")])
    client = Asker()
    await guarded.call(client)
    assert client.complete
    assert client.times[-1][0] < 0.001
    assert shadow.at_once == 0


async def test_text_that_is_copied_is_no_text_that_waits() -> None:
    held: list[int] = []
    app = Sending([event(_WORDS), 0.1, event(_WORDS), 0.1])
    guarded = shadowed(app, late(5.0), timeout=10.0)

    async def look() -> None:
        await anyio.sleep(0.15)
        held.append(guarded.middleware.manager.metrics["g"].held)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        await guarded.call(Asker())
    assert held == [0]


async def test_what_the_app_raises_waits_for_nothing() -> None:
    async def raising(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", SSE.encode())))
        await send(body(event("early"), more=True))
        await anyio.sleep(0.01)
        raise LookupError("of the app")

    guarded = shadowed(raising, late(5.0), timeout=10.0)
    client = Asker()
    with pytest.raises(LookupError, match="of the app"):
        await guarded.call(client)
    assert anyio.current_time() - client.began < 0.02
    assert guarded.record.guardrails[0].counts == {"dropped": 2}
    assert_nothing_left(guarded.middleware.manager)


async def test_a_client_that_leaves_is_not_waited_for() -> None:
    agent = late(50.0)
    guarded = shadowed(Sending([event(_WORDS), 1.0, event(_WORDS), event(_WORDS)]), agent, timeout=100.0)
    client = Asker(spec_version="2.3")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded.call, client)
        await anyio.sleep(0.5)
        client.leave()
    assert anyio.current_time() - client.began < 101 + 2 * shadow_text._MARGIN
    assert agent.at_once == 0
    assert_nothing_left(guarded.middleware.manager)


async def test_a_call_that_is_cancelled_leaves_nothing_behind() -> None:
    for after in (0.0001, 0.1, 1.0):
        agent = late(5.0)
        guarded = shadowed(Sending([event(_WORDS), 0.5, event(_WORDS)]), agent, timeout=10.0)
        with anyio.move_on_after(after):
            await guarded.call(Asker())
        assert agent.at_once == 0
        assert waiting() == 0
        assert_nothing_left(guarded.middleware.manager)


async def test_headers_that_can_be_read_once_reach_the_client() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = (pair for pair in [(b"content-type", b"text/plain"), (b"x-app", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(body(f"I am {ENTITY}".encode()))

    guarded = shadowed(app, late(0.1))
    client = Asker()
    await guarded.call(client)
    assert client.header(b"x-app") == b"1"
    assert guarded.record.guardrails[0].counts == {"flag": 2}


async def test_an_answer_that_is_a_file_is_whole_for_those_that_judge_its_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", b"image/png")))
        await send({"type": "http.response.pathsend", "path": "/picture"})

    guarded = one(app, late(0.1), {"input"}, enforce=False)
    client = Asker(extensions={"http.response.pathsend": {}})
    await guarded.call(client)
    assert client.complete
    assert guarded.record.guardrails[0].counts == {"flag": 1}


async def test_an_answer_that_has_no_text_is_nothing_to_drop() -> None:
    piece = b"\0" * 100_000
    app = Sending([piece] * 100, "image/png")
    guarded = one(app, late(0.1), {"output"}, enforce=False)
    client = Asker()
    await guarded.call(client)
    assert client.body == piece * 100
    assert guarded.record.guardrails[0].counts == {}


async def test_an_answer_that_is_too_long_to_be_copied_is_not_judged() -> None:
    long = json.dumps({"deep": ["x" * 1000] * 2000}).encode()
    app = Sending([long[at : at + 10_000] for at in range(0, len(long), 10_000)], "application/json")
    guarded = one(app, late(0.1), {"output"}, enforce=False)
    client = Asker()
    await guarded.call(client)
    assert client.body == long
    counts = guarded.record.guardrails[0].counts
    assert counts in ({"dropped": 1}, {"unreadable": 1})


async def test_what_goes_wrong_with_a_copy_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def send(self: Any, message: Message) -> None:
        raise ValueError(f"a defect, {ENTITY}")

    monkeypatch.setattr(shadow_text.ShadowAnswer, "send", send)
    app = streaming()
    guarded = one(app, late(0.01), {"output"}, enforce=False)
    client = Asker()
    await guarded.call(client)
    assert client.body == b"".join(app.pieces)  # type: ignore[arg-type]
    assert guarded.record.guardrails[0].counts["dropped"] == 1
    assert "ValueError" in caplog.text
    assert ENTITY not in caplog.text
