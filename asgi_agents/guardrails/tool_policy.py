"""Which tools of an MCP server may be called, and with which arguments."""

from collections.abc import Callable, Iterable, Mapping
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from typing import Any, Final

from msgspec import Struct

from ..errors import ConfigurationError
from ..messages.naming import named
from .json_text import JSON

#: Who has decided, in audit records.
TOOL_POLICY: Final = "tool policy"
# How much of a name is repeated to the client.
_MAX_NAME: Final = 128


class ToolRule:
    """Tools, and calls of them.

    :param name: of the tools. ``*`` stands for any characters, and all others for themselves: upper and lower case
        differ.
    :param when: takes the arguments, and returns whether the rule is for this call. None: it is for all calls.
    :param reason: what the client is told of a denial. None: that the tool policy denies the tool.
    :raises ConfigurationError: for what can't work.
    """

    __slots__ = ("_parts", "name", "reason", "when")

    def __init__(
        self, name: str, when: Callable[[Mapping[str, Any]], object] | None = None, *, reason: str | None = None
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"ToolRule: name={named(name)}, expected the name of a tool, or a pattern with '*'"
            )
        if when is not None and (not callable(when) or iscoroutinefunction(when)):
            raise ConfigurationError(
                f"ToolRule({name!r}): when={named(when)}, expected a 'def' that takes the arguments, or None"
            )
        if reason is not None and not isinstance(reason, str):
            raise ConfigurationError(f"ToolRule({name!r}): reason={named(reason)}, expected text, or None")
        self.name: Final = name
        self.when: Final = when
        self.reason: Final = reason
        self._parts: Final = name.split("*")

    def __repr__(self) -> str:
        return f"ToolRule({self.name!r})" if self.when is None else f"ToolRule({self.name!r}, {named(self.when)})"

    def names(self, tool: str) -> bool:
        """Whether it is for calls of ``tool``. Takes time that is linear in the length of that."""
        first, *others = self._parts
        if not others:
            return tool == first
        *between, last = others
        if len(tool) < len(first) + len(last) or not tool.startswith(first) or not tool.endswith(last):
            return False
        at, end = len(first), len(tool) - len(last)
        for part in between:
            found = tool.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    def takes(self, arguments: Mapping[str, Any]) -> bool:
        """Whether it is for a call with these arguments. Raises what ``when`` raises."""
        if self.when is None:
            return True
        answer = self.when(arguments)
        if isawaitable(answer):
            if iscoroutine(answer):
                answer.close()
            raise TypeError("when returned an awaitable, expected whether the rule is for the call")
        return bool(answer)


class Denial(Struct, frozen=True):
    """Why a call is denied.

    :ivar reason: what the client is told.
    :ivar rule: whose ``when`` has raised.
    :ivar error: what it has raised.
    :ivar malformed: whether it can't be read what is called.
    """

    reason: str
    rule: ToolRule | None = None
    error: Exception | None = None
    malformed: bool = False


#: How rules are written: a pattern, a pattern and what is asked about the arguments, or a rule.
ToolRules = Iterable[str | tuple[str, Callable[[Mapping[str, Any]], object]] | ToolRule]


class ToolPolicy:
    """Says which tools of an MCP server may be called. It needs no agent, and stands among the guardrails.

    ::

        removes = ("shell", lambda arguments: "rm " in arguments["command"])
        protect(app, guardrails=[ToolPolicy(deny=["delete_*", removes])])

    A call that is denied never reaches the app. It is answered with a JSON-RPC error that has the reason, and the
    session goes on. A batch with such a call is refused as a whole. Tools of which no call can pass are left out of
    ``tools/list``.

    :param allow: rules for the calls that may pass. None: all may; empty: none may.
    :param deny: rules for those that may not, whatever ``allow`` says.
    :raises ConfigurationError: for what can't work, and for a policy without a rule.

    A rule is a pattern with ``*``, a pair of that and a function of the arguments, or a :class:`ToolRule`. Where a
    function raises, the call is denied.
    """

    __slots__ = ("allow", "deny")

    def __init__(self, *, allow: ToolRules | None = None, deny: ToolRules = ()) -> None:
        self.allow: Final = None if allow is None else _rules("allow", allow)
        self.deny: Final = _rules("deny", deny)
        if self.allow is None and not self.deny:
            raise ConfigurationError("ToolPolicy: neither allow nor deny, expected rules such as deny=['delete_*']")

    def __repr__(self) -> str:
        allow = None if self.allow is None else list(self.allow)
        return f"ToolPolicy(allow={allow!r}, deny={list(self.deny)!r})"

    def denial(self, tool: str, arguments: Mapping[str, Any]) -> Denial | None:
        """Why this call is denied. None: it may pass."""
        for rule in self.deny:
            if rule.names(tool):
                try:
                    if rule.takes(arguments):
                        return _denial(tool, rule)
                except Exception as exc:
                    return Denial(_denial(tool, rule).reason, rule, exc)
        if self.allow is None:
            return None
        raised: Denial | None = None
        for rule in self.allow:
            if rule.names(tool):
                try:
                    if rule.takes(arguments):
                        return None
                except Exception as exc:
                    raised = raised or Denial(_denial(tool, rule).reason, rule, exc)
        return raised or _denial(tool, None)

    def hides(self, tool: str) -> bool:
        """Whether no call of this tool can pass."""
        if any(rule.when is None and rule.names(tool) for rule in self.deny):
            return True
        return self.allow is not None and not any(rule.names(tool) for rule in self.allow)


def denial_of(policies: Iterable[ToolPolicy], value: JSON, *, duplicates: bool) -> Denial | None:
    """Why the body of a request is denied. None: it may pass.

    It is one message or a batch. Whether it says that it is JSON-RPC has no say: servers may be lenient.

    :param duplicates: whether an object in it has a key twice, so that others may read other calls than we do.
    """
    batch = value if isinstance(value, list) else [value]
    if any(isinstance(message, list) for message in batch):
        return Denial("a batch within a batch", malformed=True)
    messages = [message for message in batch if isinstance(message, dict)]
    if duplicates and any("method" in message for message in messages):
        return Denial("an object in the request has a key twice, expected each once", malformed=True)
    for message in messages:
        if message.get("method") != "tools/call":
            continue
        params = message.get("params")
        tool = params.get("name") if isinstance(params, dict) else None
        arguments = params.get("arguments") if isinstance(params, dict) else None
        if not isinstance(tool, str):
            return Denial("a call of a tool has no name, expected one in its params", malformed=True)
        if not isinstance(arguments, dict | None):
            return Denial("the arguments of a call are no object", malformed=True)
        for policy in policies:
            denial = policy.denial(tool, arguments or {})
            if denial is not None:
                return denial
    return None


def _denial(tool: str, rule: ToolRule | None) -> Denial:
    if rule is not None and rule.reason is not None:
        return Denial(rule.reason)
    shown = tool if len(tool) <= _MAX_NAME else f"{tool[:_MAX_NAME]}..."
    return Denial(f"the tool policy denies this call of the tool {shown!r}")


def _rules(field: str, given: object) -> tuple[ToolRule, ...]:
    where = f"ToolPolicy: {field}"
    if isinstance(given, str | ToolRule):
        raise ConfigurationError(f"{where}={given!r:.80}, expected a list: [{given!r:.80}]")
    if not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}={named(given)}, expected a list of names of tools")
    rules: list[ToolRule] = []
    for rule in given:
        match rule:
            case ToolRule():
                rules.append(rule)
            case str(name):
                rules.append(ToolRule(name))
            case (str(name), when) if isinstance(rule, tuple):
                if when is None:
                    raise ConfigurationError(f"{where} contains {rule!r:.80}, expected {name!r:.80} alone")
                rules.append(ToolRule(name, when))
            case _:
                raise ConfigurationError(
                    f"{where} contains {named(rule)}, expected a name, a pair of a name and a function of the"
                    " arguments, or a ToolRule"
                )
    return tuple(rules)
