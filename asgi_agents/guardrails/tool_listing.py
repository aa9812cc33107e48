"""What MCP servers list as their tools, without those of which no call can pass."""

from collections.abc import Callable
from typing import Final

from . import json_text
from .framing import TooComplexError, UnreadableError, decoded
from .json_text import Path

# No list of tools is without it, unless it is escaped.
_MAYBE: Final = (b'"tools"', b"\\u")


def without_tools(data: bytes, hides: Callable[[str], bool]) -> tuple[bytes, int]:
    """A JSON-RPC message, or a batch, without the tools that are hidden; and how many those are.

    Anything else is returned as it is. All of it that stays is the same to the byte.

    :raises UnreadableError: where a list of tools may be in it that another reader finds.
    """
    if not any(sign in data for sign in _MAYBE):
        return data, 0
    text = decoded(data)
    try:
        value, duplicates = json_text.loads(text)
    except TooComplexError:
        raise
    except UnreadableError:
        # Nobody reads a list in it.
        return data, 0
    removed: set[Path] = set()
    lists: set[Path] = set()
    for at, message in enumerate(value) if isinstance(value, list) else [(None, value)]:
        result = message.get("result") if isinstance(message, dict) else None
        tools = result.get("tools") if isinstance(result, dict) else None
        if not isinstance(tools, list):
            continue
        path: Path = ("result", "tools") if at is None else (at, "result", "tools")
        for index, tool in enumerate(tools):
            name = tool.get("name") if isinstance(tool, dict) else None
            if isinstance(name, str) and hides(name):
                removed.add((*path, index))
                lists.add(path)
    if not removed:
        return data, 0
    if duplicates:
        raise UnreadableError("an object in a list of tools has a key twice")
    return json_text.without(text, removed, lists).encode(), len(removed)
