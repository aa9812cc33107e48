"""Recordings: what was written is read again, and any other file is refused, or read as far as it is whole."""

import atexit
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from msgspec import UNSET, Raw, Struct

from asgi_agents import AgentConfig, AgentResponse, Failure, FailureKind
from asgi_agents.protocol import (
    Acknowledgement,
    Answer,
    ConfigureEvent,
    Encoding,
    Event,
    EventType,
    decode_answer,
    encode_event,
)
from asgi_agents.protocol.stream import correlation_id_of
from asgi_agents.recording import RecordedAgent, RecordingError
from asgi_agents.recording.comparing import differences, recorded_outcome
from asgi_agents.recording.format import (
    AgentLine,
    EndLine,
    ExchangeLine,
    Line,
    RecordingLine,
    compact_answer,
    encode_line,
    encode_plain,
    failure_line,
)
from asgi_agents.recording.reading import RecordedExchange, Traffic
from asgi_agents.testing import FakeAgent

from . import wire
from .choices import Choices

_DIRECTORY: Final = tempfile.TemporaryDirectory(prefix="agents-fuzz-")
atexit.register(_DIRECTORY.cleanup)
_PATH: Final = Path(_DIRECTORY.name) / "traffic.jsonl"
_CONFIGURE: Final = encode_event(ConfigureEvent(agent_id="waf", config={"level": 0}), Encoding.JSON)
_NAMES: Final = tuple(
    sorted(
        {field for kind in (RecordingLine, AgentLine, ExchangeLine, EndLine) for field in kind.__struct_fields__}
        | {"kind", "recording", "exchange", "end", "waf", "closed", "default", "in_process", *FailureKind, *EventType}
    )
)


class Written(Struct):
    """An exchange that was written as it should be."""

    n: int
    event: Event
    answer: Answer | None


def recordings(data: bytes) -> None:
    """A recording, whole or with something wrong in it."""
    choices = Choices(data)
    written: list[Written] = []
    made = [encode_line(line) for line in _recording(choices, written)]
    lines = [_perhaps_other(choices, line) for line in made]
    content, whole = b"".join(lines), lines == made
    if choices.one_in(4):
        at = choices.below(min(len(content), 60_000) or 1)
        content, whole = content[:at] + choices.take(8) + content[at + choices.below(64) :], False
    _PATH.write_bytes(content)
    fault: RecordingError | None = None
    found: list[RecordedExchange] = []
    complete = False
    try:
        with Traffic(_PATH) as traffic:
            found = list(traffic.exchanges())
            complete = traffic.complete
    except RecordingError as exc:
        fault = exc
    if fault is not None:
        assert not whole, fault
        assert str(fault).startswith(f"{_PATH}:"), "a mistake without its place"
        str(fault).encode("utf-8", "surrogatepass")
        return
    numbers = [exchange.about.n for exchange in found]
    assert numbers == sorted(numbers), "not in the order in which the calls began"
    for exchange in found:
        usable(exchange)
    if whole:
        assert complete
        for exchange, was in zip(found, sorted(written, key=lambda each: each.n), strict=True):
            assert exchange.event == was.event, "another event than was shown"
            assert was.answer is None or exchange.decoded_answer() == was.answer, "another answer than was given"
    with suppress(RecordingError):
        RecordedAgent(_PATH)


def usable(exchange: RecordedExchange) -> None:
    """What was read can be asked about again, and compared."""
    agent, about = exchange.agent, exchange.about
    AgentConfig(
        agent.agent,
        FakeAgent(),
        events=agent.events,
        timeout=agent.timeout,
        chunk_timeout=agent.chunk_timeout,
        body_access=agent.body_access,
        may_set_host=agent.may_set_host,
    )
    assert not isinstance(exchange.event, ConfigureEvent), "an event that configures an agent"
    correlation_id_of(exchange.event).encode("utf-8", "surrogatepass")
    assert (exchange.answer is not None) + (exchange.failure is not None) + about.given_up == 1
    if exchange.answer is not None:
        decode_answer(exchange.encoded_answer, Encoding.JSON, exchange.event.event_type)
    assert 0 <= about.seconds < 1e9
    outcome = recorded_outcome(exchange)
    assert differences(outcome, outcome, ()) == []


def _recording(choices: Choices, written: list[Written]) -> list[Line]:
    lines: list[Line] = [
        RecordingLine(version=1, protocol=2, time="2026-01-01T00:00:00Z", bodies=choices.flag(), redaction="none")
    ]
    agents = [
        AgentLine(
            agent=agent_id,
            transport="in_process",
            events=[EventType.REQUEST_HEADERS, EventType.CONFIGURE],
            body_access=choices.pick(("read", "write")),
            may_set_host=choices.flag(),
            timeout=choices.pick((1.0, 0.001, 3600.0)),
            chunk_timeout=5.0,
        )
        for agent_id in ("waf", "pii")[: 1 + choices.flag()]
    ]
    lines += agents
    for line in range(choices.below(5)):
        lines.append(_exchange(choices, line, choices.pick(agents).agent, written))
    lines.append(EndLine(exchanges=len(written), dropped=choices.below(3), reason="closed"))
    return lines


def _exchange(choices: Choices, line: int, agent_id: str, written: list[Written]) -> ExchangeLine:
    event = wire.event(choices, Encoding.JSON)
    while isinstance(event, ConfigureEvent):
        # At the end of the input every choice is the first one, which is this.
        event = wire.event(Choices(bytes([0, 0, 0, 1])), Encoding.JSON)
    answer: Answer | None = None
    failure = None
    match choices.below(4):
        case 0:
            failure = failure_line(Failure(choices.pick(tuple(FailureKind)), "why", None), "why")
        case 1:
            pass
        case _:
            answer = wire.answer(choices, event.event_type, Encoding.JSON)
            # The guard makes an AgentResponse of it.
            answer = AgentResponse() if isinstance(answer, Acknowledgement) else answer
    # No two calls have the same number.
    n = choices.below(100) * 10 + line
    written.append(Written(n, event, answer))
    return ExchangeLine(
        n=n,
        agent=agent_id,
        at=0.5,
        seconds=choices.pick((0.0, 0.001, 60.0)),
        event=Raw(encode_event(event, Encoding.JSON)),
        answer=UNSET if answer is None else encode_plain(compact_answer(answer)),
        failure=UNSET if failure is None else failure,
        given_up=answer is None and failure is None,
        chunk=choices.flag(),
        window=choices.flag(),
        left_out={"data": choices.below(9)} if choices.flag() else {},
    )


def _perhaps_other(choices: Choices, line: bytes) -> bytes:
    """A line, or seldom one with something else in it, or anything."""
    if not choices.one_in(12):
        return line
    match choices.below(4):
        case 0:
            return wire.message(choices, Encoding.JSON, _NAMES).replace(b"\n", b"") + b"\n"
        case 1:
            return b""
        case 2:
            return line * 2
        case _:
            fields: dict[str, Any] = json.loads(line)
            if choices.one_in(3):
                fields["event"] = json.loads(_CONFIGURE)
            else:
                fields[choices.pick(tuple(fields))] = choices.value(_NAMES, 3)
            return wire.spelt(fields, Encoding.JSON) + b"\n"
