"""``python -m example_app``: what a terminal of 80 by 24 shows of it, and how it ends."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentDecision,
    AgentResponse,
    AuditGuardrail,
    AuditMetadata,
    AuditRecord,
    BodyMutation,
    EventType,
    Failure,
    FailureKind,
    RequestHeadersEvent,
    Verdict,
    protect,
)
from example_app.demo import screen
from example_app.demo.run import Outcome
from example_app.demo.script import STEPS
from example_app.demo.table import Style, render
from tests.docs.markdown import blocks_of

# It starts the example again and again, in a process.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pages" / "guide" / "example.md"
# A terminal has 24 lines: one is for the command, one for what is typed next.
COLUMNS, LINES = 80, 22
# Seconds, after which it is taken to hang.
PATIENCE = 300

# Ctrl-C is heard, as in a terminal, whatever the process that runs the tests has had ignored.
BEGINS = """
import runpy, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from example_app.demo import run, script
"""
RUNS = 'runpy.run_module("example_app", run_name="__main__", alter_sys=True)'
NEVER_ENDS = 'run.STEPS = (script.Step("it never ends", lambda *_: str(threading.Event().wait()), ""),)\n'
GOES_WRONG = 'run.STEPS = (script.STEPS[0]._replace(expected="418"), *script.STEPS[1:])\n'
WITHOUT_FASTAPI = 'del sys.modules["example_app.demo"]; sys.modules["fastapi"] = None\n'


@contextmanager
def started(*options: str, change: str = "", stdout: int = subprocess.PIPE) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", BEGINS + change + RUNS, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(url: str) -> int:
    return httpx.get(url, trust_env=False, timeout=PATIENCE).status_code


def lines_until(stream: IO[str] | None, beginning: str) -> list[str]:
    assert stream is not None
    found = []
    for line in stream:
        found.append(line.rstrip("\n"))
        if line.startswith(beginning):
            return found
    raise AssertionError(f"it has ended before {beginning!r}: {found}")


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, output, errors


def test_it_shows_what_happened_where_to_look_and_how_to_stop() -> None:
    with started() as process:
        shown = lines_until(process.stdout, "Stop ")
        url = re.findall(r"http://[\d.]+:\d+", shown[0])[0]
        assert len(shown) <= LINES
        assert max(map(len, shown)) <= COLUMNS
        for address in (f"{url}/-/agents/", f"{url}/docs"):
            assert any(address in line.split() for line in shown)
            assert ask(address) == 200
        assert ask(f"{url}/api/orders") == 401
        row = lines_until(process.stdout, "GET /api/orders")[-1]
        assert row.split() == ["GET", "/api/orders", "api-key:", "block", "401"]
        process.send_signal(signal.SIGINT)
        status, output, errors = ended(process)
    assert (status, errors) == (0, "")
    assert output.endswith("\nStopping.\n")
    page = PAGE.read_text()
    (block,) = [block for block in blocks_of(page) if "first screen" in block.marks]
    assert re.sub(r"http://[\d.]+:\d+", "http://127.0.0.1:8000", "\n".join([*shown, ""])) == block.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped_in_the_middle_of_the_script(number: int) -> None:
    with started(change=NEVER_ENDS) as process:
        lines_until(process.stdout, "request ")
        process.send_signal(number)
        assert ended(process) == (130, "", "")


@pytest.mark.parametrize("interrupts", [1, 2])
def test_a_request_that_does_not_end_is_cut_off(interrupts: int) -> None:
    with started() as process:
        url = httpx.URL(re.findall(r"http://[\d.]+:\d+", "".join(lines_until(process.stdout, "Stop ")))[0])
        with socket.create_connection((url.host, url.port or 0)) as connection:
            connection.sendall(
                b"POST /api/orders HTTP/1.1\r\nhost: x\r\nx-api-key: key-of-alice\r\n"
                b"expect: 100-continue\r\ncontent-length: 9\r\n\r\n"
            )
            # Somebody waits for the body.
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            process.send_signal(signal.SIGINT)
            lines_until(process.stdout, "Stopping")
            for _ in range(interrupts - 1):
                process.send_signal(signal.SIGINT)
            status, _, errors = ended(process)
    # The second one may come before the first has been dealt with.
    assert (status in (0, 130), errors) == (True, "")


def test_what_goes_wrong_is_shown_with_the_log() -> None:
    with started("--check", change=GOES_WRONG) as process:
        status, output, errors = ended(process)
    assert status == 1
    lines = output.splitlines()
    assert lines[-1] == f"1 of {len(STEPS)} steps did not come out as expected."
    assert [line.split() for line in lines[-3:-1]] == [
        ["GET", "/healthz", "none", "was", "asked", "200", "✗"],
        ["418", "was", "expected"],
    ]
    assert "  agents: agent 'flaky': circuit breaker closed -> open" in errors.splitlines()


def test_what_has_to_be_installed_is_said() -> None:
    with started(change=WITHOUT_FASTAPI) as process:
        assert ended(process) == (1, "", "There is no fastapi here. The example needs: pip install '.[example]'\n")


def test_a_port_that_cannot_be_had_is_said() -> None:
    with started("--port", "99999") as process:
        status, output, errors = ended(process)
    assert (status, output) == (1, "")
    assert errors.startswith("can't listen on 127.0.0.1:99999: ")
    assert len(errors.splitlines()) == 1


def test_it_ends_when_nobody_reads_what_it_prints() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        with started(stdout=writes) as process:
            assert ended(process)[::2] == (141, "")
    finally:
        os.close(writes)


def test_audit_records_follow_where_they_are_asked_for() -> None:
    with started("--verbose") as process:
        url = re.findall(r"http://[\d.]+:\d+", lines_until(process.stdout, "Stop ")[0])[0]
        ask(f"{url}/api/orders")
        record = json.loads(lines_until(process.stdout, "{")[-1])
        assert (record["path"], record["decided_by"]) == ("/api/orders", "api-key")
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 0


ALLOW = AgentResponse.allow()


def verdict(
    agent_id: str,
    answer: AgentResponse | FailureKind = ALLOW,
    *,
    fail_closed: bool = True,
    enforced: bool = True,
) -> Verdict:
    response, failure = (None, Failure(answer, "")) if isinstance(answer, FailureKind) else (answer, None)
    return Verdict(agent_id, EventType.REQUEST_HEADERS, response, failure, fail_closed, enforced, 0.001)


BLOCK = AgentResponse.block(403, audit=AuditMetadata(rule_ids=["R-1"]))
CHANGES = AgentResponse.allow(response_body_mutation=BodyMutation(b""))
ALLOWS, OPEN = verdict("first"), verdict("open", FailureKind.ERROR, fail_closed=False)
SHADOW = verdict("shadow", BLOCK, enforced=False)


@pytest.mark.parametrize(
    ("decided_by", "verdicts", "words"),
    [
        (None, [], "none was asked"),
        (None, [ALLOWS, ALLOWS], "all allow"),
        ("waf", [ALLOWS, verdict("waf", BLOCK)], "waf: block R-1"),
        ("waf", [verdict("waf", BLOCK), verdict("other", BLOCK)], "waf: block R-1"),
        ("waf", [OPEN, SHADOW, verdict("waf", FailureKind.TIMEOUT)], "waf: timeout"),
        (None, [OPEN, SHADOW, verdict("pii", CHANGES)], "open: error, open"),
        (None, [ALLOWS, SHADOW, verdict("pii", CHANGES)], "shadow: would block"),
        (None, [ALLOWS, verdict("shadow", enforced=False)], "all allow"),
        (None, [verdict("pii", CHANGES), ALLOWS], "pii: changes body"),
        (None, [verdict("room", AgentResponse.websocket_drop())], "room: drop"),
    ],
)
def test_who_decided(decided_by: str | None, verdicts: Sequence[Verdict], words: str) -> None:
    outcome = Outcome(STEPS[0], "200", AgentDecision(decided_by=decided_by, verdicts=verdicts))
    assert screen.row_of(outcome).removeprefix(STEPS[0].request).strip() == f"{words:25}  200"


def guardrail(agent_id: str, **counts: int) -> AuditGuardrail:
    return AuditGuardrail(agent=agent_id, dialect="", counts=counts, found={}, spans=[], held=0, delay=0.0)


@pytest.mark.parametrize(
    ("decided_by", "guardrails", "words"),
    [
        (None, [guardrail("pii"), guardrail("names")], "all allow"),
        (None, [guardrail("pii", redact=2), guardrail("names")], "pii: redact"),
        ("names", [guardrail("pii", redact=2), guardrail("names", block=1, flag=3)], "names: block"),
        ("pii", [guardrail("pii", block=1), guardrail("names", redact=1)], "pii: block"),
    ],
)
def test_what_guardrails_did(decided_by: str | None, guardrails: Sequence[AuditGuardrail], words: str) -> None:
    outcome = Outcome(STEPS[0], "200", AgentDecision(decided_by=decided_by), guardrails)
    assert screen.row_of(outcome).removeprefix(STEPS[0].request).strip() == f"{words:25}  200"
    table = list(render([outcome], Style()))[1]
    did = ", ".join(f"{done.agent} {word} {count} x" for done in guardrails for word, count in done.counts.items())
    assert (did or "none was asked") in table


def row(path: str) -> str:
    """The line of a request that one agent has been asked about."""
    app, records = FastAPI(), list[AuditRecord]()
    protect(app, agents=[AgentConfig("any", AnyAgent())], on_audit=records.append)
    TestClient(app).get(path)
    line = logging.makeLogRecord({"audit": records[0]})
    return screen.AuditRow().format(line)


class AnyAgent(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None: ...


def test_a_request_that_is_sent_by_hand_is_one_row() -> None:
    assert row("/there").split() == ["GET", "/there", "all", "allow", "404"]


def test_no_path_does_anything_to_the_terminal() -> None:
    shown = row("/%1b%5b31m%0a%c2%9b")
    assert shown.isprintable()
    assert shown.split()[:2] == ["GET", r"/\x1b[31m\n\x9b"]


def test_colours_are_for_those_who_want_them() -> None:
    wrong = Outcome(STEPS[0], "500", AgentDecision())
    plain, painted = ("".join(screen.summary([wrong], Style(colour=colour))) for colour in (False, True))
    assert "\x1b" not in plain + screen.headings(Style())
    assert "\x1b[31m" in painted
