"""Agents that serve others."""

import logging
from typing import assert_type

import anyio
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from asgi_agents import CorrelationFilter, Framing, current_correlation_id
from asgi_agents.guardrails import TextGuardrail
from asgi_agents.serve import agent_app, serve_stream

from .agents import Everything

served: ASGIApp = agent_app(Everything(), max_event_bytes=1_000_000, max_concurrency=10)
for_gateways: ASGIApp = agent_app(TextGuardrail(), api="litellm", mask_responses=False)
app = Starlette(routes=[Mount("/agent", served)])


async def serve() -> None:
    """Over sockets, until an event is set."""
    shutdown = anyio.Event()
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(serve_stream, Everything(), "tcp://127.0.0.1:0")
        logging.getLogger(__name__).info("%s", address)
        shutdown.set()
    await serve_stream(Everything(), "unix:///run/waf.sock", framing=Framing.ENVELOPE, shutdown=shutdown)


assert_type(current_correlation_id(), str)
handler = logging.StreamHandler()
handler.addFilter(CorrelationFilter())

agent_app(Everything)  # type: ignore[arg-type]
agent_app(Everything(), max_event_bytes="1 MB")  # type: ignore[arg-type]
agent_app(Everything(), api="openai")  # type: ignore[arg-type]
