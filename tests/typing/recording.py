"""Recordings: made, replayed, and in the place of an agent."""

from pathlib import Path
from typing import assert_type

from fastapi import FastAPI

from asgi_agents import Agent, AgentConfig, AgentManager, EventType, RequestHeadersEvent, StreamTransport, Transport
from asgi_agents.recording import (
    Difference,
    FieldDifference,
    RecordedAgent,
    RecordingError,
    ReplayReport,
    ReplayTiming,
    TrafficLog,
    assert_same_decisions,
    record,
    replay,
)


class Waf(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None: ...


def made(app: FastAPI, manager: AgentManager, path: Path) -> None:
    with record(app, "traffic.jsonl", bodies=True, agents=["waf"], max_bytes=10_000, redact=None) as log:
        assert_type(log, TrafficLog)
        assert_type((log.exchanges, log.dropped, log.size, log.stopped, log.path), tuple[int, int, int, str, Path])
    record(manager, path, redact=str.lower).start()
    record(app, path, redact=len)  # type: ignore[arg-type]
    record(app, path, agents=[1])  # type: ignore[list-item]


async def replayed(path: Path) -> None:
    async with record(AgentManager(), path) as log:
        assert_type(log, TrafficLog)
    report = await replay(
        path, Waf(), agent_id="waf", concurrency=4, ignore={"audit"}, events=[EventType.WEBSOCKET_FRAME]
    )
    assert_type(report, ReplayReport)
    await replay("traffic.jsonl", ["unix:///a.sock", "unix:///b.sock"], timeout=1.0, config={"level": 2})
    await replay(path, StreamTransport(["unix:///a.sock"]), ignore_redacted=True, ignore_not_replayed=True)
    await replay(path, Waf(), ignore_redacted="all")  # type: ignore[arg-type]
    assert_type((report.ok, report.judged, report.redacted_ignored), tuple[bool, bool, int])
    await replay(path, 1)  # type: ignore[arg-type]
    report.check()
    for difference in report.differences:
        assert_type(difference, Difference)
        assert_type(difference.fields, tuple[FieldDifference, ...])
    timing: ReplayTiming = report.replayed_seconds
    assert_type(timing.p99, float | None)


def in_its_place(path: Path) -> AgentConfig:
    try:
        transport: Transport = RecordedAgent(path, agent="waf", headers=["x-tenant"], repeat=True)
    except RecordingError:
        assert_type(assert_same_decisions(path, Waf()), ReplayReport)
        raise
    return AgentConfig("waf", transport, circuit_breaker=None)
