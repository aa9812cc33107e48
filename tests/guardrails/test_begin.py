"""A slot that ends, and begins anew, in one event: what a dialect of one's own may say with ``End`` and ``Begin``."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from asgi_agents.guardrails.dialects.pointers import PointerReader, Pointers
from asgi_agents.guardrails.framing import Unit
from asgi_agents.guardrails.operations import Begin, End, Operation, Text
from asgi_agents.guardrails.slots import Slot

from .detectors import redacted
from .driving import EVERYTHING, passed

SLOT = Slot(("text",), "output")


class Rewriting(Pointers):
    """Lines with more of a text, or with ``{"instead": ...}``, which begins another one in its place."""

    def __init__(self, end: Sequence[Operation]) -> None:
        super().__init__("/rewritten")
        self._end = end

    def reader(self, media_type: str) -> PointerReader:
        return Reader(self._end)


class Reader(PointerReader):
    def __init__(self, end: Sequence[Operation]) -> None:
        super().__init__([], lines=True)
        self._between = end

    def read(self, unit: Unit, value: Any) -> Sequence[Operation]:
        ((key, text),) = value.items()
        return [*(self._between if key == "instead" else ()), Text(SLOT, (key,), text)]


@pytest.mark.parametrize("end", [[End(SLOT.key), Begin(SLOT.key)], [End(), Begin(())]], ids=["the slot", "all"])
@pytest.mark.parametrize(
    "texts",
    [
        [["a"], ["b"]],
        [["Write to ali", "ce@example.com"], ["Write to bob@", "example.org."]],
        [["Write to alice@"], ["example.com"], ["", "bob@example.org"], [""]],
    ],
    ids=["short", "entities", "cut by the end"],
)
def test_the_text_before_leaves_and_the_one_behind_is_judged_by_itself(
    texts: Sequence[Sequence[str]], end: Sequence[Operation]
) -> None:
    lines = [
        {"instead" if number and not part else "more": piece}
        for number, text in enumerate(texts)
        for part, piece in enumerate(text)
    ]
    stream = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    sent = [
        json.loads(line) for line in passed(Rewriting(end), "application/x-ndjson", [stream], EVERYTHING).splitlines()
    ]
    assert [list(line) for line in sent] == [list(line) for line in lines]
    received: list[str] = []
    for line in sent:
        ((key, piece),) = line.items()
        if key == "instead" or not received:
            received.append("")
        received[-1] += piece
    assert received == [redacted("".join(text), EVERYTHING) for text in texts]
