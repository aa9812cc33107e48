"""Which calls a guardrail judges, in one line: ``when=models("gpt-*") & ~users("admin")``.

Patterns are compared with all of a name, capitals included. ``*`` stands for any text, also none, and ``?`` for one
character. A call that has no such name, because its request says none or can't be read, matches no pattern: so a
guardrail that leaves out some, ``when=~models("internal")``, judges it.
"""

import re
from collections.abc import Callable, Iterable
from inspect import iscoroutinefunction
from typing import Final

from ..errors import ConfigurationError
from ..messages.naming import named
from ..protocol import TOKEN
from .slots import Call

#: Takes a call, and returns whether it is judged.
Condition = Callable[[Call], bool]


class CallPolicy:
    """Whether a call is judged: what :func:`models`, :func:`users` and the like return, for ``Guardrail(when=...)``.

    ``a & b`` is true where both are, ``a | b`` where one is, and ``~a`` where ``a`` is not. The other of two may be any
    function that takes a :class:`Call`.
    """

    __slots__ = ("_holds", "_shown")

    def __init__(self, holds: Condition, shown: str) -> None:
        self._holds: Final = holds
        self._shown: Final = shown

    def __repr__(self) -> str:
        return self._shown

    def __call__(self, call: Call) -> bool:
        return bool(self._holds(call))

    def __and__(self, other: Condition) -> "CallPolicy":
        return _both(self, _policy(other))

    def __rand__(self, other: Condition) -> "CallPolicy":
        return _both(_policy(other), self)

    def __or__(self, other: Condition) -> "CallPolicy":
        return _either(self, _policy(other))

    def __ror__(self, other: Condition) -> "CallPolicy":
        return _either(_policy(other), self)

    def __invert__(self) -> "CallPolicy":
        return CallPolicy(lambda call: not self(call), f"~{self._shown}")

    def __bool__(self) -> bool:
        """There is no truth without a call: ``a and b`` would be ``b``, and ``not a`` always False."""
        raise TypeError(
            f"{self._shown} has no truth value, expected '&', '|' and '~' in place of 'and', 'or' and 'not'"
        )


def models(*patterns: str) -> CallPolicy:
    """Calls whose request names a model like one of these: ``models("gpt-*", "o?")``."""
    matches = _matcher("models", patterns)
    return _policy_of("models", patterns, lambda call: call.model is not None and matches(call.model))


def users(*patterns: str) -> CallPolicy:
    """Calls whose request names a user like one of these.

    That is what the body of the request says of itself, which its client may write. For users that an agent or a proxy
    has authenticated, take :func:`headers`.
    """
    matches = _matcher("users", patterns)
    return _policy_of("users", patterns, lambda call: call.user is not None and matches(call.user))


def tools(*patterns: str) -> CallPolicy:
    """Calls in which the model may call a tool with a name like one of these."""
    matches = _matcher("tools", patterns)
    return _policy_of("tools", patterns, lambda call: any(map(matches, call.tools)))


def headers(name: str, *patterns: str) -> CallPolicy:
    """Calls whose request has a header of this name, with a value like one of these: ``headers("x-user", "free-*")``.

    These are the headers that the app gets, with the changes of agents. Which of them only an agent may set, its
    ``AgentConfig(sets={...})`` says.
    """
    if not isinstance(name, str) or not TOKEN.match(name):
        raise ConfigurationError(f"headers: {named(name)}, expected the name of a header first")
    matches = _matcher("headers", patterns)
    wanted = name.lower().encode()

    def holds(call: Call) -> bool:
        given: Iterable[tuple[bytes, bytes]] = call.scope.get("headers", ())
        return any(key.lower() == wanted and matches(value.decode("latin-1").strip()) for key, value in given)

    return _policy_of("headers", (name, *patterns), holds)


def _policy_of(name: str, arguments: tuple[str, ...], holds: Condition) -> CallPolicy:
    return CallPolicy(holds, f"{name}({', '.join(map(repr, arguments))})")


def _policy(given: object) -> CallPolicy:
    if isinstance(given, CallPolicy):
        return given
    if not callable(given) or iscoroutinefunction(given):
        raise ConfigurationError(f"when: {named(given)}, expected a 'def' that takes a Call beside '&' and '|'")
    return CallPolicy(given, getattr(given, "__name__", type(given).__name__))


def _both(one: CallPolicy, other: CallPolicy) -> CallPolicy:
    return CallPolicy(lambda call: one(call) and other(call), f"({one} & {other})")


def _either(one: CallPolicy, other: CallPolicy) -> CallPolicy:
    return CallPolicy(lambda call: one(call) or other(call), f"({one} | {other})")


def _matcher(name: str, patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """What says whether a text is like one of ``patterns``."""
    if not patterns:
        raise ConfigurationError(
            f"{name}: no patterns, so that no call is like one; expected at least one: {name}('*')"
        )
    for pattern in patterns:
        if not isinstance(pattern, str):
            right = f"{name}('a', 'b-*')"
            raise ConfigurationError(f"{name}: {named(pattern)}, expected patterns as arguments of their own: {right}")
        if not pattern:
            raise ConfigurationError(f"{name}: an empty pattern, expected a name, or one with '*' in it")
    expression = re.compile("|".join(map(_expression, patterns)), re.DOTALL)
    return lambda text: expression.fullmatch(text) is not None


def _expression(pattern: str) -> str:
    """A regular expression for a pattern. It takes time in proportion to the text, which a client may choose."""
    first, *others = (re.escape(part).replace(r"\?", ".") for part in pattern.split("*"))
    if not others:
        return first
    # Where a part is found first is as good as any place behind: no other is tried.
    between = "".join(f"(?>.*?{part})" for part in others[:-1] if part)
    return f"{first}{between}.*{others[-1]}"
