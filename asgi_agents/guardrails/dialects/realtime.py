"""OpenAI's Realtime API: events of JSON over a websocket. Each direction has its own.

What the model says comes in deltas, and again when it is complete: at the end of the text, of its part, of its item and
of the response. Events look back at slots, as those of Responses do. Audio is no text.
"""

from collections.abc import Sequence
from typing import Final

from ..held_call import MAX_CHARACTERS
from ..json_text import JSON, Path
from ..naming import names
from ..operations import Begin, End, Operation, Passed, Piece, Repeat, Text
from ..slots import Slot, SlotKey
from ..uncovered import Uncovered, uncovered
from .base import Mapped, mapping, sequence, str_or_none, strings_in, text_or_none
from .cut_json import is_json
from .realtime_items import (
    CALLS,
    CUT_OFF,
    completed,
    given_texts,
    id_or_empty,
    index_of,
    item_texts,
    part_event,
    settings_texts,
    slot_of,
)
from .realtime_kinds import AUDIO, CALL_EVENTS, TEXT_EVENTS
from .responses import tokens

_DELTA: Final[Path] = ("delta",)
# Beside the names of other dialects: what says how an event came to be, and settings of a session.
_NAMES: Final = frozenset(
    {
        *("event_id", "previous_item_id", "conversation_id", "conversation", "voice", "output_modalities"),
        *("modalities", "max_output_tokens", "max_response_output_tokens", "language", "eagerness", "tool_choice"),
        *("server_label", "include", "input_audio_format", "output_audio_format", "content_type"),
    }
)
# Slots that nothing is known to end.
_OPEN: Final[SlotKey] = ("open",)
# How many items of a session are known at once.
_MAX_ITEMS: Final = 64


class ClientEvents:
    """Reads the events of a client. Each is complete."""

    __slots__ = ()

    def read(self, value: JSON) -> Sequence[Operation]:
        """What an event says."""
        event = mapping(value, "an event")
        found: list[Operation] = []
        match event.get("type"):
            case "session.update":
                found = settings_texts(event.get("session"), ("session",))
            case "response.create":
                found = settings_texts(event.get("response"), ("response",))
            case "conversation.item.create":
                found = given_texts(event.get("item"), ("item",))
        found += _names(event)
        return [*found, *uncovered(event, found)]

    def pause(self, long: bool) -> Sequence[Operation]:
        """Nothing is left open."""
        return ()


class _Arguments:
    """What has come of the arguments of a call."""

    __slots__ = ("parts", "size", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.parts: list[str] = []
        self.size = 0


class ServerEvents:
    """Reads the events of the app."""

    __slots__ = ("_calls", "_items", "_responses", "_tools", "_uncovered")

    def __init__(self) -> None:
        self._uncovered = Uncovered()
        # The keys of items, oldest first, by their ids.
        self._items: dict[str, SlotKey] = {}
        # What has come of the arguments of calls that have not ended, by the keys of their items.
        self._calls: dict[SlotKey, _Arguments] = {}
        # The responses of items that were known before it was said whose they are.
        self._responses: dict[str, str] = {}
        # The names of the tools that are called, by the ids of their items.
        self._tools: dict[str, str | None] = {}

    def read(self, value: JSON) -> Sequence[Operation]:
        """What an event says."""
        event = mapping(value, "an event")
        kind = str(event.get("type"))
        base, _, what = kind.rpartition(".")
        forgotten: list[Operation] = []
        operations = self._operations(event, kind, base, what, forgotten)
        # Ids of events are there once each.
        beside: Mapped = {name: member for name, member in event.items() if not _is_name(name, member)}
        usual: Mapped | None = None
        if len(operations) == 1 and isinstance(only := operations[0], Text | Piece) and only.path == _DELTA:
            # Of a delta with one text, the rest is the same from event to event.
            usual = {**beside, "delta": None}
        elif base not in AUDIO:
            operations += _names(event)
        return [*forgotten, *self._uncovered.beside(beside, operations, usual=usual)]

    def pause(self, long: bool) -> Sequence[Operation]:
        """The app has sent nothing for a while: end what nothing else ends, and after a ``long`` while all texts."""
        texts = [End((*key, "content")) for key in self._items.values()] if long else []
        return [End(_OPEN), *texts]

    def _operations(
        self, event: Mapped, kind: str, base: str, what: str, forgotten: list[Operation]
    ) -> list[Operation]:
        if base in TEXT_EVENTS:
            return self._text(event, base, what, self._key(event, event.get("item_id"), forgotten))
        if base in CALL_EVENTS:
            return self._call(event, what, self._key(event, event.get("item_id"), forgotten))
        match kind:
            case "response.output_item.added":
                return self._item_added(event, forgotten)
            case "response.output_item.done":
                item = mapping(event.get("item"), "item")
                key = self._key(event, item.get("id"), forgotten)
                return [*self._call_ended(key, item.get("status")), End(key), *item_texts(item, key, ("item",))]
            case "response.content_part.added" | "response.content_part.done":
                return part_event(event, what, self._key(event, event.get("item_id"), forgotten))
            case "response.done":
                return self._response_done(event, forgotten)
            case "conversation.item.deleted" | "conversation.item.truncated":
                # Nothing else may say that its texts have ended.
                key = self._key(event, event.get("item_id"), forgotten)
                return [*self._call_ended(key, "incomplete"), End(key)]
        if base == "conversation.item" and isinstance(whole := event.get("item"), dict):
            return item_texts(whole, self._key(event, whole.get("id"), forgotten), ("item",))
        if base in AUDIO:
            return []
        if what == "delta" and isinstance(event.get("delta"), str):
            # Of a kind that is not known: its parts belong together.
            return [Text(Slot((*_OPEN, base, str(event.get("item_id", ""))), "output"), _DELTA, str(event["delta"]))]
        return [End((*_OPEN, base))] if what in ("done", "completed") else []

    def _key(self, event: Mapped, given: JSON, forgotten: list[Operation]) -> SlotKey:
        """The key of an item. Those of a response begin with that."""
        item_id = id_or_empty(given)
        key = self._items.get(item_id)
        response = event.get("response_id")
        if key is None:
            key = ("response", response, item_id) if isinstance(response, str) else ("item", item_id)
            if len(self._items) >= _MAX_ITEMS:
                oldest = next(iter(self._items))
                old = self._items.pop(oldest)
                self._calls.pop(old, None)
                self._responses.pop(oldest, None)
                self._tools.pop(oldest, None)
                forgotten += [End(old), Begin(old)]
            self._items[item_id] = key
        elif isinstance(response, str) and key[0] == "item":
            self._responses[item_id] = response
        return key

    def _text(self, event: Mapped, base: str, what: str, key: SlotKey) -> list[Operation]:
        ends, field = TEXT_EVENTS[base]
        role = "user" if base.startswith("conversation.") else "assistant"
        slot = slot_of(key, index_of(event), role)
        if what == "delta":
            text = text_or_none(event.get("delta"), "delta") or ""
            return [Text(slot, _DELTA, text), *tokens(event, slot, ("logprobs",), text, _DELTA)]
        if what != ends:
            # It has failed.
            return [End(slot.key)]
        text = text_or_none(event.get(field), field) or ""
        return [End(slot.key), Repeat(slot, (field,), text), *tokens(event, slot, ("logprobs",), text, (field,))]

    def _call(self, event: Mapped, what: str, key: SlotKey) -> list[Operation]:
        slot = Slot((*key, "call"), "tool_call", "assistant", self._tools.get(id_or_empty(event.get("item_id"))))
        if what == "delta":
            return [self._piece(key, Piece(slot, _DELTA, text_or_none(event.get("delta"), "delta") or ""))]
        text = text_or_none(event.get("arguments"), "arguments")
        repeated: list[Operation] = [Repeat(slot, ("arguments",), text, "json")] if text else []
        if text and key in self._calls and not is_json(text):
            # Its item or its response says whether it was interrupted.
            return repeated
        return [*self._call_ended(key, None), End(slot.key), *repeated]

    def _piece(self, key: SlotKey, piece: Piece) -> Piece:
        call = self._calls.setdefault(key, _Arguments(piece.slot))
        call.size += len(piece.text)
        if call.size <= MAX_CHARACTERS:
            # Nobody judges a longer one.
            call.parts.append(piece.text)
        return piece

    def _call_ended(self, key: SlotKey, status: JSON) -> list[Operation]:
        """What precedes the end of a call: where that was cut off, what makes JSON of its arguments."""
        call = self._calls.pop(key, None)
        return [] if call is None or status not in CUT_OFF else completed(call.slot, "".join(call.parts))

    def _item_added(self, event: Mapped, forgotten: list[Operation]) -> list[Operation]:
        item = mapping(event.get("item"), "item")
        key = self._key(event, item.get("id"), forgotten)
        if item.get("type") not in CALLS:
            return item_texts(item, key, ("item",))
        name = self._tools[id_or_empty(item.get("id"))] = str_or_none(item.get("name"))
        text = text_or_none(item.get("arguments"), "arguments")
        slot = Slot((*key, "call"), "tool_call", "assistant", name)
        return [self._piece(key, Piece(slot, ("item", "arguments") if text else None, text or ""))]

    def _response_done(self, event: Mapped, forgotten: list[Operation]) -> list[Operation]:
        response = mapping(event.get("response"), "response")
        operations: list[Operation] = []
        status = response.get("status")
        if isinstance(response_id := response.get("id"), str):
            those = {self._items[item] for item, of in self._responses.items() if of == response_id}
            for key in [key for key in self._calls if key[:2] == ("response", response_id) or key in those]:
                operations += self._call_ended(key, status)
            operations.append(End(("response", response_id)))
            operations += [End(key) for key in those]
        for index, element in enumerate(sequence(response.get("output"), "output")):
            item = mapping(element, "output[]")
            key = self._key({"response_id": response_id}, item.get("id"), forgotten)
            operations += [
                *self._call_ended(key, item.get("status")),
                End(key),
                *item_texts(item, key, ("response", "output", index)),
            ]
        return operations


def _names(event: Mapped) -> list[Operation]:
    """What is no text at any depth of an event."""
    return [
        Passed(path)
        for path, text in strings_in(event, (), skip=frozenset())
        if path and _is_name(next((part for part in reversed(path) if isinstance(part, str)), ""), text)
    ]


def _is_name(name: str, value: JSON) -> bool:
    return name in _NAMES and isinstance(value, str) and names(name, value)
