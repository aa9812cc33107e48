"""An agent as an ASGI app that speaks the HTTP transport or the formats of gateways, or answers reverse proxies."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Literal, get_args

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from ..agent import Agent
from ..concurrency.shared_limiter import SharedLimiter
from ..errors import ConfigurationError
from ..guardrails import TextGuardrail
from ..messages.naming import named
from ..protocol import PROTOCOL_VERSION, Encoding, Event, decode_event, encode_answer
from .forward_auth import ForwardAuthApp
from .hooks import Hooks, NoAnswer, require_agent, require_flag, require_positive
from .posting import PostingApp, Replier, caller_of, media_type_of

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_ENCODINGS: Final = {encoding.content_type: encoding for encoding in Encoding}
#: Whom an app answers: the middleware of this package, or gateways.
Api = Literal["agent", "litellm", "forward_auth", "auth_request", "ext_authz"]


def agent_app(
    agent: Agent,
    *,
    api: Api = "agent",
    mask_responses: bool = True,
    max_event_bytes: int = MAX_EVENT_BYTES,
    max_concurrency: int | None = None,
    configurable: bool = True,
) -> ASGIApp:
    """An ASGI app that any ASGI server can run.

    With ``api="agent"`` it is reached with an ``http://`` or ``https://`` URL: ``POST`` to any path takes an event and
    answers it, in JSON or msgpack, whichever the event came in.

    With ``"forward_auth"``, ``"auth_request"`` or ``"ext_authz"`` it is an authorization service for reverse proxies,
    whose every request is a question about another one. The first is for Traefik and Caddy, which say in
    ``X-Forwarded-Method``, ``-Uri`` and ``-Host`` what they ask about, the second for nginx, with ``X-Original-Method``
    and ``-URL``, the third for Envoy with an HTTP service, whose question is the request itself. Headers of requests
    that the agent sets are in the answer. What a proxy can't be told is answered 500, and logged.

    With ``api="litellm"`` a :class:`~asgi_agents.guardrails.TextGuardrail` judges texts for gateways. ``POST`` to
    ``…/beta/litellm_basic_guardrail_api`` is LiteLLM's generic guardrail API; to ``…/request`` and ``…/response`` it is
    the webhooks of agentgateway. Each text is judged as a whole. So is each string in the arguments of a tool call,
    which those formats can't change: what would be redacted there blocks. LiteLLM is told how much of the end of a
    stream may still change (``stream_holdback_chars``), which follows from ``hold`` and ``settled``.

    A hook that is still at work when the caller hangs up, because its deadline has passed, is cancelled. ``GET`` tells
    what the agent is, for health checks, unless a proxy asks. Nothing here authenticates the caller: bind it where only
    the middleware, gateway or proxy gets at it, or put an authenticating middleware around it.

    :param mask_responses: for gateways. False: a model's answer in which something would be redacted is blocked
        instead. Gateways drop what is masked in streams: agentgateway always does, and LiteLLM does unless its
        ``streaming_transform_mode`` is ``incremental_diff``.
    :param max_event_bytes: a longer event, or question, is refused with 413.
    :param max_concurrency: how many hooks may be at work at a time, the rest wait; None: as many as there are requests,
        of gateways at most 8 for each.
    :param configurable: with ``api="agent"``: callers may configure the agent. False: a configuration is refused.
    :raises ConfigurationError: for arguments that can't work.
    """
    require_agent("agent_app", agent)
    require_positive("agent_app", "max_event_bytes", max_event_bytes)
    if max_concurrency is not None:
        require_positive("agent_app", "max_concurrency", max_concurrency)
    require_flag("agent_app", "mask_responses", mask_responses)
    require_flag("agent_app", "configurable", configurable)
    if api != "litellm" and not mask_responses:
        raise ConfigurationError("agent_app: mask_responses=False is for gateways, expected api='litellm'")
    limiter = None if max_concurrency is None else SharedLimiter(max_concurrency)
    match api:
        case "agent":
            return _AgentApp(agent, max_event_bytes, limiter, configurable=configurable)
        case "litellm":
            if not isinstance(agent, TextGuardrail):
                raise ConfigurationError(
                    f"agent_app: api='litellm' with {named(agent)}, expected a TextGuardrail, which says what to do"
                )
            # With it comes httpx, as for all that has to do with the services of others.
            from .gateways import GatewayApp

            return GatewayApp(agent, max_event_bytes, limiter, mask_responses=mask_responses)
        case "forward_auth" | "auth_request" | "ext_authz":
            return ForwardAuthApp(agent, api, max_concurrency)
        case _:
            known = " or ".join(map(repr, get_args(Api)))
            raise ConfigurationError(f"agent_app: api={named(api)}, expected {known}")


class _AgentApp(PostingApp):
    def __init__(
        self, agent: Agent, max_event_bytes: int, limiter: SharedLimiter | None, *, configurable: bool
    ) -> None:
        self._hooks = Hooks(agent, configurable=configurable)
        about = {
            "agent": self._hooks.name,
            "protocol_version": PROTOCOL_VERSION,
            "events": sorted(self._hooks.events),
        }
        super().__init__(about, max_event_bytes, limiter)

    def reader(self, path: str, headers: Headers) -> Callable[[bytes], Replier]:
        encoding = _ENCODINGS.get(media_type_of(headers))
        if encoding is None:
            raise HTTPException(415, f"expected {' or '.join(_ENCODINGS)} without content-encoding")
        return partial(self._read, encoding, caller_of(headers))

    def _read(self, encoding: Encoding, caller: Mapping[str, list[str]], body: bytes) -> Replier:
        event = decode_event(body, encoding)
        reply: Callable[[], Awaitable[Response]] = partial(self._reply, event, encoding, caller)
        if self._hooks.may_suspend(event.event_type):
            return partial(self.in_turn, reply), True
        return reply, False

    async def _reply(self, event: Event, encoding: Encoding, caller: Mapping[str, list[str]]) -> Response:
        try:
            body = await self._hooks.answer(event, partial(encode_answer, encoding=encoding), caller)
        except NoAnswer as exc:
            return JSONResponse({"error": str(exc)}, 500)
        return Response(body, media_type=encoding.content_type)
