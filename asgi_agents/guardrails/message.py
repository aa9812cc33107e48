"""One message of a websocket: what it says, and what it leaves as."""

import json
import re
from collections.abc import Mapping
from typing import Final

from .framing import TooComplexError, Unit, UnreadableError, decoded
from .json_text import JSON, Loader

#: What a message has: text or bytes.
Payload = str | bytes

#: How many bytes a message may have to be read.
MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
_MAY_BE_JSON: Final = ("{", "[", '"')
_BLANKS: Final = " \t\r\n"
# What precedes the JSON of a message of Socket.IO: types, the number of attachments, a namespace with a query, the id
# of an acknowledgement. It is as wide as the most lenient reader: ids have any length and digits of any script, and
# blanks precede JSON.
_FRAMED: Final = re.compile(r"\d[\d-]*+(?:/[^,]*+,\d*+)?+[ \t\r\n]*+(?=[\[{\"])")


class Reason(str):
    """Why a side closes the session: the last message of its direction, and a text of its own."""

    __slots__ = ()


class Message(Unit):
    """One message. Its data begins at ``start``: behind the prefix that Socket.IO's messages have.

    :ivar given: as it came; None for what is none.
    """

    __slots__ = ("given",)

    def __init__(self, given: Payload | None, raw: bytes, start: int = 0) -> None:
        super().__init__(raw, raw[start:] if start else raw, start)
        self.given = given

    def again(self, raw: bytes) -> "Message":
        return Message(self.leaves_as(raw), raw, self.start)

    def with_texts(self, changes: Mapping[tuple[int, int], bytes]) -> "Message":
        # The prefix is the only text beside the data.
        prefix = changes.get((0, self.start), self.raw[: self.start])
        raw = prefix + self.raw[self.start :]
        return Message(self.leaves_as(raw), raw, len(prefix))

    def leaves_as(self, raw: bytes) -> Payload | None:
        """The message as it leaves with these bytes: text stays text."""
        if raw is self.raw:
            return self.given
        if not isinstance(self.given, str):
            return raw
        text = raw.decode("utf-8", "replace")
        return Reason(text) if isinstance(self.given, Reason) else text


def may_be_json(raw: bytes) -> bool:
    """Whether bytes are JSON in an encoding that can be told, or may be to other readers. Terminals send zeros, too."""
    try:
        json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    except (ValueError, RecursionError):
        return True
    return True


def read(raw: bytes, loader: Loader) -> tuple[str, JSON, int | None]:
    """The text of a message, its JSON, and where in the bytes that begins. None: it is no JSON.

    :raises UnreadableError: for what is no text in UTF-8, or JSON over our limits.
    """
    text = decoded(raw)
    encoding = json.detect_encoding(raw)
    if encoding != "utf-8" and may_be_json(raw):
        # Apps that read JSON from bytes read it in these, and so past the judges.
        raise UnreadableError(f"expected UTF-8, got {encoding}")
    framed = _FRAMED.match(text)
    start = 0 if framed is None else framed.end()
    document = text[start:] if start else text
    if not document.lstrip(_BLANKS).startswith(_MAY_BE_JSON):
        return text, None, None
    try:
        value = loader.loads(document)
    except TooComplexError:
        raise
    except UnreadableError:
        return text, None, None
    if isinstance(value, list) and not any(isinstance(inner, str | dict | list) for inner in value):
        # Numbers in brackets are as good as text.
        return text, None, None
    return text, value, len(text[:start].encode())
