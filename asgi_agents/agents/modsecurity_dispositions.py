"""The heads of the parts of a form, whatever is taken for a boundary."""

import re
from typing import Final

# The starts of lines that say where the head of a part begins and ends, and what is in it.
_STEPS: Final = re.compile(
    rb"(?<![^\n])(?:(?P<delimiter>--)|(?P<blank>\r?\n)|content-disposition(?:(?P<named>:)|(?P<odd>[ \t])))",
    re.IGNORECASE,
)
_START_OF_LINE: Final = 64


class Dispositions:
    """Of two ``content-disposition`` of one part the engine takes the first, and Starlette the last.

    By the one it is a file, which rules don't look into, by the other a field. Whatever could be the head of a part is
    looked at, so that it does not matter what is taken for a boundary.
    """

    def __init__(self) -> None:
        self._line = b""
        self._in_head = self._is_named = False

    def are_single(self, data: bytes) -> bool:
        text = self._line + data
        end = text.rfind(b"\n") + 1
        self._line = text[end : end + _START_OF_LINE]
        for step in _STEPS.finditer(text, 0, end):
            match step.lastgroup:
                case "blank":
                    self._in_head = self._is_named = False
                case "delimiter":
                    self._in_head = True
                case "odd" if self._in_head:
                    return False
                case _ if self._is_named:
                    return False
                case _:
                    self._is_named = self._in_head
        return True
