"""What command lines print: plain text as wide as the terminal, in colours where there is one."""

import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

_USUAL_WIDTH: Final = 80
_LEAST_WIDTH: Final = 40
_GAP: Final = "  "
_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
# A column before the last takes no more of the line than this, but for what is longer by itself.
_SHARE: Final = 0.45


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

    def paint(self, text: str, colour: str) -> str:
        """``text`` in a colour, on a terminal that is to have colours (https://no-color.org)."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self._colours and text else text

    def line(self, text: str = "") -> None:
        """Print a line."""
        self._stream.write(text.rstrip() + "\n")

    def wrapped(self, begin: str, text: str, *, colour: str | None = None) -> None:
        """Print ``begin``, in a colour, and then words in as many lines as they take, each as far in as the first."""
        indent = " " * min(len(begin), self.width // 2)
        for number, line in enumerate(wrap(text, self.width - len(begin))):
            self.line((indent if number else self.paint(begin, colour) if colour else begin) + line)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str | None] = ()) -> None:
        """Print a table, whose last column is wrapped.

        :param colours: of the last cell, by row; None: the terminal's own.
        """
        most = int(self.width * _SHARE)
        widths = []
        for column in range(len(head) - 1):
            lengths = [len(row[column]) for row in (head, *rows)]
            widths.append(max(length for length in (*lengths, len(head[column])) if length <= most or length == 0))
        self.line(self.paint(self._row(head, widths)[0], "bold"))
        for number, row in enumerate(rows):
            colour = colours[number] if number < len(colours) else None
            for line, last in self._cells(row, widths):
                self.line(line + (self.paint(last, colour) if colour else last))

    def progress(self, text: str) -> None:
        """Print a line over the one before, on a terminal; nothing elsewhere. An empty one takes it away."""
        if self.is_terminal:
            self._stream.write("\r" + text[: self.width - 1].ljust(self.width - 1) + ("" if text else "\r"))
            self._stream.flush()

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
    """Say on standard error why something can't be done."""
    sys.stderr.write(f"error: {message}\n")


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
