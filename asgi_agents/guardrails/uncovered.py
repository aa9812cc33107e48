"""Text that its dialect does not know: an app or a client may read it all the same."""

import re
from collections.abc import Sequence
from typing import Final

from .dialects.base import NAMES, Mapped, strings_in
from .framing import Unit
from .json_text import JSON, Path, pointer
from .naming import names
from .operations import End, Operation, Passed, Piece, Repeat, Text, Whole
from .slots import Kind, Slot, SlotKey

#: What the dialects' own requests have at their top that is no text of anybody's.
KNOWN: Final = frozenset(
    {
        *("model", "user", "tools", "tool_choice", "functions", "function_call", "response_format", "stream_options"),
        *("service_tier", "reasoning_effort", "modalities", "audio", "stop", "metadata", "logit_bias", "verbosity"),
        *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "web_search_options", "moderation"),
        *("previous_response_id", "conversation", "include", "text", "reasoning", "truncation", "context_management"),
        *("stop_sequences", "thinking", "container", "mcp_servers", "output_config", "output_format", "inference_geo"),
        *("anthropic_version", "anthropic_beta", "cache_control", "speed"),
        *("generationConfig", "safetySettings", "toolConfig", "cachedContent", "labels", "serviceTier"),
        *("format", "options", "keep_alive", "template", "think", "images", "context"),
        *("id", "trigger", "messageId", "chatId"),
    }
)
# Base64 is no text. Whoever takes it for text sees only that.
_ENCODED: Final = re.compile(r"data:[\w/+.;=-]*;base64,[\w+/=-]*+|[\w+/=-]{256,}+", re.ASCII)
# What stands where a name is expected, and may be one: each text costs a call of a remote judge.
_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
# What is a setting in a known member. Anything else is text there, too.
_WORD: Final = re.compile(r"[!-~]{1,256}")
# Of answers, beside those names: what says how they came to be, and what is there for the server alone.
_NAMES: Final = NAMES | frozenset(
    {
        *("stop_reason", "native_finish_reason", "matched_stop", "provider", "severity", "format", "p", "tool_choice"),
        *("tool_use_id", "inference_geo", "expires_at", "createTime", "finishReason", "category", "probability"),
        *("modality", "modelVersion", "responseId", "trafficType", "jsonPath", "json_path", "done_reason"),
        *("remote_model", "remote_host", "effort", "truncation", "previous_response_id", "prompt_cache_key"),
        *("prompt_cache_retention", "safety_identifier", "file_id", "container_id", "messageId", "toolName"),
        *("sourceId", "approvalId", "itemId", "thought_signature", "encrypted_index", "reasoningEncryptedContent"),
        *("size", "quality", "background", "output_format", "verbosity", "payer"),
    }
)
_COVERING: Final = frozenset((Text, Whole, Piece, Repeat))
# How many names are known at once.
_MAX_NAMES: Final = 256


def is_encoded(text: str) -> bool:
    """Whether it is base64, such as an image."""
    return _ENCODED.fullmatch(text) is not None


def uncovered(
    value: JSON, operations: list[Operation], *, by_path: bool = False, kind: Kind = "input"
) -> list[Operation]:
    """Every string of a request or answer that its dialect has not found, as text of its own.

    The dialect may be the wrong one: a client chooses the shape of what it sends, and a path may lead to an app that
    reads something else.

    :param by_path: whether the path has said which dialect it is. What its requests have at the top beside the text,
        such as tools and formats, is passed over then, but for descriptions and strings of several words.
    """
    covered = _covered(operations)
    found: list[Operation] = []
    for path, text in strings_in(value, (), skip=frozenset()):
        if not text or path in covered or is_encoded(text):
            continue
        last = path[-1] if path else ""
        if last in NAMES and _NAME.fullmatch(text) and names(str(last), text):
            continue
        # Who describes a tool tells the model something, and so do the titles and choices of its parameters. An app may
        # read as text what has another meaning in the dialect of its path.
        if by_path and path and path[0] in KNOWN and last != "description" and _WORD.fullmatch(text):
            continue
        found.append(Whole(Slot(("uncovered", pointer(path)), kind), path, text))
    return found


class Uncovered:
    """Finds text in the events of one stream, or in one answer, that their dialect has not found.

    Names pass, such as those of models, roles and ids: most are there again in every event.
    """

    __slots__ = ("_joined", "_names", "_usual")

    def __init__(self) -> None:
        # Strings that were names.
        self._names: set[str] = set()
        # Slots of events that are not in the dialect.
        self._joined: dict[SlotKey, None] = {}
        # What was beside the text of the latest event in which nothing was left out.
        self._usual: Mapped | None = None

    @property
    def joining(self) -> bool:
        """Whether events that are not in the dialect have not ended."""
        return bool(self._joined)

    def beside(
        self, value: Mapped, operations: list[Operation], at: Path = (), *, usual: Mapped | None = None
    ) -> list[Operation]:
        """``operations`` of the value at ``at``, which is in the dialect, and every string that they leave out.

        Each of those is complete as it is.

        :param usual: what there is beside the text of an event that has one text. Where it is the same as in the
            latest such event in which nothing was left out, nothing is left out in this one.
        """
        if usual is not None and usual == self._usual and not self._joined:
            return operations
        if self._joined:
            operations = [*map(End, self._joined), *operations]
            self._joined.clear()
        known = self._names
        found: list[str] = []
        stack: list[JSON] = [value]
        # This is done for every token, so it knows no paths.
        for inner in stack:
            for member in inner.values() if type(inner) is dict else inner:  # type: ignore[union-attr]
                if isinstance(member, str):
                    if member and member not in known:
                        found.append(member)
                elif member and isinstance(member, (dict, list)):
                    stack.append(member)
        # Operations have the very strings of the value.
        covered = [id(operation.text) for operation in operations if type(operation) in _COVERING]  # type: ignore[union-attr]
        if len(found) <= len(covered) and all(id(text) in covered for text in found):
            self._usual = usual
            return operations
        return [*operations, *self._beside(value, operations, at)]

    def joined(self, unit: Unit, value: Mapped) -> list[Operation]:
        """The strings of an event that is not in the dialect. Those at one path are parts of one text.

        It goes on to the next event that is in the dialect.
        """
        operations: list[Operation] = []
        event = (unit.event or b"").decode("utf-8", "replace")
        for path, text in strings_in(value, (), skip=frozenset()):
            if not text or self._is_name(path, text):
                continue
            slot = Slot(("uncovered", event, pointer(path)), "output")
            if path and path[-1] in NAMES:
                operations.append(Whole(slot, path, text))
            else:
                operations.append(Text(slot, path, text))
                self._joined[slot.key] = None
        return operations

    def _beside(self, value: JSON, operations: Sequence[Operation], at: Path) -> list[Operation]:
        covered = _covered(operations)
        tools = {
            operation.slot.tool for operation in operations if isinstance(operation, Text | Whole | Piece | Repeat)
        }
        found: list[Operation] = []
        for path, text in strings_in(value, at, skip=frozenset()):
            if not text or path in covered or self._is_name(path, text):
                continue
            if text in tools and path[-1] == "name" and _NAME.fullmatch(text):
                self._keep(text)
            # The tokens of a text: where they don't spell it, they are judged as another.
            elif not ("logprobs" in path and (path[-1] == "token" or path[-2:-1] == ("tokens",))):
                found.append(Whole(Slot(("uncovered", pointer(path)), "output"), path, text))
        return found

    def _is_name(self, path: Path, text: str) -> bool:
        last = next((part for part in reversed(path) if isinstance(part, str)), "")
        if is_encoded(text):
            return True
        if last not in _NAMES or not names(last, text):
            return False
        self._keep(text)
        return True

    def _keep(self, name: str) -> None:
        if len(self._names) >= _MAX_NAMES:
            # They are all of the kind that is there once, such as ids of events.
            self._names.clear()
        self._names.add(name)


def _covered(operations: Sequence[Operation]) -> set[Path]:
    return {
        operation.path
        for operation in operations
        if isinstance(operation, Text | Whole | Piece | Repeat | Passed) and operation.path is not None
    }
