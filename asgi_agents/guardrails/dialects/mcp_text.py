"""Where the text of MCP's messages is, and whose it is."""

import json
import re
from collections.abc import Iterator
from typing import Final, Literal

from ..framing import TooComplexError
from ..json_text import JSON, Path, pointer
from ..naming import is_word
from ..operations import Key, Operation, Passed, Whole
from ..slots import Kind, Slot
from ..uncovered import is_encoded
from .base import MAX_TEXTS, Mapped, str_or_none, strings_in, wholes
from .json_rpc import METHOD
from .mcp_names import is_name, is_token

Side = Literal["client", "server"]

# What a tool, a prompt or a resource gives.
_GIVING: Final = frozenset({"tools/call", "prompts/get", "resources/read", "tasks/result"})
# Of which one of these is a part, where it is not known what was asked.
_GIVEN: Final = frozenset({"content", "structuredContent", "contents", "messages"})
#: The methods whose results are known.
METHODS: Final = _GIVING | frozenset(
    {
        *("initialize", "ping", "server/discover", "completion/complete", "logging/setLevel", "subscriptions/listen"),
        *("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/subscribe"),
        *("resources/unsubscribe", "tasks/get", "tasks/list", "tasks/cancel"),
    }
)
# Members of requests that hold the arguments of a tool or prompt.
_ARGUMENTS: Final = {
    "tools/call": ("arguments",),
    "prompts/get": ("arguments",),
    "completion/complete": ("argument", "context"),
}
# Names of tools and prompts. Clients call them by these.
_TOOL: Final = re.compile(r"[\w./-]{1,128}")
_NAMED: Final = frozenset({"tools", "prompts"})
_STRUCTURED: Final = "structuredContent"
# Numbers of fewer digits tell nobody apart.
_MIN_DIGITS: Final = 6


def texts_of(message: Mapped, at: Path, side: Side, method: str | None, tool: str | None) -> list[Operation]:
    """Every string of a message, as text or as what passes.

    :param side: who has sent it.
    :param method: of the request that it answers, where that is known.
    :param tool: that the request is about.
    """
    spoken: Kind = "input" if side == "client" else "output"
    if "method" in message:
        return _asked(message, at, spoken)
    kind = spoken
    if side == "server" and "result" in message and _gives(method, message["result"]):
        kind = "tool_result"
    operations: list[Operation] = []
    for key, value in message.items():
        path: Path = (*at, key)
        if key == "result" and kind != "tool_result" and isinstance(value, dict):
            operations += _result(value, path, spoken)
        elif key == "result":
            roles = _roles(value)
            operations += _strings(value, path, kind, roles, tool if kind == "tool_result" else None)
        else:
            operations += _strings(value, path, spoken)
    return operations


def _gives(method: str | None, result: JSON) -> bool:
    if method is not None:
        return method in _GIVING
    return isinstance(result, dict) and not result.keys().isdisjoint(_GIVEN)


def _asked(message: Mapped, at: Path, spoken: Kind) -> list[Operation]:
    """A request or a notification."""
    method = str_or_none(message.get("method")) or ""
    operations: list[Operation] = []
    for key, value in message.items():
        path: Path = (*at, key)
        if key == "method" and METHOD.fullmatch(method):
            operations.append(Passed(path))
        elif key == "params" and isinstance(value, dict):
            operations += _params(method, value, path, spoken)
        else:
            operations += _strings(value, path, spoken)
    return operations


def _params(method: str, params: Mapped, at: Path, spoken: Kind) -> list[Operation]:
    arguments = _ARGUMENTS.get(method, ())
    ref = params.get("ref")
    tool = str_or_none((ref if isinstance(ref, dict) and "name" not in params else params).get("name"))
    operations: list[Operation] = []
    for key, value in params.items():
        path: Path = (*at, key)
        if key in arguments:
            # Whatever their keys are: a tool may take an id for text.
            operations += _all(value, path, "tool_call", tool=tool)
        elif key == "name" and arguments and isinstance(value, str) and _TOOL.fullmatch(value):
            operations.append(Passed(path))
        elif key == "messages" and isinstance(value, list):
            for index, said in enumerate(value):
                operations += _said(said, (*path, index), spoken)
        else:
            operations += _strings(value, path, spoken)
    return operations


def _result(result: Mapped, at: Path, spoken: Kind) -> list[Operation]:
    """A result that is no tool's: a list of what there is, or what a client was asked for."""
    if "role" in result and "content" in result:
        return _said(result, at, spoken)
    operations: list[Operation] = []
    for key, value in result.items():
        path: Path = (*at, key)
        if key == "content" and "action" in result:
            # What a user has filled in.
            operations += _all(value, path, spoken)
            continue
        if key not in _NAMED or not isinstance(value, list):
            operations += _strings(value, path, spoken)
            continue
        for index, listed in enumerate(value):
            name = listed.get("name") if isinstance(listed, dict) else None
            for inner in _strings(listed, (*path, index), spoken):
                is_name = isinstance(inner, Whole) and inner.path == (*path, index, "name")
                operations.append(Passed((*path, index, "name")) if is_name and _is_tool(name) else inner)
    return operations


def _said(said: JSON, at: Path, spoken: Kind) -> list[Operation]:
    """A message of a conversation: its text, calls of tools, and their results."""
    if not isinstance(said, dict):
        return _strings(said, at, spoken)
    role = str_or_none(said.get("role"))
    operations: list[Operation] = []
    for key, value in said.items():
        path: Path = (*at, key)
        if key != "content":
            operations += _strings(value, path, spoken, {(): role})
            continue
        blocks = [((*path, index), block) for index, block in enumerate(value)] if isinstance(value, list) else []
        for where, block in blocks or [(path, value)]:
            operations += _block(block, where, spoken, role)
    return operations


def _block(block: JSON, at: Path, spoken: Kind, role: str | None) -> list[Operation]:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(block, dict) or kind not in ("tool_use", "tool_result"):
        return _strings(block, at, spoken, {(): role})
    tool = str_or_none(block.get("name"))
    operations: list[Operation] = []
    for key, value in block.items():
        path: Path = (*at, key)
        names = (key == "name" and _is_tool(value)) or (key == "id" and is_token(value))
        if (kind == "tool_use" and names) or (kind == "tool_result" and key == "toolUseId" and is_token(value)):
            operations.append(Passed(path))
        elif kind == "tool_use" and key == "input":
            operations += _all(value, path, "tool_call", role, tool)
        else:
            is_result = kind == "tool_result" and key in ("content", "structuredContent")
            operations += _strings(value, path, "tool_result" if is_result else spoken, {(): role})
    return operations


def _roles(result: JSON) -> dict[Path, str | None]:
    """The roles of the messages of a prompt, by where they are in the result."""
    messages = result.get("messages") if isinstance(result, dict) else None
    return {
        ("messages", index): str_or_none(message.get("role"))
        for index, message in enumerate(messages if isinstance(messages, list) else ())
        if isinstance(message, dict)
    }


def _all(value: JSON, at: Path, kind: Kind, role: str | None = None, tool: str | None = None) -> list[Operation]:
    """Every string in ``value``, whatever its key."""
    return wholes(value, at, kind, role=role, tool=tool, skip=frozenset())


def _strings(
    value: JSON, at: Path, kind: Kind, roles: dict[Path, str | None] | None = None, tool: str | None = None
) -> list[Operation]:
    """Every string in ``value``. Those that name something pass."""
    operations: list[Operation] = []
    if at and at[-1] == _STRUCTURED:
        operations += _beside_strings(value, at, kind, tool)
    elif isinstance(value, dict) and _STRUCTURED in value:
        operations += _beside_strings(value[_STRUCTURED], (*at, _STRUCTURED), kind, tool)
    for path, text, passes in named_strings(value, at, given=kind == "tool_result"):
        if passes:
            operations.append(Passed(path))
            continue
        below = path[len(at) :]
        role = roles.get((), roles.get(below[:2])) if roles else None
        operations.append(Whole(Slot((pointer(path),), kind, role, tool), path, text))
    return operations


def _beside_strings(value: JSON, at: Path, kind: Kind, tool: str | None) -> Iterator[Operation]:
    """What a model may be told by structured content beside its strings: numbers, and keys that are no names."""
    stack: list[tuple[Path, JSON]] = [(at, value)]
    left = MAX_TEXTS
    while stack:
        path, inner = stack.pop()
        if isinstance(inner, dict):
            stack += [((*path, key), member) for key, member in inner.items()]
        elif isinstance(inner, list):
            stack += [((*path, index), element) for index, element in enumerate(inner)]
        if path != at and isinstance(key := path[-1], str) and key and not is_word(key):
            left -= 1
            yield Key(Slot((pointer(path), "key"), kind, tool=tool), path, key)
        if type(inner) in (int, float) and sum(map(str.isdigit, number := json.dumps(inner))) >= _MIN_DIGITS:
            left -= 1
            yield Whole(Slot((pointer(path),), kind, tool=tool), path, number)
        if left < 0:
            raise TooComplexError(f"more than {MAX_TEXTS} texts")


def named_strings(value: JSON, at: Path, *, given: bool = False) -> Iterator[tuple[Path, str, bool]]:
    """Every string in ``value``, where it is, and whether it names something.

    :param given: whether a tool, a prompt or a resource has given them.
    """
    for path, text in strings_in(value, at, skip=frozenset()):
        yield path, text, not text or is_name(path, text, given=given) or is_encoded(text)


def _is_tool(name: JSON) -> bool:
    return isinstance(name, str) and _TOOL.fullmatch(name) is not None
