"""Reading event streams, as browsers do (WHATWG HTML, section 9.2.6)."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple


class Event(NamedTuple):
    kind: str
    data: str

    def json(self) -> Any:
        return json.loads(self.data)


def read_events(text: str) -> Iterator[Event]:
    """The events of a whole stream. What no blank line ends is no event."""
    kind: str = "message"
    data: list[str] = []
    for line in text.splitlines():
        if not line:
            if data:
                yield Event(kind, "\n".join(data))
            kind, data = "message", []
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)
