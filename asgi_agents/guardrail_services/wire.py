"""What goes over the wire between gateways and the guardrail services that they call. No I/O.

LiteLLM's generic guardrail API: https://docs.litellm.ai/docs/adding_provider/generic_guardrail_api. agentgateway's
guardrail webhooks: https://agentgateway.dev, ``crates/agentgateway/src/llm/policy/webhook.rs``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct

#: Where LiteLLM posts to, behind the base URL that it is given.
LITELLM_PATH: Final = "/beta/litellm_basic_guardrail_api"
#: Where agentgateway posts prompts to, and answers.
PROMPTS_PATH: Final = "/request"
CHOICES_PATH: Final = "/response"

#: What a text is to LiteLLM: of a request to a model, or of its answer.
Direction = Literal["request", "response"]


class CalledFunction(Struct, frozen=True, kw_only=True):
    """The function of a tool call. ``arguments`` is JSON."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(Struct, frozen=True, kw_only=True):
    """A tool call, whole or as far as it has come."""

    function: CalledFunction


class LiteLLMRequest(Struct, frozen=True, kw_only=True):
    """Texts that LiteLLM asks about.

    ``request_data`` is of the key with which the client came. The format has more fields, which are not read here.
    """

    input_type: Direction
    texts: Sequence[str] | None = None
    tool_calls: Sequence[ToolCall] | None = None
    model: str | None = None
    litellm_call_id: str | None = None
    request_data: Mapping[str, Any] | None = None
    additional_provider_specific_params: Mapping[str, Any] | None = None


class LiteLLMVerdict(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to be done about them.

    :ivar texts: as many as there were in the request, and in their order, with what was changed in them.
    :ivar stream_holdback_chars: for each of them, how many characters at its end are to be kept back until more of the
        stream was judged.
    """

    action: Literal["NONE", "BLOCKED", "GUARDRAIL_INTERVENED"]
    blocked_reason: str | None = None
    texts: Sequence[str] | None = None
    stream_holdback_chars: Sequence[int] | None = None


class PromptMessage(Struct, frozen=True):
    """A message of a prompt, or of an answer, with all its text in one."""

    role: str
    content: str


class AnsweredChoice(Struct, frozen=True):
    """One of the answers that a model has given."""

    message: PromptMessage


class WebhookBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What agentgateway asks about, or what takes its place: the messages of a prompt, or the choices of an answer."""

    messages: Sequence[PromptMessage] | None = None
    choices: Sequence[AnsweredChoice] | None = None


class WebhookRequest(Struct, frozen=True):
    """A question of agentgateway."""

    body: WebhookBody


class WebhookAction(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to be done: mask with a ``body`` of messages or choices, reject with a text as ``body``, pass with none.

    :ivar status_code: of the reply to the client, where it is a rejection.
    """

    body: WebhookBody | str | None = None
    status_code: int | None = None
    reason: str | None = None


class WebhookVerdict(Struct, frozen=True):
    """An answer to agentgateway."""

    action: WebhookAction
