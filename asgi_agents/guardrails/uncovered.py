"""Text of a request that its dialect does not know: an app may read it all the same."""

import re
from typing import Final

from .dialects.base import strings_in
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
_ENCODED: Final = re.compile(r"data:[\w/+.;=-]*;base64,[\w+/=-]*+")


def uncovered(
    value: JSON, operations: list[Operation], *, by_path: bool = False, kind: Kind = "input"
) -> list[Operation]:
    """Every string of a request or answer that its dialect has not found, as text of its own.

    The dialect may be the wrong one. A client chooses the shape of what it sends, so that all strings count then. Where
    the path has said which dialect it is, only what stands at the top and is not of that dialect counts: a path may
    lead to an app that reads something else.
    """
    covered = {
        operation.path
        for operation in operations
        if isinstance(operation, Text | Whole | Piece | Repeat) and operation.path is not None
    }
    passed_over = KNOWN.union(str(path[0]) for path in covered if path) if by_path else frozenset()
    return [
        Whole(Slot(("uncovered", pointer(path)), kind), path, text)
        for path, text in strings_in(value, (), skip=frozenset())
        if text and path not in covered and not (path and path[0] in passed_over) and not _ENCODED.fullmatch(text)
    ]
