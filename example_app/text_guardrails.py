"""What must not be said: by the chat, to it, and in the rooms. These agents see text, whatever it comes in."""

import re
from collections.abc import Collection, Sequence

from asgi_agents.guardrails import Block, Decision, Guardrail, Redact, TextGuardrail, Window

# At most 345 code points, and one before.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,4}[a-z]{2,24}", re.IGNORECASE)
# Looked at from each number: the first four digits of a match may be those of something else.
_CARD = re.compile(r"(?<!\d)(?=(\d{4}([ -]?)\d{4}\2\d{4}\2\d{4}|3\d{3}([ -]?)\d{6}\3\d{5})(?!\d))")
# The end of a text that more text could make part of an address or a number.
_UNFINISHED = re.compile(r"(?:(?<!\d)\d[\d -]*+|(?<![\w.+@-]))[\w.+@-]*+\Z")
_UNFINISHED_WORD = re.compile(r"(?<!\w)\w*+\Z")
_INJECTION = re.compile(
    r"\bignore\s{1,3}(?:(?:all|any|the|your)\s{1,3}){0,3}(?:previous|earlier)\s{1,3}(?:instructions|rules)\b",
    re.IGNORECASE,
)


class PersonalData(TextGuardrail):
    """Redacts e-mail addresses and card numbers. A demonstration: it knows no other spelling of them."""

    hold = 350  # code points: more than the longest address, and what is looked at around it

    async def check(self, window: Window) -> Sequence[Decision]:
        emails = _EMAIL.finditer(window.text, window.fresh)
        cards = _CARD.finditer(window.text, window.fresh)
        return [
            *(Redact(match.start(), match.end(), "[email]") for match in emails),
            *(Redact(match.start(1), match.end(1), "[card]") for match in cards if _passes_luhn(match[1])),
        ]

    def settled(self, text: str) -> int:
        return _start_of(_UNFINISHED, text)


class Unannounced(TextGuardrail):
    """Stops a text at the name of a project that is not announced yet.

    :param names: of one word each.
    """

    hold = 40  # code points: more than the longest name, and one letter on each side

    def __init__(self, names: Collection[str]) -> None:
        self._lowered = tuple(name.casefold() for name in names)
        self._names = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b", re.IGNORECASE)

    async def check(self, window: Window) -> Sequence[Decision]:
        named = self._names.search(window.text, window.fresh)
        return [Block("This names a project that is not announced yet")] if named else []

    def settled(self, text: str) -> int:
        start = _start_of(_UNFINISHED_WORD, text)
        word = text[start:].casefold()
        return start if any(name.startswith(word) for name in self._lowered) else len(text)


class Injections(TextGuardrail):
    """Refuses a prompt that tells the model to forget what it was told. A demonstration: it knows one sentence."""

    async def check(self, window: Window) -> Sequence[Decision]:
        found = _INJECTION.search(window.text, window.fresh)
        return [Block("Please ask without instructions to the model")] if found else []


# In this order: what was redacted is not there any more for those behind.
CHAT_GUARDRAILS = (
    Guardrail("injections", on={"input"}),
    Guardrail("personal-data", on={"output", "tool_call"}),
    Guardrail("unannounced", on={"output", "tool_call"}),
)

# What a member says is judged on its way in, once, and not again on its way to each of the others. A message is
# complete: after 50 ms in which no other has come, its last word is taken for a whole one.
ROOM_GUARDRAILS = (
    Guardrail("personal-data", on={"input"}, max_hold=0.05),
    Guardrail("unannounced", on={"input"}, max_hold=0.05),
)


def _start_of(unfinished: re.Pattern[str], text: str) -> int:
    match = unfinished.search(text)
    assert match is not None
    return match.start()


def _passes_luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B: the check digit that tells card numbers from other numbers."""
    digits = [int(char) for char in reversed(number) if char.isdigit()]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0
