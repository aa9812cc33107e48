"""What is told of guardrails: spans, metrics and lines of the log. Never the text that was judged."""

import logging
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import StatusCode

from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, AuditRecord, FailureMode
from asgi_agents.guardrails import Guardrail, TextGuardrail, Window
from asgi_agents.manager import registry_of
from asgi_agents.observability.metrics import TextTally
from asgi_agents.status.snapshot import take_snapshot
from tests.support.asgi import Client

from .judged_text import MARKER, Chat, Obedient, Pausing, asking, raw_request
from .spans import Spans, attributes, is_child

each_failure_mode = pytest.mark.parametrize("mode", FailureMode, ids=lambda mode: mode.value)


class World:
    """An app behind guardrails, and all that is written down of it."""

    def __init__(self, spans: Spans, app: Any, *agents: AgentConfig, **options: Any) -> None:
        self.spans = spans
        self.records: list[AuditRecord] = []
        self.reader = InMemoryMetricReader()
        self.manager = AgentManager(
            agents, tracer_provider=spans.provider, meter_provider=MeterProvider([self.reader], shutdown_on_exit=False)
        )
        self.app = AgentMiddleware(
            app,
            manager=self.manager,
            default_agents=[],
            guardrails=[Guardrail(agent.id, on={"input", "output"}, **options) for agent in agents],
            on_audit=self.records.append,
        )

    def tally(self, agent_id: str = "judge") -> TextTally:
        return registry_of(self.manager).guard(agent_id).tally.text

    def metrics(self) -> str:
        """All that goes to OpenTelemetry's exporters."""
        return self.reader.get_metrics_data().to_json()  # type: ignore[union-attr]

    def written(self, caplog: pytest.LogCaptureFixture) -> dict[str, str]:
        """Everything that operators see, by where they see it."""
        return {
            "log": "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records),
            "log, formatted": caplog.text,
            "audit": "\n".join(f"{record} {record!r}" for record in self.records),
            "spans": "\n".join(span.to_json() for span in self.spans.finished),
            "metrics": self.metrics(),
            "prometheus": self.manager.export_prometheus(),
            "counts": repr(self.manager.metrics),
            "status": msgspec.json.encode(take_snapshot(registry_of(self.manager))).decode(),
        }


def judge(**options: Any) -> AgentConfig:
    return AgentConfig("judge", Obedient(), **options)


def windows_of(config: AgentConfig) -> list[Window]:
    agent = config.resolved_transport.agent  # type: ignore[attr-defined]
    assert isinstance(agent, Obedient)
    return agent.windows


# Spans


async def test_all_windows_of_a_connection_share_one_span(spans: Spans) -> None:
    prompt, slow = judge(), AgentConfig("slow", Pausing())
    world = World(spans, Chat("one ", "two ", f"redact:{MARKER} ", *["and three "] * 10), prompt, slow)
    with spans.server() as server:
        client = asking(f"hello flag:{MARKER}")
        await client.call(world.app)

    assert client.body.count(b"[gone]") == 1
    assert spans.names == ["guardrail_windows"]
    span = spans.one("guardrail_windows")
    assert is_child(span, server)
    found = attributes(span)
    number = found.pop("asgi_agents.events")
    assert number == len(windows_of(prompt)) + len(windows_of(slow)) > 4
    assert found == {"asgi_agents.event": "guardrail_inspect", "asgi_agents.correlation_id": "the-id"}
    notes = [dict(event.attributes or {}) for event in span.events]
    assert {event.name for event in span.events} == {"asgi_agents.decision"}
    # A flag changes nothing and stops nothing.
    assert {note["asgi_agents.agent.id"] for note in notes} == {"judge"}
    assert {note["asgi_agents.decision"] for note in notes} == {"detected"}
    assert span.status.status_code is StatusCode.UNSET


async def test_each_connection_has_a_span_of_its_own(spans: Spans) -> None:
    world = World(spans, Chat("hello"), judge())
    for _ in range(3):
        await asking().call(world.app)

    assert spans.names == ["guardrail_windows"] * 3


@each_failure_mode
async def test_a_failure_is_an_event_in_the_span_of_the_windows(spans: Spans, mode: FailureMode) -> None:
    world = World(spans, Chat(f"one fail:{MARKER} two"), judge(failure_mode=mode))
    await asking().call(world.app)

    span = spans.one("guardrail_windows")
    assert spans.names == ["guardrail_windows"]
    assert attributes(span)["error.type"] == "error"
    assert span.status.status_code is StatusCode.ERROR
    failures = [dict(event.attributes or {}) for event in span.events]
    assert failures
    for failure in failures:
        assert failure == {
            "asgi_agents.agent.id": "judge",
            "error.type": "error",
            "asgi_agents.failure_mode": mode.value,
        }


@each_failure_mode
async def test_what_can_not_be_shown_to_an_agent_is_an_event_in_the_span_and_no_window(
    spans: Spans, mode: FailureMode
) -> None:
    config = judge(failure_mode=mode)
    world = World(spans, Chat("one ", raw=b"data: {no json\n\n"), config)
    await asking().call(world.app)

    assert spans.names == ["guardrail_windows"]
    span = spans.one("guardrail_windows")
    assert [(event.attributes or {})["error.type"] for event in span.events] == ["response_unreadable"]
    assert attributes(span)["asgi_agents.events"] == len(windows_of(config))


async def test_a_connection_without_text_has_no_span(spans: Spans) -> None:
    world = World(spans, Chat(), judge())
    await Client("GET", "/").call(world.app)

    assert spans.names == []


# Metrics


async def test_what_was_found_is_counted_by_what_was_done_and_the_kind_of_text(spans: Spans) -> None:
    world = World(spans, Chat(f"redact:{MARKER} ", f"redact:{MARKER} flag:{MARKER} "), judge())
    await asking(f"redact:{MARKER}").call(world.app)
    await asking(f"block:{MARKER}").call(world.app)

    assert world.tally().counts == {
        ("redact", "input"): 1,
        ("redact", "output"): 2,
        ("flag", "output"): 1,
        ("block", "input"): 1,
    }
    assert world.manager.metrics["judge"].finds == {"redact": 3, "flag": 1, "block": 1}
    exported = world.manager.export_prometheus()
    assert 'asgi_agents_text_finds_total{agent_id="judge",kind="output",what="redact"} 2.0' in exported


@each_failure_mode
async def test_what_could_not_be_shown_is_counted(spans: Spans, mode: FailureMode) -> None:
    world = World(spans, Chat("one", raw=b"data: {no json\n\n"), judge(failure_mode=mode))
    await asking().call(world.app)

    assert world.tally().counts == {("unreadable", ""): 1}
    assert 'asgi_agents_text_finds_total{agent_id="judge",what="unreadable"} 1.0' in world.manager.export_prometheus()


class Gate(TextGuardrail):
    """Answers when it is told to."""

    hold = 4

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.open = anyio.Event()

    async def check(self, window: Window) -> None:
        if window.text.startswith("held"):
            self.asked.set()
            await self.open.wait()


async def test_windows_and_held_text_are_counted_while_they_are(spans: Spans) -> None:
    gate = Gate()
    world = World(spans, Chat("held back"), AgentConfig("judge", gate, timeout=60.0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asking().call, world.app)
        await gate.asked.wait()
        metrics = world.manager.metrics["judge"]
        exported = world.manager.export_prometheus()
        gate.open.set()

    assert (metrics.windows, metrics.held) == (1, len("held back"))
    assert 'asgi_agents_text_windows{agent_id="judge"} 1.0' in exported
    assert 'asgi_agents_text_held{agent_id="judge"} 9.0' in exported
    metrics = world.manager.metrics["judge"]
    assert (metrics.windows, metrics.held) == (0, 0)


async def test_a_client_that_leaves_leaves_no_windows_and_no_held_text(spans: Spans) -> None:
    gate = Gate()
    world = World(spans, Chat("held back"), AgentConfig("judge", gate, timeout=60.0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asking().call, world.app)
        await gate.asked.wait()
        assert world.manager.metrics["judge"].windows == 1
        tasks.cancel_scope.cancel()

    metrics = world.manager.metrics["judge"]
    assert (metrics.windows, metrics.held) == (0, 0)
    assert metrics.finds == {}


async def test_how_long_a_stream_was_held_is_measured_once_a_stream(spans: Spans) -> None:
    class Slow(Obedient):
        async def check(self, window: Window) -> Any:
            await anyio.sleep(0.02 if "slow" in window.text else 0.0)

    world = World(spans, Chat("one ", "slow ", "three"), AgentConfig("judge", Slow(), timeout=60.0))
    for _ in range(2):
        await asking().call(world.app)

    delays = world.tally().delays
    assert delays.count == 2
    assert delays.total >= 0.03
    assert 0.015 <= world.tally().longest_delay <= delays.total
    assert 'asgi_agents_text_hold_duration_seconds_count{agent_id="judge"} 2.0' in world.manager.export_prometheus()
    assert '"asgi_agents.text.hold.duration"' in world.metrics()


# The log


CONSEQUENCES = {
    FailureMode.CLOSED: "the call is stopped, because the agent fails closed",
    FailureMode.OPEN: "the text goes on unjudged, because the agent fails open",
}


def failures_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Not those about a hook that took its time, which on a slow machine any may."""
    return [message for message in caplog.messages if message.startswith("agent 'judge', guardrail_inspect: ")]


@each_failure_mode
async def test_the_log_says_what_comes_of_a_failure(
    spans: Spans, mode: FailureMode, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(spans, Chat(f"fail:{MARKER}"), judge(failure_mode=mode))
    with caplog.at_level(logging.WARNING, logger="asgi_agents"):
        await asking().call(world.app)

    (line,) = failures_in(caplog)
    assert line.startswith("agent 'judge', guardrail_inspect: raised ValueError at judged_text.py:")
    assert f"; {CONSEQUENCES[mode]} (" in line


class Unsettled(Obedient):
    """Does not know what is settled."""

    def __init__(self, settle: Callable[[str], Any]) -> None:
        super().__init__()
        self._settle = settle

    def settled(self, text: str) -> int:
        return self._settle(text)  # type: ignore[no-any-return]


def _raise(text: str) -> int:
    raise ValueError(text)


@pytest.mark.parametrize(
    ("settle", "fault"),
    [(_raise, "settled raised ValueError at test_text.py:"), (str, "settled: expected 0 to 5, got str")],
    ids=["raises", "returns nonsense"],
)
async def test_the_log_says_what_comes_of_settled_that_fails(
    spans: Spans, caplog: pytest.LogCaptureFixture, settle: Callable[[str], Any], fault: str
) -> None:
    world = World(spans, Chat("hello"), AgentConfig("judge", Unsettled(settle)))
    client = asking()
    with caplog.at_level(logging.WARNING, logger="asgi_agents"):
        await client.call(world.app)

    assert b"hello" in client.body
    assert client.complete
    (line,) = failures_in(caplog)
    assert fault in line
    assert "; its text waits as if it had no settled (" in line


# Nothing of the text


WORDS = ("redact", "block", "flag", "fail", "misplace", "mistake")


def assert_nothing_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for where, written in world.written(caplog).items():
        assert written, where
        assert MARKER not in written, where


@pytest.mark.parametrize("word", WORDS)
@each_failure_mode
async def test_nothing_that_is_written_down_has_any_of_the_text_in_it(
    spans: Spans, caplog: pytest.LogCaptureFixture, mode: FailureMode, word: str
) -> None:
    caplog.set_level(logging.DEBUG)
    text = f"{MARKER} {word}:{MARKER}"
    for kind in (Obedient, Pausing):
        for said, answered in ((text, MARKER), (MARKER, text)):
            config = AgentConfig("judge", kind(), failure_mode=mode)
            world = World(spans, Chat(*answered.split(" ")), config)
            await asking(said).call(world.app)
            assert windows_of(config)
            assert_nothing_told(world, caplog)


@pytest.mark.parametrize(
    "body", [f'{{"{MARKER}', f"{MARKER}", f'{{"messages": "{MARKER}"}}', f'{{"messages": [{MARKER}]}}']
)
@each_failure_mode
async def test_nothing_of_a_request_that_can_not_be_read_is_written_down(
    spans: Spans, caplog: pytest.LogCaptureFixture, mode: FailureMode, body: str
) -> None:
    caplog.set_level(logging.DEBUG)
    world = World(spans, Chat("hello"), judge(failure_mode=mode))
    # So that something is written everywhere.
    await asking(f"flag:{MARKER} fail:{MARKER}").call(world.app)
    client = raw_request(body.encode())
    await client.call(world.app)

    assert client.status == 400
    assert_nothing_told(world, caplog)


@pytest.mark.parametrize("data", [f'{{"{MARKER}', MARKER, f'{{"choices": "{MARKER}"}}', f'{{"choices": [{MARKER}]}}'])
@each_failure_mode
async def test_nothing_of_a_stream_that_can_not_be_read_is_written_down(
    spans: Spans, caplog: pytest.LogCaptureFixture, mode: FailureMode, data: str
) -> None:
    caplog.set_level(logging.DEBUG)
    world = World(spans, Chat(MARKER, raw=f"data: {data}\n\n".encode()), judge(failure_mode=mode))
    await asking(MARKER).call(world.app)

    assert world.tally().counts == {("unreadable", ""): 1}
    assert_nothing_told(world, caplog)


async def test_nothing_of_the_text_is_written_down_where_settled_fails(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for settle in (_raise, str):
        world = World(spans, Chat(MARKER), AgentConfig("judge", Unsettled(settle)))
        await asking(MARKER).call(world.app)
        assert_nothing_told(world, caplog)
