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


@pytest.mark.parametrize("options", [(), ("--waf-process",)], ids=["in process", "firewall in a process of its own"])
def test_script_comes_out_as_expected(options: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "example_app", "--check", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"All {len(STEPS)} came out as expected." in result.stdout
    assert "✗" not in result.stdout
    assert "\x1b" not in result.stdout
    assert all(len(line) <= 160 for line in result.stdout.splitlines())
    # Nothing but the breaker's comings and goings.
    assert all(line.startswith("  agents: agent 'flaky'") for line in result.stderr.splitlines())


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
