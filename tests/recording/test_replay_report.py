"""Which agent is replayed against, what goes wrong, and how a report reads."""

import json
import tempfile
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from msgspec.structs import replace

from asgi_agents import (
    AgentConfig,
    AgentError,
    AgentManager,
    AgentResponse,
    AuditMetadata,
    ConfigurationError,
)
from asgi_agents.recording import (
    RecordingError,
    assert_same_decisions,
    record,
    replay,
    replaying,
)
from tests.observability.spans import serving
from tests.support.listening import listening
from tests.support.sample_events import HEAD, head

from .judges import Judge
from .test_replaying import Fixed, record_judge, record_one


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


async def record_two(path: Path) -> None:
    agents = [AgentConfig("a", Fixed(None)), AgentConfig("b", Fixed(AgentResponse.block()))]
    async with AgentManager(agents) as manager, record(manager, path):
        await manager.process_request_headers(HEAD)


async def test_an_agent_is_chosen_where_there_are_several(path: Path) -> None:
    await record_two(path)
    assert (await replay(path, Fixed(None), agent_id="a")).ok
    assert (await replay(path, Fixed(AgentResponse.block()), agent_id="b")).ok
    with pytest.raises(
        RecordingError, match=r"expected the id of one of its agents; there are: a, b; name one with agent_id \(--id on"
    ):
        await replay(path, Fixed(None))
    with pytest.raises(RecordingError, match=r"no agent has the id 'c'; there are: a, b$"):
        await replay(path, Fixed(None), agent_id="c")


async def test_a_recording_without_exchanges_has_no_agent(path: Path) -> None:
    async with AgentManager([AgentConfig("a", Fixed(None))]) as manager, record(manager, path):
        pass
    with pytest.raises(RecordingError, match=r"there are: none$"):
        await replay(path, Fixed(None))


async def test_an_agent_is_given_its_configuration(path: Path) -> None:
    class Configured(Fixed):
        async def on_configure(self, event: Any) -> None:
            self._answer = AgentResponse.block(event.config["status"])

    await record_one(path, AgentResponse.block(451))
    assert (await replay(path, Configured(None), config={"status": 451})).ok
    with pytest.raises(AgentError, match="not configured"):
        await replay(path, Configured(None))


async def test_an_agent_that_answers_nothing_at_all_is_an_error_and_no_thousand_differences(path: Path) -> None:
    async with AgentManager([AgentConfig("a", Fixed(None))]) as manager, record(manager, path):
        for number in range(100):
            await manager.process_request_headers(head(str(number)))
    for concurrency in (1, 4):
        with pytest.raises(AgentError, match="none of the first 20 calls was answered"):
            await replay(path, Fixed(ValueError()), concurrency=concurrency)
    with pytest.raises(AgentError, match="No such file"):
        await replay(path, f"unix://{path.parent}/none.sock")


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_mistake_in_the_recording_is_raised_as_it_is(concurrency: int, path: Path) -> None:
    async with AgentManager([AgentConfig("a", Fixed(None))]) as manager, record(manager, path):
        for number in range(10):
            await manager.process_request_headers(head(str(number)))
    _change_line(path, 8, event={})
    with pytest.raises(RecordingError, match=r"traffic\.jsonl:8: event: "):
        await replay(path, Fixed(None), concurrency=concurrency)


def _change_line(path: Path, number: int, **fields: object) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **fields}) + "\n"
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "replay: concurrency=0, expected"),
        ({"timeout": 0}, "replay: timeout=0, expected"),
        ({"ignore": "audit"}, r"replay: ignore='audit', expected a set: \{'audit'\}"),
        ({"agent_id": 1}, "replay: agent_id=1, expected a str or None"),
        ({"agent": Fixed}, "replay: transport=Fixed, expected an instance"),
        ({"agent": "ftp://x"}, "replay: transport='ftp://x', expected"),
    ],
)
async def test_what_can_not_work_is_refused(options: dict[str, Any], message: str, path: Path) -> None:
    await record_one(path, None)
    with pytest.raises(ConfigurationError, match=message):
        await replay(path, **{"agent": Fixed(None), **options})


# The report


async def test_the_first_differences_are_kept_and_all_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "MAX_DIFFERENCES", 7)
    await record_judge(path, 20)
    report = await replay(path, Judge(lambda event: True))
    assert len(report.differences) == 7
    assert report.different > 30
    assert f"… and {report.different - 5:,} more" in list(report.lines(most=5))


async def test_a_report_is_readable_at_80_columns(path: Path) -> None:
    async with AgentManager([AgentConfig("waf", Fixed(None))]) as manager, record(manager, path):
        await manager.process_request_headers(head("c-1", "/search?q=x&token=abcdefgh" + "y" * 100))
        await manager.process_request_headers(head("c-2", "/\x1b[31mred"))
    report = await replay(path, Fixed(AgentResponse.block(403, "no " * 40, audit=AuditMetadata(tags=("\x1b[2J",)))))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    assert lines[:8] == [
        "line 3: request_headers GET /search?q=x&token=[redacted]  (redacted)",
        "  decision",
        "    recorded  allow",
        '    now       {"block":{"status":403,"body":"no no no no no no no no no no no n…',
        "  audit.tags",
        "    recorded  -",
        '    now       ["\\u001b[2J"]',
        "",
    ]
    assert lines[8] == "line 4: request_headers GET /\\x1b[31mred"
    assert "waf: 2 exchanges compared, 0 the same, 2 different" in lines
    assert "  1 events have secrets replaced, on which answers may depend" in lines
    assert [line.split()[0] for line in lines[-2:]] == ["recorded", "now"]


async def test_a_recording_that_was_cut_off_is_replayed_and_said_to_be(path: Path) -> None:
    await record_judge(path, 10)
    _cut(path)
    report = await replay(path, Judge())
    assert (report.ok, report.complete) == (True, False)
    assert "the recording was cut off" in str(report)


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def test_a_test_that_is_no_coroutine_asks_the_same(path: Path) -> None:
    anyio.run(record_one, path, AgentResponse.block())
    assert assert_same_decisions(path, Fixed(AgentResponse.block())).same == 1
    with pytest.raises(AssertionError, match="0 the same, 1 different"):
        assert_same_decisions(path, Fixed(None))


async def test_connections_that_are_over_are_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "_MAX_CONNECTIONS", 3)
    names: list[str] = []
    monkeypatch.setattr("asgi_agents.transports.base.AgentClient.forget", lambda self, name: names.append(name))
    async with AgentManager([AgentConfig("a", Fixed(None))]) as manager, record(manager, path):
        for number in (1, 2, 3, 1, 4, 5):
            await manager.process_request_headers(head(str(number)))
    await replay(path, Fixed(None))
    assert names == ["2", "3"]


async def test_several_urls_are_instances_of_one_agent(path: Path) -> None:
    await record_one(path, AgentResponse.block())
    async with serving(Fixed(AgentResponse.block())) as one, serving(Fixed(AgentResponse.block())) as other:
        assert (await replay(path, [one, other], timeout=30.0)).ok


async def test_an_agent_that_accepts_and_says_nothing_is_not_waited_for_for_ever(path: Path) -> None:
    await record_one(path, None)
    with tempfile.TemporaryDirectory(prefix="agents-") as directory:
        async with listening(f"{directory}/a.sock", _say_nothing):
            with pytest.raises(AgentError, match=r"can't be reached|handshake"):
                await replay(path, f"unix://{directory}/a.sock", timeout=1.0)


async def _say_nothing(stream: SocketStream) -> None:
    async with stream:
        await anyio.sleep_forever()


async def test_whatever_stands_against_a_comparison_is_said(path: Path) -> None:
    await record_one(path, None)
    report = replace(
        await replay(path, Fixed(None)),
        compared=2,
        unheard=1,
        failed=2,
        not_asked=3,
        given_up=4,
        dropped=5_000,
        complete=False,
    )
    assert list(report.lines())[1:-2] == [
        "  1 events the agent does not receive now: counted as allow",
        "  2 calls have failed now",
        "  3 exchanges in which the agent was not asked when it was recorded",
        "  4 calls were given up when it was recorded: asked, not compared",
        "  5,000 exchanges are not in the recording",
        "  the recording was cut off, has stopped before its end, or lacks lines",
    ]


async def test_a_line_that_is_no_json_is_named(path: Path) -> None:
    await record_one(path, None)
    _break_line(path, 3)
    with pytest.raises(RecordingError, match=r"traffic\.jsonl:3: "):
        await replay(path, Fixed(None))


def _break_line(path: Path, number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = b"{\n"
    path.write_bytes(b"".join(lines))
