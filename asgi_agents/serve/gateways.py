"""A text guardrail for LLM gateways: LiteLLM's generic guardrail API, and the webhooks of agentgateway."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from anyio import create_task_group
from anyio.lowlevel import checkpoint
from msgspec import Struct
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ..calls.inspections import inspection_of
from ..concurrency.shared_limiter import SharedLimiter
from ..errors import AgentProtocolError
from ..exchange.scope import new_id
from ..guardrail_services.service import BLOCKED
from ..guardrail_services.wire import (
    CHOICES_PATH,
    LITELLM_PATH,
    PROMPTS_PATH,
    AnsweredChoice,
    LiteLLMRequest,
    LiteLLMVerdict,
    PromptMessage,
    WebhookAction,
    WebhookBody,
    WebhookRequest,
    WebhookVerdict,
)
from ..guardrails import Block, Decision, Redact, TextGuardrail, Window
from ..guardrails.escapes import Run, runs_in
from ..guardrails.framing import TooComplexError, UnreadableError
from ..guardrails.json_text import decode, strings
from ..guardrails.redactions import Edits, merged
from ..guardrails.slots import Kind, Slot
from ..guardrails.text_guardrail import metadata_of
from ..guardrails.verdicts import decisions_of
from ..protocol import (
    TOKEN,
    AgentResponse,
    Answer,
    Encoding,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    InspectionType,
)
from ..protocol.codec import decode_value, encode_value
from .hooks import Hooks, NoAnswer
from .posting import PostingApp, Replier, caller_of, media_type_of

logger: Final = logging.getLogger("asgi_agents.serve")

#: How many texts of one question are judged at a time.
AT_ONCE: Final = 8
#: How many texts a question may have.
MAX_TEXTS: Final = 10_000
# Where agentgateway is to answer its client itself: the status that other blocks have.
_REJECTED: Final = 400
_JSON: Final = Encoding.JSON.content_type
_MAX_ID_LENGTH: Final = 128
_TOOL_ROLES: Final = frozenset({"tool", "function"})


class AskedText(NamedTuple):
    """A text that a gateway asks about.

    :ivar may_change: whether the gateway can be told another text in its place.
    :ivar may_go_on: whether it may be the beginning of a text, and the gateway is told how much of it may still change.
    """

    text: str
    kind: Kind
    role: str | None = None
    may_change: bool = True
    may_go_on: bool = False


class MaskedText(NamedTuple):
    """What becomes of a text.

    :ivar holdback: how many code points at its end may still change, if more text follows.
    """

    text: str
    holdback: int


class Origin(NamedTuple):
    """Where a question comes from: its id, and the trace context that came with it."""

    correlation_id: str
    model: str | None
    caller: Mapping[str, list[str]]


class GatewayApp(PostingApp):
    """Answers gateways. See :func:`~asgi_agents.serve.agent_app`."""

    def __init__(
        self, agent: TextGuardrail, max_bytes: int, limiter: SharedLimiter | None, *, mask_responses: bool
    ) -> None:
        self._agent = agent
        self._mask_responses = mask_responses
        self._hooks = Hooks(agent)
        self._readers: Final[Mapping[str, Callable[[Mapping[str, list[str]], bytes], Replier]]] = {
            LITELLM_PATH: self._read_litellm,
            PROMPTS_PATH: self._read_prompts,
            CHOICES_PATH: self._read_choices,
        }
        about = {"agent": self._hooks.name, "api": "litellm", "paths": list(self._readers)}
        super().__init__(about, max_bytes, limiter)

    def reader(self, path: str, headers: Headers) -> Callable[[bytes], Replier]:
        path = path.rstrip("/")
        for end, read in self._readers.items():
            if path.endswith(end):
                if media_type_of(headers) != _JSON:
                    raise HTTPException(415, f"expected {_JSON} without content-encoding")
                return partial(read, caller_of(headers))
        raise HTTPException(404, f"expected a path that ends with {', '.join(self._readers)}")

    # Formats

    def _read_litellm(self, caller: Mapping[str, list[str]], body: bytes) -> Replier:
        asked: LiteLLMRequest = decode_value(LiteLLMRequest, body, Encoding.JSON)
        answered = asked.input_type == "response"
        kind: Kind = "output" if answered else "input"
        texts = [AskedText(text, kind, may_go_on=answered) for text in asked.texts or ()]
        count = len(texts)
        for call in asked.tool_calls or ():
            texts += [
                AskedText(text, "tool_call", may_change=False) for text in _strings_of(call.function.arguments or "")
            ]

        def encode(found: Block | Sequence[MaskedText]) -> Struct:
            if isinstance(found, Block):
                return LiteLLMVerdict(action="BLOCKED", blocked_reason=found.reason)
            found = found[:count]
            changed = any(after.text != before.text for before, after in zip(texts, found, strict=False))
            return LiteLLMVerdict(
                action="GUARDRAIL_INTERVENED" if changed else "NONE",
                texts=[each.text for each in found] if changed else None,
                stream_holdback_chars=[each.holdback for each in found] if answered and found else None,
            )

        given = asked.litellm_call_id or ""
        named = len(given) <= _MAX_ID_LENGTH and TOKEN.match(given) is not None
        origin = Origin(given if named else "", asked.model, caller)
        return self._replier(texts, origin, encode, answered=answered)

    def _read_prompts(self, caller: Mapping[str, list[str]], body: bytes) -> Replier:
        messages = self._webhook_body(body).messages
        if messages is None:
            raise AgentProtocolError("body.messages: expected the messages of a prompt, got none")
        texts = [AskedText(each.content, _kind_of(each.role), each.role) for each in messages]

        def encode(found: Block | Sequence[MaskedText]) -> Struct:
            return _webhook_verdict(found, texts, lambda changed: WebhookBody(messages=changed))

        return self._replier(texts, Origin("", None, caller), encode, answered=False)

    def _read_choices(self, caller: Mapping[str, list[str]], body: bytes) -> Replier:
        choices = self._webhook_body(body).choices
        if choices is None:
            raise AgentProtocolError("body.choices: expected the choices of an answer, got none")
        texts = [AskedText(each.message.content, "output", each.message.role) for each in choices]

        def encode(found: Block | Sequence[MaskedText]) -> Struct:
            return _webhook_verdict(
                found, texts, lambda changed: WebhookBody(choices=[AnsweredChoice(message) for message in changed])
            )

        return self._replier(texts, Origin("", None, caller), encode, answered=True)

    def _webhook_body(self, body: bytes) -> WebhookBody:
        asked: WebhookRequest = decode_value(WebhookRequest, body, Encoding.JSON)
        return asked.body

    # Judging

    def _replier(
        self,
        texts: Sequence[AskedText],
        origin: Origin,
        encode: Callable[[Block | Sequence[MaskedText]], Struct],
        *,
        answered: bool,
    ) -> Replier:
        if len(texts) > MAX_TEXTS:
            raise HTTPException(413, f"{len(texts)} texts, expected at most {MAX_TEXTS}")
        if not origin.correlation_id:
            origin = origin._replace(correlation_id=new_id())
        may_mask = self._mask_responses or not answered
        suspends = self._hooks.may_suspend(EventType.GUARDRAIL_INSPECT) or len(texts) > AT_ONCE
        return partial(self._reply, texts, origin, encode, may_mask=may_mask), suspends

    async def _reply(
        self,
        texts: Sequence[AskedText],
        origin: Origin,
        encode: Callable[[Block | Sequence[MaskedText]], Struct],
        *,
        may_mask: bool,
    ) -> Response:
        try:
            found = await self._judge_all(texts, origin, may_mask=may_mask)
        except NoAnswer as exc:
            return JSONResponse({"error": str(exc)}, 500)
        return Response(encode_value(encode(found), Encoding.JSON, "answer"), media_type=_JSON)

    async def _judge_all(
        self, texts: Sequence[AskedText], origin: Origin, *, may_mask: bool
    ) -> Block | Sequence[MaskedText]:
        """What becomes of all of them; where one is blocked, that.

        :raises NoAnswer: the agent has failed.
        """
        # There is nothing to find in an empty one. The others have no verdict before they were judged.
        found = [None if each.text else MaskedText("", 0) for each in texts]
        waiting = iter([index for index, each in enumerate(texts) if each.text])
        stopped: Block | NoAnswer | None = None
        suspends = self._hooks.may_suspend(EventType.GUARDRAIL_INSPECT)

        async def judge() -> None:
            nonlocal stopped
            for done, index in enumerate(waiting, start=1):
                ask = partial(self._judge, texts[index], origin, may_mask=may_mask)
                outcome: Block | MaskedText | NoAnswer
                try:
                    outcome = await (self.in_turn(ask) if suspends else ask())
                except NoAnswer as exc:
                    outcome = exc
                if not isinstance(outcome, MaskedText):
                    stopped = stopped or outcome
                    return
                found[index] = outcome
                if not suspends and not done % AT_ONCE:
                    # Others have their turn all the same.
                    await checkpoint()

        if not suspends or len(texts) == 1:
            await judge()
        else:
            async with create_task_group() as tasks:

                async def judge_until_one_stops() -> None:
                    await judge()
                    if stopped is not None:
                        tasks.cancel_scope.cancel()

                for _ in range(min(AT_ONCE, len(texts))):
                    tasks.start_soon(judge_until_one_stops)
        if isinstance(stopped, NoAnswer):
            raise stopped
        if stopped is not None:
            return stopped
        judged = [each for each in found if each is not None]
        if len(judged) < len(found):
            logger.error("%s: %d of %d texts were not judged", self._hooks.name, len(found) - len(judged), len(found))
            raise NoAnswer("the agent has not judged all of it")
        return judged

    async def _judge(self, each: AskedText, origin: Origin, *, may_mask: bool) -> Block | MaskedText:
        window = Window(each.text)
        event = GuardrailInspectEvent(
            correlation_id=origin.correlation_id,
            inspection_type=InspectionType.PII_DETECTION,
            content=each.text,
            model=origin.model,
            metadata=metadata_of(window, Slot(("gateway",), each.kind, each.role)),
        )
        decisions = await self._hooks.answer(event, partial(_decisions, window), origin.caller)
        redactions: list[tuple[int, int, str]] = []
        for decision in decisions:
            if isinstance(decision, Block):
                return decision
            if isinstance(decision, Redact):
                redactions.append((decision.start, decision.end, decision.text))
        if redactions and not (may_mask and each.may_change):
            return Block(BLOCKED)
        return _masked(each.text, merged(redactions), self._limit(each.text) if each.may_go_on else len(each.text))

    def _limit(self, text: str) -> int:
        """How many code points at the beginning of ``text`` stay as they are judged, whatever follows."""
        limit = len(text) - self._agent.hold
        try:
            settled = self._agent.settled(text)
        except Exception as exc:
            logger.error("%s: settled raised %s", self._hooks.name, type(exc).__name__, exc_info=exc)
            settled = 0
        if type(settled) is int and settled <= len(text):
            limit = max(limit, settled)
        return max(limit, 0)


def _masked(text: str, redactions: Sequence[tuple[int, int, str]], limit: int) -> MaskedText:
    """The text with what was redacted in it, and how much of its end may still change: what comes from ``limit`` on."""
    for start, end, _ in redactions:
        if start < limit < end:
            limit = start
    edits = Edits()
    edits.add(redactions)
    settled = edits.part(limit, text[:limit], last=False)
    rest = edits.part(len(text), text[limit:], last=True)
    return MaskedText(settled + rest, len(rest))


def _decisions(window: Window, answer: Answer) -> Sequence[Decision]:
    if isinstance(answer, AgentResponse):
        # Such as BadInput, which it has raised.
        answer = inspection_of(answer)
    assert isinstance(answer, GuardrailResponse)
    return decisions_of(answer, window, action="block")


def _webhook_verdict(
    found: Block | Sequence[MaskedText],
    texts: Sequence[AskedText],
    body: Callable[[Sequence[PromptMessage]], WebhookBody],
) -> WebhookVerdict:
    if isinstance(found, Block):
        return WebhookVerdict(WebhookAction(body=found.reason, status_code=_REJECTED, reason="blocked"))
    if all(after.text == before.text for before, after in zip(texts, found, strict=True)):
        return WebhookVerdict(WebhookAction(reason="passed"))
    # All of them, also those that stay as they are: they take the place of what was asked about.
    messages = [PromptMessage(before.role or "", after.text) for before, after in zip(texts, found, strict=True)]
    return WebhookVerdict(WebhookAction(body=body(messages), reason="masked"))


def _kind_of(role: str) -> Kind:
    return "tool_result" if role in _TOOL_ROLES else "input"


def _strings_of(arguments: str) -> Iterator[str]:
    """The strings in the arguments of a tool call, and what they read with escapes of JSON in them read.

    Of what is no JSON, or not yet, it is all of it.
    """
    try:
        found = [decode(arguments[start:end]) for _, start, end in strings(arguments)]
    except UnreadableError:
        found = [arguments]
    for text in found:
        yield text
        try:
            yield from _texts_of(runs_in(text))
        except TooComplexError as exc:
            raise AgentProtocolError(f"tool_calls[].function.arguments: {exc}") from None


def _texts_of(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        yield run.text
        yield from _texts_of(run.inner)
