"""Whole exchanges: random agents around a random app, and random clients in front."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio
from starlette.types import Receive, Scope, Send

from asgi_agents import AgentContext, AgentMiddleware, AuditRecord, Route
from asgi_agents.manager import registry_of
from asgi_agents.observability.correlation import live_ids
from tests.support.asgi import assert_nothing_left

from . import ending, http_oracle, websocket_oracle
from .agents import Hired, hire
from .apps import Script, ScriptedApp
from .choices import Choices
from .loops import BACKENDS, run
from .scripts import http_script, websocket_script
from .servers import HttpServer, Plan, Server, WebSocketServer


def http(data: bytes) -> None:
    """Some requests, one after the other or at once."""
    choices = Choices(data)
    backend = choices.pick(BACKENDS)
    agents = [hire(choices, number, backend=backend) for number in range(1 + choices.below(3))]
    at_once = choices.flag()
    requests = [_Request(choices, number) for number in range(1 + choices.below(3))]
    run(backend, partial(_serve, agents, requests, at_once, exposed=choices.flag()))


class _Request:
    """A request before it is made."""

    def __init__(self, choices: Choices, number: int) -> None:
        self.script: Script = http_script(choices)
        pieces = [(_pieces(choices, number), choices.pick((0.0, 0.0, 1.0))) for _ in choices.times(4)]
        body = b"".join(piece for piece, _ in pieces)
        headers: list[tuple[bytes, bytes]] = [(b"accept", choices.pick((b"*/*", b"application/json")))]
        match choices.below(5):
            case 0 | 1:
                headers.append((b"content-length", b"%d" % len(body)))
            case 2:
                headers.append((b"transfer-encoding", choices.pick((b"chunked", b"chunked", b"identity"))))
                if choices.flag():
                    headers.append((b"content-length", choices.pick((b"0", b"1000"))))
            case 3:
                headers.append((b"content-length", choices.pick((b"0", b"1", b"1000", b"x", b"-1"))))
            case _:
                pass
        if choices.flag():
            headers.append((b"x-request-id", choices.pick((b"r-%d" % number, b"not one"))))
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": choices.pick(("2.4", "2.3"))},
            "http_version": choices.pick(("1.1", "2")),
            "method": choices.pick(("POST", "POST", "HEAD", "GET")),
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": headers,
            "client": ("192.0.2.7", 40000),
            "server": ("app.example", 80),
            "extensions": choices.pick(({}, {"http.response.pathsend": {}, "http.response.trailers": {}})),
        }
        self.plan = Plan(
            pieces,
            unfinished=choices.one_in(8),
            leaves_at=choices.pick((0.0, 2.0, 600.0)) if choices.one_in(6) else None,
            leaves_after=choices.below(4) if choices.one_in(6) else None,
            slow=choices.pick((0.0, 0.0, 1.0, 20.0)),
        )


def _pieces(choices: Choices, number: int) -> bytes:
    size = choices.pick((4, 1, 0, 9, 25))
    start = choices.byte()
    return bytes(97 + (start + index) % 26 for index in range(size))


class _Session:
    """A session before it is opened."""

    def __init__(self, choices: Choices, number: int) -> None:
        denials = choices.flag()
        self.script: Script = websocket_script(choices, denials=denials)
        self.scope: Scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": choices.pick(("2.4", "2.3"))},
            "http_version": "1.1",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": [(b"x-request-id", b"r-%d" % number)] if choices.flag() else [],
            "client": ("192.0.2.7", 40000),
            "server": ("app.example", 80),
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}} if denials else {},
        }
        self.plan = Plan(
            [(_client_frame(choices, index), choices.pick((0.0, 0.0, 1.0))) for index in choices.times(6)],
            unfinished=choices.flag(),
            leaves_at=choices.pick((0.0, 2.0, 600.0)) if choices.one_in(6) else None,
            leaves_after=choices.below(4) if choices.one_in(6) else None,
            slow=choices.pick((0.0, 0.0, 1.0, 20.0)),
        )


def _client_frame(choices: Choices, index: int) -> dict[str, Any]:
    name = f"c{index}"
    return choices.pick(
        (
            {"text": name},
            {"bytes": name.encode()},
            {"text": name, "bytes": None},
            {"text": None, "bytes": name.encode()},
        )
    )


async def _serve(agents: list[Hired], requests: Sequence[_Request | _Session], at_once: bool, *, exposed: bool) -> None:
    over: list[tuple[Server, int, _Request | _Session, AgentContext, Exception | None]] = []
    apps: dict[int, ScriptedApp] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        return await apps[scope["number"]](scope, receive, send)

    references = [(hired.config.id, hired.failure_mode) for hired in agents]
    records: list[AuditRecord] = []
    middleware: Any = AgentMiddleware(
        app,
        agents=[hired.config for hired in agents],
        routes=[Route("/{rest:path}", references)],
        expose_correlation_id=exposed,
        on_audit=records.append,
    )

    async def serve(number: int, request: _Request | _Session) -> None:
        scope = {**request.scope, "number": number}
        server = (HttpServer if isinstance(request, _Request) else WebSocketServer)(scope, request.plan)
        apps[number] = ScriptedApp(request.script)
        error: Exception | None = None
        returned: Any = None
        async with anyio.create_task_group() as clock:
            clock.start_soon(server.leave_in_time)
            try:
                returned = await middleware(scope, server.receive, server.send)
            except Exception as exc:
                error = exc
            clock.cancel_scope.cancel()
        assert error is not None or returned == ("returned by the app" if apps[number].finished else None), returned
        over.append((server, number, request, scope["state"]["agents"], error))

    if at_once:
        async with anyio.create_task_group() as group:
            for number, request in enumerate(requests):
                group.start_soon(serve, number, request)
    else:
        for number, request in enumerate(requests):
            await serve(number, request)
    for server, number, request, context, error in over:
        told: dict[str, Any] = {
            "correlation_id": context.correlation_id,
            "exposed": exposed,
            "records": [record for record in records if record.correlation_id == context.correlation_id],
            "app": apps[number],
            "agents": agents,
            "decision": context.decision,
            "error": error,
        }
        if isinstance(server, HttpServer):
            exchange = http_oracle.Exchange(
                server=server, may_have_body=_may_have_body(request.scope), method=request.scope["method"], **told
            )
            _explained(exchange, partial(http_oracle.check, exchange))
        elif isinstance(server, WebSocketServer):
            session = websocket_oracle.Session(server=server, **told)
            _explained(session, partial(websocket_oracle.check, session))
    assert_nothing_left(middleware.manager)
    for hired in agents:
        assert not registry_of(middleware.manager).guard(hired.config.id).busy
    assert not live_ids


def _explained(over: ending.Over, check: Callable[[], None]) -> None:
    try:
        check()
    except AssertionError as exc:
        raise AssertionError(f"{exc}\n{over.story()}") from exc


def _may_have_body(scope: Scope) -> bool:
    """RFC 9112, section 6.3: in HTTP/1 no field of the two, no body. What a field says of it counts for nothing."""
    names = {name for name, _ in scope["headers"]}
    return bool(scope["http_version"] == "2") or not names.isdisjoint({b"content-length", b"transfer-encoding"})


def websocket(data: bytes) -> None:
    """Some sessions, one after the other or at once."""
    choices = Choices(data)
    backend = choices.pick(BACKENDS)
    agents = [hire(choices, number, backend=backend) for number in range(1 + choices.below(3))]
    at_once = choices.flag()
    sessions = [_Session(choices, number) for number in range(1 + choices.below(3))]
    run(backend, partial(_serve, agents, sessions, at_once, exposed=choices.flag()))
