"""One replica of a deployment: the agent itself, and what it is asked through handles and HTTP."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from hashlib import blake2b
from typing import Any, Final

from anyio import Lock
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..agent import Agent
from ..errors import AgentError, AgentProtocolError, ConfigurationError
from ..protocol import (
    AgentResponse,
    ConfigureEvent,
    Encoding,
    EventType,
    decode_answer,
    decode_event,
    encode_answer,
    reason_of,
)
from ..protocol.codec import decode_value, encode_value
from ..protocol.responses import NOT_CONFIGURABLE
from ..serve import agent_app
from ..serve.grpc.service import StatusError
from ..serve.hooks import Hooks, NoAnswer, require_agent
from ..serve.stream import capabilities_of
from ..transports.ray_client import RayQuestion, RayReply, config_id_of
from .batching import Batching, batched
from .proxied import NOT_FOR_ENVOY, Encoded, EnvoyMethods, InputStream, answer_stream, answer_unary

logger: Final = logging.getLogger("asgi_agents.ray")

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024


class AgentReplica:
    """What Ray makes of each replica. Its methods are called by Ray.

    :param make: makes the agent.
    :param batching: how inspections are collected, if they are.
    :param max_ongoing_requests: how many calls Ray has it do at a time.
    :param envoy: whether Envoy may ask it.
    """

    def __init__(
        self, make: Callable[[], object], batching: Batching | None, max_ongoing_requests: int, envoy: bool = False
    ) -> None:
        agent = make()
        require_agent("agent_deployment", agent)
        assert isinstance(agent, Agent)
        self._agent = agent
        self._health: Callable[[], Awaitable[object]] | None = getattr(agent, "check_health", None)
        if batching is not None:
            batched(agent, batching)
        self._hooks = Hooks(agent)
        # A configuration that comes from outside of the cluster would reach one replica only, and from anybody.
        self._app = agent_app(agent, max_event_bytes=MAX_EVENT_BYTES, configurable=False)
        self._envoy = EnvoyMethods(agent, max_ongoing_requests) if envoy else None
        self._capabilities = capabilities_of(self._hooks, max_ongoing_requests, MAX_EVENT_BYTES)
        about = encode_value(self._capabilities, Encoding.MSGPACK, "capabilities")
        self._version = blake2b(about, digest_size=8).hexdigest()
        # The agent has no configuration before the first call.
        self._config_id = ""
        self._configuring = Lock()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Ray hands every replica its configuration: at the start, and when only that has changed.

        :raises ConfigurationError: the agent does not take it, so that Ray keeps the replicas that it had.
        """
        encoded = encode_value(user_config["config"], Encoding.JSON, "config")
        refused = await self._configure(config_id_of(encoded), encoded)
        if refused is not None:
            raise ConfigurationError(f"{self._hooks.name} refuses its configuration: {refused}")

    async def check_health(self) -> None:
        """Ray replaces the replica when this raises an exception: what the agent's own ``check_health`` says."""
        if self._health is not None:
            await self._health()

    async def ask(self, data: bytes) -> bytes:
        """What :class:`~asgi_agents.transports.ray_client.RayClient` calls by the deployment's handle."""
        question: RayQuestion = decode_value(RayQuestion, data, Encoding.MSGPACK, at="question")
        return encode_value(await self._reply(question), Encoding.MSGPACK, "reply")

    async def __call__(self, request: Request) -> Response:
        """An event over HTTP, through Serve's proxy."""
        return _Delegated(self._app)

    # What Serve's gRPC proxy calls; see `services`.

    async def Ask(self, data: bytes, grpc_context: Any) -> Encoded:  # noqa: N802 - the name of gRPC's method
        """The same, from outside of the cluster."""
        return await answer_unary(self._ask_from_outside, data, grpc_context)

    async def Check(self, message: bytes, grpc_context: Any) -> Encoded:  # noqa: N802
        """``envoy.service.auth.v3.Authorization``."""
        return await answer_unary(NOT_FOR_ENVOY if self._envoy is None else self._envoy.check, message, grpc_context)

    async def Process(self, messages: InputStream, grpc_context: Any) -> AsyncIterator[Encoded]:  # noqa: N802
        """``envoy.service.ext_proc.v3.ExternalProcessor``."""
        method = NOT_FOR_ENVOY if self._envoy is None else self._envoy.process
        async for answer in answer_stream(method, messages, grpc_context):
            yield answer

    async def _ask_from_outside(self, data: bytes, rpc: object) -> bytes:
        if len(data) > MAX_EVENT_BYTES:
            raise StatusError("RESOURCE_EXHAUSTED", f"the question is larger than max. {MAX_EVENT_BYTES} bytes")
        try:
            question: RayQuestion = decode_value(RayQuestion, data, Encoding.MSGPACK, at="question")
        except AgentProtocolError as exc:
            raise StatusError("INVALID_ARGUMENT", str(exc)) from exc
        if question.config_id:
            reply = RayReply(self._version, refused=NOT_CONFIGURABLE)
        else:
            reply = await self._reply(question)
        return encode_value(reply, Encoding.MSGPACK, "reply")

    async def _reply(self, question: RayQuestion) -> RayReply:
        if question.config_id and question.config_id != self._config_id:
            if question.config is None:
                return RayReply(self._version, needs_config=True)
            refused = await self._configure(question.config_id, question.config)
            if refused is not None:
                return RayReply(self._version, refused=refused)
        if question.event is None:
            return RayReply(self._version, capabilities=self._capabilities)
        try:
            event = decode_event(question.event, Encoding.MSGPACK)
            if event.event_type is EventType.CONFIGURE:
                raise AgentProtocolError("a configuration is no event here: it comes beside one")
            answer = await self._hooks.answer(event, _encode, question.trace_context)
        except (AgentProtocolError, NoAnswer) as exc:
            return RayReply(self._version, fault=str(exc))
        return RayReply(self._version, answer)

    async def _configure(self, config_id: str, encoded: bytes) -> str | None:
        """Have the agent take a configuration; why it does not, or None where it does."""
        async with self._configuring:
            if config_id == self._config_id:
                return None
            config = decode_value(Any, encoded, Encoding.JSON, at="config")
            event = ConfigureEvent(agent_id=self._hooks.name, config=config)
            # What it has while it takes one, and after it has refused one, is for the agent to say.
            self._config_id = ""
            try:
                answer = decode_answer(await self._hooks.answer(event, _encode, {}), Encoding.MSGPACK, event.event_type)
            except (AgentError, NoAnswer) as exc:
                return str(exc)
            if isinstance(answer, AgentResponse) and not answer.is_allow:
                return reason_of(answer)
            self._config_id = config_id
            return None


_encode: Final = partial(encode_answer, encoding=Encoding.MSGPACK)


class _Delegated(Response):
    """A response that an ASGI app makes. Ray calls what is returned to it if it is a Response."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
