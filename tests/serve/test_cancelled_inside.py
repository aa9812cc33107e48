"""A hook fails where something that it awaits was cancelled, and nothing else ends over that, wherever it is served.

This happens where a pool of connections closes while a hook waits for one, or a hook awaits a task that was cancelled.
What it raises looks like a cancellation of the hook itself, which nobody has asked for.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import grpc
import httpx
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents import Agent, AgentConfig, AgentMiddleware, BodyMode, Event, EventType, GrpcTransport, StreamTransport
from asgi_agents.concurrency.cancellation import given_up
from asgi_agents.guardrails import Decision, Guardrail, TextGuardrail, Window
from asgi_agents.protocol import (
    ConfigureEvent,
    Encoding,
    Opcode,
    ResponseBodyChunkEvent,
    WebSocketFrameEvent,
    encode_event,
)
from asgi_agents.serve import agent_app, serve_grpc, serve_stream
from asgi_agents.serve.gateways import GatewayApp
from asgi_agents.serve.grpc.ext_authz import ExtAuthzService
from asgi_agents.serve.grpc.ext_proc import ExtProcService
from asgi_agents.serve.grpc.service import GrpcService, Rpc, ServedRpc
from asgi_agents.serve.hooks import Hooks, NoAnswer
from tests.serve.grpc.client import serving
from tests.serve.test_forward_auth import ENVOY, NGINX, TRAEFIK
from tests.support import sample_events
from tests.support.asgi import App, Client
from tests.support.cancelling import kept_cancellation

Form = Callable[[], Awaitable[object]]

EVENTS: dict[EventType, Event] = {
    EventType.CONFIGURE: ConfigureEvent(agent_id="a", config={}),
    EventType.REQUEST_HEADERS: sample_events.HEAD,
    EventType.REQUEST_BODY_CHUNK: sample_events.CHUNK,
    EventType.RESPONSE_HEADERS: sample_events.RESPONSE_HEAD,
    EventType.RESPONSE_BODY_CHUNK: ResponseBodyChunkEvent(correlation_id="c", data=b"x", is_last=True),
    EventType.REQUEST_COMPLETE: sample_events.COMPLETE,
    EventType.WEBSOCKET_FRAME: WebSocketFrameEvent(
        correlation_id="c", opcode=Opcode.TEXT, data=b"x", client_to_server=True, frame_index=0, client_ip=""
    ),
    EventType.GUARDRAIL_INSPECT: sample_events.QUESTION,
}


# What a hook awaits


async def a_future() -> None:
    if sniffed() == "trio":
        raise asyncio.CancelledError
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def a_kept_one() -> None:
    raise await kept_cancellation()


async def a_group() -> None:
    raise BaseExceptionGroup("tasks", [await kept_cancellation(), LookupError()])


def sniffed() -> str:
    return "trio" if anyio.get_cancelled_exc_class() is not asyncio.CancelledError else "asyncio"


forms = pytest.mark.parametrize("form", [a_future, a_kept_one, a_group])


class Cut(Agent):
    """Fails in one hook. It has another one that is called first, where that one follows another event."""

    def __init__(self, event_type: EventType, form: Form) -> None:
        self._cut = event_type
        self._form = form
        #: The events of which it was told.
        self.heard: list[EventType] = []

    @property
    def events(self) -> frozenset[EventType]:
        follows = self._cut in (EventType.CONFIGURE, EventType.REQUEST_COMPLETE)
        return frozenset({self._cut, EventType.REQUEST_HEADERS} if follows else {self._cut})

    async def _hook(self, event: Any) -> None:
        self.heard.append(event.event_type)
        await checkpoint()
        if event.event_type is self._cut:
            await self._form()

    on_configure = on_request_headers = on_request_body_chunk = on_response_headers = on_response_body_chunk = _hook
    on_request_complete = on_websocket_frame = on_guardrail_inspect = _hook


class CutJudge(TextGuardrail):
    def __init__(self, form: Form) -> None:
        self._form = form

    async def check(self, window: Window) -> list[Decision]:
        await checkpoint()
        await self._form()
        raise AssertionError


# Where it is asked


@forms
@pytest.mark.parametrize("event_type", EVENTS)
async def test_it_has_failed_and_the_log_says_so(
    event_type: EventType, form: Form, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NoAnswer, match=r"agent raised (LookupError beside )?Cancelled"):
        await Hooks(Cut(event_type, form)).answer(EVENTS[event_type], lambda answer: answer, {})
    [record] = caplog.records
    assert record.getMessage().startswith(f"Cut: {event_type}: raised ")
    assert record.getMessage().endswith(", though nobody has cancelled it")
    # What has failed beside it says more than the group.
    assert ("LookupError beside " in record.getMessage()) == (form is a_group)
    assert not given_up()


@forms
@pytest.mark.parametrize("event_type", EVENTS)
async def test_where_its_caller_was_cancelled_it_was_cancelled(
    event_type: EventType, form: Form, caplog: pytest.LogCaptureFixture
) -> None:
    async def late() -> None:
        with anyio.CancelScope(shield=True):
            await form()

    with anyio.CancelScope() as scope:
        hooks = Hooks(Cut(event_type, late))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hooks.answer, EVENTS[event_type], lambda answer: answer, {})
            await checkpoint()
            scope.cancel()
    assert scope.cancelled_caught
    assert not caplog.records


async def _unix(agent: Agent, directory: Path, tasks: Any) -> Any:
    return StreamTransport(await tasks.start(serve_stream, agent, f"unix://{directory}/a"))


async def _tcp(agent: Agent, directory: Path, tasks: Any) -> Any:
    return StreamTransport(await tasks.start(serve_stream, agent, "tcp://127.0.0.1:0"), encoding="msgpack")


async def _grpc(agent: Agent, directory: Path, tasks: Any) -> Any:
    return GrpcTransport(await tasks.start(serve_grpc, agent, "127.0.0.1:0"))


async def _ext_proc(agent: Agent, directory: Path, tasks: Any) -> Any:
    address = await tasks.start(serve_grpc, ExtProcService(agent), "127.0.0.1:0")
    return GrpcTransport(address, protocol="ext_proc", body_mode="buffered")


async def _ext_authz(agent: Agent, directory: Path, tasks: Any) -> Any:
    return GrpcTransport(await tasks.start(serve_grpc, ExtAuthzService(agent), "127.0.0.1:0"), protocol="ext_authz")


async def _in_process(agent: Agent, directory: Path, tasks: Any) -> Any:
    return agent


REQUESTS = (EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK)
EXCHANGES = (*REQUESTS, EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK, EventType.REQUEST_COMPLETE)
#: The ways to an agent, and the events of which it is told there.
WAYS = {
    _in_process: (EventType.CONFIGURE, *EXCHANGES),
    _unix: (EventType.CONFIGURE, *EXCHANGES),
    _tcp: (EventType.CONFIGURE, *EXCHANGES),
    _grpc: (EventType.CONFIGURE, *EXCHANGES),
    _ext_proc: EXCHANGES,
    _ext_authz: (*REQUESTS, EventType.REQUEST_COMPLETE),
}
Way = Callable[[Agent, Path, Any], Awaitable[Any]]


@asynccontextmanager
async def reached(agent: Agent, way: Way) -> AsyncIterator[tuple[Any, Any]]:
    """What asks the agent that is served, and the tasks that serve it."""
    with tempfile.TemporaryDirectory(prefix="cut-") as directory:
        async with anyio.create_task_group() as tasks:
            yield await way(agent, Path(directory), tasks), tasks
            # Nothing has ended the server but this.
            assert not tasks.cancel_scope.cancel_called
            tasks.cancel_scope.cancel()


def _config_of(agent: Cut, transport: Any, way: Way, event_type: EventType) -> AgentConfig:
    settings: dict[str, Any] = {"config": {"a": 1}} if event_type is EventType.CONFIGURE else {}
    if way in (_ext_proc, _ext_authz):
        # These can't ask it what it hears. That a request is over is said by the server.
        settings["events"] = agent.events - {EventType.REQUEST_COMPLETE} | {EventType.REQUEST_HEADERS}
    return AgentConfig(
        "agent",
        transport,
        request_body_mode=BodyMode.BUFFER,
        response_body_mode=BodyMode.BUFFER,
        circuit_breaker=None,
        timeout=60,
        chunk_timeout=60,
        **settings,
    )


@forms
@pytest.mark.parametrize(
    ("way", "event_type"), [(way, event_type) for way, events in WAYS.items() for event_type in events]
)
async def test_nothing_passes_unjudged_and_the_server_goes_on(way: Way, event_type: EventType, form: Form) -> None:
    agent = Cut(event_type, form)
    passes = event_type is EventType.REQUEST_COMPLETE
    async with reached(agent, way) as (transport, _):
        config = _config_of(agent, transport, way, event_type)
        app = App()
        middleware = AgentMiddleware(app, agents=[config])
        async with middleware.manager:
            for attempt in range(1, 3):
                client = Client("POST", body=b"content")
                with anyio.fail_after(60):
                    await client.call(middleware)
                assert (client.status, client.body == b"hello") == (200 if passes else 503, passes)
                if event_type is not EventType.CONFIGURE:
                    with anyio.fail_after(60):
                        while agent.heard.count(event_type) < attempt:  # noqa: ASYNC110 - it has no event to wait for
                            await anyio.sleep(0.001)


@forms
@pytest.mark.parametrize("way", [_in_process, _unix, _tcp])
async def test_text_that_was_not_judged_does_not_pass(way: Way, form: Form) -> None:
    async with reached(CutJudge(form), way) as (transport, _):
        app = App()
        config = AgentConfig("agent", transport, circuit_breaker=None, timeout=60, chunk_timeout=60)
        middleware = AgentMiddleware(app, agents=[config], guardrails=[Guardrail("agent", on={"input"})])
        async with middleware.manager:
            for _ in range(2):
                client = Client(
                    "POST",
                    headers=[(b"content-type", b"application/json")],
                    body=b'{"messages": [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]}',
                )
                with anyio.fail_after(60):
                    await client.call(middleware)
                assert (client.status, app.calls) == (503, 0)


class Methods(GrpcService):
    """Methods that are no hooks."""

    name = "test.Cut"

    def __init__(self, form: Form) -> None:
        self._form = form
        self.unary = {"One": self._one}
        self.streams = {"Many": self._many}

    async def _one(self, request: bytes, rpc: Rpc) -> bytes:
        await checkpoint()
        await self._form()
        raise AssertionError

    async def _many(self, rpc: ServedRpc) -> None:
        await rpc.stream().receive()
        await self._form()


@forms
@pytest.mark.parametrize("method", ["One", "Many"])
async def test_a_method_over_grpc_ends_with_a_status(method: str, form: Form, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Methods(form)) as served:
        channel = served.channel()
        for _ in range(2):

            def ask(channel: Any = channel) -> None:
                if method == "One":
                    channel.unary_unary("/test.Cut/One")(b"", timeout=60)
                else:
                    list(channel.stream_stream("/test.Cut/Many")(iter([b""]), timeout=60))

            with pytest.raises(grpc.RpcError) as raised:
                await anyio.to_thread.run_sync(ask)
            error: Any = raised.value
            assert (error.code().name, error.details()) == ("INTERNAL", "the method has failed")
    assert [record.getMessage() for record in caplog.records] == ["a method has failed"] * 2


async def _post(app: Any, path: str, content: bytes, kind: str = "application/json", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent") as client:
        return await client.post(path, content=content, headers={"content-type": kind, **headers})


@forms
@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("event_type", EVENTS)
async def test_over_http_it_is_500(event_type: EventType, encoding: Encoding, form: Form) -> None:
    app = agent_app(Cut(event_type, form))
    response = await _post(app, "/", encode_event(EVENTS[event_type], encoding), encoding.content_type)
    assert response.status_code == 500
    assert response.json()["error"].startswith("agent raised ")


@forms
@pytest.mark.parametrize("event_type", [EventType.REQUEST_HEADERS, EventType.REQUEST_COMPLETE])
@pytest.mark.parametrize(
    ("api", "question"), [("forward_auth", TRAEFIK), ("auth_request", NGINX), ("ext_authz", ENVOY)]
)
async def test_proxies_are_told_of_a_failure_and_of_a_permission_that_stands(
    api: Literal["forward_auth", "auth_request", "ext_authz"],
    question: dict[str, str],
    event_type: EventType,
    form: Form,
) -> None:
    app = agent_app(Cut(event_type, form), api=api)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent") as client:
        response = await client.get("/", headers=question)
    assert response.status_code == (200 if event_type is EventType.REQUEST_COMPLETE else 500)


def _texts(count: int) -> bytes:
    listed = ", ".join('"text"' for _ in range(count))
    return b'{"input_type": "request", "texts": [%s]}' % listed.encode()


def _tool_calls(count: int) -> bytes:
    call = '{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\\"a\\": \\"text\\"}"}}'
    listed = ", ".join(call for _ in range(count))
    return b'{"input_type": "response", "texts": [], "tool_calls": [%s]}' % listed.encode()


def _prompt(count: int) -> bytes:
    return b'{"body": {"messages": [%s]}}' % ", ".join(['{"role": "user", "content": "text"}'] * count).encode()


def _choices(count: int) -> bytes:
    choice = '{"message": {"role": "assistant", "content": "text"}}'
    return b'{"body": {"choices": [%s]}}' % ", ".join([choice] * count).encode()


QUESTIONS = {
    _texts: "/beta/litellm_basic_guardrail_api",
    _tool_calls: "/beta/litellm_basic_guardrail_api",
    _prompt: "/request",
    _choices: "/response",
}
gateways = pytest.mark.parametrize(("question", "path"), QUESTIONS.items())
counts = pytest.mark.parametrize("count", [1, 2, 20])


@forms
@gateways
@counts
async def test_gateways_are_told_of_a_failure(
    question: Callable[[int], bytes], path: str, count: int, form: Form
) -> None:
    response = await _post(agent_app(CutJudge(form), api="litellm"), path, question(count))
    assert response.status_code == 500
    assert response.json()["error"].startswith("agent raised ")


@gateways
@pytest.mark.parametrize("count", [2, 20])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_was_never_judged_is_not_said_to_be_allowed(
    question: Callable[[int], bytes], path: str, count: int, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    """Whatever ends the judging: a task group of anyio takes a CancelledError of a task for the end of all of them."""

    async def judge(*_: object, **__: object) -> None:
        await checkpoint()
        raise asyncio.CancelledError

    monkeypatch.setattr(GatewayApp, "_judge", judge)
    response = await _post(agent_app(CutJudge(a_future), api="litellm"), path, question(count))
    assert (response.status_code, response.json()) == (500, {"error": "the agent has not judged all of it"})
