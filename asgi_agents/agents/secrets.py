"""A text guardrail that finds keys and tokens with detect-secrets."""

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from ..errors import ConfigurationError
from ..guardrails import Block, Decision, Flag, Redact, TextGuardrail, Window
from ..imports.extras import from_extra
from ..messages.naming import named
from .settings import require_strings

_ACTIONS: Final = ("redact", "block", "flag")
# detect-secrets finds the marker in the first line of a key; what is to be hidden is what follows it.
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----.*?(?:-----END [A-Z0-9 ]{0,60}-----|\Z)", re.DOTALL
)
_BEGINS: Final = "-----BEGIN "
# Some patterns end within the token, that of a JWT before its signature.
_REST_OF_TOKEN: Final = re.compile(r"(?<=[\w.])[\w.+/=-]*[\w=]")


class Secrets(TextGuardrail):
    """Finds keys and tokens by their form, as detect-secrets knows it: of AWS, GitHub, OpenAI and twenty more::

        protect(app, agents=[AgentConfig("secrets", Secrets())], guardrails=[Guardrail("secrets", on={"output"})])

    Nothing is guessed: what only looks random, or stands behind the word "password", is not found. Text passes line by
    line. Needs the ``secrets`` extra.

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

    async def check(self, window: Window) -> Sequence[Decision]:
        return [self._decision(start, end, kind) for start, end, kind in self._finds(window)]

    def settled(self, text: str) -> int:
        """Nothing crosses the end of a line but a private key."""
        end = text.rfind("\n") + 1
        key = _PRIVATE_KEY.match(text, begins) if (begins := text.rfind(_BEGINS)) >= 0 else None
        return begins if key is not None and begins < end and (end < key.end() or key.end() == len(text)) else end

    def _finds(self, window: Window) -> Iterator[tuple[int, int, str]]:
        # Some patterns begin with what stands before the token.
        text, fresh = window.text, max(0, window.fresh - 1)
        if self._private_keys:
            yield from ((found.start(), found.end(), "private_key") for found in _PRIVATE_KEY.finditer(text, fresh))
        for kind, patterns in self._patterns.items():
            for pattern in patterns:
                for found in pattern.finditer(text, fresh):
                    rest = _REST_OF_TOKEN.match(text, found.end())
                    yield found.start(), rest.end() if rest else found.end(), kind

    def _decision(self, start: int, end: int, kind: str) -> Decision:
        if self._action == "block":
            return Block(f"contains a secret: {kind}")
        return Flag(start, end, kind) if self._action == "flag" else Redact(start, end, f"[{kind}]")
