"""What the body of an answer is, by its type and its first bytes."""

import json
import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from ..guardrails.dialect import Dialect
from ..guardrails.json_text import JSON
from ..guardrails.operations import Operation
from ..guardrails.uncovered import uncovered

# These have no text in them that an agent could judge.
_BINARY: Final = ("image/", "audio/", "video/", "font/", "application/pdf", "application/zip", "application/gzip")
_BINARY_ALSO: Final = frozenset({"application/wasm", "application/x-tar", "application/vnd.ms-fontobject"})
# How JSON begins, in whatever encoding and with whatever mark in front, and what may become that.
JSON_BEGINS: Final = re.compile(rb"(?:\xef\xbb\xbf)?[\x00\s]*[{\[]")
MAYBE_JSON: Final = re.compile(rb"(?:\xef(?:\xbb(?:\xbf)?)?)?[\x00\s]*")
# How many bytes of it are looked at.
MAX_BLANK: Final = 64 * 1024


class AnswerMode(Enum):
    """What becomes of an answer on its way through guardrails."""

    IDLE = auto()  # the app has sent nothing
    PASSING = auto()  # nobody judges it
    WHOLE = auto()  # it is held until it is complete
    STREAM = auto()  # it leaves as it is judged
    DONE = auto()  # the client has everything
    STOPPED = auto()  # the client has something else, or is to have no more


def streams_json(dialect: str, path: str) -> bool:
    """Whether answers of type JSON are streams: Gemini's are arrays whose elements come one after the other."""
    return dialect == "gemini" and "stream" in path.rpartition(":")[2].lower()


def reads_as_json(data: bytes) -> bool:
    """Whether clients read JSON in it that was not read here: in another encoding, or with a mark in front."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def is_lines_of_json(data: bytes) -> bool:
    """Whether every line of it that is not blank is JSON, which clients may read line by line."""
    return all(reads_as_json(line) for line in data.split(b"\n") if line.strip())


def is_json(given: str | None) -> bool:
    """Whether a body of this type is one JSON document."""
    return given is not None and (given in ("application/json", "text/json") or given.endswith("+json"))


def is_binary(given: str | None) -> bool:
    """Whether a body of this type has no text that an agent could judge."""
    return given is not None and given != "image/svg+xml" and (given.startswith(_BINARY) or given in _BINARY_ALSO)


def operations_of(dialect: Dialect, status: int) -> Callable[[JSON], list[Operation]]:
    """What finds the text of an answer that is one JSON document."""
    if status < 400:
        return dialect.answer

    def operations(value: JSON) -> list[Operation]:
        # Errors are in whatever shape the app's framework has for them.
        found = dialect.answer(value)
        return [*found, *uncovered(value, found, kind="output")]

    return operations
