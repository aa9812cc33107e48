"""The ways to an agent on Ray Serve: by its handle, and through Serve's proxy."""

from typing import Final

from asgi_agents import AgentMiddleware, HttpTransport
from asgi_agents.transports.ray_serve import RayTransport

from .case import Case
from .served import Served
from .way import config_of, guarded
from .ways import Reached, carried, events_of, none_refused


def _by_handle(case: Case, served: Served) -> AgentMiddleware:
    return guarded(case, config_of(case, f"ray://{case.kind.value}/{case.kind.value}"))


def _by_proxy(case: Case, served: Served) -> AgentMiddleware:
    return guarded(case, config_of(case, HttpTransport(served.http), events=events_of(case.kind)))


# Ray is an extra: what these take is known without it.
BY_HANDLE: Final = Reached(name="Ray, by handle", refusal=none_refused, asked=carried(RayTransport), guard=_by_handle)
BY_PROXY: Final = Reached(name="Ray, over HTTP", refusal=none_refused, asked=carried(HttpTransport), guard=_by_proxy)
RAYS: Final = (BY_HANDLE, BY_PROXY)
