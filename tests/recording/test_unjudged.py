"""What a replay could not judge, or not fairly: it is said, and no success unless that is accepted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
)
from asgi_agents.agents import ApiKey
from asgi_agents.commands.command_line import main
from asgi_agents.recording import record, replay, replaying
from tests.support.sample_events import QUESTION, head

from .judges import Judge, answering, ask
from .test_replaying import Fixed, record_one

HERE = "tests.recording.test_unjudged"


class Bodies(Agent):
    """Judges heads and bodies, or only one of the two."""

    def __init__(self, word: bytes = b"union") -> None:
        self._word = word

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(403) if self._word in event.data else None


class OnlyBodies(Agent):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(403) if b"select" in event.data else None


class Keys(ApiKey):
    def __init__(self) -> None:
        super().__init__({"k-1": "alice"}, header="x-api-key")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


async def record_posts(path: Path, agents: Sequence[AgentConfig], **options: Any) -> None:
    app = AgentMiddleware(answering(), agents=agents)
    async with record(app, path, **options):
        await ask(app, "/comments", b"a select and a union")
        await ask(app, "/notes", b"nothing")


# What was recorded without its content


async def test_events_without_content_that_the_agent_receives_are_no_success(path: Path) -> None:
    await record_posts(path, [AgentConfig("waf", Bodies(b"nobody"))])
    report = await replay(path, Bodies())
    assert (report.compared, report.different, report.not_replayed) == (2, 0, {"request_body_chunk": 2})
    assert not report.ok
    with pytest.raises(
        AssertionError, match=r"record\s+with bodies=True, or accept it with\s+ignore_not_replayed=True"
    ):
        report.check()
    accepted = await replay(path, Bodies(), ignore_not_replayed=True)
    assert (accepted.ok, accepted.not_replayed) == (True, {"request_body_chunk": 2})
    assert "bodies=True" not in str(accepted)


async def test_with_its_content_the_attack_is_found(path: Path) -> None:
    await record_posts(path, [AgentConfig("waf", Bodies(b"nobody"))], bodies=True)
    report = await replay(path, Bodies())
    assert (report.different, report.not_replayed) == (1, {})


async def test_what_the_new_agent_does_not_receive_takes_no_content_to_be_compared(path: Path) -> None:
    await record_posts(path, [AgentConfig("waf", Bodies())])
    report = await replay(path, Fixed(None))
    assert (report.not_replayed, report.unheard, report.different) == ({}, 2, 1)
    assert [(one.event, one.fields[0].now) for one in report.differences] == [("request_body_chunk", "allow")]
    await record_posts(path, [AgentConfig("waf", Bodies(b"nobody"))])
    assert (await replay(path, Fixed(None))).ok


@pytest.mark.parametrize(
    ("options", "code"),
    [([], 1), (["--ignore-not-replayed"], 0), (["--event", "request_headers"], 0)],
)
def test_the_exit_code_says_it(options: list[str], code: int, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(record_posts, path, [AgentConfig("waf", Bodies())])
    # Heads alone: the block of a body counts as lifted.
    ignored = ["--ignore", "decision"] if "--event" in options else []
    assert main(["replay", str(path), "--agent", f"{HERE}:Bodies", *options, *ignored]) == code
    assert ("--ignore-not-replayed" in capsys.readouterr().out) is (code == 1)


def test_nothing_but_events_without_content_is_2_all_the_same(path: Path) -> None:
    async def ask() -> None:
        async with AgentManager([AgentConfig("a", Judge())]) as manager, record(manager, path):
            await manager.call_guardrail_agent("a", QUESTION)

    anyio.run(ask)
    arguments = ["replay", str(path), "--agent", "tests.recording.judges:Judge"]
    assert [main(arguments), main([*arguments, "--ignore-not-replayed"])] == [2, 2]


# Secrets that were replaced


async def record_keys(path: Path, **options: Any) -> None:
    app = AgentMiddleware(answering(), agents=[AgentConfig("api-key", Keys())])
    async with record(app, path, **options):
        for key in (b"k-1", b"wrong", b""):
            await ask(app, "/orders", None, *([(b"x-api-key", key)] if key else []))


async def test_an_agent_that_looks_at_credentials_is_told_how_to_be_replayed(path: Path) -> None:
    await record_keys(path)
    report = await replay(path, Keys())
    assert not report.ok
    assert all(difference.redacted for difference in report.differences)
    assert "redact=None, or leave these events out with" in " ".join(str(report).split())
    fair = await replay(path, Keys(), ignore_redacted=True)
    assert (fair.ok, fair.compared, fair.redacted, fair.redacted_ignored) == (True, 1, 0, 2)
    assert "2 events have secrets replaced: asked, not compared" in str(fair)
    await record_keys(path, redact=None)
    whole = await replay(path, Keys(), ignore_redacted=True)
    assert (whole.ok, whole.compared, whole.redacted_ignored) == (True, 3, 0)


async def test_what_differs_without_a_secret_is_found_all_the_same(path: Path) -> None:
    await record_keys(path)
    report = await replay(path, Fixed(None), ignore_redacted=True)
    assert (report.different, [difference.redacted for difference in report.differences]) == (1, [False])
    assert "redact=None" not in str(report)


def test_nothing_left_to_compare_is_no_success(path: Path) -> None:
    async def ask() -> None:
        await record_one(path, None)
        async with AgentManager([AgentConfig("a", Fixed(None))]) as manager, record(manager, path):
            await manager.process_request_headers(head("c", "/?token=abcdefgh"))

    anyio.run(ask)
    arguments = ["replay", str(path), "--agent", "tests.recording.test_command:Old"]
    assert [main(arguments), main([*arguments, "--ignore-redacted"])] == [0, 2]


async def test_events_that_are_not_received_are_left_out_as_well(path: Path) -> None:
    await record_keys(path)
    report = await replay(path, OnlyBodies(), ignore_redacted=True)
    assert (report.compared, report.unheard, report.redacted_ignored, report.ok) == (1, 1, 2, False)


# Which request it is


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_difference_behind_the_head_names_its_request(concurrency: int, path: Path) -> None:
    # The agent itself does not receive heads; another one does.
    agents = [AgentConfig("other", Fixed(None)), AgentConfig("waf", OnlyBodies())]
    await record_posts(path, agents, bodies=True)
    report = await replay(path, Bodies(b"nobody"), agent_id="waf", concurrency=concurrency)
    assert [difference.request for difference in report.differences] == ["POST /comments"]
    assert f"line {report.differences[0].line}: request_body_chunk POST /comments" in str(report)


async def test_without_a_head_the_id_stands_for_the_request(path: Path) -> None:
    await record_posts(path, [AgentConfig("waf", OnlyBodies())], bodies=True)
    report = await replay(path, Bodies(b"nobody"))
    [difference] = report.differences
    assert difference.request == ""
    assert f"request_body_chunk {difference.correlation_id}" in str(report)


async def test_of_requests_no_more_is_kept_than_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "_MAX_CONNECTIONS", 1)
    monkeypatch.setattr(replaying, "_MAX_REQUEST", 9)
    async with AgentManager([AgentConfig("waf", Bodies())]) as manager, record(manager, path, bodies=True):
        for name in ("a", "b"):
            await manager.process_request_headers(head(name, "/comments"))
        for name in ("a", "b"):
            event = RequestBodyChunkEvent(correlation_id=name, data=b"union", is_last=True)
            await manager.process_request_body(event)
    report = await replay(path, Bodies(b"nobody"))
    assert [(one.correlation_id, one.request) for one in report.differences] == [("a", ""), ("b", "GET /comm")]


async def test_the_difference_between_two_users_is_visible(path: Path) -> None:
    def user(name: str) -> AgentResponse:
        return AgentResponse.allow(request_headers=[HeaderOp.remove("x-api-key"), HeaderOp.set("x-user", name)])

    await record_one(path, user("alice"))
    report = await replay(path, Fixed(user("bob")))
    assert '"alice"' in str(report)
    assert '"bob"' in str(report)
    assert any("alice" in line for line in report.lines(width=200))
