"""``bench``: bounded calls of one agent, and what they come to."""

import re
import signal

import pytest

from asgi_agents.commands.bench import milliseconds

from .conftest import Command

MIXED = """
import signal
from asgi_agents import Agent, AgentResponse, EventType

class Mixed(Agent):
    calls = 0

    async def on_request_headers(self, event):
        Mixed.calls += 1
        if Mixed.calls % 4 == 0:
            raise LookupError("s3cret")
        return AgentResponse.block(403) if Mixed.calls % 4 == 1 else None

class Names(Agent):
    seen = set()

    async def on_request_headers(self, event):
        assert event.correlation_id not in self.seen
        self.seen.add(event.correlation_id)

class Interrupting(Agent):
    calls = 0

    async def on_request_headers(self, event):
        Interrupting.calls += 1
        if Interrupting.calls == 100:
            signal.raise_signal(signal.SIGINT)
"""


def test_so_many_calls_are_made_and_counted(command: Command) -> None:
    report = command("bench", "mixed:Mixed", "--calls", "80", "--concurrency", "3", "--json", mixed=MIXED).json
    assert list(report) == [
        *("command", "format", "agent", "calls", "failed", "seconds", "concurrency", "calls_per_second"),
        *("outcomes", "ms", "failure", "interrupted"),
    ]
    assert (report["calls"], report["failed"], report["interrupted"]) == (80, 20, False)
    assert report["outcomes"] == {"allow": 40, "block": 20, "error": 20}
    assert list(report["ms"]) == ["least", "p50", "p90", "p99", "p999", "most"]
    assert sorted(report["ms"].values()) == list(report["ms"].values())
    assert "LookupError" in report["failure"]
    assert "s3cret" not in report["failure"]


def test_every_call_is_about_another_request(command: Command) -> None:
    report = command("bench", "mixed:Names", "--calls", "200", "--json", mixed=MIXED).json
    assert report["outcomes"] == {"allow": 200}


CODES: dict[str, tuple[list[str], int]] = {
    "all are answered": (["mixed:Names"], 0),
    "blocks are answers": (["house:Waf", "GET", "/?q=<script>"], 0),
    "some fail": (["mixed:Mixed"], 1),
    "all fail": (["house:Broken"], 2),
    "bodies": (["house:Waf", "POST", "/", "--body", "good"], 0),
}


@pytest.mark.parametrize("name", CODES)
def test_exit_codes(name: str, command: Command) -> None:
    arguments, code = CODES[name]
    assert command("bench", *arguments, "--calls", "40", mixed=MIXED).code == code


def test_there_is_no_end_of_failures(command: Command) -> None:
    report = command("bench", "house:Broken", "--calls", "100000", "--concurrency", "1", "--json").json
    assert report["calls"] == 100


def test_time_is_a_bound_as_well(command: Command) -> None:
    report = command("bench", "house:Late", "--timeout", "60", "--seconds", "0.01", "--json")
    assert (report.code, report.json["calls"], report.json["ms"]) == (2, 0, None)


def test_interrupted_it_shows_what_there_is(command: Command) -> None:
    # Where the tests run in the background of a shell, it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = command("bench", "mixed:Interrupting", "--calls", "1000000", "--concurrency", "1", "--json", mixed=MIXED)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.code, done.json["interrupted"]) == (0, True)
    assert 99 <= done.json["calls"] < 1000000


def test_the_report_as_text_and_no_progress_bar_where_it_is_piped(command: Command) -> None:
    done = command("bench", "house:Auth", "--calls", "20", "--concurrency", "2")
    assert done.err == ""
    lines = done.out.splitlines()
    assert re.fullmatch(r"20 calls in \d+\.\d\d s, 2 at a time", lines[0])
    assert re.fullmatch(r"\d+ calls per second", lines[1])
    assert lines[2] == "20 allow"
    assert lines[4].split() == ["ms", "min", "p50", "p90", "p99", "p99.9", "max"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["house:Waf", "--calls", "10000001"], "--calls 1e+07, expected at most 1e+07, and above 0"),
        (["house:Waf", "--seconds", "0"], "--seconds 0, expected at most 3600, and above 0"),
        (["house:Waf", "--concurrency", "1001"], "--concurrency 1001, expected at most 1000, and above 0"),
        (["house:Frames"], "the agent receives no request_headers; for request_body_chunk give --body"),
        (["house:Refusing"], "not configured: "),
        (["unix:///nowhere/a.sock"], "unix:///nowhere/a.sock: FileNotFoundError: No such file or directory"),
        (["house"], "'house', expected module:name"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments: list[str], message: str, command: Command) -> None:
    done = command("bench", *arguments)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([0.001], (1, 1, 1, 1, 1, 1)),
        ([number / 1000 for number in range(1000)], (0, 500, 900, 990, 999, 999)),
        ([0.004, 0.001, 0.003, 0.002], (1, 3, 4, 4, 4, 4)),
    ],
)
def test_percentiles(durations: list[float], expected: tuple[float, ...]) -> None:
    ms = milliseconds(durations)
    assert ms is not None
    assert (ms.least, ms.p50, ms.p90, ms.p99, ms.p999, ms.most) == expected
