"""Reads recordings: line by line, in the order in which the calls began, and strictly."""

import heapq
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from msgspec import UNSET, Raw, Struct

from ..errors import AgentProtocolError
from ..files.source import at_once
from ..protocol import Acknowledgement, Answer, ConfigureEvent, Encoding, Event, decode_answer, decode_event
from .format import (
    CLOSED,
    MAX_LINE_BYTES,
    AgentLine,
    EndLine,
    ExchangeLine,
    FailureLine,
    RecordingError,
    RecordingLine,
    compact_answer,
    decode_first_line,
    decode_line,
    kind_of_line,
)

#: How many lines, and how many bytes of them, are looked ahead for a call that began before the others.
LOOK_AHEAD_LINES: Final = 1000
LOOK_AHEAD_BYTES: Final = 16 * 1024 * 1024


class RecordedExchange(Struct, frozen=True, kw_only=True):
    """An event that an agent was asked about, and what came of it.

    ``answer`` is as :func:`compact_answer` has it; None where there was none.
    """

    line: int
    agent: AgentLine
    event: Event
    answer: Mapping[str, Any] | None
    encoded_answer: bytes
    failure: FailureLine | None
    about: ExchangeLine

    def decoded_answer(self) -> Answer:
        """The answer, as the agent gave it."""
        return decode_answer(self.encoded_answer, Encoding.JSON, self.event.event_type)


class Traffic:
    """A recording in a file.

    :ivar opening: its first line.
    :ivar agents: the agents of the exchanges so far, with their settings.
    :ivar end: its last line, once that is read; None where the recording was cut off.
    :ivar torn: whether the last line was cut off in the middle.
    :raises OSError: the file can't be opened.
    :raises RecordingError: it is no recording, or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.agents: dict[str, AgentLine] = {}
        self.end: EndLine | None = None
        self.torn = False
        self._file: BinaryIO = open(self.path, "rb", opener=at_once)  # noqa: SIM115 - until close
        self._number = 0
        self._exchanges = 0
        try:
            mode = os.fstat(self._file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                # Most of those who read a recording read it twice.
                what = "a pipe" if stat.S_ISFIFO(mode) else "no regular file"
                raise RecordingError(f"{self.path}: this is {what}, expected a file")
            first = self._read()
            self.opening: RecordingLine = self._checked(decode_first_line, first or b"")
        except BaseException:
            self._file.close()
            raise

    @property
    def complete(self) -> bool:
        """Whether all was read that was recorded until the recording was closed: no line is missing."""
        end = self.end
        return end is not None and end.reason == CLOSED and end.exchanges == self._exchanges

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exchanges(self) -> Iterator[RecordedExchange]:
        """All exchanges, in the order in which the calls began.

        A call that was overtaken by more than 1,000 others, or 16 MiB of them, comes after these. Reads the file once.

        :raises RecordingError: a line is not as it should be.
        """
        waiting: list[tuple[int, int, int, RecordedExchange]] = []
        held = 0
        for size, exchange in self._in_file_order():
            heapq.heappush(waiting, (exchange.about.n, exchange.line, size, exchange))
            held += size
            while len(waiting) > LOOK_AHEAD_LINES or (held > LOOK_AHEAD_BYTES and len(waiting) > 1):
                _, _, size, first = heapq.heappop(waiting)
                held -= size
                yield first
        while waiting:
            yield heapq.heappop(waiting)[3]

    def settings(self) -> Iterator[AgentLine]:
        """The lines about agents, without a look at the exchanges. Reads the file once."""
        while (data := self._read()) is not None:
            if self._checked(kind_of_line, data) == "agent":
                line = self._checked(decode_line, data)
                assert isinstance(line, AgentLine)
                yield line

    def fault(self, number: int, message: str) -> RecordingError:
        """An error in a line."""
        return RecordingError(f"{self.path}:{number}: {message}")

    def _in_file_order(self) -> Iterator[tuple[int, RecordedExchange]]:
        while (data := self._read()) is not None:
            line = self._checked(decode_line, data)
            if self.end is not None:
                raise self.fault(self._number, "expected nothing behind the last line of a recording")
            match line:
                case RecordingLine():
                    raise self.fault(self._number, "expected one first line, got another")
                case AgentLine():
                    self.agents[line.agent] = line
                case EndLine():
                    self.end = line
                case ExchangeLine():
                    self._exchanges += 1
                    yield len(data), self._exchange(line)

    def _exchange(self, line: ExchangeLine) -> RecordedExchange:
        agent = self.agents.get(line.agent)
        if agent is None:
            raise self.fault(self._number, f"agent: expected a line of agent {line.agent!r:.40} before this")
        outcomes = (line.answer is not UNSET) + (line.failure is not UNSET) + line.given_up
        if outcomes != 1:
            raise self.fault(self._number, f"expected one of answer, failure and given_up, got {outcomes} of them")
        event = self._within("event", lambda: decode_event(bytes(line.event), Encoding.JSON))
        if isinstance(event, ConfigureEvent):
            # It is never recorded, and would configure the agent that it is replayed against.
            raise self.fault(self._number, "event: expected one of a connection, got configure")
        encoded = bytes(line.answer) if isinstance(line.answer, Raw) else b""
        answer: Mapping[str, Any] | None = None
        if encoded:
            decoded = self._within("answer", lambda: decode_answer(encoded, Encoding.JSON, event.event_type))
            if isinstance(decoded, Acknowledgement):
                raise self.fault(self._number, "answer: expected a decision, got an acknowledgement")
            # Not what is in the file: it may have more than an answer has, of whatever kind.
            answer = self._within("answer", lambda: compact_answer(decoded))
        return RecordedExchange(
            line=self._number,
            agent=agent,
            event=event,
            answer=answer,
            encoded_answer=encoded,
            failure=line.failure if isinstance(line.failure, FailureLine) else None,
            about=line,
        )

    def _within(self, field: str, decode: Callable[[], Any]) -> Any:
        try:
            return decode()
        except RecursionError:
            raise self.fault(self._number, f"{field}: nested too deeply") from None
        except (AgentProtocolError, TypeError, ValueError) as exc:
            # The values of an event check what no type says: a token, a status.
            raise self.fault(self._number, f"{field}: {exc}") from exc

    def _checked(self, decode: Callable[[bytes], Any], data: bytes) -> Any:
        try:
            return decode(data)
        except RecordingError as exc:
            raise self.fault(max(1, self._number), str(exc)) from exc

    def _read(self) -> bytes | None:
        """The next line without its end; None at the end of the file, and for a last line that was cut off."""
        data = self._file.readline(MAX_LINE_BYTES + 1)
        if not data:
            return None
        self._number += 1
        if not data.endswith(b"\n"):
            if len(data) > MAX_LINE_BYTES:
                raise self.fault(self._number, f"expected a line of at most {MAX_LINE_BYTES} bytes")
            if self._number == 1:
                # Any file is cut off somewhere: whether it was a recording can't be told.
                return data
            self.torn = True
            return None
        return data[:-1]
