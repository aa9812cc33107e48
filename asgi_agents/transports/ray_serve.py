"""Agents that are deployments on Ray Serve, called by their handles (the ``ray`` extra)."""

from typing import Any, Final

import anyio
from anyio import CapacityLimiter

from ..concurrency.background import on_trio
from ..concurrency.per_event_loop import PerEventLoop
from ..errors import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    AgentUnavailableError,
    ConfigurationError,
)
from ..imports.extras import from_extra
from ..observability.redaction import redact_secrets
from ..protocol import EventType
from .ray_client import RayClient

_EXPECTED: Final = "ray://application/deployment, or a DeploymentHandle"


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
    ) -> RayClient:
        return RayClient(HandleLink(self._handle, self._names, max_concurrent_calls), self.address, events, config)


class HandleLink:
    """A :class:`RayLink`: the handle of the deployment, in a process that is connected to Ray.

    :param given: the handle, if the user has it.
    """

    def __init__(self, given: Any, names: tuple[str, str], max_concurrent_calls: int) -> None:
        self._given = given
        self._handle: Any = given
        self._names = names
        # A thread waits for each call on trio.
        self._limiters = PerEventLoop(lambda: _Limiter(max_concurrent_calls))

    async def ask(self, data: bytes, session_id: str, deadline: float) -> object:
        """One call by the handle: the one place where Ray's errors become ours."""
        try:
            handle = self._handle or await self._connected_handle()
            return await self._result(handle.options(session_id=session_id).ask.remote(data))
        except AgentError:
            raise
        except Exception as exc:
            fault = _as_ours(exc)
            if isinstance(fault, AgentConnectionError):
                self._handle = self._given
            raise fault from exc

    async def aclose(self) -> None:
        self._handle = self._given
        await self._limiters.aclose()

    async def retire(self) -> None:
        self._handle = self._given
        await self._limiters.aclose_everywhere()

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


class _Limiter:
    """As many threads as there may be calls."""

    def __init__(self, calls: int) -> None:
        self.threads = CapacityLimiter(calls)

    async def aclose(self) -> None:
        pass


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
