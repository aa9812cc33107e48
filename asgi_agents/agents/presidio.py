"""A text guardrail that finds personal data with Presidio."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from ..concurrency.own_threads import OwnThreads
from ..errors import ConfigurationError
from ..guardrails import Block, Decision, Flag, Redact, TextGuardrail, Window
from ..imports.extras import from_extra
from ..messages.naming import kind_of, named
from .settings import require_strings

_ACTIONS: Final = ("redact", "block", "flag")
# Of an event loop. To find takes processor time, so that more would only wait for each other.
_THREADS: Final = 8


class Presidio(TextGuardrail):
    """Finds personal data by its form, with recognisers of Presidio: of addresses of mail, cards, IBANs, phones::

        protect(app, agents=[AgentConfig("pii", Presidio())], guardrails=[Guardrail("pii", on={"output"})])

    These recognisers need no model, and load nothing from the net. For names and places give it an ``AnalyzerEngine``
    with a model that is installed. It runs in threads. Needs the ``presidio`` extra.

    :param entities: what is looked for, by Presidio's names. None: all that the recognisers know that need no model; of
        an ``analyzer``, all that it knows.
    :param action: what is done with a find: ``"redact"`` puts its name in its place, such as ``[EMAIL_ADDRESS]``,
        ``"block"`` stops the call, ``"flag"`` only records it.
    :param threshold: finds of a lower score are ignored, 0 to 1. A phone number has 0.4.
    :param analyzer: a ``presidio_analyzer.AnalyzerEngine``, asked instead.
    :param language: that it is asked for.
    :raises ConfigurationError: for what there is not, and without the extra.
    """

    hold = 330  # code points: no address of mail is longer, with what stands around it

    def __init__(
        self,
        entities: Sequence[str] | None = None,
        *,
        action: Literal["redact", "block", "flag"] = "redact",
        threshold: float = 0.4,
        analyzer: Any = None,
        language: str = "en",
    ) -> None:
        with from_extra("Presidio", "presidio", ConfigurationError):
            from .presidio_recognizers import finder, finder_of
        if action not in _ACTIONS:
            raise ConfigurationError(f"Presidio: action={named(action)}, expected one of {', '.join(_ACTIONS)}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise ConfigurationError(f"Presidio: threshold={named(threshold)}, expected 0 to 1")
        if not isinstance(language, str):
            raise ConfigurationError(f"Presidio: language is {kind_of(language)}, expected such as 'en'")
        wanted = None if entities is None else require_strings("Presidio", "entities", entities)
        self._find: Callable[[str], Sequence[tuple[int, int, str, float]]]
        self._find = finder(wanted) if analyzer is None else finder_of(analyzer, wanted, language)
        self._action = action
        self._threshold = threshold
        self._threads = OwnThreads(_THREADS)

    async def check(self, window: Window) -> Sequence[Decision]:
        finds = await self._threads.run(self._find, window.text)
        return [
            self._decision(start, end, kind)
            for start, end, kind, score in finds
            if end > window.fresh and score >= self._threshold - math.ulp(1.0)
        ]

    def _decision(self, start: int, end: int, kind: str) -> Decision:
        if self._action == "block":
            return Block(f"contains personal data: {kind}")
        return Flag(start, end, kind) if self._action == "flag" else Redact(start, end, f"[{kind}]")
