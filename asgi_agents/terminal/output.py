"""What command lines print: plain text as wide as the terminal, in colours where there is one.

Names, answers and messages come from apps, agents, files and clients. A control character among them could clear the
screen or forge a line. So no text is printed as it is: what can't be printed is escaped, and colours are put around
it afterwards. What the encoding of the stream does not have is escaped as well.
"""

import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import Final, NamedTuple, TextIO

from ..errors import escaped

_USUAL_WIDTH: Final = 80
_LEAST_WIDTH: Final = 40
_GAP: Final = "  "
_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
# A column before the last takes no more of the line than this, but for what is longer by itself.
_SHARE: Final = 0.45
_BLANK: Final = re.compile(r"\s")


class Painted(NamedTuple):
    """A text in a colour: ``red``, ``green``, ``yellow``, ``bold`` or ``dim``."""

    text: str
    colour: str


class Page:
    """Where the text goes.

    :param stream: standard output or standard error.
    :ivar width: in columns: that of the terminal, or of ``COLUMNS``, else 80.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self.is_terminal and not os.environ.get("NO_COLOR")
        self.width = max(_LEAST_WIDTH, shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns)
        if not self.is_terminal and not os.environ.get("COLUMNS"):
            self.width = _USUAL_WIDTH

    def line(self, *parts: str | Painted) -> None:
        """Print a line of these parts, with colours on a terminal that is to have them (https://no-color.org)."""
        shown = [(escaped(part), "") if isinstance(part, str) else (escaped(part.text), part.colour) for part in parts]
        while shown and not shown[-1][0].rstrip():
            shown.pop()
        if shown:
            shown[-1] = (shown[-1][0].rstrip(), shown[-1][1])
        self._write("".join(self._paint(text, colour) for text, colour in shown) + "\n")

    def wrapped(self, begin: str, text: str, *, colour: str | None = None) -> None:
        """Print ``begin``, in a colour, and then words in as many lines as they take, each as far in as the first."""
        indent = " " * min(len(begin), self.width // 2)
        words = escaped(_BLANK.sub(" ", text))
        for number, line in enumerate(wrap(words, self.width - len(begin))):
            self.line(indent if number else Painted(begin, colour) if colour else begin, line)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str | None] = ()) -> None:
        """Print a table, whose last column is wrapped.

        :param colours: of the last cell, by row; None: the terminal's own.
        """
        most = int(self.width * _SHARE)
        rows = [[escaped(cell) for cell in row] for row in rows]
        widths = []
        for column in range(len(head) - 1):
            lengths = [len(row[column]) for row in (head, *rows)]
            widths.append(max(length for length in (*lengths, len(head[column])) if length <= most or length == 0))
        self.line(Painted(self._row(head, widths)[0], "bold"))
        for number, row in enumerate(rows):
            colour = colours[number] if number < len(colours) else None
            for line, last in self._cells(row, widths):
                self.line(line, Painted(last, colour) if colour else last)

    def progress(self, text: str) -> None:
        """Print a line over the one before, on a terminal; nothing elsewhere. An empty one takes it away."""
        if self.is_terminal:
            self._write("\r" + escaped(text)[: self.width - 1].ljust(self.width - 1) + ("" if text else "\r"))
            self._stream.flush()

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self._colours and colour and text else text

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _row(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [line + last for line, last in self._cells(row, widths)]

    def _cells(self, row: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[str, str]]:
        """The lines of a row: all but the last cell, and what of that is in the line."""
        line, end = "", 0
        for cell, width in zip(row, widths, strict=False):
            line = line.ljust(end) + cell
            end += width + len(_GAP)
            if len(line) > end - len(_GAP):
                # Too long for its column: what comes behind it has the next line.
                yield line, ""
                line = ""
        for part in wrap(row[-1], self.width - end):
            yield line.ljust(end), part
            line = ""


def wrap(text: str, width: int) -> Sequence[str]:
    """Words in lines of at most ``width``. A word that is longer has a line of its own."""
    width = max(_LEAST_WIDTH // 2, width)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def complain(message: str) -> None:
    """Say on standard error why something can't be done. A message of several lines stays one."""
    lines = [escaped(line) for line in message.split("\n")]
    sys.stderr.write("error: " + "\n".join(lines) + "\n")


def printing_aside() -> AbstractContextManager[object]:
    """Within, what an app or an agent prints goes to standard error, so that it is not mixed with the report."""
    return redirect_stdout(sys.stderr)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Keep what the package logs within, from warnings up, from being printed; yields the messages."""
    messages: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("asgi_agents"), Keeping(logging.WARNING)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
