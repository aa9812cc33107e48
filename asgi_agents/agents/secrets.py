"""A text guardrail that finds keys and tokens with detect-secrets."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from ..errors import ConfigurationError
from ..guardrails import Block, Decision, Flag, Redact, TextGuardrail, Window
from ..imports.extras import from_extra
from ..messages.naming import named
from .long_tokens import FINDERS
from .parsed_patterns import shortest
from .settings import require_strings
from .unfinished import may_contain, unfinished

_ACTIONS: Final = ("redact", "block", "flag")
# detect-secrets finds the marker in the first line of a key; what is to be hidden is what follows it.
_BEGIN: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----")
_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,60}-----")
_PRIVATE_KEY: Final = re.compile(rf"{_BEGIN.pattern}.*?(?:{_END.pattern}|\Z)", re.DOTALL)
# Some patterns end within the token, that of a JWT before its signature. Separators don't end it, but many in a row do:
# whether more of the token stands behind them must be seen in the window that has all before them.
_IN_A_ROW: Final = 64
_REST_OF_TOKEN: Final = re.compile(rf"(?<=[\w.=])(?:[.+/-]{{0,{_IN_A_ROW}}}+[\w=]++)++", re.ASCII)
# What stands between words: blanks, and all that is no ASCII but digits, and letters that stand for ASCII ones where
# capitals don't count: I with a dot, i without one, long s, the sign of Kelvin. Most patterns match nothing of it. Some
# of these characters stand for all.
_TO_BREAK: Final = re.compile(r"(?:[\s\S]*)(?:\s|[^\x00-\x7f\d\u0130\u0131\u017f\u212a])")
# Code points before the place where a long find goes on, in which something may begin that reaches further than it: the
# last line of a key, or a name before what is assigned to it.
_LOOK_BACK: Final = 128
_BREAKS: Final = " \t\n\r\x0b\x0c\x1c\x85\xa0éßЖאक、。あ中，Ａ한\u200b\u2028\u3000😀"


class Secrets(TextGuardrail):
    """Finds keys and tokens by their form, as detect-secrets knows it: of AWS, GitHub, OpenAI and twenty more::

        protect(app, agents=[AgentConfig("secrets", Secrets())], guardrails=[Guardrail("secrets", on={"output"})])

    Nothing is guessed: what only looks random, or stands behind the word "password", is not found. Text passes word by
    word, but for what a secret may have begun with. Needs the ``secrets`` extra.

    :param action: what is done with a find: ``"redact"`` puts its kind in its place, such as ``[github_token]``,
        ``"block"`` stops the call, ``"flag"`` only records it.
    :param leave_out: kinds that are not looked for, such as ``"twilio_api_key"``.
    :raises ConfigurationError: for an action or a kind that there is not, and without the extra.
    """

    hold = 4096  # code points: an RSA key of 4096 bits has 3300
    window = 8192

    def __init__(self, *, action: Literal["redact", "block", "flag"] = "redact", leave_out: Sequence[str] = ()) -> None:
        with from_extra("Secrets", "secrets", ConfigurationError):
            from .secret_patterns import patterns
        if action not in _ACTIONS:
            raise ConfigurationError(f"Secrets: action={named(action)}, expected one of {', '.join(_ACTIONS)}")
        known = patterns()
        for kind in require_strings("Secrets", "leave_out", leave_out):
            if kind not in known:
                raise ConfigurationError(
                    f"Secrets: leave_out has {kind!r}, expected some of {', '.join(sorted(known))}"
                )
        self._action = action
        self._patterns = {kind: known[kind] for kind in known if kind not in leave_out}
        self._private_keys = "private_key" in self._patterns
        self._finders = [(kind, finder) for kind, finder in FINDERS.values() if kind in self._patterns]
        every = [each for kind in self._patterns for each in self._patterns[kind]]
        self._shortest = {each: shortest(each) for each in every}
        # What may go on behind a break that has come.
        begun = [each for each in every if may_contain(each, _BREAKS)] + [_BEGIN] * self._private_keys
        self._unfinished = [unfinished(each) for each in begun]

    async def check(self, window: Window) -> Sequence[Decision]:
        return [self._decision(start, end, kind) for start, end, kind in self._finds(window)]

    def settled(self, text: str) -> int:
        """Nothing crosses a break but what may go on there, as a private key."""
        to_break = _TO_BREAK.match(text)
        end = 0 if to_break is None else to_break.end()
        if self._private_keys:
            for key in _PRIVATE_KEY.finditer(text):
                if key.end() == len(text):
                    end = min(end, key.start())
        for pattern in self._unfinished:
            if end and (begun := pattern.search(text)):
                end = min(end, begun.start())
        return end

    def _finds(self, window: Window) -> Iterator[tuple[int, int, str]]:
        """Their places and kinds. One without a kind is the rest of one that was found before."""
        text, fresh = window.text, window.fresh
        # Some patterns begin with what stands before the token.
        begin = keys_begin = max(0, fresh - 1)
        goes_on_to = fresh
        if window.going_on:
            begin = keys_begin = max(0, fresh - _LOOK_BACK)
            if self._private_keys and _BEGIN.match(window.going_on):
                end_of_key = _END.search(text, begin)
                goes_on_to = keys_begin = end_of_key.end() if end_of_key else len(text)
            elif rest := _REST_OF_TOKEN.match(text, fresh):
                goes_on_to = rest.end()
        keys = [*_PRIVATE_KEY.finditer(text, keys_begin)] if self._private_keys else []
        starts = [key.start() for key in keys]
        if starts and keys_begin < fresh:
            goes_on_to = min(goes_on_to, starts[0])
        if goes_on_to > fresh:
            yield fresh, goes_on_to, ""
        yield from ((key.start(), key.end(), "private_key") for key in keys)
        for start, end, kind in self._tokens(text, begin):
            # What a key was is known by how it began, so that no token may run into it.
            at = bisect_right(starts, start)
            end = min(end, starts[at]) if at < len(starts) else end
            # What has begun within what goes on is part of it.
            yield start, end, kind if start >= fresh or not window.going_on else ""

    def _tokens(self, text: str, begin: int) -> Iterator[tuple[int, int, str]]:
        for kind, finder in self._finders:
            yield from _whole(text, finder(text, begin), kind)
        for kind, patterns in self._patterns.items():
            for pattern in patterns:
                if len(text) - begin >= self._shortest[pattern]:
                    yield from _whole(text, (found.span() for found in pattern.finditer(text, begin)), kind)

    def _decision(self, start: int, end: int, kind: str) -> Decision:
        if self._action == "block":
            return Block(f"contains a secret: {kind}")
        return Flag(start, end, kind) if self._action == "flag" else Redact(start, end, f"[{kind}]" if kind else "")


def _whole(text: str, found: Iterator[tuple[int, int]], kind: str) -> Iterator[tuple[int, int, str]]:
    """With the rest of the token, which is looked for once for all that is found in it."""
    last = -1
    for start, end in found:
        if end <= last:
            continue
        rest = _REST_OF_TOKEN.match(text, end)
        last = rest.end() if rest else end
        yield start, last, kind
