"""The items of OpenAI's Realtime API, and the texts in them."""

from typing import Final

from ..json_text import JSON, Path
from ..operations import End, Operation, Piece, Repeat, Text, Whole
from ..slots import Slot, SlotKey
from .base import Mapped, mapping, sequence, str_or_none, text_or_none, wholes
from .cut_json import is_json, rest_of

#: The items that are calls of tools.
CALLS: Final = frozenset({"function_call", "mcp_call", "mcp_approval_request"})
#: How an item or a response ends whose text is cut off.
CUT_OFF: Final = frozenset({"incomplete", "cancelled", "failed"})


def completed(slot: Slot, text: str) -> list[Operation]:
    """What makes JSON of arguments that were cut off."""
    rest = rest_of(text) if text.strip() else None
    return [Piece(slot, None, rest)] if rest else []


def id_or_empty(value: JSON) -> str:
    """An id; what is none is as the empty one."""
    return value if isinstance(value, str) else ""


def index_of(event: Mapped) -> int:
    """Which part of its item an event is about."""
    index = event.get("content_index")
    return index if type(index) is int else 0


def slot_of(key: SlotKey, index: int, role: str | None) -> Slot:
    """The slot of a part of an item."""
    return Slot((*key, "content", index), "output", role)


def part_event(event: Mapped, what: str, key: SlotKey) -> list[Operation]:
    """The event of a part that begins (``added``) or has ended (``done``)."""
    slot = slot_of(key, index_of(event), "assistant")
    part = mapping(event.get("part"), "part")
    if what == "done":
        return [End(slot.key), *_part(part, slot, ("part",))]
    return [
        Text(slot, ("part", name), text)
        for name in ("text", "transcript")
        if isinstance(text := part.get(name), str) and text
    ]


def _part(part: Mapped, slot: Slot, path: Path) -> list[Operation]:
    return [
        Repeat(slot, (*path, name), text)
        for name in ("text", "transcript")
        if isinstance(text := part.get(name), str) and text
    ]


def item_texts(item: Mapped, key: SlotKey, path: Path) -> list[Operation]:
    """A whole item of the app's: its texts repeat what deltas have said, where there were any."""
    kind = item.get("type")
    if kind in CALLS:
        slot = Slot((*key, "call"), "tool_call", "assistant", str_or_none(item.get("name")))
        text = text_or_none(item.get("arguments"), "arguments")
        repeated: list[Operation] = []
        if text and item.get("status") in CUT_OFF and not is_json(text):
            # What was joined before is not what is repeated here.
            cut = Slot((*key, "cut"), "tool_call", "assistant", slot.tool)
            repeated += [Piece(cut, (*path, "arguments"), text), *completed(cut, text), End(cut.key)]
        elif text:
            repeated.append(Repeat(slot, (*path, "arguments"), text, "json"))
        for name in ("output", "error"):
            repeated += wholes(item.get(name), (*path, name), "tool_result", key=key)
        return repeated
    if kind == "function_call_output":
        return wholes(item.get("output"), (*path, "output"), "tool_result", key=key)
    operations: list[Operation] = []
    role = str_or_none(item.get("role"))
    for index, part in enumerate(sequence(item.get("content"), "content")):
        operations += _part(mapping(part, "content[]"), slot_of(key, index, role), (*path, "content", index))
    return operations


def settings_texts(given: JSON, path: Path) -> list[Operation]:
    """What a client says to a session or a response as a whole."""
    if not isinstance(given, dict):
        return []
    operations = wholes(given.get("instructions"), (*path, "instructions"), "input", role="system")
    for index, element in enumerate(sequence(given.get("input"), "input")):
        operations += given_texts(element, (*path, "input", index))
    return operations


def given_texts(value: JSON, path: Path) -> list[Operation]:
    """An item of a client's."""
    item = mapping(value, "item")
    kind = item.get("type")
    if kind in CALLS:
        slot = Slot(path, "tool_call", "assistant", str_or_none(item.get("name")))
        text = text_or_none(item.get("arguments"), "arguments")
        return [Repeat(slot, (*path, "arguments"), text, "json")] if text else []
    if kind == "function_call_output":
        return wholes(item.get("output"), (*path, "output"), "tool_result")
    role = str_or_none(item.get("role"))
    operations: list[Operation] = []
    for index, part in enumerate(sequence(item.get("content"), "content")):
        for name in ("text", "transcript"):
            if isinstance(said := mapping(part, "content[]").get(name), str) and said:
                at: Path = (*path, "content", index, name)
                operations.append(Whole(Slot(at, "input", role), at, said))
    return operations
