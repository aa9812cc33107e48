"""Files that others have made, open or change: nobody reads what is recorded, and nothing is lost without a word."""

import errno
import json
import logging
import multiprocessing
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_agents import (
    AgentConfig,
    AgentManager,
    AgentResponse,
    BodyMutation,
    ConfigurationError,
    HeaderOp,
    RequestBodyChunkEvent,
)
from asgi_agents.recording import record, traffic_log
from asgi_agents.recording.reading import Traffic
from asgi_agents.recording.writing import Writer
from tests.support.sample_events import head

from .judges import Heads, Judge
from .test_writing import end, warnings

posix = pytest.mark.skipif(sys.platform == "win32", reason="files of POSIX")


def make(path: Path) -> Writer[bytes]:
    return Writer(path, b"first\n", lambda item: item + b"\n", end, max_bytes=10**6)


@pytest.fixture
def path() -> Iterator[Path]:
    # Short enough for a socket.
    with tempfile.TemporaryDirectory(prefix="agents-") as directory:
        yield Path(directory) / "traffic.jsonl"


# What was there before


@posix
@pytest.mark.parametrize("mode", [0o666, 0o644, 0o640, 0o600, 0o200])
def test_a_file_that_others_could_read_is_for_nobody_else_from_then_on(mode: int, path: Path) -> None:
    path.write_bytes(b"old")
    path.chmod(mode)
    make(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"first\nend 0 0 closed\n"


@posix
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_who_had_the_file_open_before_reads_nothing_of_the_recording(mode: int, path: Path) -> None:
    path.write_bytes(b"old")
    path.chmod(mode)
    other = path.with_name("other")
    os.link(path, other)
    with path.open("rb") as file:
        make(path).close()
        assert file.read() == other.read_bytes() == b"old"
    assert path.read_bytes() == b"first\nend 0 0 closed\n"


@posix
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_that_can_not_be_removed_is_used_only_where_nobody_else_can_have_it_open(
    mode: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"older than this")
    path.chmod(mode)
    before = path.stat().st_ino

    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    if mode == 0o600:
        make(path).close()
        assert path.read_bytes() == b"first\nend 0 0 closed\n"
    else:
        with pytest.raises(ConfigurationError, match=r"can't be removed \(Permission denied\) and which others may"):
            make(path)
        assert path.read_bytes() == b"older than this"
    assert path.stat().st_ino == before


@posix
def test_a_file_that_another_process_replaces_at_the_same_time_is_looked_at_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old")
    opened = os.open

    def replace(*args: Any, **options: Any) -> int:
        file = opened(*args, **options)
        monkeypatch.undo()
        path.unlink()
        path.write_bytes(b"of the other")
        return file

    monkeypatch.setattr(os, "open", replace)
    make(path).close()
    assert path.read_bytes() == b"first\nend 0 0 closed\n"


@posix
def test_a_file_that_others_replace_all_the_time_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "samestat", lambda one, other: False)
        with pytest.raises(ConfigurationError, match="which others replace all the time"):
            make(path)
    assert path.read_bytes() == b"old"


def link(path: Path) -> None:
    path.with_name("victim").write_bytes(b"precious")
    path.symlink_to("victim")


def dangling_link(path: Path) -> None:
    path.symlink_to("victim")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@posix
@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (link, "a symbolic link, expected a file"),
        (dangling_link, "a symbolic link, expected a file"),
        (pipe, "expected a file"),
        (unix_socket, "expected a file"),
    ],
)
def test_what_is_no_file_is_refused_at_once_and_stays(
    make_it: Callable[[Path], None], message: str, path: Path
) -> None:
    make_it(path)
    before = path.lstat()
    with pytest.raises(ConfigurationError, match=message):
        make(path)
    after = path.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    victim = path.with_name("victim")
    assert victim.exists() is (make_it is link)
    assert not victim.exists() or victim.read_bytes() == b"precious"


@posix
def test_a_file_of_another_user_is_refused_and_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"theirs")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigurationError, match="belongs to another user, expected a new file"):
        make(path)
    assert path.read_bytes() == b"theirs"


# What becomes of it meanwhile


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, 3)


def add(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"not ours\n")


@posix
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (remove, "the file was removed"),
        (cut, "somebody else has changed the file"),
        (add, "somebody else has changed the file"),
    ],
)
def test_a_file_that_is_taken_away_or_changed_ends_the_recording_and_is_left_alone(
    change: Callable[[Path], None], reason: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make(path)
    change(path)
    left = path.read_bytes() if path.exists() else b""
    writer.put(b"lost", 0)
    writer.close()
    assert (writer.written, writer.dropped, writer.stopped) == (0, 1, reason)
    assert warnings(caplog) == [
        f"the recording to {path} has stopped: {reason}; it has 0 exchanges, and the app goes on without it"
    ]
    assert (path.read_bytes() if path.exists() else b"") == left


@posix
def test_a_file_that_is_moved_takes_the_recording_along(path: Path) -> None:
    writer = make(path)
    moved = path.rename(path.with_suffix(".1"))
    writer.put(b"kept", 0)
    other = make(path)
    writer.close()
    other.close()
    assert moved.read_bytes() == b"first\nkept\nend 1 0 closed\n"
    assert path.read_bytes() == b"first\nend 0 0 closed\n"


# More than one process


def _record_in_another_process(path: Path, told: Any) -> None:
    try:
        make(path)
    except ConfigurationError as exc:
        told.put(str(exc))
    else:
        told.put("recorded")


@posix
def test_a_file_that_another_process_records_to_is_refused(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    writer = make(path)
    process = context.Process(target=_record_in_another_process, args=(path, told))
    process.start()
    assert "is being recorded to already" in told.get(timeout=60)
    process.join()
    writer.put(b"kept", 0)
    writer.close()
    assert path.read_bytes() == b"first\nkept\nend 1 0 closed\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_that_lives_on_does_not_keep_the_file(path: Path) -> None:
    writer = make(path)
    reading, writing_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing_end)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        writer.close()
        make(path).close()
    finally:
        os.close(writing_end)
        os.waitpid(child, 0)
    assert path.read_bytes() == b"first\nend 0 0 closed\n"


# What is too long, or waits


async def test_a_line_that_nobody_could_read_is_not_written(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic_log, "MAX_LINE_BYTES", 2000)
    monkeypatch.setattr("asgi_agents.recording.reading.MAX_LINE_BYTES", 2000)
    async with AgentManager([AgentConfig("waf", Judge())]) as manager, record(manager, path) as log:
        for size in (10, 5000, 10):
            await manager.process_request_headers(head("c", "/" + "x" * size))
    assert (log.exchanges, log.dropped, log.stopped) == (2, 1, "")
    assert warnings(caplog) == ["an exchange with an agent can't be recorded (logged once a minute)"]
    with Traffic(path) as traffic:
        assert len(list(traffic.exchanges())) == 2
        assert traffic.complete


LONG = "x" * 1000


class Mutates(Judge):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        return AgentResponse.allow(request_body_mutation=BodyMutation(LONG.encode()))


@pytest.mark.parametrize("part", ["uri", "header", "answer"])
async def test_what_waits_is_bounded_whatever_is_long_in_it(
    part: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    put = Writer.put

    def spy(self: Writer[Any], item: Any, size: int) -> None:
        sizes.append(size)
        put(self, item, size)

    monkeypatch.setattr(Writer, "put", spy)
    answer = AgentResponse.allow(request_headers=[HeaderOp.set("x-a", LONG)])
    agent = Heads(lambda event: answer if part == "answer" else None)
    async with AgentManager([AgentConfig("waf", agent)]) as manager, record(manager, path):
        headers = {"x-long": [LONG[:500], LONG[:500]]} if part == "header" else None
        await manager.process_request_headers(head("c", "/" + LONG if part == "uri" else "/", headers))
    assert len(sizes) == 1
    assert 1000 <= sizes[0] < 6000


def take_lines(path: Path, index: int, count: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[index])["kind"] == "exchange"
    path.write_bytes(b"".join(lines[:index] + lines[index + count :]))


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_recording_from_which_lines_were_taken_is_not_complete(count: int, path: Path) -> None:
    async with AgentManager([AgentConfig("waf", Judge())]) as manager, record(manager, path):
        for number in range(5):
            await manager.process_request_headers(head(str(number)))
    take_lines(path, 3, count)
    with Traffic(path) as traffic:
        assert len(list(traffic.exchanges())) == 5 - count
        assert traffic.complete is (count == 0)


async def test_a_recording_that_was_closed_before_it_was_started_is_not_started(path: Path) -> None:
    async with AgentManager([AgentConfig("waf", Judge())]) as manager:
        log = record(manager, path)
        log.close()
        with pytest.raises(ConfigurationError, match="started before"):
            log.start()
    assert (log.size, log.exchanges) == (0, 0)


def test_a_disk_that_is_full_for_a_first_line_leaves_the_file_to_others(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            make(path)
    with caplog.at_level(logging.WARNING):
        make(path).close()
    assert caplog.records == []
