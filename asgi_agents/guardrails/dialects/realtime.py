"""OpenAI's Realtime API: events of JSON over a websocket. Each direction has its own.

What the model says comes in deltas, and again when it is complete: at the end of the text, of its part, of its item and
of the response. Events look back at slots, as those of Responses do. Audio is no text.
"""

from collections.abc import Sequence
from typing import Final

from ..held_call import MAX_CHARACTERS
from ..json_text import JSON, Path
from ..naming import names
from ..operations import Begin, End, Operation, Passed, Piece, Repeat, Text, Whole
from ..slots import Slot, SlotKey
from ..uncovered import Uncovered, uncovered
from .base import Mapped, mapping, sequence, str_or_none, strings_in, text_or_none, wholes
from .cut_json import is_json, rest_of
from .responses import tokens

# Events that continue or end a text, without `.delta`: which event ends it, and which field repeats it there.
_TEXT_EVENTS: Final[dict[str, tuple[str, str]]] = {
    "response.output_text": ("done", "text"),
    "response.text": ("done", "text"),
    "response.output_audio_transcript": ("done", "transcript"),
    "response.audio_transcript": ("done", "transcript"),
    "conversation.item.input_audio_transcription": ("completed", "transcript"),
}
_CALL_EVENTS: Final = frozenset({"response.function_call_arguments", "response.mcp_call_arguments"})
_CALLS: Final = frozenset({"function_call", "mcp_call", "mcp_approval_request"})
_AUDIO: Final = frozenset({"response.output_audio", "response.audio", "session.output_audio"})
_DELTA: Final[Path] = ("delta",)
# The events of an app, and of a client. Others that are called alike are other apps': nothing is known of their texts.
_OF_APPS: Final = frozenset(
    {
        *("session.created", "session.updated", "session.closed", "conversation.created", "rate_limits.updated"),
        *("transcription_session.created", "transcription_session.updated", "response.created", "response.done"),
        *(f"conversation.item.{what}" for what in ("created", "added", "done", "retrieved", "deleted", "truncated")),
        *(
            f"conversation.item.input_audio_transcription.{what}"
            for what in ("delta", "segment", "completed", "failed")
        ),
        *(f"input_audio_buffer.{what}" for what in ("committed", "cleared", "speech_started", "speech_stopped")),
        *("input_audio_buffer.timeout_triggered", "input_audio_buffer.dtmf_event_received"),
        *(f"output_audio_buffer.{what}" for what in ("started", "stopped", "cleared")),
        *(f"response.{of}.{what}" for of in ("output_item", "content_part") for what in ("added", "done")),
        *(f"{of}.{what}" for of in (*_TEXT_EVENTS, *_CALL_EVENTS, *_AUDIO) for what in ("delta", "done")),
        *("session.input_transcript.delta", "session.output_transcript.delta"),
        *(f"{of}.{what}" for of in ("response.mcp_call", "mcp_list_tools") for what in ("in_progress", "completed")),
        *("response.mcp_call.failed", "mcp_list_tools.failed"),
    }
)
_OF_CLIENTS: Final = frozenset(
    {
        *("session.update", "session.close", "transcription_session.update", "response.create", "response.cancel"),
        *("input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear"),
        *("session.input_audio_buffer.append", "output_audio_buffer.clear"),
        *(f"conversation.item.{what}" for what in ("create", "retrieve", "truncate", "delete")),
    }
)
_FIRST: Final = frozenset({"session.created", "transcription_session.created"})
_PATHS: Final = frozenset({"/realtime", "/v1/realtime"})
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
# How an item or a response ends whose text is cut off.
_CUT_OFF: Final = frozenset({"incomplete", "cancelled", "failed"})
# How many items of a session are known at once.
_MAX_ITEMS: Final = 64


def knows(value: JSON, *, from_client: bool) -> bool:
    """Whether a message is an event of the Realtime API."""
    return _is_one_of(value, _OF_CLIENTS if from_client else _OF_APPS)


def knows_path(path: str) -> bool:
    """Whether it is the path of the Realtime API. What only ends like it may be a name that a client has chosen."""
    return path.rstrip("/") in _PATHS


def begins(value: JSON) -> bool:
    """Whether a message is the first one of an app that speaks it."""
    return _is_one_of(value, _FIRST)


def _is_one_of(value: JSON, kinds: frozenset[str]) -> bool:
    kind = value.get("type") if isinstance(value, dict) else None
    return isinstance(kind, str) and kind in kinds


class ClientEvents:
    """Reads the events of a client. Each is complete."""

    __slots__ = ()

    def read(self, value: JSON) -> Sequence[Operation]:
        """What an event says."""
        event = mapping(value, "an event")
        found: list[Operation] = []
        match event.get("type"):
            case "session.update":
                found = _settings(event.get("session"), ("session",))
            case "response.create":
                found = _settings(event.get("response"), ("response",))
            case "conversation.item.create":
                found = _given(event.get("item"), ("item",))
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
        elif base not in _AUDIO:
            operations += _names(event)
        return [*forgotten, *self._uncovered.beside(beside, operations, usual=usual)]

    def pause(self, long: bool) -> Sequence[Operation]:
        """The app has sent nothing for a while: end what nothing else ends, and after a ``long`` while all texts."""
        texts = [End((*key, "content")) for key in self._items.values()] if long else []
        return [End(_OPEN), *texts]

    def _operations(
        self, event: Mapped, kind: str, base: str, what: str, forgotten: list[Operation]
    ) -> list[Operation]:
        if base in _TEXT_EVENTS:
            return self._text(event, base, what, self._key(event, event.get("item_id"), forgotten))
        if base in _CALL_EVENTS:
            return self._call(event, what, self._key(event, event.get("item_id"), forgotten))
        match kind:
            case "response.output_item.added":
                return self._item_added(event, forgotten)
            case "response.output_item.done":
                item = mapping(event.get("item"), "item")
                key = self._key(event, item.get("id"), forgotten)
                return [*self._call_ended(key, item.get("status")), End(key), *_item(item, key, ("item",))]
            case "response.content_part.added" | "response.content_part.done":
                return _part_event(event, what, self._key(event, event.get("item_id"), forgotten))
            case "response.done":
                return self._response_done(event, forgotten)
            case "conversation.item.deleted" | "conversation.item.truncated":
                # Nothing else may say that its texts have ended.
                key = self._key(event, event.get("item_id"), forgotten)
                return [*self._call_ended(key, "incomplete"), End(key)]
        if base == "conversation.item" and isinstance(whole := event.get("item"), dict):
            return _item(whole, self._key(event, whole.get("id"), forgotten), ("item",))
        if base in _AUDIO:
            return []
        if what == "delta" and isinstance(event.get("delta"), str):
            # Of a kind that is not known: its parts belong together.
            return [Text(Slot((*_OPEN, base, str(event.get("item_id", ""))), "output"), _DELTA, str(event["delta"]))]
        return [End((*_OPEN, base))] if what in ("done", "completed") else []

    def _key(self, event: Mapped, given: JSON, forgotten: list[Operation]) -> SlotKey:
        """The key of an item. Those of a response begin with that."""
        item_id = _id(given)
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
        ends, field = _TEXT_EVENTS[base]
        role = "user" if base.startswith("conversation.") else "assistant"
        slot = _slot_of(key, _index(event), role)
        if what == "delta":
            text = text_or_none(event.get("delta"), "delta") or ""
            return [Text(slot, _DELTA, text), *tokens(event, slot, ("logprobs",), text, _DELTA)]
        if what != ends:
            # It has failed.
            return [End(slot.key)]
        text = text_or_none(event.get(field), field) or ""
        return [End(slot.key), Repeat(slot, (field,), text), *tokens(event, slot, ("logprobs",), text, (field,))]

    def _call(self, event: Mapped, what: str, key: SlotKey) -> list[Operation]:
        slot = Slot((*key, "call"), "tool_call", "assistant", self._tools.get(_id(event.get("item_id"))))
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
        return [] if call is None or status not in _CUT_OFF else _completed(call.slot, "".join(call.parts))

    def _item_added(self, event: Mapped, forgotten: list[Operation]) -> list[Operation]:
        item = mapping(event.get("item"), "item")
        key = self._key(event, item.get("id"), forgotten)
        if item.get("type") not in _CALLS:
            return _item(item, key, ("item",))
        name = self._tools[_id(item.get("id"))] = str_or_none(item.get("name"))
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
                *_item(item, key, ("response", "output", index)),
            ]
        return operations


def _completed(slot: Slot, text: str) -> list[Operation]:
    rest = rest_of(text) if text.strip() else None
    return [Piece(slot, None, rest)] if rest else []


def _id(value: JSON) -> str:
    return value if isinstance(value, str) else ""


def _index(event: Mapped) -> int:
    index = event.get("content_index")
    return index if type(index) is int else 0


def _slot_of(key: SlotKey, index: int, role: str | None) -> Slot:
    return Slot((*key, "content", index), "output", role)


def _part_event(event: Mapped, what: str, key: SlotKey) -> list[Operation]:
    slot = _slot_of(key, _index(event), "assistant")
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


def _item(item: Mapped, key: SlotKey, path: Path) -> list[Operation]:
    """A whole item of the app's: its texts repeat what deltas have said, where there were any."""
    kind = item.get("type")
    if kind in _CALLS:
        slot = Slot((*key, "call"), "tool_call", "assistant", str_or_none(item.get("name")))
        text = text_or_none(item.get("arguments"), "arguments")
        repeated: list[Operation] = []
        if text and item.get("status") in _CUT_OFF and not is_json(text):
            # What was joined before is not what is repeated here.
            cut = Slot((*key, "cut"), "tool_call", "assistant", slot.tool)
            repeated += [Piece(cut, (*path, "arguments"), text), *_completed(cut, text), End(cut.key)]
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
        operations += _part(mapping(part, "content[]"), _slot_of(key, index, role), (*path, "content", index))
    return operations


def _settings(given: JSON, path: Path) -> list[Operation]:
    """What a client says to a session or a response as a whole."""
    if not isinstance(given, dict):
        return []
    operations = wholes(given.get("instructions"), (*path, "instructions"), "input", role="system")
    for index, element in enumerate(sequence(given.get("input"), "input")):
        operations += _given(element, (*path, "input", index))
    return operations


def _given(value: JSON, path: Path) -> list[Operation]:
    """An item of a client's."""
    item = mapping(value, "item")
    kind = item.get("type")
    if kind in _CALLS:
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


def _names(event: Mapped) -> list[Operation]:
    """What is no text at any depth of an event."""
    return [
        Passed(path)
        for path, text in strings_in(event, (), skip=frozenset())
        if path and _is_name(next((part for part in reversed(path) if isinstance(part, str)), ""), text)
    ]


def _is_name(name: str, value: JSON) -> bool:
    return name in _NAMES and isinstance(value, str) and names(name, value)
