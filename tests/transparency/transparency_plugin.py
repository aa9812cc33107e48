"""The pytest plugin that wraps the apps and takes down what became of each test.

It is loaded by its bare name, from its own directory: the tests that it serves are a package called ``tests`` as well,
so ``tests.transparency`` can't be imported beside them. For the same reason it imports nothing from this package.
"""

import json
from collections import Counter
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import NoOpTracerProvider
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    BodyMode,
    ConfigureEvent,
    GuardrailInspectEvent,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from asgi_agents.guardrails import Guardrail

if TYPE_CHECKING:
    from starlette.types import ASGIApp

OUTCOMES = ("passed", "skipped", "xfailed", "xpassed", "failed", "error")
"""pytest's own categories. A test can be in two (it passed, its teardown did not); the later one counts."""

BODY_LIMIT = 1 << 30
"""More than any test sends: what happens beyond a limit is meant to be noticed."""

heard: Counter[str] = Counter()


class AllowAll(Agent):
    """Hears every event, so that no part of the middleware stands aside, and objects to none.

    It counts, because a run in which nothing was wrapped would pass just as well.
    """

    async def on_configure(self, event: ConfigureEvent) -> None:
        heard["configure"] += 1

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        heard["request_headers"] += 1

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        heard["request_body_chunk"] += 1

    async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
        heard["response_headers"] += 1

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
        heard["response_body_chunk"] += 1

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
        heard["websocket_frame"] += 1

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
        heard["guardrail_inspect"] += 1

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        heard["request_complete"] += 1


# Starlette's tests of its own spans count every span there is.
QUIET: Any = {"tracer_provider": NoOpTracerProvider()}


def _agents(mode: str) -> list[AgentConfig]:
    """One agent, new for each app: apps live on different event loops, and share nothing in a real process either."""
    body_mode = BodyMode.BUFFER if mode == "buffer" else BodyMode.STREAM
    return [
        AgentConfig(
            "allow-all",
            AllowAll(),
            request_body_mode=body_mode,
            response_body_mode=body_mode,
            max_request_body_bytes=BODY_LIMIT,
            max_response_body_bytes=BODY_LIMIT,
            # Else an agent that hears bodies has whole ones, which the suite's tests of ranges would notice.
            ranges=True,
        )
    ]


def _settings(mode: str) -> dict[str, Any]:
    """What the middleware is given. In the mode ``text`` the text of answers is judged too."""
    if mode != "text":
        return {"agents": _agents(mode), **QUIET}
    # Uploads are no text that could be judged, so that requests are not.
    guardrails = [Guardrail("allow-all", on={"output", "tool_call", "reasoning"}, hold=0)]
    return {
        "agents": [replace(config, failure_mode="open") for config in _agents(mode)],
        "guardrails": guardrails,
        **QUIET,
    }


def _wrap_outermost(patch: pytest.MonkeyPatch, mode: str) -> None:
    """Put the middleware around whatever app a ``TestClient`` is given, where a server would find it.

    The client turns ASGI 2 apps into ASGI 3 ones while it is constructed, so the app is replaced afterwards, in both
    places that call it: the transport (requests, websockets) and the client itself (lifespan).
    """
    construct = TestClient.__init__

    @wraps(construct)
    def construct_wrapped(self: TestClient, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        transport: Any = self._transport
        self.app = transport.app = AgentMiddleware(self.app, **_settings(mode))

    patch.setattr(TestClient, "__init__", construct_wrapped)


def _wrap_user(patch: pytest.MonkeyPatch, mode: str) -> None:
    """Make the middleware the first user middleware of every Starlette app, mounted ones too.

    That is where ``add_middleware`` puts it. The app's own list is put back once the stack is built, for tests to see.
    """
    build = Starlette.build_middleware_stack

    @wraps(build)
    def build_wrapped(self: Starlette) -> "ASGIApp":
        own = self.user_middleware
        self.user_middleware = [Middleware(AgentMiddleware, **_settings(mode)), *own]
        try:
            return build(self)
        finally:
            self.user_middleware = own

    patch.setattr(Starlette, "build_middleware_stack", build_wrapped)


PLACES = {"outermost": _wrap_outermost, "user": _wrap_user}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("transparency")
    group.addoption("--transparency-place", choices=PLACES, help="where to put the middleware; nowhere if not given")
    group.addoption("--transparency-mode", default="stream", help="body mode of the agent, both ways")
    group.addoption("--transparency-backend", help="leave out the tests that are made for another anyio backend")
    group.addoption("--transparency-report", type=Path, required=True, help="where to write the outcomes, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if place := config.getoption("--transparency-place"):
        patch = pytest.MonkeyPatch()
        config.add_cleanup(patch.undo)
        PLACES[place](patch, config.getoption("--transparency-mode"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (backend := config.getoption("--transparency-backend")):
        return

    def is_for_another(item: pytest.Item) -> bool:
        parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        chosen = parameters.get("anyio_backend", backend)
        return backend not in (chosen, chosen[0])  # a name, or a name and options

    config.hook.pytest_deselected(items=[item for item in items if is_for_another(item)])
    items[:] = [item for item in items if not is_for_another(item)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = {report.nodeid: outcome for outcome in OUTCOMES for report in terminalreporter.stats.get(outcome, ())}
    report: Path = config.getoption("--transparency-report")
    report.write_text(json.dumps({"outcomes": outcomes, "heard": heard}))
