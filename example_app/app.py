"""The app: its endpoints, with the agents around them."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from asgi_agents import AgentManager, AuditHook, protect

from . import chat, chat_page, failing, mcp, reviews, rooms, shop
from .configuration import agent_configs
from .observability import observe
from .routes import DEFAULT_AGENTS, ROUTES


def create_app(
    *,
    waf_url: str | None = None,
    token_delay: float = 0.03,
    outside: Iterable[Middleware] = (),
    on_audit: AuditHook | None = None,
    **providers: Any,
) -> FastAPI:
    """The shop.

    :param waf_url: where the firewall is, if it is in a process of its own.
    :param token_delay: seconds between two tokens of a chat answer, and two events of the MCP server.
    :param outside: middlewares around the agents, such as that of OpenTelemetry.
    :param on_audit: called with the audit record of each connection.
    :param providers: OpenTelemetry's ``tracer_provider`` and ``meter_provider``, if not the global ones.
    """
    app = FastAPI(title="A shop behind agents")
    app.state.orders = shop.first_orders()
    app.state.reviews = []
    app.state.rooms = rooms.Rooms()
    app.state.token_delay = token_delay
    for part in (shop, reviews, chat, chat_page, mcp, rooms, failing):
        app.include_router(part.router)
    manager = AgentManager(agent_configs(waf_url), **providers)
    observe(app, manager)
    protect(
        app,
        manager=manager,
        routes=ROUTES,
        default_agents=DEFAULT_AGENTS,
        outside=outside,
        on_audit=on_audit,
        audit_headers=["user-agent"],
        expose_correlation_id=True,
    )
    return app
