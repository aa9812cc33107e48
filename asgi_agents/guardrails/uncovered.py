"""Text of a request that its dialect does not know: an app may read it all the same."""

import re
from typing import Final

from .dialects.base import NAMES, strings_in
from .json_text import JSON, pointer
from .operations import Operation, Piece, Repeat, Text, Whole
from .slots import Kind, Slot

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
_ENCODED: Final = re.compile(r"data:[\w/+.;=-]*;base64,[\w+/=-]*+|[\w+/=-]{256,}+")
# What stands where a name is expected, and may be one: each text costs a call of a remote judge.
_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


def uncovered(
    value: JSON, operations: list[Operation], *, by_path: bool = False, kind: Kind = "input"
) -> list[Operation]:
    """Every string of a request or answer that its dialect has not found, as text of its own.

    The dialect may be the wrong one: a client chooses the shape of what it sends, and a path may lead to an app that
    reads something else.

    :param by_path: whether the path has said which dialect it is. What its requests have at the top beside the text,
        such as tools and formats, is passed over then, but for descriptions.
    """
    covered = {
        operation.path
        for operation in operations
        if isinstance(operation, Text | Whole | Piece | Repeat) and operation.path is not None
    }
    found: list[Operation] = []
    for path, text in strings_in(value, (), skip=frozenset()):
        if not text or path in covered or _ENCODED.fullmatch(text):
            continue
        last = path[-1] if path else ""
        if last in NAMES and _NAME.fullmatch(text):
            continue
        # Who describes a tool tells the model something.
        if by_path and path and path[0] in KNOWN and last != "description":
            continue
        found.append(Whole(Slot(("uncovered", pointer(path)), kind), path, text))
    return found
