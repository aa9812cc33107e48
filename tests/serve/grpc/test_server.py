"""The gRPC server: addresses, TLS, health, draining, services."""

import asyncio
import errno
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
import trustme
from anyio.lowlevel import checkpoint

from asgi_agents import Agent, ConfigurationError, GrpcTransport
from asgi_agents.serve import held, serve_grpc
from asgi_agents.serve.grpc import ext_proc, server, service
from asgi_agents.serve.grpc.agent import AgentService
from asgi_agents.serve.grpc.ext_proc import ExtProcService
from asgi_agents.serve.grpc.health import HealthService
from asgi_agents.serve.grpc.service import Beginnings, GrpcService, Rpc, ServedRpc, StatusError
from asgi_agents.transports.grpc import pump
from asgi_agents.transports.grpc.pump import MessagePump
from tests.support.sample_events import head
from tests.support.wire_fields import message, read

from .client import Served, serving

pytestmark = pytest.mark.anyio

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


class Waf(Agent):
    async def on_request_headers(self, event: Any) -> None: ...


class Echo(GrpcService):
    """Methods of either kind."""

    name = "test.Echo"

    def __init__(self) -> None:
        self.unary = {"One": self._one, "Fail": self._fail, "Raise": self._raise}
        self.streams = {"Many": self._many, "Hang": self._hang, "Refuse": self._refuse}
        self.running = 0
        self.threads: set[int] = set()
        self.served = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        self.served = True
        try:
            yield
        finally:
            self.served = False

    async def _one(self, request: bytes, rpc: Rpc) -> bytes:
        self.threads.add(threading.get_ident())
        return dict(rpc.metadata)["x-a"].encode() + request  # type: ignore[union-attr]

    async def _fail(self, request: bytes, rpc: Rpc) -> bytes:
        raise StatusError("PERMISSION_DENIED", "not you")

    async def _raise(self, request: bytes, rpc: Rpc) -> bytes:
        raise RuntimeError("the password is hunter2")

    async def _many(self, rpc: ServedRpc) -> None:
        self.threads.add(threading.get_ident())
        stream = rpc.stream()
        while (message := await stream.receive()) is not None:
            await stream.send(message)
        # The client sends no more, and still reads.
        await stream.send(b"bye")

    async def _refuse(self, rpc: ServedRpc) -> None:
        """Answer, and fail so many turns of the event loop later; where that is less than 0, end in order."""
        stream = rpc.stream()
        turns, size, times = json.loads(await stream.receive() or b"")
        for _ in range(times):
            await stream.send(bytes(size))
        for _ in range(abs(turns)):
            await checkpoint()
        if turns >= 0:
            raise StatusError("PERMISSION_DENIED", "not you")

    async def _hang(self, rpc: ServedRpc) -> None:
        rpc.stream()
        self.running += 1
        try:
            await anyio.sleep_forever()
        finally:
            self.running -= 1


def ask(channel: Any, method: str, request: bytes = b"", **settings: Any) -> bytes:
    answer: bytes = channel.unary_unary(method)(request, timeout=60, **settings)
    return answer


async def in_thread(function: Any, *arguments: Any, **named: Any) -> Any:
    return await anyio.to_thread.run_sync(partial(function, *arguments, **named))


async def status_of(channel: Any, method: str, request: bytes = b"") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        await in_thread(ask, channel, method, request)
    error: Any = raised.value
    return error.code(), error.details()


async def test_a_service_has_methods_of_two_kinds_and_they_run_where_it_is_served() -> None:
    async with serving(echo := Echo()) as served:
        channel = served.channel()
        assert echo.served
        assert await in_thread(ask, channel, "/test.Echo/One", b"!", metadata=(("x-a", "hi"),)) == b"hi!"
        many = channel.stream_stream("/test.Echo/Many")
        assert await in_thread(lambda: list(many(iter([b"a", b"b"]), timeout=60))) == [b"a", b"b", b"bye"]
        assert echo.threads == {threading.get_ident()}
    assert not echo.served


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_failure_is_told_behind_what_was_sent_before_it_and_does_not_wait_for_a_timeout(
    size: int, times: int
) -> None:
    """gRPC's library refuses a status beside the first message, and then the call never ends."""
    async with serving(Echo()) as served:
        refuse = served.channel().stream_stream("/test.Echo/Refuse")
        for turns in range(25):
            received: list[bytes] = []

            def consume(turns: int, received: list[bytes]) -> None:
                received.extend(refuse(iter([json.dumps([turns, size, times]).encode()]), timeout=60))

            with pytest.raises(grpc.RpcError) as raised:
                await in_thread(consume, turns, received)
            error: Any = raised.value
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED, turns
            assert [len(each) for each in received] == [size] * times, turns


async def _read_late(served: Served, event: threading.Event, turns: int, size: int, times: int) -> tuple[int, str]:
    """Of a server whose method has ended: how many messages came, and the status. Nothing is read before ``event``."""
    received: list[bytes] = []
    question = json.dumps([turns, size, times]).encode()

    def consume() -> str:
        # A client that does not guess how much it could be sent at a time.
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535)]
        channel: Any
        with grpc.insecure_channel(served.address.removeprefix("grpc://"), options) as channel:
            call = channel.stream_stream("/test.Echo/Refuse")(iter([question]), timeout=60)
            assert event.wait(60)
            try:
                received.extend(call)
            except grpc.RpcError as exc:
                code: Any = exc
                return str(code.code().name)
            return "OK"

    found = await in_thread(consume)
    return len(received), found


@pytest.mark.parametrize(("turns", "status"), [(-1, "OK"), (0, "PERMISSION_DENIED")])
@pytest.mark.parametrize(("size", "times"), [(250_000, 1), (25_000, 10)])
async def test_what_was_written_is_sent_to_a_client_that_is_slow_to_read(
    size: int, times: int, turns: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "LINGER", 0.0)
    event = threading.Event()
    close = MessagePump.close

    def closing(self: MessagePump) -> None:
        close(self)
        asyncio.get_running_loop().call_later(0.05, event.set)

    monkeypatch.setattr(MessagePump, "close", closing)
    async with serving(Echo()) as served:
        assert await _read_late(served, event, turns, size, times) == (times, status)


@pytest.mark.parametrize(("turns", "status"), [(-1, "ABORTED"), (0, "PERMISSION_DENIED")])
@pytest.mark.parametrize(("size", "times"), [(250_000, 1), (25_000, 10)])
async def test_a_client_that_does_not_read_in_time_is_told_so_whichever_message_is_on_its_way(
    size: int, times: int, turns: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "READ_TIMEOUT", 0.0)
    event = threading.Event()
    finish = MessagePump._finish

    def finishing(self: MessagePump, writer: Any) -> None:
        finish(self, writer)
        event.set()

    monkeypatch.setattr(MessagePump, "_finish", finishing)
    async with serving(Echo()) as served:
        received, found = await _read_late(served, event, turns, size, times)
    assert found == status
    assert received < times or times == 1


async def test_a_method_may_fail_with_a_status_and_what_else_it_raises_stays_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Echo()) as served:
        channel = served.channel()
        assert await status_of(channel, "/test.Echo/Fail") == (grpc.StatusCode.PERMISSION_DENIED, "not you")
        assert await status_of(channel, "/test.Echo/Raise") == (grpc.StatusCode.INTERNAL, "the method has failed")
        assert (await status_of(channel, "/test.Echo/None"))[0] is grpc.StatusCode.UNIMPLEMENTED
    assert "hunter2" in caplog.text


async def test_a_method_is_cancelled_when_its_client_has_gone() -> None:
    async with serving(echo := Echo()) as served:
        call = served.channel().stream_stream("/test.Echo/Hang")(iter([]))
        await until(lambda: echo.running == 1)
        call.cancel()
        await until(lambda: echo.running == 0)


async def test_health_is_told_of_the_server_and_of_each_service() -> None:
    async with serving([Waf(), Echo()]) as served:
        channel = served.channel()
        for name in ("", "test.Echo", "zentinel.agent.v2.AgentServiceV2"):
            request = message((1, name)) if name else b""
            assert read(await in_thread(ask, channel, CHECK, request)) == {1: [1]}
        assert (await status_of(channel, CHECK, message((1, "other"))))[0] is grpc.StatusCode.NOT_FOUND
        assert (await status_of(channel, CHECK, b"\xff\xff\xff"))[0] is grpc.StatusCode.NOT_FOUND
        watched: list[bytes] = []
        watch = channel.unary_stream(WATCH)
        watching = threading.Thread(target=lambda: watched.extend(watch(b"", timeout=60)), daemon=True)
        watching.start()
        other = channel.unary_stream(WATCH)(message((1, "other")), timeout=60)
        assert await in_thread(next, other) == b"\x08\x03"
        await until(lambda: watched)
        served.shutdown.set()
        await in_thread(watching.join, 60)
    assert watched == [b"\x08\x01", b"\x08\x02"]


async def until(condition: Any) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - it may be a condition on anything
            await anyio.sleep(0.002)


async def test_a_server_that_is_shut_down_lets_calls_end_and_takes_no_more() -> None:
    async with serving(Echo()) as served:
        channel = served.channel()
        requests: Any = threading.Event()

        def send() -> Any:
            yield b"a"
            requests.wait(60)

        call = channel.stream_stream("/test.Echo/Many")(send(), timeout=60)
        assert await in_thread(next, call) == b"a"
        served.shutdown.set()
        await anyio.sleep(0.1)
        requests.set()
        assert await in_thread(list, call) == [b"bye"]
        other = served.channel()
        await until(lambda: not listens(served.address))
        assert (await status_of(other, "/test.Echo/One"))[0] is grpc.StatusCode.UNAVAILABLE


PROCESS_EXCHANGE = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


@pytest.mark.parametrize("method", [WATCH, PROCESS_EXCHANGE])
async def test_a_stream_on_which_nothing_was_said_does_not_hold_a_shutdown_up(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ext_proc, "FIRST_MESSAGE", 0.05)
    begun = threading.Event()
    wait_for = Beginnings.wait_for

    async def noting(self: Beginnings, receive: Any) -> Any:
        begun.set()
        return await wait_for(self, receive)

    monkeypatch.setattr(Beginnings, "wait_for", noting)
    async with serving(ExtProcService(Waf()), drain_timeout=3600) as served:
        said = threading.Event()

        def silent() -> Any:
            said.wait(60)
            yield from ()

        def consume() -> str:
            try:
                list(served.channel().stream_stream(method)(silent(), timeout=60))
            except grpc.RpcError as exc:
                error: Any = exc
                return f"{error.code().name}: {error.details()}"
            return "OK"

        async with anyio.create_task_group() as tasks:
            found: list[str] = []

            async def ask() -> None:
                found.append(await in_thread(consume))

            tasks.start_soon(ask)
            await in_thread(begun.wait, 60)
            served.shutdown.set()
        said.set()
    assert found == ["UNAVAILABLE: the server is shutting down"]


async def test_a_first_message_that_is_on_its_way_when_the_server_shuts_down_is_taken() -> None:
    beginnings = Beginnings(3600)
    taken: list[str] = []
    arrives = anyio.Event()

    async def receive() -> str:
        await arrives.wait()
        return "message"

    async def begin() -> None:
        taken.append(await beginnings.wait_for(receive))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(begin)
        await anyio.wait_all_tasks_blocked()
        beginnings.drain()
        tasks.start_soon(begin)
        await anyio.wait_all_tasks_blocked()
        arrives.set()
    assert taken == ["message"] * 2
    hurried = Beginnings(0)
    hurried.drain()
    with pytest.raises(StatusError, match="UNAVAILABLE"):
        await hurried.wait_for(anyio.sleep_forever)


def listens(address: str) -> bool:
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def test_a_unix_socket_is_for_owner_and_group_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(Waf(), f"unix://{path}") as served:
        assert served.address == f"unix://{path}"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        client = GrpcTransport(f"grpc+unix://{path}").bind("waf")
        assert await client.call(head(), anyio.current_time() + 1e9) is not None
        await client.aclose()
    assert os.listdir(tmp_path) == []


async def test_a_socket_that_somebody_serves_is_left_alone_and_one_that_nobody_does_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    async with serving(Waf(), f"unix://{path}"):
        with pytest.raises(OSError, match="in use: somebody listens there") as raised:
            await serve_grpc(Waf(), f"unix://{path}")
        assert raised.value.errno == errno.EADDRINUSE
        assert path.is_socket()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="there is a file that is no socket"):
        await serve_grpc(Waf(), f"unix://{tmp_path}/file")
    with pytest.raises(OSError, match="there is no directory"):
        await serve_grpc(Waf(), f"unix://{tmp_path}/none/s")


async def test_a_port_that_is_in_use_is_an_error_that_says_so() -> None:
    async with serving(Waf()) as served:
        with pytest.raises(OSError, match="in use: somebody listens there"):
            await serve_grpc(Waf(), served.address.removeprefix("grpc://"))


async def test_a_port_may_be_shared() -> None:
    async with (
        serving(Waf(), reuse_port=True) as served,
        serving(Waf(), served.address.removeprefix("grpc://"), reuse_port=True) as other,
    ):
        assert other.address == served.address


@pytest.mark.parametrize(
    ("services", "bind", "settings", "told"),
    [
        (Waf(), "9000", {}, "expected unix:///path or host:port"),
        (Waf(), "http://127.0.0.1:9000", {}, "expected unix:///path or tcp://host:port"),
        ([], "127.0.0.1:0", {}, "expected an Agent or a GrpcService"),
        (["waf"], "127.0.0.1:0", {}, "expected an Agent or a GrpcService"),
        ([Waf(), Waf()], "127.0.0.1:0", {}, "each to have a name of its own"),
        (Agent(), "127.0.0.1:0", {}, "Agent"),
        (Waf(), "127.0.0.1:0", {"max_concurrency": 0}, "max_concurrency=0"),
        (Waf(), "127.0.0.1:0", {"max_event_bytes": 0}, "max_event_bytes=0"),
        (Waf(), "127.0.0.1:0", {"max_held_bytes": 0}, "max_held_bytes=0"),
        (Waf(), "127.0.0.1:0", {"drain_timeout": -1}, "drain_timeout=-1"),
        (Waf(), "127.0.0.1:0", {"verify": "/ca.pem"}, "verify without cert"),
        (Waf(), "127.0.0.1:0", {"cert": "/no/such.pem"}, "expected a certificate and its key in PEM"),
    ],
)
async def test_what_cant_work_is_refused(services: Any, bind: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        await serve_grpc(services, bind, **settings)


async def test_only_clients_with_a_certificate_of_the_authority_are_served(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    files: dict[str, str] = {}
    for name, ca in (("ca", authority), ("other", other)):
        ca.cert_pem.write_to_path(files.setdefault(name, str(tmp_path / f"{name}.pem")))
        leaf = ca.issue_cert("localhost", "127.0.0.1")
        leaf.private_key_and_cert_chain_pem.write_to_path(
            files.setdefault(f"{name}-leaf", str(tmp_path / f"{name}-l.pem"))
        )
    async with serving(Waf(), "127.0.0.1:0", cert=files["ca-leaf"], verify=files["ca"]) as served:
        address = served.address.replace("grpc://", "grpcs://")
        good = GrpcTransport(address, verify=files["ca"], cert=files["ca-leaf"]).bind("waf")
        await good.connect()
        await good.aclose()
        for settings in (
            {"verify": files["ca"]},
            {"verify": files["ca"], "cert": files["other-leaf"]},
            {"verify": files["other"], "cert": files["ca-leaf"]},
            {"cert": files["ca-leaf"]},
        ):
            bad = GrpcTransport(address, connect_timeout=2.0, **settings).bind("waf")  # type: ignore[arg-type]
            with pytest.raises(Exception, match=r"it can't be reached|not connected"):
                await bad.connect()
            await bad.aclose()
        plain = GrpcTransport(served.address, connect_timeout=2.0).bind("waf")
        with pytest.raises(Exception, match=r"it can't be reached|not connected"):
            await plain.connect()
        await plain.aclose()


async def test_one_agent_can_be_served_at_several_addresses() -> None:
    async with serving([AgentService(Waf())]) as one, serving([AgentService(Waf())]) as other:
        assert one.address != other.address


async def test_a_file_that_cannot_be_removed_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"

    really = os.lstat

    def refuse(name: Any) -> os.stat_result:
        if name == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really(name)

    with monkeypatch.context() as refusing:
        async with serving(Waf(), f"unix://{path}"):
            # gRPC's library removes it itself where it may, and does not say so.
            refusing.setattr(os, "lstat", refuse)
    assert f"{path}: can't be removed, and stays: Permission denied" in caplog.messages
    # It is in nobody's way.
    async with serving(Waf(), f"unix://{path}"):
        pass


# Calls that say nothing


def silent(end: threading.Event) -> Any:
    end.wait(60)
    yield from ()


async def ended_with(call: Any) -> str:
    def consume() -> str:
        try:
            list(call)
        except grpc.RpcError as exc:
            error: Any = exc
            return f"{error.code().name}: {error.details()}"
        return "OK"

    found: str = await in_thread(consume)
    return found


@pytest.mark.parametrize("method", [WATCH, PROCESS_EXCHANGE, CHECK, "/test.Echo/One"])
async def test_a_call_on_which_nothing_is_said_ends(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BEGIN_TIMEOUT", 0.05)
    end = threading.Event()
    async with serving([ExtProcService(Waf()), Echo()]) as served:
        call = served.channel().stream_stream(method)(silent(end), timeout=60)
        assert await ended_with(call) == "DEADLINE_EXCEEDED: no message has come within 0.05 s"
        end.set()
        # The server goes on.
        monkeypatch.setattr(service, "BEGIN_TIMEOUT", 60.0)
        assert await in_thread(ask, served.channel(), CHECK) == b"\x08\x01"


async def test_a_call_that_has_no_message_is_refused() -> None:
    async with serving(Echo()) as served:
        call = served.channel().stream_stream("/test.Echo/One")(iter(()), timeout=60)
        assert await ended_with(call) == "INVALID_ARGUMENT: it has no message"


@pytest.mark.parametrize("hoarded", ["/test.Echo/Hang", WATCH])
async def test_streams_that_last_keep_nobody_from_asking_for_the_health_nor_others_from_their_streams(
    hoarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MORE_STREAMS", 3 - 10)
    monkeypatch.setattr(HealthService, "most_streams", 3)
    other = WATCH if hoarded != WATCH else "/test.Echo/Hang"
    end = threading.Event()

    def begun() -> Any:
        yield b""
        end.wait(60)

    async with serving(echo := Echo(), max_concurrency=1) as served:
        hoarding = served.channel()
        calls = [hoarding.stream_stream(hoarded)(begun(), timeout=60) for _ in range(3)]
        for call in calls if hoarded == WATCH else ():
            assert await in_thread(next, call) == b"\x08\x01"
        await until(lambda: hoarded == WATCH or echo.running == 3)
        for _ in range(3):
            refused = hoarding.stream_stream(hoarded)(begun(), timeout=60)
            assert await ended_with(refused) == "RESOURCE_EXHAUSTED: 3 such calls are under way"
        channel = served.channel()
        assert await in_thread(ask, channel, CHECK) == b"\x08\x01"
        call = channel.stream_stream(other)(begun(), timeout=60)
        if other == WATCH:
            assert await in_thread(next, call) == b"\x08\x01"
        else:
            await until(lambda: echo.running)
        for each in (*calls, call):
            each.cancel()
        end.set()
        # Whoever leaves makes room.
        await until(lambda: not echo.running)
        again = channel.stream_stream(hoarded)(iter([b""]), timeout=60)
        await until(lambda: hoarded == WATCH or echo.running)
        again.cancel()
