"""OpenAI's moderations endpoint, and what others have built like it.

https://platform.openai.com/docs/api-reference/moderations (read 2026-11)
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Unpack

from msgspec import Struct

from ..errors import AgentProtocolError, ConfigurationError
from ..messages.naming import kind_of, named
from ..protocol import Detection, GuardrailInspectEvent, GuardrailResponse
from .service import GuardrailService, HttpOptions, ServiceEndpoint, below, key_header

OPENAI_URL: Final = "https://api.openai.com/v1"
_PATH: Final = "/moderations"
#: The category where a service says that a text is flagged and not for what.
_FLAGGED: Final = "flagged"


class ModerationResult(Struct, frozen=True):
    """What is said of one text. Categories that a model does not know are None."""

    flagged: bool
    categories: Mapping[str, bool | None]
    category_scores: Mapping[str, float | None]


class Moderations(Struct, frozen=True):
    """An answer of the endpoint."""

    results: Sequence[ModerationResult]


class OpenAIModeration(GuardrailService):
    """OpenAI's moderations endpoint: which categories of harm are in a text.

    Each category that the model flags is a detection without a span: of the whole window. So ``Guardrail`` says what
    comes of it: ``action="block"`` fits, and ``categories={"violence", "self-harm"}`` leaves others out. Its
    ``threshold`` has no effect, for OpenAI has a threshold of its own for each category; ``thresholds`` replaces them.

    :param api_key: of OpenAI; None for a service that wants none.
    :param url: of a service that is built like it; ``/moderations`` is put behind it.
    :param model: which judges.
    :param thresholds: by category, the score from which on it is found, 0 to 1. Other categories are found where the
        model flags them.
    :param options: parameters of :class:`~asgi_agents.HttpTransport`.
    :raises ConfigurationError: for arguments that can't work.
    """

    says_severity = False

    def __init__(
        self,
        api_key: str | None,
        *,
        url: str = OPENAI_URL,
        model: str = "omni-moderation-latest",
        thresholds: Mapping[str, float] | None = None,
        **options: Unpack[HttpOptions],
    ) -> None:
        if not isinstance(model, str) or not model:
            raise ConfigurationError(f"OpenAIModeration: model={named(model)}, expected the name of a model")
        self._model = model
        self._thresholds = _checked(thresholds)
        secrets = key_header("OpenAIModeration", "authorization", api_key, "Bearer ")
        self._endpoint = ServiceEndpoint("OpenAIModeration", below(url, _PATH), secrets, **options)
        super().__init__(self._endpoint)

    async def inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        question: dict[str, Any] = {"model": self._model, "input": event.content}
        answer: Moderations = await self._endpoint.ask(question, Moderations)
        if len(answer.results) != 1:
            raise AgentProtocolError(f"results: expected 1, as many as texts, got {len(answer.results)}")
        result = answer.results[0]
        scores = {name: score for name, score in result.category_scores.items() if score is not None}
        for name, score in scores.items():
            if not 0 <= score <= 1:
                raise AgentProtocolError(f"category_scores: expected 0 to 1 for {name!r:.64}")
        names = {*result.categories, *self._thresholds}
        found = sorted(name for name in names if self._finds(name, result.categories, scores))
        if not found and result.flagged and not any(result.categories.values()):
            found = [_FLAGGED]
        return GuardrailResponse(
            detected=bool(found),
            confidence=max((scores.get(name, 1.0) for name in found), default=0.0),
            detections=[Detection(category=name, description="") for name in found],
        )

    def _finds(self, name: str, flags: Mapping[str, bool | None], scores: Mapping[str, float]) -> bool:
        threshold = self._thresholds.get(name)
        if threshold is None:
            return bool(flags.get(name))
        if name not in scores:
            raise AgentProtocolError(f"category_scores: expected one for {name!r:.64}, which has a threshold; got none")
        return scores[name] >= threshold


def _checked(given: object) -> dict[str, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"OpenAIModeration: thresholds is {kind_of(given)}, expected categories mapped to numbers from 0 to 1"
        )
    for name, threshold in given.items():
        if not isinstance(name, str):
            raise ConfigurationError(f"OpenAIModeration: thresholds contains {named(name)}, expected categories")
        if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
            raise ConfigurationError(
                f"OpenAIModeration: thresholds[{name!r:.64}]={named(threshold)}, expected a number from 0 to 1"
            )
    return dict(given)
