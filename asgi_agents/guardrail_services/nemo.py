"""NVIDIA NeMo Guardrails' servers.

https://docs.nvidia.com/nemo/guardrails (the server of the library, whose code is in ``nemoguardrails/server``) and
https://docs.nvidia.com/nemo/microservices/latest/guardrails/checks.html (the microservice); both read 2026-11.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Unpack, get_args

from msgspec import Struct

from ..errors import AgentProtocolError, ConfigurationError
from ..messages.naming import named
from ..protocol import GuardrailInspectEvent, GuardrailResponse
from ..protocol.validation import check_text
from .service import (
    MASKED,
    GuardrailService,
    HttpOptions,
    ServiceEndpoint,
    below,
    blocked,
    is_answered,
    key_header,
    masked,
    passed,
)

#: Ways to have rails judge a text: without an answer of a model (``checks``), or in the place of one.
NeMoEndpoint = Literal["chat/completions", "checks", "guardrail/checks"]
_ENDPOINTS: Final = get_args(NeMoEndpoint)


class RailsCheck(Struct, frozen=True, kw_only=True):
    """An answer of ``/v1/checks``. ``content`` is the text as the rails have left it, ``rail`` the one that blocks."""

    status: Literal["passed", "modified", "blocked"]
    content: str | None = None
    rail: str | None = None


class RailStatus(Struct, frozen=True):
    """What one rail says."""

    status: str


class MicroserviceCheck(Struct, frozen=True, kw_only=True):
    """An answer of ``/v1/guardrail/checks``."""

    status: Literal["success", "blocked"]
    rails_status: Mapping[str, RailStatus] | None = None


class ActivatedRail(Struct, frozen=True, kw_only=True):
    """A rail that has run. ``stop``: it has let nothing pass."""

    name: str
    stop: bool = False


class RailsLog(Struct, frozen=True, kw_only=True):
    """What a server has done."""

    activated_rails: Sequence[ActivatedRail]


class RailsData(Struct, frozen=True, kw_only=True):
    """What newer servers say beside the completion."""

    log: RailsLog | None = None


class RailsMessage(Struct, frozen=True, kw_only=True):
    """A message of the server."""

    content: str | None = None


class RailsChoice(Struct, frozen=True):
    """Newer servers have their message in a choice."""

    message: RailsMessage


class RailsCompletion(Struct, frozen=True, kw_only=True):
    """An answer of ``/v1/chat/completions``, of newer servers and of older ones."""

    choices: Sequence[RailsChoice] | None = None
    guardrails: RailsData | None = None
    messages: Sequence[RailsMessage] | None = None
    log: RailsLog | None = None


class NeMoGuardrails(GuardrailService):
    """A NeMo Guardrails server: its input rails judge texts for a model, and its output rails what a model has written.

    Where a rail stops a text, the client is told the server's own refusal if there is one. What rails have changed is
    found by comparing words, and is replaced if ``Guardrail.action`` is ``redact``.

    :param url: of the server; ``/v1/`` and the endpoint are put behind it. One that ends with the endpoint is used as
        it is.
    :param config_id: the guardrails configuration to use. None: the server's default.
    :param endpoint: ``chat/completions``, which every server of the library has, is asked to run rails and nothing
        else. ``checks`` is the newer endpoint for that. ``guardrail/checks`` is that of the microservice; it says
        whether a text is blocked, and changes none.
    :param model: the main model, for rails that use it. Newer servers want one, older ones ignore it.
    :param api_key: sent as ``authorization: Bearer …``. None: none is.
    :param options: parameters of :class:`~asgi_agents.HttpTransport`.
    :raises ConfigurationError: for arguments that can't work.
    """

    finds = frozenset({MASKED})
    says_severity = False

    def __init__(
        self,
        url: str,
        *,
        config_id: str | None = None,
        endpoint: NeMoEndpoint = "chat/completions",
        model: str = "",
        api_key: str | None = None,
        **options: Unpack[HttpOptions],
    ) -> None:
        where = "NeMoGuardrails"
        if endpoint not in _ENDPOINTS:
            right = ", ".join(map(repr, _ENDPOINTS))
            raise ConfigurationError(f"{where}: endpoint={named(endpoint)}, expected one of {right}")
        if config_id is not None and (not isinstance(config_id, str) or not config_id):
            raise ConfigurationError(f"{where}: config_id={named(config_id)}, expected the id of a configuration")
        if not isinstance(model, str):
            raise ConfigurationError(f"{where}: model={named(model)}, expected the name of a model")
        # Platforms that have the endpoint elsewhere end with its last name all the same.
        last = f"/{endpoint.rpartition('/')[2]}" if endpoint != "chat/completions" else "/chat/completions"
        whole = isinstance(url, str) and url.partition("?")[0].rstrip("/").endswith(last)
        secrets = key_header(where, "authorization", api_key, "Bearer ")
        self._endpoint = ServiceEndpoint(where, below(url, last if whole else f"/v1/{endpoint}"), secrets, **options)
        self._config = {} if config_id is None else {"config_id": config_id}
        self._model = model
        self._inspect = {
            "chat/completions": self._complete,
            "checks": self._check,
            "guardrail/checks": self._check_by_microservice,
        }[endpoint]
        super().__init__(self._endpoint)

    async def inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        return await self._inspect(event.content, "output" if is_answered(event) else "input")

    async def _complete(self, content: str, rails: Literal["input", "output"]) -> GuardrailResponse:
        options = {"rails": [rails], "log": {"activated_rails": True}}
        messages = [_message(content, rails)]
        if rails == "output":
            # The rails of the answer run behind an empty prompt.
            messages.insert(0, _message("", "input"))
        # Where the configuration stands in the question has changed: newer servers ignore it in the one place, older
        # ones in the other.
        question: dict[str, Any] = {"model": self._model, "messages": messages, "stream": False}
        question |= {**self._config, "options": options, "guardrails": {**self._config, "options": options}}
        answer: RailsCompletion = await self._endpoint.ask(question, RailsCompletion)
        log = answer.log if answer.guardrails is None else answer.guardrails.log
        if log is None:
            # Older servers have 200 and a message for errors of their own, too.
            raise AgentProtocolError("log.activated_rails: expected the rails that have run, got none")
        message = answer.messages[0] if answer.messages else None
        if answer.choices:
            message = answer.choices[0].message
        text = None if message is None else message.content
        stopping = [rail.name for rail in log.activated_rails if rail.stop]
        if stopping:
            return blocked(text, description=stopping[0])
        check_text("choices[0].message.content" if answer.choices else "messages[0].content", text)
        assert text is not None
        return masked(content, text)

    async def _check(self, content: str, rails: Literal["input", "output"]) -> GuardrailResponse:
        question = {
            "model": self._model,
            "messages": [_message(content, rails)],
            "guardrails": {**self._config, "rail_types": [rails]},
        }
        answer: RailsCheck = await self._endpoint.ask(question, RailsCheck)
        if answer.status == "passed":
            return passed()
        if answer.status == "blocked":
            return blocked(None, description=answer.rail or "")
        check_text("content", answer.content)
        assert answer.content is not None
        return masked(content, answer.content)

    async def _check_by_microservice(self, content: str, rails: Literal["input", "output"]) -> GuardrailResponse:
        question = {
            "model": self._model,
            "messages": [_message(content, rails)],
            "guardrails": self._config,
        }
        answer: MicroserviceCheck = await self._endpoint.ask(question, MicroserviceCheck)
        if answer.status == "success":
            return passed()
        stopping = [name for name, rail in (answer.rails_status or {}).items() if rail.status == "blocked"]
        return blocked(None, description=stopping[0] if stopping else "")


def _message(content: str, rails: Literal["input", "output"]) -> dict[str, str]:
    return {"role": "user" if rails == "input" else "assistant", "content": content}
