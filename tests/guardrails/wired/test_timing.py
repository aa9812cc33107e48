"""When windows are judged and text leaves. Time is virtual."""

import json
from collections.abc import Sequence
from typing import Any, Final

import anyio
import pytest
from starlette.types import Message

from asgi_agents import AgentConfig, FailureMode
from asgi_agents.guardrails import Block, Decision, Guardrail, Window
from tests.guardrails.samples import events_of
from tests.guardrails.wired.exchanging import (
    CHAT,
    ENTITY,
    Finder,
    Guarded,
    Sending,
    SettlingFinder,
    SlowFinder,
    one,
)
from tests.guardrails.wired.test_endings import event
from tests.support.asgi import Client, assert_nothing_left

pytestmark = pytest.mark.anyio

_OUTPUT: Final = {"output"}
_WORDS: Final = "some words of an answer, "


class Timed(Client):
    """Notes when it was sent what."""

    def __init__(self, path: str = CHAT) -> None:
        super().__init__("POST", path, headers=[(b"content-type", b"application/json")], body=b'{"stream": true}')
        self.times: list[tuple[float, bytes]] = []
        self.began = 0.0

    async def call(self, app: Any) -> Any:
        self.began = anyio.current_time()
        return await super().call(app)

    async def send(self, message: Message) -> None:
        await super().send(message)
        self.times.append((anyio.current_time() - self.began, message.get("body", b"")))

    def text_by(self, seconds: float) -> str:
        """The text that it had by then."""
        data = b"".join(body for at, body in self.times if at <= seconds)
        return "".join(
            choice["delta"].get("content", "") for each in events_of(data) for choice in each.get("choices", ())
        )


class Slow(SlowFinder):
    """Takes its time, and knows what is settled."""

    def settled(self, text: str) -> int:
        return text.rfind(" ") + 1


async def test_a_stall_releases_judged_text_within_max_hold_and_the_judges_time() -> None:
    for max_hold, judge in ((0.5, 0.1), (1.0, 0.0), (0.2, 0.4)):
        app = Sending([event(_WORDS) for _ in range(8)] + [5.0, event("the end.")])
        client = Timed()
        guarded = one(app, SlowFinder(seconds=lambda judge=judge: judge), _OUTPUT, hold=80, max_hold=max_hold)  # type: ignore[misc]
        await guarded.call(client)
        text = _WORDS * 8
        # What the hold keeps back, whole events of it, waits for more.
        assert client.text_by(max_hold - 0.1) == ""
        assert len(client.text_by(max_hold + judge + 0.05)) >= len(text) - 80 - len(_WORDS)
        assert len(client.text_by(4.9)) <= len(text) - 80
        assert client.text_by(6) == text + "the end."


async def test_a_stall_releases_settled_text_within_max_hold_and_the_judges_time() -> None:
    app = Sending([event(_WORDS) for _ in range(3)] + [event("ali"), 5.0, event("the end.")])
    client = Timed()
    await one(app, Slow(seconds=lambda: 0.3), _OUTPUT, hold=80).call(client)
    assert client.text_by(0.85) == _WORDS * 3
    assert client.text_by(4.9) == _WORDS * 3


@pytest.mark.parametrize("agent", [Finder, SettlingFinder, SlowFinder, Slow])
async def test_a_timer_never_releases_what_may_still_be_part_of_something(agent: Any) -> None:
    app = Sending([event("I am alice.smith@"), 100.0, event("example"), 100.0, event(".com"), 100.0, event(", hi.")])
    client = Timed()
    await one(app, agent(), _OUTPUT).call(client)
    assert "alice" not in client.text_by(299)
    assert client.text_by(400) == "I am [0], hi."


async def test_where_the_agent_is_in_the_process_and_knows_what_is_settled_nothing_waits_for_more_than_a_word() -> None:
    app = Sending([piece for word in ("Hello, ", "this ", "is ", "it.\n") for piece in (event(word), 1.0)])
    client = Timed()
    await one(app, SettlingFinder(), _OUTPUT).call(client)
    assert client.text_by(0.1) == ""
    assert client.text_by(3.1) == "Hello, this is it.\n"


@pytest.mark.parametrize("in_flight", [1, 2, 5])
async def test_so_many_windows_are_judged_at_once(in_flight: int) -> None:
    text = "word " * 2000
    app = Sending([event(text[at : at + 50]) for at in range(0, len(text), 50)])
    agent = SlowFinder(seconds=lambda: 0.5)
    client = Timed()
    await one(app, agent, _OUTPUT, window=500, hold=50, in_flight=in_flight).call(client)
    assert agent.most_at_once == in_flight
    assert client.text_by(1000) == text
    # A window has up to 50 code points of context, and as many that are judged again.
    windows = len(text) / 400
    assert client.times[-1][0] <= 0.5 * (windows / in_flight + 2)


async def test_text_that_is_due_before_what_has_waited_for_longer_is_judged_when_it_is_due() -> None:
    class Noting(SlowFinder):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[float] = []

        async def check(self, window: Window) -> Sequence[Decision]:
            self.asked.append(anyio.current_time())
            return await super().check(window)

    # Another choice, so that both texts go on.
    thought = b'data: {"choices": [{"index": 1, "delta": {"reasoning_content": "%s"}}]}\n\n' % (b"thought " * 30)
    slow, quick = Noting(), Noting()
    guarded = Guarded(
        Sending([event(_WORDS * 10), 1.0, thought, 30.0]),
        [AgentConfig("slow", slow), AgentConfig("quick", quick)],
        [Guardrail("slow", on={"output"}, max_hold=10.0), Guardrail("quick", on={"reasoning"}, max_hold=0.2)],
    )
    client = Timed()
    await guarded.call(client)
    assert [at - client.began for at in quick.asked[:1]] == [pytest.approx(1.2, abs=0.01)]
    assert [at - client.began for at in slow.asked[:1]] == [pytest.approx(10.0, abs=0.01)]


async def test_a_slow_judge_adds_its_own_time_and_no_more() -> None:
    count = 100
    for seconds, most in ((0.005, 0.2), (0.3, 0.5)):
        pieces: list[bytes | float] = []
        for index in range(count):
            pieces += [event(f"w{index} "), 0.01]
        client = Timed()
        await one(Sending(pieces), SlowFinder(seconds=lambda seconds=seconds: seconds), _OUTPUT).call(client)  # type: ignore[misc]
        assert client.text_by(100) == "".join(f"w{index} " for index in range(count))
        assert client.times[-1][0] <= count * 0.01 + most


async def test_the_app_waits_while_a_judge_hangs_and_memory_is_bounded_by_windows() -> None:
    for mode in FailureMode:
        app = Sending([event("x" * 40) for _ in range(1000)])
        agent = SlowFinder(seconds=lambda: 1000)
        client = Timed()
        guarded = one(app, agent, _OUTPUT, window=400, hold=80, timeout=5.0, failure_mode=mode, circuit_breaker=None)
        sent: list[int] = []

        async def look(app: Sending = app, sent: list[int] = sent) -> None:
            await anyio.sleep(1)
            sent.append(app.sent)
            await anyio.sleep(3.5)
            sent.append(app.sent)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await guarded.call(client)
        # Two windows of 400 code points are judged, and a third may be filled.
        assert sent[0] == sent[1] <= 45
        assert_nothing_left(guarded.middleware.manager)
        if mode is FailureMode.CLOSED:
            assert client.times[-1][0] == pytest.approx(5.0, abs=0.1)
            assert b"Gateway timeout" in client.body
            assert "xx" not in client.text_by(1000)
            assert app.sent == sent[0] or app.sent == sent[0] + 1
        else:
            assert client.text_by(10**9) == "x" * 40_000
            assert client.complete


@pytest.mark.parametrize("mode", FailureMode)
async def test_a_judge_that_is_late_once_stops_the_stream_or_is_gone_on_without(mode: FailureMode) -> None:
    waits = iter([0.0, 30.0])
    app = Sending([event(_WORDS), 2.0, *(event(_WORDS) for _ in range(40)), 2.0, event(f"{ENTITY}, bye.")])
    client = Timed()
    agent = SlowFinder(seconds=lambda: next(waits, 0.0))
    await one(app, agent, _OUTPUT, timeout=1.0, failure_mode=mode, in_flight=1).call(client)
    assert client.complete
    if mode is FailureMode.OPEN:
        # What was judged afterwards is redacted.
        assert client.text_by(100) == _WORDS * 41 + "[0], bye."
    else:
        assert b"Gateway timeout" in client.body
        assert b"bye" not in client.body


async def test_the_app_ends_when_everything_has_left() -> None:
    ended: list[float] = []

    class Noting(Sending):
        async def __call__(self, *args: Any) -> None:
            await super().__call__(*args)
            ended.append(anyio.current_time())

    client = Timed()
    app = Noting([event(_WORDS)])
    await one(app, SlowFinder(seconds=lambda: 0.7), _OUTPUT).call(client)
    assert client.times[-1][0] == pytest.approx(0.7, abs=0.01)
    assert ended[0] - client.began >= client.times[-1][0]


async def test_a_client_that_reads_nothing_holds_the_app_back() -> None:
    for agent in (Finder(), SettlingFinder(), SlowFinder()):
        app = Sending([event("word " * 20), 0.01, *(event("word " * 20) for _ in range(399))])
        client = Timed()
        guarded = one(app, agent, _OUTPUT, window=400, hold=80)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guarded.call, client)
            await anyio.sleep(0.001)
            client.take_nothing()
            await anyio.sleep(5)
            sent = app.sent
            await anyio.sleep(50)
            assert app.sent == sent
            assert sent <= 20
            client.take_everything()
        assert client.text_by(1000) == "word " * 8000


async def test_what_blocks_late_takes_what_waited_with_it() -> None:
    def find(window: Window) -> list[Decision]:
        return [Block("no")] if "bad" in window.text else []

    app = Sending([event("fine words. " * 40), event("bad "), event("word " * 40), 5.0, event("never")])
    client = Timed()
    await one(app, SlowFinder(find, lambda: 0.2), _OUTPUT).call(client)
    text = client.text_by(100)
    assert "bad" not in text
    assert ("fine words. " * 40).startswith(text)
    assert (
        json.loads(client.body.rpartition(b"data: [DONE]")[0].split(b"data: ")[-1])["choices"][0]["finish_reason"]
        == "content_filter"
    )


async def test_a_call_that_is_cancelled_leaves_nothing_behind() -> None:
    for seconds in (0.0, 0.3, 100.0):
        agent = SlowFinder(seconds=lambda seconds=seconds: seconds)  # type: ignore[misc]
        app = Sending([event("word " * 100), 0.5, event("word " * 100), 50.0])
        guarded = one(app, agent, timeout=1000.0)
        for after in (0.1, 0.4, 0.7, 5.0):
            with anyio.move_on_after(after):
                await guarded.call(Timed())
            assert_nothing_left(guarded.middleware.manager)
            assert agent.at_once == 0
