"""Agents that are deployments on Ray Serve, called by their handles (the ``ray`` extra).

The other end is :mod:`asgi_agents.ray`. An event and its answer cross as bytes of the protocol's msgpack, so that both
ends check what they get as they do on any other transport.
"""

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, cast

import anyio
from anyio import CapacityLimiter

from ..concurrency.background import on_trio
from ..concurrency.one_at_a_time import OneAtATime
from ..concurrency.per_event_loop import PerEventLoop
from ..errors import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    AgentUnavailableError,
    ConfigurationError,
    printable,
)
from ..imports.extras import from_extra
from ..observability.endpoints import EndpointStatistics
from ..observability.redaction import redact_secrets
from ..observability.trace_context import inject_trace_context
from ..protocol import Answer, Encoding, Event, EventType, decode_answer, encode_event
from ..protocol.codec import decode_value, encode_value
from ..protocol.redacted_repr import RedactedRepr, redacted_repr, size_of
from ..protocol.stream import AgentCapabilities, correlation_id_of
from .base import AgentClient

_EXPECTED: Final = "ray://application/deployment, or a DeploymentHandle"


class RayQuestion(RedactedRepr, frozen=True, array_like=True):
    """What a replica is asked: an event, or, without one, what its agent is.

    ``config_id`` names the configuration that the agent is to have, and is empty where it needs none. ``config`` is
    that configuration, in JSON. It is sent where a replica has said that it has another one.
    """

    event: bytes | None
    config_id: str = ""
    config: bytes | None = None
    trace_context: Mapping[str, list[str]] = {}

    def __repr__(self) -> str:
        return redacted_repr(self, event=size_of(self.event or b""), config="…")


class RayReply(RedactedRepr, frozen=True, array_like=True):
    """What a replica says: one of these.

    ``fault`` is why there is no answer, ``refused`` why the agent does not take its configuration. ``version`` names
    what the agent is, beside any of them: it is another after an update that makes the agent hear other events.
    """

    version: str = ""
    answer: bytes | None = None
    capabilities: AgentCapabilities | None = None
    needs_config: bool = False
    refused: str | None = None
    fault: str | None = None

    def __repr__(self) -> str:
        return redacted_repr(self, answer=size_of(self.answer or b""))


class RayTransport:
    """An agent that is a deployment of Ray Serve: ``ray://application/deployment``.

    All events of a request go to the replica that got the first, while that lives. The deployment is one of
    :func:`asgi_agents.ray.agent_deployment`. The app connects to Ray itself (``ray.init(…)``), unless it runs on Ray:
    this connects to no cluster and starts none.

    :param deployment: that URL; or a handle, as a deployment that is composed of others has it.
    :raises ConfigurationError: for anything else, or without the ``ray`` extra.
    """

    kind = "ray"
    remote = True
    events: frozenset[EventType] | None = None
    carries = frozenset(EventType)
    learns_events = True

    def __init__(self, deployment: Any) -> None:
        require_ray("RayTransport")
        self._handle: Any = None
        if isinstance(deployment, str):
            self._names = _parse(deployment)
            self.address = f"ray://{'/'.join(self._names)}"
            return
        from ray.serve.handle import DeploymentHandle

        if not isinstance(deployment, DeploymentHandle):
            raise ConfigurationError(f"RayTransport: deployment={type(deployment).__name__}, expected {_EXPECTED}")
        self._handle = deployment
        self._names = (deployment.app_name, deployment.deployment_name)
        self.address = f"ray://{'/'.join(self._names)}"

    def __repr__(self) -> str:
        return f"<RayTransport {self.address}>"

    def bind(
        self, agent_id: str, *, events: frozenset[EventType] | None, config: Any, max_concurrent_calls: int
    ) -> "RayClient":
        return RayClient(self._handle, self._names, events, config, max_concurrent_calls)


class RayClient(AgentClient):
    """One agent behind a :class:`RayTransport`."""

    kind = "ray"
    remote = True
    configures_itself = True

    def __init__(
        self,
        handle: Any,
        names: tuple[str, str],
        events: frozenset[EventType] | None,
        config: Any,
        max_concurrent_calls: int,
    ) -> None:
        self.address = f"ray://{'/'.join(names)}"
        self.hears = frozenset(EventType) if events is None else events
        self._events = events
        self._given = handle
        self._handle: Any = handle
        self._names = names
        self._config = _Config(config)
        self._fault = ""
        #: What the agent is, as its replicas name it; None until one has said it.
        self._version: str | None = None
        self._asking = OneAtATime()
        self._in_flight = 0
        # A thread waits for each call on trio.
        self._limiters = PerEventLoop(lambda: _Limiter(max_concurrent_calls))

    def statistics(self) -> tuple[Sequence[EndpointStatistics], int]:
        state = "up" if self._version is not None and not self._fault else "down" if self._fault else "connecting"
        # Ray keeps the connections to the replicas, and tells nothing of them.
        connections = 1 if state == "up" else 0
        return (
            EndpointStatistics(
                address=self.address,
                state=cast(Any, state),
                connections=connections,
                in_flight=self._in_flight,
                fault=self._fault,
            ),
        ), 0

    # Calls

    async def call(self, event: Event, deadline: float = math.inf) -> Answer | None:
        if self._version is None:
            await self.connect()
        carrier: dict[str, str] = {}
        inject_trace_context(carrier)
        question = RayQuestion(
            encode_event(event, Encoding.MSGPACK),
            self._config.id,
            trace_context={name: [value] for name, value in carrier.items()},
        )
        reply = await self._ask(question, self._config, correlation_id_of(event))
        if reply.fault is not None:
            raise AgentError(printable(reply.fault))
        if reply.answer is None:
            raise AgentProtocolError("answered without an answer")
        if reply.version != self._version:
            # It was updated: the next call asks first what it is now.
            self._version = None
        return decode_answer(reply.answer, Encoding.MSGPACK, event.event_type)

    # Life

    async def connect(self) -> None:
        while self._version is None:
            under_way = self._asking.begin()
            if under_way is not None:
                await under_way.wait()
                continue
            try:
                await self._learn(self._config)
            finally:
                self._asking.end()

    async def push_config(self, config: Any) -> None:
        # Replicas that nobody asks in the meantime take it with their next event.
        pushed = _Config(config)
        await self._learn(pushed)
        self._config = pushed

    async def aclose(self) -> None:
        self._handle = self._given
        self._version = None
        await self._limiters.aclose()

    async def retire(self) -> None:
        self._handle = self._given
        await self._limiters.aclose_everywhere()

    async def _learn(self, config: "_Config") -> None:
        reply = await self._ask(RayQuestion(None, config.id), config, "")
        if reply.capabilities is None:
            raise AgentError(printable(reply.fault or "says nothing of its capabilities"))
        self.capabilities = (reply.capabilities,)
        limits = reply.capabilities.limits
        self.max_body_size = limits.max_body_size if limits.max_body_size > 0 else None
        if self._events is None:
            self.hears = reply.capabilities.events or self.hears
        came_up, self._version = self._version is None, reply.version
        self.on_change(came_up)

    async def _ask(self, question: RayQuestion, config: "_Config", session_id: str) -> RayReply:
        """What a replica replies, once it has the configuration."""
        reply = await self._send(question, session_id)
        if reply.needs_config:
            question = RayQuestion(question.event, config.id, config.encoded, question.trace_context)
            reply = await self._send(question, session_id)
            if reply.needs_config:
                raise AgentProtocolError("asks for the configuration that it was sent")
        if reply.refused is not None:
            raise AgentError(f"it refused its configuration: {printable(reply.refused)}")
        return reply

    async def _send(self, question: RayQuestion, session_id: str) -> RayReply:
        """One call by the handle: the one place where Ray's errors become ours."""
        data = encode_value(question, Encoding.MSGPACK, "question")
        self._in_flight += 1
        try:
            handle = self._handle or await self._connected_handle()
            returned: object = await self._result(handle.options(session_id=session_id).ask.remote(data))
        except AgentError as exc:
            self._note(str(exc))
            raise
        except Exception as exc:
            fault = _as_ours(exc)
            self._note(str(fault))
            if isinstance(fault, AgentConnectionError):
                self._handle = self._given
            raise fault from exc
        finally:
            self._in_flight -= 1
        self._note("")
        if not isinstance(returned, bytes):
            raise AgentProtocolError(f"answered with {type(returned).__name__}, expected bytes of an agent deployment")
        reply: RayReply = decode_value(RayReply, returned, Encoding.MSGPACK, at="reply")
        return reply

    async def _result(self, response: Any) -> object:
        """What the replica has returned. A call that is cancelled is cancelled at the replica too."""
        try:
            if not on_trio():
                return await response
            limiter = await self._limiters.get()
            return await anyio.to_thread.run_sync(response.result, abandon_on_cancel=True, limiter=limiter.threads)
        except BaseException:
            response.cancel()
            raise

    async def _connected_handle(self) -> Any:
        # It asks Serve's controller, and waits for it.
        self._handle = await anyio.to_thread.run_sync(_handle_of, self._names, abandon_on_cancel=True)
        return self._handle

    def _note(self, fault: str) -> None:
        came_up = bool(self._fault) and not fault
        self._fault = fault
        if came_up:
            self.on_change(True)


class _Limiter:
    """As many threads as there may be calls."""

    def __init__(self, calls: int) -> None:
        self.threads = CapacityLimiter(calls)

    async def aclose(self) -> None:
        pass


class _Config:
    """A configuration as it is sent, and a short name for it; both are empty where there is none."""

    def __init__(self, config: Any) -> None:
        self.encoded = None if config is None else encode_value(config, Encoding.JSON, "config")
        self.id = "" if self.encoded is None else config_id_of(self.encoded)


def config_id_of(encoded: bytes) -> str:
    """The name of a configuration: the same for the same bytes, and nothing can be learnt from it."""
    return blake2b(encoded, digest_size=16).hexdigest()


def require_ray(where: str) -> None:
    """Raise :class:`ConfigurationError` where Ray Serve is not installed."""
    with from_extra(where, "ray", ConfigurationError):
        import ray.serve  # noqa: F401


def _handle_of(names: tuple[str, str]) -> Any:
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    # Without this, Ray would start a cluster of its own.
    if not ray.is_initialized():
        raise AgentConnectionError("the process is not connected to Ray, expected ray.init(…) before the app starts")
    application, deployment = names
    try:
        return serve.get_deployment_handle(deployment, application)
    except (RayServeException, KeyError) as exc:
        raise AgentConnectionError("Ray Serve does not run there, or has no such application and deployment") from exc


def _as_ours(exc: Exception) -> AgentError:
    from ray.exceptions import RayTaskError
    from ray.serve.exceptions import BackPressureError

    # Not their text: it may quote what the replica was working on.
    if isinstance(exc, BackPressureError):
        return AgentUnavailableError("the deployment's queue is full")
    if isinstance(exc, RayTaskError):
        return AgentProtocolError(f"the replica raised {type(exc.cause).__name__}, expected an agent deployment")
    return AgentConnectionError(f"Ray raised {type(exc).__name__}")


def _parse(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    names = rest.split("/")
    if scheme != "ray" or not separator or len(names) != 2 or not all(names):
        hint = ""
        if scheme == "ray" and ":" in rest:
            hint = "; Ray's own addresses, ray://host:port, are for ray.init(…)"
        raise ConfigurationError(f"RayTransport: deployment={redact_secrets(url)!r}, expected {_EXPECTED}{hint}")
    application, deployment = names
    return application, deployment
