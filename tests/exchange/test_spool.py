"""Request bodies that a writer is shown as they come: kept until their length is known."""

import asyncio
import errno
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from threading import Event
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentResponse, BodyMode, BodyMutation, ConfigurationError, FailureMode
from asgi_agents.exchange import spool
from asgi_agents.exchange.spool import Spool
from tests.support.asgi import App, Client, Probe, SlowProbe, assert_nothing_left, guarded, pull

from .test_body import HYBRID, MIB, STREAM, agent, replace

LENGTH = b"content-length"
streaming = pytest.mark.parametrize("mode", [STREAM, HYBRID], ids=lambda mode: mode.name)


def upload(pieces: Sequence[bytes], *, declared: bool = True) -> Client:
    client = Client("POST", body=pieces)
    if declared:
        client.scope["headers"] = [(LENGTH, b"%d" % sum(map(len, pieces)))]
    return client


def writer(mode: BodyMode, change: Any, kind: type[Probe] = Probe, **options: Any) -> AgentConfig:
    options.setdefault("max_request_body_bytes", 20 * MIB)
    return agent("request", kind(request_body=replace(change)), mode, write=True, **options)


@streaming
@pytest.mark.parametrize("kind", [Probe, SlowProbe])
@pytest.mark.parametrize("size", [10, MIB // 4, 3 * MIB], ids=["small", "in memory", "in a file"])
async def test_the_app_is_told_the_right_length_and_gets_all_of_it_in_order(
    mode: BodyMode, kind: type[Probe], size: int
) -> None:
    pieces = [bytes([65 + number]) * (size // 5) for number in range(5)]
    app, client = App(), upload(pieces)
    await client.call(guarded(app, writer(mode, lambda data: data.replace(b"C", b"<C>"), kind)))
    expected = b"".join(pieces).replace(b"C", b"<C>")
    assert app.body == expected
    assert app.header(LENGTH) == b"%d" % len(expected)
    assert [message["more_body"] for message in app.received] == [True] * (len(app.received) - 1) + [False]


async def test_the_body_is_judged_as_it_comes_and_the_app_starts_when_all_of_it_was() -> None:
    probe = Probe(request_body=replace(bytes.upper))
    app, client = App(), Client("POST", body=[b"ab"], unfinished=True)
    client.scope["headers"] = [(LENGTH, b"4")]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(app, agent("request", probe, STREAM, write=True)))
        await anyio.wait_all_tasks_blocked()
        assert [data for _, data, _ in probe.chunks] == [b"ab"]
        assert app.calls == 0
        client.give(b"cd")
    assert app.body == b"ABCD"
    assert app.header(LENGTH) == b"4"


async def test_with_an_unknown_length_the_app_starts_at_once_without_one() -> None:
    app, client = App(), Client("POST", body=[b"ab"], unfinished=True)
    client.scope["headers"] = [(LENGTH, b"4")]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(app, writer(STREAM, bytes.upper, request_length="unknown")))
        await anyio.wait_all_tasks_blocked()
        assert app.calls == 1
        client.give(b"cd")
    assert app.body == b"ABCD"
    assert app.header(LENGTH) is None


async def test_a_chunked_body_stays_chunked() -> None:
    app, client = App(), upload([b"ab", b"cd"], declared=False)
    await client.call(guarded(app, writer(STREAM, bytes.upper)))
    assert app.body == b"ABCD"
    assert app.headers == [(b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("kind", ["a reader", "a shadow writer", "a response writer"])
async def test_nothing_is_kept_for_who_changes_nothing(kind: str) -> None:
    configs = {
        "a reader": agent("request", Probe(request_body=None), STREAM),
        "a shadow writer": writer(STREAM, bytes.upper, enforce=False),
        "a response writer": agent("response", Probe(response_body=None), STREAM, write=True),
    }
    app, client = App(), Client("POST", body=[b"ab"], unfinished=True)
    client.scope["headers"] = [(LENGTH, b"4")]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(app, configs[kind]))
        await anyio.wait_all_tasks_blocked()
        assert app.calls == 1
        client.give(b"cd")
    assert app.header(LENGTH) == b"4"


@pytest.mark.parametrize("limit", [None, 2 * MIB])
@pytest.mark.parametrize("grows", [False, True], ids=["came", "made"])
async def test_no_more_is_kept_than_the_agent_takes(limit: int | None, grows: bool) -> None:
    bound = limit or MIB
    pieces = [bytes(bound // 4)] * (3 if grows else 5)
    app, client = App(), upload(pieces)
    await client.call(
        guarded(app, writer(STREAM, lambda data: data * (2 if grows else 1), max_request_body_bytes=limit))
    )
    assert client.status == 413
    assert app.calls == 0


async def test_a_body_over_the_limit_of_a_fail_open_writer_goes_on_without_it() -> None:
    pieces = [b"a" * (MIB // 2)] * 4
    app, client = App(), upload(pieces, declared=False)
    config = writer(STREAM, bytes.upper, max_request_body_bytes=MIB, failure_mode=FailureMode.OPEN)
    await client.call(guarded(app, config))
    assert client.status == 200
    # What it changed before stays changed, and what the app gets is as long as it is.
    assert app.body == b"A" * MIB + b"a" * MIB
    assert app.header(LENGTH) is None


async def test_a_block_in_the_middle_is_answered_and_the_app_never_starts() -> None:
    probe = Probe(request_body=lambda event: AgentResponse.block(422, "no") if b"evil" in event.data else None)
    app, client = App(), upload([b"good", b"evil", b"more"])
    await client.call(guarded(app, agent("request", probe, STREAM, write=True)))
    assert (client.status, client.body) == (422, b"no")
    assert app.calls == 0


async def test_a_client_that_leaves_takes_its_body_along() -> None:
    app, client = App(), Client("POST", body=[bytes(2 * MIB)], unfinished=True)
    client.leave()
    await client.call(guarded(app, writer(STREAM, bytes.upper)))
    assert app.calls == 0


async def test_a_header_operation_of_the_last_piece_reaches_the_app() -> None:
    def react(event: Any) -> AgentResponse:
        return AgentResponse.allow(request_body_mutation=BodyMutation(event.data))

    app, client = App(), upload([b"ab", b"cd"])
    await client.call(guarded(app, agent("request", Probe(request_body=react), STREAM, write=True)))
    assert app.header(LENGTH) == b"4"


async def test_after_the_body_the_app_hears_when_the_client_leaves() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not heard or heard[-1]["type"] != "http.disconnect":
            heard.append(await receive())

    client = upload([b"ab", b""])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(app, writer(STREAM, bytes.upper)))
        await anyio.wait_all_tasks_blocked()
        assert [message.get("body") for message in heard] == [b"AB"]
        client.leave()
    assert heard[-1] == {"type": "http.disconnect"}


async def test_a_receive_that_is_given_up_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MAX_MEMORY_BYTES", 0)
    kept = Spool()
    data = bytes(range(256)) * 1024
    await kept.write(data)
    await kept.rewind()

    async def nothing() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    receive = kept.receive(nothing, ended=True)
    got, more = b"", True
    while more:
        with anyio.CancelScope() as scope:
            scope.cancel()
            message = await receive()
            got, more = got + message["body"], message["more_body"]
            await checkpoint()
    assert got == data
    await kept.aclose()


async def nothing_more() -> Message:
    return {"type": "http.disconnect"}


async def in_a_file(pieces: int) -> tuple[Spool, bytes]:
    """A body of so many pieces that is in a file but for its first part, ready to be read."""
    kept, data = Spool(), [bytes([number]) * 64 * 1024 for number in range(pieces)]
    for piece in data:
        await kept.write(piece)
    await kept.rewind()
    return kept, b"".join(data)


@pytest.mark.parametrize("readers", [2, 5])
async def test_several_readers_at_a_time_get_all_of_it_in_order(readers: int) -> None:
    kept, data = await in_a_file(40)
    receive = kept.receive(nothing_more, ended=True)
    got: list[Message] = []

    async def read() -> None:
        while (message := await receive())["type"] == "http.request":
            got.append(message)

    async with anyio.create_task_group() as tasks:
        for _ in range(readers):
            tasks.start_soon(read)
    await kept.aclose()
    assert b"".join(message["body"] for message in got) == data
    assert [message["more_body"] for message in got] == [True] * (len(got) - 1) + [False]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
async def test_a_task_that_is_cancelled_while_it_reads_loses_nothing(steps: int) -> None:
    # A shield is none against the cancellation of a task, as asyncio.wait_for() does it.
    kept, data = await in_a_file(40)
    receive = kept.receive(nothing_more, ended=True)
    got, more = b"", True
    while more:
        task = asyncio.create_task(pull(receive))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            message = await task
            got, more = got + message["body"], message["more_body"]
            continue
        message = await receive()
        got, more = got + message["body"], message["more_body"]
    await kept.aclose()
    assert got == data


@pytest.mark.parametrize("pieces", [2, 40], ids=["in memory", "in a file"])
async def test_whoever_reads_after_the_request_finds_that_it_is_over(pieces: int) -> None:
    kept, _ = await in_a_file(pieces)
    receive = kept.receive(nothing_more, ended=True)
    assert (await receive())["more_body"]
    await kept.aclose()
    assert await receive() == {"type": "http.disconnect"}


@pytest.mark.parametrize("fails", ["write", "seek"])
async def test_without_room_for_the_body_the_app_never_starts(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    class Full(BytesIO):
        def write(self, data: object) -> int:
            return self._fail("write")

        def seek(self, *args: int) -> int:
            return self._fail("seek")

        def close(self) -> None:
            super().close()
            # As a file does that still has something to write.
            self._fail(fails)

        def _fail(self, name: str) -> int:
            if name == fails:
                raise OSError(errno.ENOSPC, "No space left on device")
            return 0

    files: list[Full] = []

    def make() -> Full:
        files.append(Full())
        return files[-1]

    monkeypatch.setattr(spool, "TemporaryFile", make)
    app, client = App(), upload([bytes(MIB)] * 2)
    middleware = guarded(app, writer(STREAM, bytes.upper, SlowProbe))
    with pytest.raises(OSError, match="No space left"):
        await client.call(middleware)
    assert (app.calls, client.messages) == (0, [])
    assert [file.closed for file in files] == [True]
    assert_nothing_left(middleware.manager)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_file_that_is_made_when_the_request_is_over_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[BytesIO] = []
    begun, go_on, made = Event(), Event(), Event()

    def make() -> BytesIO:
        begun.set()
        go_on.wait(20)
        files.append(BytesIO())
        made.set()
        return files[0]

    monkeypatch.setattr(spool, "TemporaryFile", make)
    client = upload([bytes(2 * MIB)])
    task = asyncio.create_task(client.call(guarded(App(), writer(STREAM, bytes.upper))))
    with anyio.fail_after(20):
        while not begun.is_set():
            await checkpoint()
        # As a server does that shuts down: a shield is none against that.
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        while not (made.is_set() and files[0].closed):
            await checkpoint()


@pytest.mark.parametrize("where", ["while it is written", "in the app"])
async def test_the_file_of_a_cancelled_request_is_closed(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    files: list[BytesIO] = []

    def make() -> BytesIO:
        files.append(BytesIO())
        return files[-1]

    monkeypatch.setattr(spool, "TemporaryFile", make)
    started = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await anyio.sleep_forever()

    unfinished = where == "while it is written"
    client = Client("POST", body=[bytes(MIB)] * 2, unfinished=unfinished)
    client.scope["headers"] = [(LENGTH, b"%d" % ((3 if unfinished else 2) * MIB))]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(app, writer(STREAM, bytes.upper)))
        while not (files if unfinished else started.is_set()):
            await checkpoint()
        tasks.cancel_scope.cancel()
    assert [file.closed for file in files] == [True]


async def test_an_empty_body_is_one_empty_message() -> None:
    app, client = App(), upload([b""], declared=False)
    await client.call(guarded(app, writer(STREAM, bytes.upper)))
    assert [message["body"] for message in app.received] == [b""]


def test_a_length_is_known_or_unknown() -> None:
    with pytest.raises(ConfigurationError, match="request_length"):
        AgentConfig("a", Probe(request_body=None), request_length="maybe")  # type: ignore[arg-type]
