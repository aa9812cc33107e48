"""What is kept of a connection, of a client and of an agent is bounded in bytes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from asgi_agents import config
from asgi_agents.agents import key_sets, rate_limit
from asgi_agents.calls import recording
from asgi_agents.exchange import (
    encoded_answer,
    guardrail_report,
    handler_text,
    overlap,
    remembered,
    shadow_text,
    spool,
    text_answer,
    text_request,
    units,
)
from asgi_agents.guardrails import framing, held_call, json_text, message, message_stream, records, release
from asgi_agents.guardrails.dialects import realtime
from asgi_agents.observability import reports as reports_module
from asgi_agents.protocol import stream
from asgi_agents.recording import format as recording_format
from asgi_agents.recording import reading, recorded_agent, replaying, traffic_log, writing
from asgi_agents.routing import cache
from asgi_agents.serve import framings, gateways, held
from asgi_agents.transports import forward_auth, http, partial
from asgi_agents.transports.grpc import ext_proc, ext_proc_sides

from .bounds import MIB

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "pages" / "bounds.md").read_text()

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="measures resident memory by way of /proc")


def growth(load: str, amount: int, backend: str) -> int:
    """By how many bytes a process of its own has grown at most."""
    command = [sys.executable, "-m", "tests.bounds", load, str(amount), backend]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout)


# 1 GiB takes longer than a test may: ``python -m tests.bounds writer 1024``. With as much as here, 1,500 mutated pieces
# would be 94 MiB.
@on_linux
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_response_that_an_agent_changes_as_it_streams_takes_no_memory_that_grows_with_it(backend: str) -> None:
    assert growth("writer", 96, backend) < 16 * MIB


@on_linux
@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=pytest.mark.slow)])
def test_a_served_agent_that_one_client_floods_stays_small(backend: str) -> None:
    assert growth("flood", 64, backend) < 16 * MIB


@on_linux
def test_frames_that_stop_before_their_end_hold_no_more_than_their_budget() -> None:
    assert growth("partial", 12, "asyncio") < 2 * held.MAX_HELD_BYTES + 16 * MIB


# A million events take a minute: ``python -m tests.bounds events 1000000``. With as many as here, the events would be
# 22 MiB.
@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_stream_past_guardrails_takes_no_memory_that_grows_with_it(backend: str) -> None:
    assert growth("events", 100_000, backend) < 4 * MIB


# How much of it the app has sent by then is bounded by windows, which the load sees to.
@on_linux
@pytest.mark.slow
@pytest.mark.parametrize(("count", "backend"), [(1000, "asyncio"), (100, "trio")])
def test_streams_that_wait_for_a_guardrail_hold_their_windows_and_no_more(count: int, backend: str) -> None:
    assert growth("streams", count, backend) < count * MIB


def figure(name: str) -> str:
    """What the page says of a bound, which it names in code."""
    (row,) = (line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line)
    return row


def spellings(number: float) -> list[str]:
    """A number, and a number of bytes in their units."""
    units = [f"{number / size:,.0f} {unit}" for unit, size in (("MiB", MIB), ("KiB", 1024)) if number % size == 0]
    return [f"{number:,.10g}", *units]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_VERDICTS", remembered.MAX_VERDICTS),
        ("MAX_VERDICT_BYTES", remembered.MAX_VERDICT_BYTES),
        ("MAX_WAITING_OP_BYTES", remembered.MAX_WAITING_OP_BYTES),
        ("DEFAULT_MAX_BODY_BYTES", config.DEFAULT_MAX_BODY_BYTES),
        ("MAX_UNIT_BYTES", units.MAX_UNIT_BYTES),
        ("MAX_MEMORY_BYTES", spool.MAX_MEMORY_BYTES),
        ("MAX_KNOWN", cache.MAX_KNOWN),
        ("MAX_KNOWN_LENGTH", cache.MAX_KNOWN_LENGTH),
        ("MAX_FRAME_BYTES", stream.MAX_FRAME_BYTES),
        ("MAX_ENVELOPE_BYTES", stream.MAX_ENVELOPE_BYTES),
        ("MAX_HANDSHAKE_REQUEST_BYTES", stream.MAX_HANDSHAKE_REQUEST_BYTES),
        ("MAX_HANDSHAKE_RESPONSE_BYTES", stream.MAX_HANDSHAKE_RESPONSE_BYTES),
        ("FRAME_TIMEOUT", partial.FRAME_TIMEOUT),
        ("MAX_PING_BYTES", stream.MAX_PING_BYTES),
        ("MAX_PARTIAL_BYTES", partial.MAX_PARTIAL_BYTES),
        ("MAX_ANSWER_BYTES", http.MAX_ANSWER_BYTES),
        ("forward_auth.MAX_ANSWER_BYTES", forward_auth.MAX_ANSWER_BYTES),
        ("MAX_JWKS_BYTES", key_sets.MAX_JWKS_BYTES),
        ("MAX_KEYS", rate_limit.MAX_KEYS),
        ("MAX_SERIES", reports_module.MAX_SERIES),
        ("MAX_HELD_BYTES", held.MAX_HELD_BYTES),
        ("EVENT_BYTES", held.EVENT_BYTES),
        ("SHARE", held.MAX_HELD_BYTES * held.SHARE),
        ("SMALL_BYTES", held.SMALL_BYTES),
        ("PATIENCE", held.PATIENCE),
        ("READ_TIMEOUT", held.READ_TIMEOUT),
        ("HANDSHAKE_TIMEOUT", framings.HANDSHAKE_TIMEOUT),
        ("_MAX_SPANS", recording._MAX_SPANS),
        ("MAX_REQUEST_BYTES", text_request.MAX_REQUEST_BYTES),
        ("guardrails.MAX_ANSWER_BYTES", text_answer.MAX_ANSWER_BYTES),
        ("overlap.MAX_HELD_BYTES", overlap.MAX_HELD_BYTES),
        ("overlap.MAX_HELD_MESSAGES", overlap.MAX_HELD_MESSAGES),
        ("MAX_WAITING_BYTES", shadow_text.MAX_WAITING_BYTES),
        ("ext_proc_sides.MAX_WAITING_BYTES", ext_proc_sides.MAX_WAITING_BYTES),
        ("FEW_WAITING_BYTES", ext_proc_sides.FEW_WAITING_BYTES),
        ("MESSAGE_BYTES", ext_proc_sides.MESSAGE_BYTES),
        ("ext_proc.MAX_HELD_BYTES", ext_proc.MAX_HELD_BYTES),
        ("MAX_ORIGINAL_BYTES", encoded_answer.MAX_ORIGINAL_BYTES),
        ("MAX_TEXT", handler_text.MAX_TEXT),
        ("_MAX_HELD_TEXT", text_answer._MAX_HELD_TEXT),
        ("guardrails.MAX_HELD_BYTES", release.MAX_HELD_BYTES),
        ("MAX_CHARACTERS", held_call.MAX_CHARACTERS),
        ("guardrails.MAX_UNIT_BYTES", framing.MAX_UNIT_BYTES),
        ("MAX_MESSAGE_BYTES", message.MAX_MESSAGE_BYTES),
        ("_MAX_WAITING", message_stream._MAX_WAITING),
        ("_MAX_OPEN", message_stream._MAX_OPEN),
        ("_MAX_ITEMS", realtime._MAX_ITEMS),
        ("_MAX_EDITS", records._MAX_EDITS),
        ("_MAX_WHOLE", release._MAX_WHOLE),
        ("MAX_SPANS", guardrail_report.MAX_SPANS),
        ("MAX_DEPTH", json_text.MAX_DEPTH),
        ("DEFAULT_MAX_BYTES", traffic_log.DEFAULT_MAX_BYTES),
        ("MAX_WAITING_EXCHANGES", writing.MAX_WAITING_EXCHANGES),
        ("recording.MAX_WAITING_BYTES", writing.MAX_WAITING_BYTES),
        ("MAX_LINE_BYTES", recording_format.MAX_LINE_BYTES),
        ("LOOK_AHEAD_LINES", reading.LOOK_AHEAD_LINES),
        ("LOOK_AHEAD_BYTES", reading.LOOK_AHEAD_BYTES),
        ("replaying.MAX_WAITING", replaying.MAX_WAITING),
        ("MAX_DIFFERENCES", replaying.MAX_DIFFERENCES),
        ("MAX_CONNECTIONS", recorded_agent.MAX_CONNECTIONS),
        ("gateways.MAX_TEXTS", gateways.MAX_TEXTS),
        ("AT_ONCE", gateways.AT_ONCE),
    ],
)
def test_the_page_has_the_figures_of_the_code(name: str, value: float) -> None:
    row = figure(name)
    right = "|".join(map(re.escape, spellings(value)))
    assert re.search(rf"(?<![\d,.])(?:{right})(?![\d.]|,\d)", row), (right, row)
