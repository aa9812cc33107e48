"""One replica of a deployment: the agent itself, and what it is asked through handles and HTTP."""

import logging
from collections.abc import Awaitable, Callable
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
    decode_answer,
    decode_event,
    encode_answer,
    reason_of,
)
from ..protocol.codec import decode_value, encode_value
from ..serve import agent_app
from ..serve.hooks import Hooks, NoAnswer, require_agent
from ..serve.stream import capabilities_of
from ..transports.ray_serve import RayQuestion, RayReply, config_id_of
from .batching import Batching, batched

logger: Final = logging.getLogger("asgi_agents.ray")

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024


class AgentReplica:
    """What Ray makes of each replica. Its methods are called by Ray.

    :param make: makes the agent.
    :param batching: how inspections are collected, if they are.
    :param max_ongoing_requests: how many calls Ray has it do at a time.
    """

    def __init__(self, make: Callable[[], object], batching: Batching | None, max_ongoing_requests: int) -> None:
        agent = make()
        require_agent("agent_deployment", agent)
        assert isinstance(agent, Agent)
        self._agent = agent
        self._health: Callable[[], Awaitable[object]] | None = getattr(agent, "check_health", None)
        if batching is not None:
            batched(agent, batching)
        self._hooks = Hooks(agent)
        self._app = agent_app(agent, max_event_bytes=MAX_EVENT_BYTES)
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
        """What :class:`~asgi_agents.transports.ray_serve.RayClient` calls."""
        question: RayQuestion = decode_value(RayQuestion, data, Encoding.MSGPACK, at="question")
        return encode_value(await self._reply(question), Encoding.MSGPACK, "reply")

    async def __call__(self, request: Request) -> Response:
        """An event over HTTP, through Serve's proxy."""
        return _Delegated(self._app)

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
