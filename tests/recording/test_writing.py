"""The writer of lines: each line is whole, the file is bounded, and nobody who hands a line over waits or fails."""

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asgi_agents import ConfigurationError
from asgi_agents.recording import writing
from asgi_agents.recording.writing import END_BYTES, Writer


def end(writer: Writer[bytes]) -> bytes:
    return b"end %d %d %s\n" % (writer.written, writer.dropped, (writer.stopped or "closed").encode())


def make(
    path: Path, encode: Callable[[bytes], bytes] = lambda item: item + b"\n", max_bytes: int = 10**6
) -> Writer[bytes]:
    return Writer(path, b"first\n", encode, end, max_bytes=max_bytes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_lines_are_written_in_their_order_between_the_first_and_the_last(path: Path) -> None:
    writer = make(path)
    for number in range(1000):
        writer.put(b"%d" % number, 0)
    writer.close()
    writer.close()
    assert path.read_bytes() == b"first\n" + b"".join(b"%d\n" % n for n in range(1000)) + b"end 1000 0 closed\n"
    assert writer.size == path.stat().st_size
    assert not writer._thread.is_alive()


def test_nobody_else_may_read_the_file_and_what_was_there_is_gone(path: Path) -> None:
    path.write_bytes(b"old " * 1000)
    path.unlink()
    make(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    make(path).close()
    assert path.read_bytes() == b"first\nend 0 0 closed\n"


def test_a_file_that_is_being_recorded_to_is_refused_and_stays(path: Path) -> None:
    writer = make(path)
    writer.put(b"kept", 0)
    with pytest.raises(ConfigurationError, match=r"is being recorded to already, expected a file of its own"):
        make(path)
    writer.close()
    assert path.read_bytes() == b"first\nkept\nend 1 0 closed\n"
    make(path).close()


def test_a_place_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        make(tmp_path)
    with pytest.raises(FileNotFoundError):
        make(tmp_path / "none" / "traffic.jsonl")
    with pytest.raises(ConfigurationError, match=r"expected a file"):
        make(Path("/dev/null"))


@pytest.mark.parametrize("size", [1, 100, 4000])
def test_a_file_that_reaches_its_bound_ends_there_with_whole_lines(
    size: int, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make(path, max_bytes=20_000)
    lines = [b"%04d" % number + b"x" * size for number in range(5000)]
    for line in lines:
        writer.put(line, 0)
    writer.close()
    *found, last = path.read_bytes().splitlines()
    assert path.stat().st_size <= 20_000
    assert path.stat().st_size > 20_000 - END_BYTES - size - 10
    assert found == [b"first", *lines[: writer.written]]
    assert writer.written + writer.dropped == 5000
    assert last == b"end %d %d it has reached max_bytes=20000" % (writer.written, writer.dropped)
    assert warnings(caplog) == [
        f"the recording to {path} has stopped: it has reached max_bytes=20000; it has {writer.written} exchanges, and"
        " the app goes on without it"
    ]


class Disk:
    """Stands for os.write: takes so many bytes, in pieces, and is full then."""

    def __init__(self, room: int, most: int) -> None:
        self.room, self._most, self._write = room, most, os.write

    def __call__(self, file: int, data: "memoryview[int]") -> int:
        piece = data[: min(self._most, self.room)]
        if not piece:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(piece)
        return self._write(file, piece)


@pytest.mark.parametrize("room", [6, 7, 30, 99, 100, 101, 700])
@pytest.mark.parametrize("most", [1, 64, 10**6])
def test_a_disk_that_is_full_ends_the_recording_with_whole_lines(
    room: int, most: int, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_BATCH", 5)
    monkeypatch.setattr(os, "write", Disk(room, most))
    writer = make(path)
    for number in range(200):
        writer.put(b"%04d" % number, 0)
    writer.close()
    first, *found = path.read_bytes().split(b"\n")
    assert first == b"first"
    # The end of the file is a whole line, if it is not the last one of the recording.
    assert found.pop() == b""
    assert found == [b"%04d" % number for number in range(len(found))]
    assert (writer.written, writer.written + writer.dropped) == (len(found), 200)
    assert len(warnings(caplog)) == 1
    assert "No space left on device" in warnings(caplog)[0]
    assert writer.stopped == "No space left on device"


def test_a_first_line_that_can_not_be_written_is_an_error_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", Disk(3, 10))
    before = threading.active_count()
    with pytest.raises(OSError, match="No space left"):
        make(path)
    assert threading.active_count() == before
    assert path.read_bytes() == b""


class Held:
    """Encodes nothing until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, item: bytes) -> bytes:
        self.begun.set()
        self.go.wait()
        return item + b"\n"


@pytest.fixture
def held() -> Iterator[Held]:
    encode = Held()
    yield encode
    encode.go.set()


@pytest.mark.parametrize(
    ("name", "most", "size"),
    [("MAX_WAITING_EXCHANGES", 20, 0), ("MAX_WAITING_BYTES", 20 * 100, 100)],
)
def test_more_than_can_wait_is_dropped_and_counted(
    name: str, most: int, size: int, path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, name, most)
    writer = make(path, held)
    writer.put(b"under way", 0)
    held.begun.wait()
    for number in range(50):
        writer.put(b"%d" % number, size)
    assert writer.dropped == 30
    held.go.set()
    writer.close()
    assert path.read_bytes().splitlines()[2:-1] == [b"%d" % number for number in range(20)]
    assert (writer.written, writer.dropped) == (21, 30)


def test_whoever_hands_a_line_over_does_not_wait_for_the_disk(path: Path, held: Held) -> None:
    writer = make(path, held)
    writer.put(b"x", 0)
    held.begun.wait()
    # The thread that writes stands still from here on. Were it waited for, this would never end.
    for _ in range(20_000):
        writer.put(b"x", 0)
    assert writer.dropped == 20_000 - writing.MAX_WAITING_EXCHANGES
    held.go.set()
    writer.close()


def test_what_can_not_be_encoded_is_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def encode(item: bytes) -> bytes:
        if item == b"bad":
            raise ValueError("no")
        return item + b"\n"

    writer = make(path, encode)
    for item in (b"a", b"bad", b"b", b"bad", b"c"):
        writer.put(item, 0)
    writer.close()
    assert path.read_bytes() == b"first\na\nb\nc\nend 3 2 closed\n"
    assert warnings(caplog) == ["an exchange with an agent can't be recorded (logged once a minute)"]


def test_a_thread_that_fails_says_so_and_nothing_more_waits(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Writer[bytes], items: list[bytes]) -> None:
        raise MemoryError("too little")

    monkeypatch.setattr(Writer, "_write_batch", fail)
    writer = make(path)
    writer.put(b"a", 0)
    writer._thread.join()
    writer.put(b"b", 0)
    writer.close()
    assert (writer.stopped, writer.dropped) == ("MemoryError: too little", 1)
    assert len(warnings(caplog)) == 1
    assert path.read_bytes() == b"first\n"


def test_after_its_end_it_takes_nothing(path: Path) -> None:
    writer = make(path)
    writer.close()
    writer.put(b"late", 0)
    assert writer.dropped == 1
    assert path.read_bytes() == b"first\nend 0 0 closed\n"


_CRASHES = """
import os, sys, time
from pathlib import Path
from asgi_agents.recording.writing import Writer
path = Path(sys.argv[1])
writer = Writer(path, b"first\\n", lambda item: item + b"\\n", lambda writer: b"end\\n", max_bytes=10**6)
for number in range(500):
    writer.put(b"%d" % number, 0)
while writer.written < 500:
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


def test_what_was_written_stays_when_the_process_is_killed(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _CRASHES, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_bytes() == b"first\n" + b"".join(b"%d\n" % number for number in range(500))


_FORKS = """
import os, sys
from pathlib import Path
from asgi_agents.recording.writing import Writer
writer = Writer(Path(sys.argv[1]), b"first\\n", lambda item: item + b"\\n", lambda writer: b"end\\n", max_bytes=10**6)
child = os.fork()
writer.put(b"child" if child == 0 else b"parent", 0)
writer.close()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_writes_nothing(path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", _FORKS, str(path)], check=True, timeout=60)
    assert path.read_bytes() == b"first\nparent\nend\n"
