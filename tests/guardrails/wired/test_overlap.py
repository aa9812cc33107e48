"""Requests that are judged while their app runs. Time is virtual."""

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import AgentConfig, FailureMode
from asgi_agents.exchange import overlap
from asgi_agents.guardrails import Block, Decision, Guardrail, Kind, Window
from tests.guardrails.detectors import EMAIL, detector
from tests.guardrails.wired.exchanging import (
    CHAT,
    ENTITY,
    SSE,
    Detecting,
    Finder,
    Guarded,
    Sending,
    SlowFinder,
    asking,
    blocking,
    failing,
    flagging,
    one,
)
from tests.guardrails.wired.test_endings import REASON, event
from tests.guardrails.wired.test_requests import BODIES
from tests.guardrails.wired.test_timing import Timed
from tests.support.asgi import Client, assert_nothing_left, body, start

pytestmark = pytest.mark.anyio

_INPUT: Final[set[Kind]] = {"input"}
_REQUEST: Final = json.dumps(BODIES[CHAT]).encode()
_JSON: Final = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}}]}).encode()
_EARLY: Final[list[list[bytes | float]]] = [[event("early")], [event("early"), 50.0], [50.0]]
# A verdict, and the app, have so many seconds to be heeded.
_AT_ONCE: Final = 0.02


class Asker(Timed):
    """Asks about something, and notes when it was sent what."""

    def __init__(self, path: str = CHAT, **options: Any) -> None:
        data = json.dumps(BODIES[path]).encode()
        Client.__init__(
            self, "POST", path, headers=[(b"content-type", b"application/json")], body=data, lenient=True, **options
        )
        self.times = []
        self.began = 0.0

    @property
    def first(self) -> float:
        """When it had its first byte."""
        return self.times[0][0]


def overlapping(app: Any, agent: Any, on: Any = _INPUT, **options: Any) -> Guarded:
    return one(app, agent, on, overlap=True, **options)


def late(seconds: float, find: Any = flagging) -> SlowFinder:
    return SlowFinder(find, lambda: seconds)


def streaming(bare: float = 0.0) -> Sending:
    return Sending([bare, event("fine "), event("words")])


class Staying:
    """Sends the beginning of a stream and stays.

    :param listens: whether it waits for the client to leave, and then ends.
    """

    def __init__(self, *, listens: bool) -> None:
        self.listens = listens
        self.began = 0.0
        self.left_at: float | None = None
        self.ended: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.began = anyio.current_time()
        await receive()
        try:
            await send(start(200, (b"content-type", SSE.encode())))
            await send(body(event("early"), more=True))
            if self.listens:
                assert (await receive())["type"] == "http.disconnect"
                self.left_at = anyio.current_time() - self.began
            else:
                await anyio.sleep(100)
        finally:
            self.ended = anyio.current_time() - self.began


# Time


@pytest.mark.parametrize(("judge", "bare"), [(0.3, 0.1), (0.1, 0.3), (0.3, 0.3), (0.3, 0.0), (0.0, 0.2)])
@pytest.mark.parametrize("streams", [True, False])
async def test_the_first_token_comes_with_the_later_of_verdict_and_app(
    judge: float, bare: float, streams: bool
) -> None:
    app = streaming(bare) if streams else Sending([bare, _JSON], "application/json")
    client = Asker()
    await overlapping(app, late(judge)).call(client)
    assert client.first >= judge
    began = next(at for at, data in client.times if data)
    assert began <= max(judge, bare) + _AT_ONCE
    assert client.body == b"".join(piece for piece in app.pieces if isinstance(piece, bytes))
    assert client.complete


async def test_without_overlap_the_app_begins_after_the_verdict() -> None:
    client = Asker()
    await one(streaming(0.1), late(0.3), _INPUT).call(client)
    assert client.first == pytest.approx(0.3, abs=0.01)
    assert next(at for at, data in client.times if data) == pytest.approx(0.4, abs=0.01)


async def test_guardrails_that_overlap_judge_in_parallel() -> None:
    agents = [AgentConfig(name, late(seconds)) for name, seconds in (("a", 0.2), ("b", 0.3), ("c", 0.25))]
    guarded = Guarded(streaming(), agents, [Guardrail(name, on=_INPUT, overlap=True) for name in "abc"])
    client = Asker()
    await guarded.call(client)
    assert client.first == pytest.approx(0.3, abs=_AT_ONCE)


async def test_a_block_waits_for_no_other_verdict() -> None:
    agents = [AgentConfig("slow", late(5.0)), AgentConfig("quick", late(0.1, blocking(ENTITY)))]
    guarded = Guarded(streaming(), agents, [Guardrail(name, on=_INPUT, overlap=True) for name in ("slow", "quick")])
    client = Asker()
    await guarded.call(client)
    assert client.status == 400
    assert client.first == pytest.approx(0.1, abs=_AT_ONCE)
    assert_nothing_left(guarded.middleware.manager)


async def test_where_no_verdict_is_late_nothing_suspends() -> None:
    for find, status in ((flagging, 200), (blocking(ENTITY), 400)):
        app = streaming()
        app.pieces = [piece for piece in app.pieces if piece]
        guarded = overlapping(app, Finder(find))
        client = asking(CHAT, _REQUEST)
        call = guarded.call(client)
        with pytest.raises(StopIteration):
            call.send(None)
        assert client.status == status
        assert app.calls == (1 if status == 200 else 0)


# What is held


async def test_nothing_leaves_before_the_verdict_and_then_everything_does_in_its_order() -> None:
    messages: list[Message] = [
        {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]},
        start(201, (b"content-type", SSE.encode()), (b"x-app", b"1")),
        *(body(event(f"w{index} "), more=True) for index in range(20)),
        body(),
    ]
    sent_at: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            await send(message)
            sent_at.append(anyio.current_time())

    client = Asker(extensions={"http.response.early_hint": {}})
    guarded = overlapping(app, late(0.3))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded.call, client)
        await anyio.sleep(0.29)
        assert client.messages == []
    assert client.messages == messages
    # None but the last one waited.
    assert [at - client.began < _AT_ONCE for at in sent_at] == [True] * (len(messages) - 1) + [False]


async def test_what_the_app_does_after_its_answer_comes_after_the_verdict() -> None:
    done: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", b"application/json")))
        await send(body(_JSON))
        done.append(anyio.current_time())

    for find, answered in ((flagging, True), (blocking(ENTITY), False)):
        done.clear()
        client = Asker()
        await overlapping(app, late(0.3, find)).call(client)
        assert [at - client.began >= 0.3 for at in done] == ([True] if answered else [])


async def test_messages_of_two_tasks_keep_their_order() -> None:
    order: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        count = iter(range(1000))

        async def write(pause: float) -> None:
            for _ in range(50):
                number = next(count)
                order.append(number)
                await send(body(event(f"{number} "), more=True))
                await anyio.sleep(pause)

        await send(start(200, (b"content-type", SSE.encode())))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, 0.003)
            tasks.start_soon(write, 0.008)
        await send(body())

    client = Asker()
    await overlapping(app, late(0.1)).call(client)
    assert client.text_by(10) == "".join(f"{number} " for number in order)
    assert len(order) == 100


async def test_the_app_may_use_its_buffer_again() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", b"text/plain")))
        buffer = bytearray(2)
        for index in range(5):
            buffer[:] = b"%02d" % index
            await send({"type": "http.response.body", "body": buffer, "more_body": True})
        await send(body())

    client = Asker()
    await overlapping(app, late(0.1)).call(client)
    assert client.body == b"0001020304"


async def test_a_file_is_sent_before_the_app_may_close_it() -> None:
    closed = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal closed
        await send(start(200, (b"content-type", b"image/png")))
        await send({"type": "http.response.zerocopysend", "file": 7, "more_body": True})
        closed = True
        await send(body())

    class Server(Asker):
        async def send(self, message: Message) -> None:
            if message["type"] == "http.response.zerocopysend":
                assert not closed
            await super().send(message)

    client = Server(extensions={"http.response.zerocopysend": {}})
    await overlapping(app, late(0.3)).call(client)
    assert [message["type"].rpartition(".")[2] for message in client.messages] == ["start", "zerocopysend", "body"]


@pytest.mark.parametrize("size", [10, 10_000])
async def test_an_app_that_is_far_ahead_of_the_verdict_waits(size: int) -> None:
    piece = event("x" * size)
    most = min(overlap.MAX_HELD_BYTES // len(piece), overlap.MAX_HELD_MESSAGES) + 2
    app = Sending([piece] * (most + 500))
    client = Asker()
    guarded = overlapping(app, late(0.5))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded.call, client)
        await anyio.sleep(0.4)
        assert most - 4 <= app.sent <= most
    assert app.finished
    assert client.body == piece * (most + 500)


async def test_the_answer_is_judged_as_always() -> None:
    agents = [AgentConfig("judge", late(0.2)), AgentConfig("emails", Finder())]
    guardrails = [Guardrail("judge", on=_INPUT, overlap=True), Guardrail("emails", on={"output"})]
    app = Sending([event("I am alice.smith"), event("@example.com, "), event("bye.")])
    client = Asker()
    await Guarded(app, agents, guardrails).call(client)
    assert client.text_by(10) == "I am [0], bye."
    agents[1] = AgentConfig("emails", late(0.1, blocking("bye")))
    guarded = Guarded(Sending(app.pieces), agents, guardrails)
    client = Asker()
    await guarded.call(client)
    assert b"content_filter" in client.body
    assert guarded.record.decided_by == "emails"
    assert client.complete


# Blocks and failures


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("how", ["block", "failure", "timeout"])
async def test_a_call_that_is_stopped_is_answered_as_if_the_app_had_never_run(path: str, how: str) -> None:
    find = failing if how == "failure" else blocking(ENTITY)
    answers: list[tuple[Any, Any, bytes]] = []
    for overlaps in (False, True):
        for pieces in _EARLY:
            app = Sending(pieces)
            guarded = one(
                app,
                late(100.0 if how == "timeout" else 0.1, find),
                _INPUT,
                overlap=overlaps,
                timeout=0.5,
                circuit_breaker=None,
            )
            client = Asker(path)
            await guarded.call(client)
            assert app.calls == overlaps
            assert client.complete
            assert [message["type"] for message in client.messages] == ["http.response.start", "http.response.body"]
            assert guarded.record.decided_by == "g"
            assert_nothing_left(guarded.middleware.manager)
            answers.append((client.status, client.headers, client.body))
    assert answers[0][0] == {"block": 400, "failure": 503, "timeout": 504}[how]
    assert answers == [answers[0]] * 6


async def test_in_fail_open_mode_a_failure_lets_the_answer_pass() -> None:
    for agent in (late(0.1, failing), late(100.0)):
        guarded = overlapping(streaming(), agent, failure_mode=FailureMode.OPEN, timeout=0.5, circuit_breaker=None)
        client = Asker()
        await guarded.call(client)
        assert client.text_by(10) == "fine words"
        assert guarded.record.passed_open == ["g"]


async def test_an_app_that_listens_is_told_of_a_block_at_once() -> None:
    app = Staying(listens=True)
    client = Asker()
    await overlapping(app, late(0.3, blocking(ENTITY))).call(client)
    assert app.left_at is not None
    assert app.left_at + 0.001 >= 0.3
    assert app.left_at <= 0.3 + _AT_ONCE
    assert app.ended == pytest.approx(app.left_at, abs=0.001)
    assert client.status == 400


@pytest.mark.parametrize("grace", [0.0, 0.5, 3.0])
async def test_an_app_that_notices_nothing_is_cancelled_within_the_grace(grace: float) -> None:
    app = Staying(listens=False)
    client = Asker()
    await overlapping(app, late(0.3, blocking(ENTITY)), stop_grace=grace).call(client)
    assert app.ended == pytest.approx(0.3 + grace, abs=_AT_ONCE)
    assert client.times[-1][0] <= 0.3 + _AT_ONCE
    assert client.status == 400


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_an_app_that_sends_finds_its_client_gone(spec_version: str) -> None:
    app = Sending([piece for _ in range(100) for piece in (event("word "), 0.01)])
    client = Asker(spec_version=spec_version)
    await overlapping(app, late(0.3, blocking(ENTITY))).call(client)
    assert client.status == 400
    if spec_version == "2.4":
        assert isinstance(app.raised, OSError)
        assert app.sent <= 32
    else:
        # As where its client has left.
        assert app.finished


async def test_a_block_reaches_an_app_that_waits_because_it_is_far_ahead() -> None:
    app = Sending([event("x" * 100_000)] * 1000)
    client = Asker()
    await overlapping(app, late(0.3, blocking(ENTITY))).call(client)
    assert client.status == 400
    assert isinstance(app.raised, OSError)


# What can't be done


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("agent", [late(0.1, detector(EMAIL)), Finder()], ids=["late", "at once"])
async def test_a_redaction_comes_too_late_and_is_a_failure(
    mode: FailureMode, agent: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = streaming()
    guarded = overlapping(app, agent, failure_mode=mode)
    client = Asker()
    await guarded.call(client)
    assert guarded.record.guardrails[0].counts == {"failure": 1}
    assert "redacts a request that the app has already (overlap=True)" in caplog.text
    assert ENTITY not in caplog.text
    if mode is FailureMode.CLOSED:
        assert client.status == 503
        assert not app.finished
    else:
        assert client.text_by(10) == "fine words"
        assert app.body == _REQUEST
        assert guarded.record.passed_open == ["g"]


async def test_a_redaction_beside_a_block_needs_not_be_done() -> None:
    def find(window: Window) -> list[Decision]:
        return [*detector(EMAIL)(window), Block(REASON)]

    guarded = overlapping(streaming(), late(0.1, find))
    client = Asker()
    await guarded.call(client)
    assert client.status == 400
    assert guarded.record.guardrails[0].counts == {"block": 1}


async def test_a_detection_that_asks_for_a_redaction_is_one() -> None:
    class Asking(Detecting):
        async def on_guardrail_inspect(self, event: Any) -> Any:
            await anyio.sleep(0.1)
            answer = await super().on_guardrail_inspect(event)
            return type(answer)(
                detected=True,
                confidence=1.0,
                detections=[
                    type(found)(category=found.category, description="", span=found.span, action="redact")
                    for found in answer.detections
                ],
            )

    guarded = overlapping(streaming(), Asking(), action="flag")
    client = Asker()
    await guarded.call(client)
    assert client.status == 503
    assert guarded.record.guardrails[0].counts == {"failure": 1}


# Others


async def test_guardrails_that_do_not_overlap_come_first_and_their_redactions_are_seen() -> None:
    app = streaming(0.2)
    judge = late(0.3)
    agents = [AgentConfig("judge", judge), AgentConfig("emails", late(0.1, detector(EMAIL)))]
    guardrails = [Guardrail("judge", on=_INPUT, overlap=True), Guardrail("emails", on=_INPUT)]
    client = Asker()
    await Guarded(app, agents, guardrails).call(client)
    assert [window.text for window in judge.windows] == ["I am [0]"]
    assert json.loads(app.body)["messages"][0]["content"] == "I am [0]"
    assert client.first == pytest.approx(0.4, abs=_AT_ONCE)


async def test_where_there_is_nothing_to_judge_nothing_is_held() -> None:
    for data in (b'{"model": "m", "messages": []}', b""):
        app = streaming()
        client = asking(CHAT, data)
        await overlapping(app, late(100.0)).call(client)
        assert client.complete
        assert client.status == 200


async def test_a_shadow_agent_overlaps_without_holding_anything() -> None:
    guarded = overlapping(streaming(), late(0.3, blocking(ENTITY)), enforce=False)
    client = Asker()
    await guarded.call(client)
    assert client.times[-1][0] < 0.001
    assert guarded.record.guardrails[0].counts == {"flag": 1}


async def test_a_client_that_leaves_ends_the_judging_and_the_app_is_told() -> None:
    for listens in (True, False):
        for spec_version in ("2.3", "2.4"):
            app = Staying(listens=listens)
            agent = late(50.0)
            guarded = overlapping(app, agent, timeout=100.0)
            client = Asker(spec_version=spec_version)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guarded.call, client)
                await anyio.sleep(1)
                assert agent.at_once == 1
                client.leave()
                await anyio.sleep(_AT_ONCE)
                assert agent.at_once == 0
                if listens:
                    assert app.left_at == pytest.approx(1, abs=_AT_ONCE)
                tasks.cancel_scope.cancel()
            assert client.messages == []
            assert_nothing_left(guarded.middleware.manager)


async def test_an_app_that_reads_late_is_told_that_its_client_has_left() -> None:
    received: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep(1)
        received.extend([(await receive())["type"] for _ in range(3)])

    guarded = overlapping(app, late(50.0), timeout=100.0)
    client = Asker()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded.call, client)
        await anyio.sleep(0.5)
        client.leave()
    assert received == ["http.request", "http.disconnect", "http.disconnect"]


async def test_the_exchange_of_an_app_that_is_done_waits_for_the_verdict() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> str:
        return "returned"

    for find, status in ((flagging, None), (blocking(ENTITY), 400)):
        client = Asker()
        guarded = overlapping(silent, late(0.3, find))
        await guarded.call(client)
        assert anyio.current_time() - client.began == pytest.approx(0.3, abs=_AT_ONCE)
        assert client.status == status


@pytest.mark.parametrize("begins", [True, False])
async def test_what_the_app_raises_comes_after_the_verdict(begins: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def raising(scope: Scope, receive: Receive, send: Send) -> None:
        if begins:
            await send(start(200, (b"content-type", SSE.encode())))
            await send(body(event("early"), more=True))
        raise LookupError(f"of the app, {ENTITY}")

    client = Asker()
    with pytest.raises(LookupError, match="of the app"):
        await overlapping(raising, late(0.3)).call(client)
    assert anyio.current_time() - client.began == pytest.approx(0.3, abs=_AT_ONCE)
    assert client.text_by(10) == ("early" if begins else "")
    assert not client.complete

    caplog.set_level(logging.INFO)
    client = Asker()
    await overlapping(raising, late(0.3, blocking(ENTITY))).call(client)
    assert client.status == 400
    assert "LookupError" in caplog.text
    assert ENTITY not in caplog.text


async def test_what_the_server_raises_reaches_the_app() -> None:
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", SSE.encode())))
        await anyio.sleep(0.5)
        try:
            await send(body(event("word"), more=True))
        except RuntimeError as exc:
            raised.append(exc)
            raise

    class Failing(Asker):
        async def send(self, message: Message) -> None:
            raise RuntimeError("the server's")

    with pytest.raises(RuntimeError, match="the server's"):
        await overlapping(app, late(0.3)).call(Failing())
    assert [str(exc) for exc in raised] == ["the server's"]


async def test_an_exchange_that_is_cancelled_leaves_nothing_behind() -> None:
    apps: list[Callable[[], Any]] = [
        lambda: streaming(0.1),
        lambda: Staying(listens=False),
        lambda: Sending([event("x" * 100_000)] * 100),
    ]
    for make in apps:
        for after in (0.01, 0.2, 0.31):
            agent = late(0.3)
            guarded = overlapping(make(), agent)
            client = Asker()
            with anyio.move_on_after(after):
                await guarded.call(client)
            assert agent.at_once == 0
            assert_nothing_left(guarded.middleware.manager)
            if after < 0.3:
                assert client.messages == []


async def test_a_task_that_sends_while_the_exchange_is_cancelled_sends_nothing_unjudged() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await start_and_end(send)

    async def start_and_end(send: Callable[[Message], Awaitable[None]]) -> None:
        try:
            await send(start(200, (b"content-type", SSE.encode())))
            await send(body(event("early")))
        except OSError:
            pass

    client = Asker()
    with anyio.move_on_after(0.1):
        await overlapping(app, late(0.3)).call(client)
    assert client.messages == []
