"""Recordings are read strictly, in the order in which the calls began, and with little memory."""

import json
import os
import random
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from asgi_agents import Agent, AgentConfig, AgentManager, RequestHeadersEvent
from asgi_agents.commands.command_line import main
from asgi_agents.protocol import ALLOW, GuardrailResponse
from asgi_agents.recording import RecordingError, reading, record
from asgi_agents.recording import format as format_module
from asgi_agents.recording.comparing import differences, recorded_outcome
from asgi_agents.recording.format import encode_line
from asgi_agents.recording.reading import Traffic
from tests.support.sample_events import COMPLETE, HEAD, QUESTION

from .test_format import END, OPENING, WAF, exchange_line

OPENED = encode_line(OPENING)
AGENT = encode_line(WAF)
EXCHANGE = encode_line(exchange_line(HEAD, ALLOW))
ENDED = encode_line(END)


CONFIGURE = {"version": 2, "event_type": "configure", "payload": {"agent_id": "waf", "config": {"level": 0}}}


def read(path: Path) -> Traffic:
    with Traffic(path) as traffic:
        list(traffic.exchanges())
        return traffic


def changed(line: bytes, **fields: object) -> bytes:
    """A line with other fields; None takes one out."""
    given = {**json.loads(line), **fields}
    return json.dumps({name: value for name, value in given.items() if value is not None}).encode() + b"\n"


@pytest.mark.parametrize(
    ("lines", "number", "message"),
    [
        pytest.param([], 1, "this is no recording", id="an empty file"),
        pytest.param([b"\n"], 1, "this is no recording", id="an empty line"),
        pytest.param([b"PK\x03\x04\xff"], 1, "this is no recording", id="another format"),
        pytest.param([b"[1]\n"], 1, "this is no recording", id="no object"),
        pytest.param([b"[" * 100_000], 1, "this is no recording", id="nested"),
        pytest.param([EXCHANGE], 1, "this is no recording", id="no first line"),
        pytest.param([changed(OPENED, version=2)], 1, "version: expected 1, got 2", id="a later version"),
        pytest.param([changed(OPENED, version="1")], 1, "version: expected 1, got '1'", id="a version in words"),
        pytest.param([changed(OPENED, protocol=3)], 1, "protocol: expected 2, got 3", id="another protocol"),
        pytest.param([changed(OPENED, bodies=None)], 1, "missing required field `bodies`", id="a field too few"),
        pytest.param([changed(OPENED, colour=1)], 1, "unknown field `colour`", id="a field too many"),
        pytest.param([changed(OPENED, redaction="some")], 1, "Invalid enum value 'some'", id="an unknown value"),
        pytest.param([OPENED, OPENED], 2, "expected one first line, got another", id="two first lines"),
        pytest.param([OPENED, EXCHANGE], 2, "expected a line of agent 'waf' before this", id="an unknown agent"),
        pytest.param([OPENED, AGENT, b"{\n"], 3, "Input data was truncated", id="half a line within"),
        pytest.param([OPENED, AGENT, b"\xff\n"], 3, "malformed", id="bytes that are no JSON"),
        pytest.param([OPENED, AGENT, b'{"kind":"remark"}\n'], 3, "Invalid value 'remark'", id="an unknown kind"),
        pytest.param([OPENED, changed(AGENT, body_access="all")], 2, "Invalid enum value 'all'", id="a wrong setting"),
        pytest.param([OPENED, AGENT, changed(EXCHANGE, n="1")], 3, "Expected `int`, got `str`", id="a wrong type"),
        pytest.param([OPENED, AGENT, changed(EXCHANGE, event={})], 3, "event: Object missing", id="no event"),
        pytest.param(
            [OPENED, AGENT, changed(EXCHANGE, event={"version": 2, "event_type": "tea", "payload": {}})],
            3,
            "event: Invalid enum value 'tea'",
            id="an unknown event",
        ),
        pytest.param(
            [OPENED, AGENT, changed(EXCHANGE, event={"version": 9, "event_type": "configure", "payload": {}})],
            3,
            "event: version: expected 2, got 9",
            id="an event of another version",
        ),
        pytest.param(
            [OPENED, AGENT, changed(EXCHANGE, answer={"decision": "perhaps"})], 3, "answer: ", id="a wrong answer"
        ),
        pytest.param(
            [OPENED, AGENT, changed(EXCHANGE, answer=None)],
            3,
            "expected one of answer, failure and given_up, got 0 of them",
            id="no outcome",
        ),
        pytest.param(
            [OPENED, AGENT, changed(EXCHANGE, given_up=True)],
            3,
            "expected one of answer, failure and given_up, got 2 of them",
            id="two outcomes",
        ),
        pytest.param(
            [OPENED, AGENT, changed(EXCHANGE, answer=None, failure={"kind": "bored", "message": ""})],
            3,
            "Invalid enum value 'bored'",
            id="an unknown failure",
        ),
        pytest.param([OPENED, AGENT, EXCHANGE, ENDED, EXCHANGE], 5, "expected nothing behind", id="more"),
        *(
            pytest.param([OPENED, changed(AGENT, **{name: value})], 2, f"{name}: expected", id=f"{name}={value}")
            for name, value in [
                ("timeout", 0),
                ("timeout", -1),
                ("timeout", 1e300),
                ("chunk_timeout", 0),
                ("agent", ""),
                ("agent", "a b"),
                ("agent", "\x1b[2J"),
                ("agent", "a" * 129),
            ]
        ),
        *(
            pytest.param([OPENED, AGENT, changed(EXCHANGE, seconds=value)], 3, "seconds: expected", id=f"{value} s")
            for value in (-1, 1e300)
        ),
        pytest.param(
            [
                OPENED,
                AGENT,
                changed(EXCHANGE, answer=None, failure={"kind": "error", "message": "", "retry_after": -1}),
            ],
            3,
            "retry_after: expected",
            id="a failure that was over before it began",
        ),
        pytest.param(
            [
                OPENED,
                AGENT,
                encode_line(exchange_line(COMPLETE, ALLOW)).replace(b'"decision":"allow"', b'"success":true'),
            ],
            3,
            "answer: expected a decision, got an acknowledgement",
            id="an acknowledgement",
        ),
        pytest.param(
            [OPENED, AGENT, changed(EXCHANGE, event=CONFIGURE, answer={"decision": "allow"})],
            3,
            "event: expected one of a connection, got configure",
            id="a configuration",
        ),
    ],
)
def test_a_mistake_is_named_with_its_file_and_line(
    lines: list[bytes], number: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(lines))
    with pytest.raises(RecordingError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:{number}: ")
    assert message in str(caught.value)


def test_a_line_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(OPENED + AGENT + b'"' + b"x" * 2000 + b'"\n')
    with pytest.raises(RecordingError, match=r":3: expected a line of at most 1000 bytes$"):
        read(path)
    assert format_module.MAX_LINE_BYTES == 32 * 1024 * 1024


def test_what_a_crash_cut_off_is_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    whole = OPENED + AGENT + EXCHANGE + EXCHANGE + ENDED
    ends = [index for index, byte in enumerate(whole, 1) if byte == ord("\n")]
    cuts = {cut for end in ends for cut in (end - 2, end - 1, end, end + 1)} | set(range(0, len(whole), 41))
    for cut in sorted(cut for cut in cuts if len(OPENED) <= cut <= len(whole)):
        path.write_bytes(whole[:cut])
        with Traffic(path) as traffic:
            found = len(list(traffic.exchanges()))
        lines = whole[:cut].split(b"\n")
        assert found == sum(line.startswith(b'{"kind":"exchange"') for line in lines[:-1])
        assert traffic.torn is (lines[-1] != b"")
        assert (traffic.end is not None) is (cut == len(whole))


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Traffic(tmp_path / "none.jsonl")


@pytest.mark.parametrize("more", [b'"x":"\xff"', b'"audit":1.5', b'"audit":{"x":1}', b'"left_out":[]', b'"x":{"y":[]}'])
def test_what_an_answer_has_besides_is_no_part_of_it(more: bytes, tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    question = encode_line(exchange_line(QUESTION, GuardrailResponse(detected=True)))
    assert question.count(b'"answer":{') == 1
    path.write_bytes(OPENED + AGENT + question.replace(b'"answer":{', b'"answer":{' + more + b","))
    with Traffic(path) as traffic:
        [exchange] = traffic.exchanges()
    assert exchange.answer == {"detected": True, "confidence": 0.0}
    assert differences(recorded_outcome(exchange), {"detected": True, "confidence": 0.0}, ()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("writes", [True, False])
def test_a_pipe_is_refused_because_it_can_be_read_only_once(writes: bool, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    # Nobody is waited for where there is none who writes.
    held = os.open(path, os.O_RDWR) if writes else None
    try:
        with pytest.raises(RecordingError, match="pipe: this is a pipe, expected a file"):
            Traffic(path)
    finally:
        if held is not None:
            os.close(held)


@pytest.mark.parametrize("depth", [90, 300, 900, 20_000])
def test_an_answer_that_is_nested_deeply_is_compared_or_refused_with_its_line(
    depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "traffic.jsonl"
    anyio.run(_record, path)
    answer = b'"answer":{"decision":"allow","audit":{"custom":{"a":' + b"[" * depth + b"1" + b"]" * depth + b"}}}"
    path.write_bytes(path.read_bytes().replace(b'"answer":{"decision":"allow"}', answer))
    for options in ([], ["--json"]):
        code = main(["replay", str(path), "--agent", "tests.recording.test_reading:Passes", *options])
        said = capsys.readouterr()
        if depth > 900:
            assert (code, said.err.startswith(f"error: {path}:3: ")) == (2, True)
        else:
            assert (code, said.err) == (1, "")
            assert "audit.custom" in said.out


class Passes(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        return None


async def _record(path: Path) -> None:
    async with AgentManager([AgentConfig("waf", Passes())]) as manager, record(manager, path, bodies=True):
        await manager.process_request_headers(HEAD)


@pytest.mark.parametrize("ahead", [10, 1000])
def test_exchanges_come_in_the_order_in_which_the_calls_began(
    ahead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LOOK_AHEAD_LINES", ahead)
    chance = random.Random(7)  # noqa: S311 - no secret
    # None is overtaken by more than eight others.
    ended = sorted(range(500), key=lambda number: number + chance.random() * 8)
    assert ended != sorted(ended)
    path = tmp_path / "traffic.jsonl"
    lines = [encode_line(replace(exchange_line(HEAD, ALLOW), n=number)) for number in ended]
    path.write_bytes(OPENED + AGENT + b"".join(lines) + ENDED)
    with Traffic(path) as traffic:
        assert [exchange.about.n for exchange in traffic.exchanges()] == list(range(500))


@pytest.mark.parametrize(("name", "value"), [("LOOK_AHEAD_LINES", 20), ("LOOK_AHEAD_BYTES", 20 * len(EXCHANGE))])
def test_no_more_is_held_than_is_looked_ahead(
    name: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, name, value)
    path = tmp_path / "traffic.jsonl"
    # The first call has ended last.
    numbers = [*range(2, 200), 1]
    lines = [encode_line(replace(exchange_line(HEAD, ALLOW), n=number)) for number in numbers]
    path.write_bytes(OPENED + AGENT + b"".join(lines))
    with Traffic(path) as traffic:
        exchanges = traffic.exchanges()
        first = next(exchanges)
        assert first.about.n == 2
        found = [exchange.about.n for exchange in exchanges]
    assert 170 < found.index(1) < 197
    assert sorted(found) == [1, *range(3, 200)]


PIECES = st.sampled_from([b"\n", b"{", b"}", b'"', b"[", b"null", b"1e999", b"\\ud800"])


@given(data=st.data())
def test_a_file_with_any_other_bytes_is_read_or_refused_and_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(OPENED + AGENT + EXCHANGE + ENDED)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole)))
        piece = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"\n", b"{", b"}", b'"', b"[", b"null", b"1e999", b"\\ud800"])
        )
        whole[place : place + data.draw(st.integers(0, 6))] = piece
    path = tmp_path_factory.getbasetemp() / "changed.jsonl"
    path.write_bytes(whole)
    faults = []
    try:
        read(path)
    except RecordingError as exc:
        faults.append(str(exc))
    assert all(fault.startswith(f"{path}:") for fault in faults)
