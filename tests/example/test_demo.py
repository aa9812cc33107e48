import os
import subprocess
import sys
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest

from asgi_agents import AgentDecision, AgentResponse, EventType, Verdict
from example_app.demo.run import Outcome
from example_app.demo.script import STEPS
from example_app.demo.table import Style, render, style_for

# It starts the example with all its processes.
pytestmark = pytest.mark.slow

# On a busy machine the spans of the other process are on their way for longer than a reader would wait for them.
_PATIENT = """
import runpy
from example_app.demo import tracing

tracing._STRAGGLERS = 2.0
runpy.run_module("example_app", run_name="__main__", alter_sys=True)
"""


def _play(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", _PATIENT, "--check", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("options", [(), ("--waf-process",)], ids=["in process", "firewall in a process of its own"])
def test_script_comes_out_as_expected(options: tuple[str, ...]) -> None:
    result = _play("--verbose", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"All {len(STEPS)} came out as expected." in result.stdout
    assert "✗" not in result.stdout
    assert "\x1b" not in result.stdout
    assert all(len(line) <= 160 for line in result.stdout.splitlines())
    # Nothing but what the agents that fail on purpose give rise to.
    assert all(line.startswith("  agents: agent '") for line in result.stderr.splitlines())
    assert {line.split("'")[1] for line in result.stderr.splitlines()} == {"flaky", "recommender"}


@pytest.mark.parametrize("options", [(), ("--waf-process",)], ids=["in process", "firewall in a process of its own"])
def test_each_request_is_one_trace_from_the_client_through_all_processes_to_the_handler(
    options: tuple[str, ...],
) -> None:
    result = _play("--trace", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    traces = [text.splitlines() for text in result.stdout.split("\ntrace ")[1:]]
    # One step makes two requests.
    assert len(traces) == len(STEPS) + 1
    # Process, depth and name of each span of `GET /api/orders`, the first that is allowed.
    (trace,) = [lines for lines in traces if lines[1].split()[1:3] == ["GET", "/api/orders"]][1:2]
    spans = [(line[2:10].strip(), line[10:68].rstrip(), line[69:78].strip()) for line in trace[1:] if line[2:3] != " "]
    waf = (
        [("shop", "    request_headers waf", "client"), ("waf", "      request_headers Waf", "server")]
        if options
        else [("shop", "    request_headers waf", "internal")]
    )
    assert spans[:2] == [("shop", "GET /api/orders", "client"), ("shop", "  GET /api/orders", "server")]
    # Which begins first is theirs to say.
    assert set(spans[2:]) == {
        ("shop", "    request_headers api-key", "internal"),
        *waf,
        ("shop", "    request_headers waf-next", "internal"),
        ("shop", "    request_headers pii", "internal"),
        ("shop", "    handler list_orders", "internal"),
        ("shop", "    response_headers pii", "internal"),
        ("shop", "    response_body_chunk pii", "internal"),
        ("shop", "    request_complete pii", "internal"),
    }


def _verdict(agent_id: str, response: AgentResponse, *, enforced: bool = True) -> Verdict:
    return Verdict(agent_id, EventType.REQUEST_HEADERS, response, None, True, enforced, 0.00123)


def test_unexpected_outcomes_get_a_cross_and_count() -> None:
    step = STEPS[0]
    outcomes = [
        Outcome(step, step.expected, AgentDecision()),
        Outcome(step, "500", AgentDecision()),
        Outcome(step, step.expected, AgentDecision(decided_by="waf")),
        Outcome(step, step.expected, AgentDecision(verdicts=[_verdict("next", AgentResponse.block(), enforced=False)])),
    ]
    assert [outcome.right for outcome in outcomes] == [True, False, False, False]
    lines = list(render(outcomes, Style()))
    assert [line[-1] for line in lines[1:5]] == ["✓", "✗", "✗", "✗"]
    assert "(next)" in lines[4]
    assert "next block 1.23" in lines[4]
    assert lines[-1] == "3 of 4 did not come out as expected."


def test_colours_only_where_they_are_wanted() -> None:
    outcomes = [Outcome(STEPS[0], STEPS[0].expected, AgentDecision())]
    assert "\x1b" not in "".join(render(outcomes, Style()))
    assert "\x1b[32m✓\x1b[0m" in "".join(render(outcomes, Style(colour=True)))


@pytest.mark.parametrize(("encoding", "right"), [("utf-8", "✓"), ("ascii", "ok")])
def test_marks_are_what_the_stream_can_show(encoding: str, right: str) -> None:
    style = style_for(TextIOWrapper(BytesIO(), encoding))
    assert (style.right, style.colour) == (right, False)


class Terminal(StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert style_for(Terminal()).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not style_for(Terminal()).colour
