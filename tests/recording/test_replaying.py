"""A replay finds the same decisions of the same agent, and exactly what differs of another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    BodyMutation,
    EventType,
    FailureKind,
    HttpTransport,
    Opcode,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    WebSocketFrameEvent,
)
from asgi_agents.recording import (
    FieldDifference,
    ReplayReport,
    record,
    replay,
    replaying,
)
from asgi_agents.serve import agent_app
from tests.observability.spans import serving
from tests.support.sample_events import COMPLETE, HEAD, QUESTION, head

from .judges import Judge, answering, ask_all, exchanges_in, number_of

_OTHER_BLOCK = {"block": {"status": 418, "body": "changed", "headers": None}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


async def record_judge(path: Path, requests: int, **options: Any) -> list[int]:
    """Record a Judge; the statuses of the responses."""
    app = AgentMiddleware(answering(b"hello"), agents=[AgentConfig("judge", Judge(), body_access="write")])
    async with record(app, path, **{"bodies": True, **options}):
        return await ask_all(app, requests, named=True)


def every(number: int) -> Callable[[Any], bool]:
    """About one of so many events, whatever they are."""
    # An agent in another process finds what was recorded before the suffix of this one.
    return lambda event: number_of(event.event_type.value, event.correlation_id.partition("~")[0]) % number == 0


def expected(path: Path, changes: Callable[[Any], bool]) -> list[tuple[int, EventType]]:
    """The exchanges that a changed Judge answers otherwise: all but those after which nothing changes."""
    return [
        (exchange.about.n, exchange.event.event_type)
        for exchange in exchanges_in(path)
        # The end of a request is answered in one way only.
        if changes(exchange.event) and exchange.event.event_type is not EventType.REQUEST_COMPLETE
    ]


def found(report: ReplayReport) -> list[tuple[int, EventType]]:
    return [(difference.n, difference.event) for difference in report.differences]


# The same, and exactly the differences


@pytest.mark.parametrize("requests", [70, pytest.param(3_600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_the_same_agent_decides_the_same_and_a_changed_one_differs_where_it_was_changed(
    requests: int, concurrency: int, path: Path
) -> None:
    await record_judge(path, requests)
    exchanges = exchanges_in(path)
    assert len(exchanges) >= 2.8 * requests
    same = await replay(path, Judge(suspends=concurrency > 1), concurrency=concurrency)
    assert (same.compared, same.same, same.different) == (len(exchanges), len(exchanges), 0)
    assert (same.ok, same.failed, same.unheard, same.not_replayed, same.complete) == (True, 0, 0, {}, True)
    assert same.recorded_seconds.count == same.replayed_seconds.count == len(exchanges)

    changes = every(20)
    differing = expected(path, changes)
    assert len(differing) > requests / 20
    changed = await replay(path, Judge(changes, suspends=concurrency > 1), concurrency=concurrency)
    assert found(changed) == differing
    assert (changed.different, changed.same, changed.ok) == (len(differing), len(exchanges) - len(differing), False)
    for difference in changed.differences:
        now = {field.name: field.now for field in difference.fields}
        assert now["decision"] == _OTHER_BLOCK
        assert all(value is None for name, value in now.items() if name != "decision")


@pytest.mark.parametrize("kind", ["stream", "http"])
@pytest.mark.parametrize("concurrency", [1, 5])
async def test_an_agent_behind_a_url_is_replayed_against(kind: str, concurrency: int, path: Path) -> None:
    await record_judge(path, 20)
    changes = every(5)
    options: dict[str, Any] = {"concurrency": concurrency, "timeout": 30.0}
    if kind == "stream":
        async with serving(Judge(changes, suspends=True)) as address:
            report = await replay(path, address, **options)
    else:
        transport = HttpTransport("http://agent/", transport=httpx.ASGITransport(agent_app(Judge(changes))))
        report = await replay(path, transport, **options)
    assert found(report) == expected(path, changes)
    assert report.failed == 0


async def test_messages_and_questions_are_replayed(path: Path) -> None:
    frames = [
        WebSocketFrameEvent(
            correlation_id="c", opcode=Opcode.TEXT, data=b"%d" % n, client_to_server=True, frame_index=n, client_ip=""
        )
        for n in range(40)
    ]
    async with AgentManager([AgentConfig("judge", Judge())]) as manager, record(manager, path, bodies=True):
        for frame in frames:
            await manager.process_websocket_frame(frame)
        await manager.call_guardrail_agent("judge", QUESTION)
    assert (await replay(path, Judge())).same == 41
    changes: Callable[[Any], bool] = lambda event: getattr(event, "frame_index", 7) == 7  # noqa: E731
    report = await replay(path, Judge(changes))
    assert found(report) == [(8, EventType.WEBSOCKET_FRAME), (41, EventType.GUARDRAIL_INSPECT)]
    assert report.differences[1].fields == (
        FieldDifference("detected", False, True),
        FieldDifference("confidence", 0.0, 0.5),
    )


async def test_events_are_asked_about_in_the_order_in_which_the_calls_began(path: Path) -> None:
    await record_judge(path, 20)
    recorded = [exchange.event for exchange in exchanges_in(path)]
    judge = Judge()
    await replay(path, judge)
    assert judge.heard == recorded
    beside = Judge(suspends=True)
    await replay(path, beside, concurrency=4)
    assert beside.heard != recorded
    for name in {event.correlation_id for event in recorded}:  # type: ignore[union-attr]
        assert [event for event in beside.heard if event.correlation_id == name] == [  # type: ignore[union-attr]
            event
            for event in recorded
            if event.correlation_id == name  # type: ignore[union-attr]
        ]


class Counted(Agent):
    """Counts how many of its calls are under way."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await anyio.sleep(0.01)
        self.now -= 1


@pytest.mark.parametrize("concurrency", [1, 3, 20])
async def test_no_more_calls_are_under_way_than_it_says(concurrency: int, path: Path) -> None:
    async with AgentManager([AgentConfig("a", Counted())]) as manager, record(manager, path):
        for number in range(40):
            await manager.process_request_headers(head(str(number)))
    agent = Counted()
    assert (await replay(path, agent, concurrency=concurrency)).compared == 40
    assert agent.most == concurrency


async def test_no_call_waits_for_others_within_its_deadline(path: Path) -> None:
    class Takes(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            await anyio.sleep(0.7)

    async with AgentManager([AgentConfig("a", Takes())]) as manager, record(manager, path):
        for number in range(10):
            await manager.process_request_headers(head(str(number)))
    report = await replay(path, Takes(), concurrency=2)
    assert (report.same, report.failed) == (10, 0)


async def test_pieces_of_bodies_have_their_own_deadline_again(path: Path) -> None:
    class Takes(Agent):
        async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
            await anyio.sleep(3)

    config = AgentConfig("a", Takes(), response_body_mode="stream")
    app = AgentMiddleware(answering(), agents=[config])
    async with record(app, path, bodies=True):
        assert await ask_all(app, 1) == [200]
    report = await replay(path, Takes())
    assert report.compared > 0
    assert (report.different, report.failed) == (0, 0)
    assert (await replay(path, Takes(), timeout=2.0)).failed == report.compared


async def test_no_more_wait_behind_others_than_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "MAX_WAITING", 5)
    async with AgentManager([AgentConfig("a", Counted())]) as manager, record(manager, path):
        for number in range(60):
            await manager.process_request_headers(head(str(number % 2)))
    assert (await replay(path, Counted(), concurrency=4)).same == 60


# What is compared, and what is not


class Fixed(Agent):
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def on_request_headers(self, event: RequestHeadersEvent) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


async def record_one(path: Path, answer: Any, **options: Any) -> None:
    config = AgentConfig("a", Fixed(answer), circuit_breaker=None)
    async with AgentManager([config]) as manager, record(manager, path, **options):
        await manager.process_request_headers(HEAD)


ALLOWS = AgentResponse.allow()
TAGGED = AgentResponse.allow(audit=AuditMetadata(tags=("a",)))


@pytest.mark.parametrize(
    ("before", "after", "ignore", "fields"),
    [
        (None, ALLOWS, (), []),
        (None, AgentResponse(), (), []),
        (None, TAGGED, (), [("audit.tags", None, ["a"])]),
        (None, TAGGED, {"audit"}, []),
        (None, TAGGED, {"audit.tags"}, []),
        (None, TAGGED, {"audit.rule_ids"}, [("audit.tags", None, ["a"])]),
        (AgentResponse.block(403), AgentResponse.block(403), (), []),
        (
            AgentResponse.block(403),
            AgentResponse.block(401),
            {"audit"},
            [
                (
                    "decision",
                    {"block": {"status": 403, "body": None, "headers": None}},
                    {"block": {"status": 401, "body": None, "headers": None}},
                )
            ],
        ),
        (ALLOWS, AgentResponse.allow(needs_more=True), (), [("needs_more", None, True)]),
        (AgentResponse.allow(routing_metadata={"a": "b"}), None, (), [("routing_metadata", {"a": "b"}, None)]),
        (ValueError("one"), KeyError("another"), (), []),
        (ValueError(), None, (), [("failure", "error", None), ("decision", None, "allow")]),
        (None, ValueError(), (), [("decision", "allow", None), ("failure", None, "error")]),
        (None, ValueError(), {"failure", "decision"}, []),
    ],
)
async def test_each_part_of_an_answer_that_differs_is_named(
    before: Any, after: Any, ignore: Any, fields: list[tuple[str, Any, Any]], path: Path
) -> None:
    await record_one(path, before)
    report = await replay(path, Fixed(after), ignore=ignore)
    assert report.ok is (not fields)
    assert [FieldDifference(*field) for field in fields] == [
        field for difference in report.differences for field in difference.fields
    ]


async def test_an_answer_that_was_redacted_is_compared_as_it_would_be_recorded(path: Path) -> None:
    answer = AgentResponse.redirect("/login?token=abcdefgh")
    await record_one(path, answer)
    assert (await replay(path, Fixed(answer))).ok
    other = AgentResponse.redirect("/login?token=ijklmnop")
    assert (await replay(path, Fixed(other))).ok
    await record_one(path, answer, redact=None)
    assert (await replay(path, Fixed(answer))).ok
    assert not (await replay(path, Fixed(other))).ok


async def test_a_redaction_of_ones_own_is_needed_again(path: Path) -> None:
    answer = AgentResponse.block(403, "said by Ada")

    def redact(text: str) -> str:
        return text.replace("Ada", "somebody")

    await record_one(path, answer, redact=redact)
    assert not (await replay(path, Fixed(answer))).ok
    assert (await replay(path, Fixed(answer), redact=redact)).ok


async def test_bodies_that_were_not_recorded_are_counted_and_not_asked_about(path: Path) -> None:
    await record_judge(path, 20, bodies=False)
    judge = Judge()
    report = await replay(path, judge)
    exchanges = exchanges_in(path)
    bodies = [exchange for exchange in exchanges if hasattr(exchange.event, "data")]
    assert report.not_replayed == {
        event_type.value: sum(exchange.event.event_type is event_type for exchange in bodies)
        for event_type in (EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK)
    } or set(report.not_replayed) == {"response_body_chunk", "request_body_chunk"}
    assert sum(report.not_replayed.values()) == len(bodies)
    assert report.same == report.compared == len(exchanges) - len(bodies) == len(judge.heard)
    assert "recorded without content (bodies=False," in str(report)


async def test_a_recording_of_bodies_alone_without_them_compares_nothing_and_is_not_ok(path: Path) -> None:
    async with AgentManager([AgentConfig("a", Judge())]) as manager, record(manager, path):
        await manager.call_guardrail_agent("a", QUESTION)
    report = await replay(path, Judge())
    assert (report.compared, report.not_replayed, report.ok) == (0, {"guardrail_inspect": 1}, False)
    with pytest.raises(AssertionError, match="nothing could be compared"):
        report.check()


async def test_events_that_a_new_agent_does_not_receive_count_as_an_allow(path: Path) -> None:
    await record_judge(path, 20)
    report = await replay(path, Fixed(None), ignore={"audit"})
    heads = [one for one in exchanges_in(path) if one.event.event_type is EventType.REQUEST_HEADERS]
    assert report.unheard == report.compared - len(heads)
    changed = {exchange.about.n for exchange in exchanges_in(path) if exchange.answer != {"decision": "allow"}}
    tagged = {one.about.n for one in heads if one.answer and set(one.answer) == {"decision", "audit"}}
    assert {difference.n for difference in report.differences} == changed - {
        n for n in tagged if any(one.about.n == n and one.answer and one.answer["decision"] == "allow" for one in heads)
    }


@pytest.mark.parametrize("events", [{EventType.RESPONSE_HEADERS}, set()])
async def test_an_agent_that_was_asked_about_nothing_is_not_said_to_decide_the_same(events: Any, path: Path) -> None:
    async with AgentManager([AgentConfig("a", Judge())]) as manager, record(manager, path):
        await manager.process_request_headers(HEAD)
        await manager.process_request_complete(COMPLETE)
    judge = Judge()
    report = await replay(path, judge, events=events, ignore={"request_headers", "audit"})
    assert (judge.heard, report.compared, report.unheard, report.different) == ([], 2, 2, 0)
    assert not report.ok
    with pytest.raises(AssertionError, match="the agent was asked about nothing"):
        report.check()


async def test_what_an_open_breaker_had_refused_is_not_asked_about(path: Path) -> None:
    async with AgentManager([AgentConfig("a", Fixed(ValueError()))]) as manager, record(manager, path):
        for number in range(8):
            await manager.process_request_headers(head(str(number)))
    kinds = [exchange.failure and exchange.failure.kind for exchange in exchanges_in(path)]
    assert kinds == [FailureKind.ERROR] * 5 + [FailureKind.BREAKER_OPEN] * 3
    report = await replay(path, Fixed(KeyError()))
    assert (report.compared, report.same, report.not_asked, report.failed) == (5, 5, 3, 5)


async def test_what_was_given_up_is_asked_about_and_not_compared(path: Path) -> None:
    class Waits(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            await anyio.sleep(5)

    async with AgentManager([AgentConfig("a", Waits(), timeout=60)]) as manager, record(manager, path):
        with anyio.move_on_after(1):
            await manager.process_request_headers(HEAD)
        await manager.process_request_headers(HEAD)
    report = await replay(path, Fixed(AgentResponse.block()))
    assert (report.compared, report.different, report.given_up) == (1, 1, 1)


async def test_answers_are_checked_by_the_settings_that_the_agent_had_at_the_time(path: Path) -> None:
    def config(access: Any) -> AgentConfig:
        return AgentConfig("judge", Judge(), body_access=access, circuit_breaker=None)

    app = AgentMiddleware(answering(), agents=[config("read")])
    async with app.manager, record(app, path, bodies=True):
        for access in ("write", "read"):
            await ask_all(app, 20)
            await app.manager.replace_agent(config(access))
    exchanges = exchanges_in(path)
    failed = [exchange.about.n for exchange in exchanges if exchange.failure is not None]
    assert failed
    assert max(failed) < max(exchange.about.n for exchange in exchanges if "body_mutation" in str(exchange.answer))
    report = await replay(path, Judge())
    assert (report.different, report.failed) == (0, len(failed))


# Settings that change meanwhile


class Bodies(Agent):
    """Blocks a body with a word in it."""

    def __init__(self, word: bytes = b"none") -> None:
        self.word = word

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(403) if self.word in event.data else None


def behind_http(agent: Agent) -> HttpTransport:
    return HttpTransport("http://agent/", transport=httpx.ASGITransport(agent_app(agent)))


@pytest.mark.parametrize("first", [True, False])
async def test_an_agent_is_asked_about_all_that_the_recorded_one_has_received_in_its_time(
    first: bool, path: Path
) -> None:
    heads = {EventType.REQUEST_HEADERS}
    events = [heads, heads | {EventType.REQUEST_BODY_CHUNK}]
    one, other = events if first else reversed(events)
    chunk = RequestBodyChunkEvent(correlation_id="c", data=b"evil", is_last=True)
    configs = [AgentConfig("waf", behind_http(Bodies()), events=each) for each in (one, other)]
    async with AgentManager(configs[:1]) as manager, record(manager, path, bodies=True):
        for config in configs:
            await manager.replace_agent(config)
            await manager.process_request_headers(HEAD)
            await manager.process_request_body(chunk)
    report = await replay(path, behind_http(Bodies(b"evil")))
    assert (report.compared, report.different, report.unheard, report.ok) == (3, 1, 0, False)
    assert (await replay(path, behind_http(Bodies()))).ok


class Changes(Agent):
    """Puts something else into the place of each body, and takes its time for that."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        await anyio.sleep(1)
        return AgentResponse.allow(request_body_mutation=BodyMutation(b"x"))


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_answers_are_checked_by_the_settings_that_the_agent_had_then(concurrency: int, path: Path) -> None:
    async with AgentManager([AgentConfig("waf", Changes(), timeout=60)]) as manager, record(manager, path, bodies=True):
        for number in range(12):
            if number in (3, 7):
                access: Any = "write" if number == 3 else "read"
                config = AgentConfig("waf", Changes(), body_access=access, timeout=60, circuit_breaker=None)
                await manager.replace_agent(config)
            event = RequestBodyChunkEvent(correlation_id=f"c-{number % 5}", data=b"a", is_last=True)
            await manager.process_request_body(event)
    report = await replay(path, Changes(), concurrency=concurrency)
    assert (report.compared, report.different, report.failed) == (12, 0, 8)
