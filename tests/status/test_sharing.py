"""The directory in which workers tell one another how they are, and what may be in it."""

import json
import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from msgspec.structs import replace
from starlette.types import Message

from asgi_agents import AgentManager, ConfigurationError, status_app
from asgi_agents.manager import registry_of
from asgi_agents.observability import locked_files
from asgi_agents.observability import worker_directory as under_test
from asgi_agents.observability.attempts import UnusableDirectoryError
from asgi_agents.observability.worker_directory import Others
from asgi_agents.status import sharing
from asgi_agents.status.cleaning import IncidentCleaner
from asgi_agents.status.directory import SharedDirectory
from asgi_agents.status.directory import encoded as as_written
from asgi_agents.status.model import Status, WorkerShare
from asgi_agents.status.sharing import SharedStatus
from asgi_agents.status.snapshot import hostname, take_share, take_snapshot
from tests.support import living_files
from tests.support.two_workers import two_workers

from .world import head_event, scripted

PATIENCE = 60.0  # seconds after which a test that hangs has failed
# Of no process: Linux gives them out from 300 on, and no more than 2 ** 22.
NOBODY = 2**22 + 1


def share_of(pid: int, host: str | None = None, manager: AgentManager | None = None) -> WorkerShare:
    registry = registry_of(AgentManager([scripted("waf")]) if manager is None else manager)
    status = take_snapshot(registry)
    worker = replace(status.worker, pid=pid, host=hostname() if host is None else host)
    return take_share(registry, replace(status, worker=worker, workers=[worker]))


def encoded(share: WorkerShare) -> bytes:
    return msgspec.json.encode(share)


OWN = encoded(share_of(os.getpid()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def shared(path: Path) -> SharedDirectory:
    """That of this process, which has been there."""
    shared = SharedDirectory(path, 10.0)
    shared.look(watching=True)
    return shared


def leave(path: Path, share: WorkerShare | bytes, pid: int | None = None, token: str = "0" * 16) -> Path:
    """Have another process leave this."""
    pid = (share.status.worker.pid if isinstance(share, WorkerShare) else os.getppid()) if pid is None else pid
    data = encoded(share) if isinstance(share, WorkerShare) else share
    return living_files.leave(path / f"{pid}-{token}.json", data)


def exchange(shared: SharedDirectory, before: Others[WorkerShare] | None = None) -> Others[WorkerShare]:
    shared.write(OWN)
    return shared.read(before)


def pids(others: Others[WorkerShare]) -> list[int]:
    return [each.share.status.worker.pid for each in others.heard]


# What is written


def test_it_is_made_for_its_user_alone_and_so_are_its_files(path: Path, shared: SharedDirectory) -> None:
    os.umask(os.umask(0))
    assert pids(exchange(shared)) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = sorted(path.iterdir())
    assert [file.name.partition("-")[0] for file in files] == [str(os.getpid()), "watched"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_whoever_reads_finds_a_file_whole(path: Path, shared: SharedDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange(shared)
    (file,) = path.glob("*.json")
    kept = file.open("rb")
    shared.write(OWN + b" ")
    # The old one is as it was for who has begun to read it, and the new one came in one step.
    assert kept.read() == OWN
    assert file.read_bytes() == OWN + b" "
    kept.close()

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        exchange(shared)
    assert [each.name for each in path.glob(".*")] == []
    assert file.read_bytes() == OWN + b" "


def test_what_is_too_large_is_not_written(path: Path, shared: SharedDirectory) -> None:
    with pytest.raises(UnusableDirectoryError, match="has 4194305 bytes to write, expected at most 4194304"):
        shared.write(b" " * (under_test.MAX_BYTES + 1))
    assert list(path.glob("*.json")) == []


def test_a_process_takes_its_file_away(path: Path, shared: SharedDirectory) -> None:
    exchange(shared)
    shared.leave()
    shared.leave()
    assert [file.name for file in path.iterdir()] == ["watched"]


def test_a_forked_process_has_a_file_of_its_own(path: Path, shared: SharedDirectory) -> None:
    exchange(shared)
    child = os.fork()
    if child == 0:
        shared.leave()
        shared.write(encoded(share_of(os.getpid())))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(int(file.name.partition("-")[0]) for file in path.glob("*.json")) == sorted([os.getpid(), child])
    # The child is dead by now.
    assert pids(exchange(shared)) == []
    assert len(list(path.glob("*.json"))) == 1


# Who looks


def test_it_says_whether_somebody_looks_and_since_when(path: Path) -> None:
    one, other = (SharedDirectory(path, 10.0) for _ in range(2))
    assert one.look(watching=False) is None
    before = time.time()
    since = other.look(watching=True)
    assert since is not None
    assert before <= since <= time.time()
    assert one.look(watching=False) == other.look(watching=True) == since
    marker = path / "watched"
    os.utime(marker, (time.time() - 11, time.time() - 11))
    assert one.look(watching=False) is None
    again = other.look(watching=True)
    assert again is not None
    assert again > since


@pytest.mark.parametrize("content", [b"", b"nan", b"-1", b"1e308", b"x" * 1000, b"\xff"])
def test_whatever_the_marker_says_is_a_time_or_now(path: Path, shared: SharedDirectory, content: bytes) -> None:
    (path / "watched").write_bytes(content)
    since = shared.look(watching=False)
    assert since is None or time.time() - 60 < since <= time.time()
    assert shared.look(watching=True) is not None


# What is read


def test_others_are_heard(path: Path, shared: SharedDirectory) -> None:
    file = leave(path, share_of(os.getppid()))
    (heard,) = exchange(shared).heard
    assert heard.share == msgspec.json.decode(file.read_bytes(), type=WorkerShare)
    assert heard.at == file.stat().st_mtime


def test_what_has_not_changed_is_not_read_again(path: Path, shared: SharedDirectory) -> None:
    leave(path, share_of(os.getppid()))
    leave(path, b"of another version", token="e" * 16)
    before = exchange(shared)
    again = exchange(shared, before)
    assert [each.share for each in again.heard] == [each.share for each in before.heard]
    assert again.heard[0].share is before.heard[0].share
    assert again.unread == before.unread != {}
    # Nothing is kept but what is given.
    assert exchange(shared).heard[0].share is not before.heard[0].share
    leave(path, share_of(os.getppid(), manager=AgentManager([scripted("b"), scripted("c")])))
    (heard,) = exchange(shared, again).heard
    assert [agent.id for agent in heard.share.status.agents] == ["b", "c"]


def test_what_is_older_than_what_was_asked_for_is_not_read_and_counted(path: Path, shared: SharedDirectory) -> None:
    old = leave(path, share_of(os.getppid()))
    os.utime(old, (time.time() - 60, time.time() - 60))
    broken = leave(path, b"of another version", token="e" * 16)
    os.utime(broken, (time.time() - 60, time.time() - 60))
    dead = leave(path, share_of(os.getppid()), token="d" * 16)
    os.utime(dead, (time.time() - 60, time.time() - 60))
    living_files.release(dead)
    new = leave(path, share_of(NOBODY), token="a" * 16)
    others = shared.read(since=time.time() - 30)
    assert [each.name for each in others.heard] == [new.name]
    assert others.old == {file.name: file.stat().st_mtime_ns for file in (old, broken)}
    assert others.unread == {}
    assert list(others.found) == [new.name]
    assert not dead.exists()


HOSTS = [None, "elsewhere"]
PIDS: dict[str, Callable[[], int]] = {"its own": os.getpid, "its parent's": os.getppid, "nobody's": lambda: NOBODY}


@pytest.mark.parametrize("pid", PIDS)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("old", [0.0, 7200.0])
def test_a_process_lives_as_long_as_it_has_locked_its_file_whatever_it_is_called(
    path: Path, shared: SharedDirectory, pid: str, host: str | None, old: float
) -> None:
    """Ids are used again, and are others in another container, which may have the same name."""
    number = PIDS[pid]()
    file = leave(path, share_of(number, host=host), token="f" * 16)
    os.utime(file, (time.time() - old, time.time() - old))
    assert pids(exchange(shared)) == [number]
    living_files.release(file)
    assert pids(exchange(shared)) == []
    assert not file.exists()


@pytest.mark.parametrize("content", [b"", b"of another version"])
def test_the_file_of_a_dead_process_is_removed_whatever_is_in_it(
    path: Path, shared: SharedDirectory, content: bytes
) -> None:
    file = leave(path, content)
    living_files.release(file)
    others = exchange(shared)
    assert not others.reason
    assert not file.exists()


def test_a_file_that_is_replaced_while_it_is_looked_at_is_not_taken_for_that_of_a_dead_process(
    path: Path, shared: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after it was opened, it is locked no longer: another has its name."""
    file = leave(path, share_of(os.getppid()))
    actual = locked_files.is_locked
    left = 3

    def replaced(descriptor: int) -> bool:
        nonlocal left
        if left:
            left -= 1
            leave(path, share_of(os.getppid()))
        return actual(descriptor)

    monkeypatch.setattr(under_test, "is_locked", replaced)
    assert pids(exchange(shared)) == [os.getppid()]
    assert file.exists()
    left = 1000
    assert exchange(shared).unread == {"a file that changes all the time": 1}
    assert file.exists()


def test_who_asks_whether_a_process_lives_takes_no_lock_away(path: Path, shared: SharedDirectory) -> None:
    """Not even for a moment: of many that write and read at a time each hears all others, always."""
    all_of_them = [SharedDirectory(path, 10.0) for _ in range(4)]
    for each in all_of_them:
        each.write(OWN)
    missed: list[int] = []

    def work(each: SharedDirectory) -> None:
        for _ in range(100):
            each.write(OWN)
            others = each.read()
            if len(others.heard) != 3 or others.unread:
                missed.append(len(others.heard))

    threads = [Thread(target=work, args=(each,)) for each in all_of_them]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert missed == []


def test_several_event_loops_of_a_process_write_and_look_at_a_time(path: Path, shared: SharedDirectory) -> None:
    shared.write(OWN)
    done = False
    found: list[object] = []

    def look() -> None:
        while not done:
            try:
                found.append(shared.is_written())
            except OSError as exc:
                found.append(exc)

    looking = Thread(target=look)
    looking.start()
    for _ in range(300):
        shared.write(b"{}")
    done = True
    looking.join(PATIENCE)
    assert set(map(str, found)) <= {"True"}


def test_files_that_can_not_be_locked_are_a_fault_and_not_dead_processes(
    path: Path, shared: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that has no locks."""
    file = leave(path, share_of(os.getppid()))
    shared.write(OWN)

    def flock(*args: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    assert shared.read().reason == "1 has a file that can't be opened or locked (Operation not supported)"
    assert file.exists()
    with pytest.raises(OSError, match="not supported"):
        shared.write(OWN)


def test_a_file_that_grows_is_not_taken_for_whole(
    path: Path, shared: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = leave(path, share_of(os.getppid()))
    actual = locked_files.is_locked

    def grown(descriptor: int) -> bool:
        with file.open("ab") as more:
            more.write(b" " * 10)
        return actual(descriptor)

    monkeypatch.setattr(under_test, "is_locked", grown)
    assert exchange(shared).reason == "1 has a file that changes while it is read"


@pytest.mark.parametrize(("old", "kept"), [(0.0, True), (500.0, True), (700.0, False)])
def test_what_somebody_has_begun_to_write_is_removed_when_it_is_old(
    path: Path, shared: SharedDirectory, old: float, kept: bool
) -> None:
    left = path / f".{NOBODY}-{'0' * 16}.tmp"
    left.write_bytes(b"half of it")
    left.chmod(0o600)
    os.utime(left, (time.time() - old, time.time() - old))
    exchange(shared)
    assert left.exists() == kept


@pytest.mark.parametrize("what", ["the files", "the directory"])
def test_a_process_sees_that_somebody_has_removed_its_file(path: Path, shared: SharedDirectory, what: str) -> None:
    assert not shared.is_written()
    shared.write(OWN)
    assert shared.is_written()
    for file in path.iterdir():
        file.unlink()
    if what == "the directory":
        path.rmdir()
    assert not shared.is_written()
    shared.write(OWN)
    assert shared.is_written()


DEEP = b'{"status":' + b"[" * 100_000
GOOD = json.loads(encoded(share_of(os.getppid())))


def spoiled(change: Callable[[Any], object]) -> bytes:
    made = json.loads(json.dumps(GOOD))
    change(made)
    return json.dumps(made).encode()


CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\x00\xff" * 1000,
    "cut short": encoded(share_of(os.getppid()))[:-100],
    "another shape": b'{"status": 1}',
    "nested": DEEP,
    "pid 0": spoiled(lambda made: made["status"]["worker"].update(pid=0)),
    "pid of a group": spoiled(lambda made: made["status"]["worker"].update(pid=-1)),
    "a large pid": spoiled(lambda made: made["status"]["worker"].update(pid=2**80)),
    "a large slot": spoiled(lambda made: made.update(slot=10**400)),
    "few slots": spoiled(lambda made: made["status"]["slots"].pop()),
    "few slots of an agent": spoiled(lambda made: made["status"]["agents"][0]["slots"].pop()),
    "few durations": spoiled(lambda made: made["durations"]["waf"]["slots"].pop()),
    "half a pair": spoiled(lambda made: made["durations"]["waf"]["held"].append(1)),
    "no such bucket": spoiled(lambda made: made["durations"]["waf"].update(held=[1000, 1])),
    "a bucket from the end": spoiled(lambda made: made["durations"]["waf"].update(held=[-1, 1])),
    "fewer than none": spoiled(lambda made: made["durations"]["waf"].update(held=[1, -1])),
    "a state that there is not": spoiled(
        lambda made: made["status"]["agents"][0].update(
            endpoints=[{"address": "a", "state": "flying", "connections": 0}]
        )
    ),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_makes_no_sense_is_passed_over_and_counted(
    path: Path, shared: SharedDirectory, content: str
) -> None:
    leave(path, share_of(NOBODY, host="elsewhere"))
    leave(path, CONTENTS[content], token="e" * 16)
    others = exchange(shared)
    assert pids(others) == [NOBODY]
    # Its process lives, so that its figures are missing.
    assert others.reason == "1 has a file of another version of the package, or a damaged one"


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(under_test.MAX_BYTES + 1)


def link(path: Path) -> None:
    secret = path.parent.parent / "elsewhere.json"
    secret.write_bytes(encoded(share_of(os.getppid())))
    path.symlink_to(secret)


def writable(path: Path) -> None:
    path.write_bytes(encoded(share_of(os.getppid())))
    path.chmod(0o666)


def bound(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link": link,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("/nothing"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": bound,
    "a large file": large,
    "one that others may write": writable,
    "one that can not be read": lambda path: path.touch(0),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("suffix", ["json", "tmp"])
def test_whatever_else_is_there_is_passed_over_and_nothing_waits(
    path: Path, shared: SharedDirectory, kind: str, suffix: str
) -> None:
    leave(path, share_of(NOBODY, host="elsewhere"))
    prefix = "." if suffix == "tmp" else ""
    HOSTILE[kind](path / f"{prefix}{os.getppid()}-{'e' * 16}.{suffix}")
    assert pids(exchange(shared)) == [NOBODY]
    assert shared.look(watching=True) is not None


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_marker_of_another_kind_harms_nobody(path: Path, shared: SharedDirectory, kind: str) -> None:
    (path / "watched").unlink()
    HOSTILE[kind](path / "watched")
    assert (
        shared.look(watching=False) is None or kind == "one that others may write" or "file" in kind or "read" in kind
    )
    if kind != "a directory":
        assert shared.look(watching=True) is not None
    else:
        with pytest.raises(OSError, match="directory"):
            shared.look(watching=True)


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_stands_where_it_writes_is_replaced_or_said(path: Path, shared: SharedDirectory, kind: str) -> None:
    target = path.parent / "target"
    target.write_text("as it was")
    HOSTILE[kind](path / f".{shared._stem}.tmp")
    if kind == "a directory":
        with pytest.raises(OSError, match="directory"):
            exchange(shared)
    else:
        assert pids(exchange(shared)) == []
        (file,) = path.glob("*.json")
        assert not file.is_symlink()
        assert file.read_bytes() == OWN


NAMES = ["x.json", "-1-0000000000000000.json", "1-0.json", "1-000000000000000g.json", "01-0000000000000000.json"]


@pytest.mark.parametrize("name", [*NAMES, "1-0000000000000000.json\n", "1-0000000000000000.JSON", "..json"])
def test_files_of_other_names_are_left_alone(path: Path, shared: SharedDirectory, name: str) -> None:
    file = path / name
    file.write_bytes(encoded(share_of(NOBODY)))
    file.chmod(0o600)
    os.utime(file, (1.0, 1.0))
    assert pids(exchange(shared)) == []
    assert file.exists()


SIZE_OF_ONE = len(encoded(share_of(NOBODY, host="host-0")))
# The bound, what it is in the test, how many of six are read, and what is said of the others.
BOUNDS: dict[str, tuple[int, int, str]] = {
    "MAX_WORKERS": (3, 3, "3 have a file beyond those of 3"),
    "MAX_ENTRIES": (4, 4, "2 have a file among more than 4"),
    "MAX_TOTAL_BYTES": (2 * SIZE_OF_ONE + 500, 2, f"4 have a file beyond {2 * SIZE_OF_ONE + 500} bytes of others"),
    "MAX_BYTES": (SIZE_OF_ONE // 2, 0, f"6 have a file over {SIZE_OF_ONE // 2} bytes"),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_of_many_the_newest_are_read_and_the_others_are_counted(
    path: Path, shared: SharedDirectory, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.write(OWN)
    for number in (3, 0, 4, 1, 5, 2):
        file = leave(path, share_of(NOBODY, host=f"host-{number}"), token=f"{number:016x}")
        os.utime(file, (time.time() - number, time.time() - number))
    for number in range(20):
        (path / f"of-somebody-else-{number}").touch()
    most, read, reason = BOUNDS[bound]
    monkeypatch.setattr(under_test, bound, most)
    for before in (None, shared.read()):
        others = shared.read(before)
        assert [each.share.status.worker.host for each in others.heard] == [f"host-{n}" for n in range(read)]
        assert others.reason == reason
        assert sum(others.unread.values()) == 6 - read


def test_dead_ones_take_nobodys_place_among_many(
    path: Path, shared: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "MAX_WORKERS", 1)
    living = leave(path, share_of(NOBODY, host="lives"))
    os.utime(living, (time.time() - 60, time.time() - 60))
    for number in range(5):
        living_files.release(leave(path, share_of(NOBODY, host="dead"), token=f"{number + 1:016x}"))
    others = exchange(shared)
    assert [each.share.status.worker.host for each in others.heard] == ["lives"]
    assert others.reason == ""


def test_files_that_can_not_be_opened_are_counted(
    path: Path, shared: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has as many files open as it may has not heard that there are no others."""
    leave(path, share_of(os.getppid()))
    shared.write(OWN)
    actual = os.open

    def opened(name: Any, *args: Any, **options: Any) -> int:
        if str(name).endswith(".json"):
            raise OSError(24, "Too many open files")
        return actual(name, *args, **options)

    monkeypatch.setattr(os, "open", opened)
    assert shared.read().reason == "1 has a file that can't be opened or locked (Too many open files)"


def test_a_directory_in_one_that_is_not_there_is_told_by_that(path: Path) -> None:
    shared = SharedDirectory(path / "metrics" / "shop", 10.0)
    for use in (lambda: shared.look(watching=True), lambda: shared.write(OWN), shared.read):
        with pytest.raises(UnusableDirectoryError) as caught:
            use()
        assert f"can't be made, because {path / 'metrics'} is not there; expected that to be" in str(caught.value)
    (path / "metrics").mkdir(parents=True)
    shared.write(OWN)


# Whose it is


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
def test_a_directory_that_others_may_write_to_is_not_used(path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)
    shared = SharedDirectory(path, 10.0)
    for use in (lambda: shared.look(watching=True), lambda: shared.write(OWN), shared.read):
        with pytest.raises(UnusableDirectoryError, match="may be written to by others, expected a directory that only"):
            use()
    assert list(path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_a_link_of_another_user_is_not_followed(path: Path) -> None:
    own = path.with_name("own")
    own.mkdir(0o700)
    (own / f".{NOBODY}-{'a' * 16}.tmp").touch(0o600)
    os.utime(own / f".{NOBODY}-{'a' * 16}.tmp", (1.0, 1.0))
    path.symlink_to(own)
    os.chown(path, 12345, 12345, follow_symlinks=False)
    shared = SharedDirectory(path, 10.0)
    for use in (lambda: shared.look(watching=True), lambda: shared.write(OWN), shared.read):
        with pytest.raises(UnusableDirectoryError, match="is a link of the user 12345, expected one of this process's"):
            use()
    assert len(list(own.iterdir())) == 1


def test_a_link_of_its_own_user_is_followed(path: Path) -> None:
    own = path.with_name("own")
    own.mkdir(0o700)
    path.symlink_to(own)
    SharedDirectory(path, 10.0).write(OWN)
    assert len(list(own.glob("*.json"))) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_not_used(path: Path) -> None:
    path.mkdir(0o700)
    os.chown(path, 12345, 12345)
    with pytest.raises(UnusableDirectoryError, match="belongs to the user 12345"):
        SharedDirectory(path, 10.0).write(OWN)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_read(path: Path, shared: SharedDirectory) -> None:
    os.chown(leave(path, share_of(NOBODY, host="elsewhere")), 12345, 12345)
    assert pids(exchange(shared)) == []


@pytest.mark.parametrize("given", ["", 5, b"/run/x", "a\0b", "\ud800", ["/run/x"]])
def test_what_is_no_path_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"status_app: directory=.*, expected the path of a directory"):
        status_app(AgentManager([scripted("waf")]), directory=given)


# What a worker makes of it


async def shown_by(shared: SharedStatus) -> Status:
    with anyio.fail_after(PATIENCE):
        return msgspec.json.decode(await shared.encoded(-1.0), type=Status)


def joined(path: Path, manager: AgentManager) -> SharedStatus:
    """That of a worker whose task runs, as far as the page knows."""
    shared = SharedStatus(path, registry_of(manager), 0.001, IncidentCleaner())
    shared._directory.join()
    return shared


@pytest.fixture
def two(path: Path) -> tuple[SharedStatus, AgentManager]:
    """One worker, and the manager of another, which leaves what `leave` says."""
    return joined(path, AgentManager([scripted("waf")])), AgentManager([scripted("waf")])


async def test_two_workers_are_shown_together(two: tuple[SharedStatus, AgentManager], path: Path) -> None:
    shared, other = two
    await other.process_request_headers(head_event("of-the-other", x_waf="block"))
    assert [worker.pid for worker in (await shown_by(shared)).workers] == [os.getpid()]
    leave(path, share_of(os.getppid(), manager=other))
    status = await shown_by(shared)
    assert [worker.pid for worker in status.workers] == [os.getpid(), os.getppid()]
    (agent,) = status.agents
    assert [(incident.correlation_id, incident.worker) for incident in agent.denials] == [
        ("of-the-other", os.getppid())
    ]


@pytest.mark.parametrize("looked_for", [0, 20], ids=["the first look", "later"])
async def test_one_that_says_nothing_any_more_is_silent_and_its_figures_are_left_out(
    two: tuple[SharedStatus, AgentManager], path: Path, looked_for: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_FIRST_LOOK", 0.1)
    shared, other = two
    if looked_for:
        await shown_by(shared)
        (path / "watched").write_text(repr(time.time() - looked_for))
    await other.process_request_headers(head_event("c", x_waf="block"))
    path.mkdir(0o700, exist_ok=True)  # noqa: ASYNC240
    file = leave(path, share_of(os.getppid(), manager=other))
    old = time.time() - 30
    os.utime(file, (old, old))
    # It was there when somebody began to look, and has not said anything since.
    status = await shown_by(shared)
    assert [worker.silent for worker in status.workers] == [False, True]
    assert [agent.calls for agent in status.agents] == [0]


async def test_a_directory_that_can_not_be_used_is_said_in_the_page_and_in_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()  # noqa: ASYNC240 - quick
    path.chmod(0o777)  # noqa: ASYNC240
    shared = joined(path, AgentManager([scripted("waf")]))
    for _ in range(5):
        status = await shown_by(shared)
        assert "may be written to by others" in (status.unshared or "")
        assert [agent.id for agent in status.agents] == ["waf"]
    (record,) = [record for record in caplog.records if "other workers are not shown" in record.getMessage()]
    assert record.levelno == logging.WARNING
    path.chmod(0o700)  # noqa: ASYNC240
    assert (await shown_by(shared)).unshared is None


async def test_the_task_of_a_worker_writes_only_while_somebody_looks_and_takes_its_file_away(path: Path) -> None:
    manager = AgentManager([scripted("waf")])
    status_app(manager, directory=path, interval=0.05)
    marker = SharedDirectory(path, 10.0)

    def files() -> list[Path]:
        return list(path.glob("*.json"))

    async with manager:
        with anyio.fail_after(PATIENCE):
            while not files():  # noqa: ASYNC110 - nobody says when
                await anyio.sleep(0.01)
            # When it begins, so that the others know of it.
            (file,) = files()
            first = file.stat().st_mtime_ns
            await anyio.sleep(0.2)
            assert file.stat().st_mtime_ns == first
            marker.look(watching=True)
            while file.stat().st_mtime_ns == first:  # noqa: ASYNC110
                await anyio.sleep(0.01)
    assert files() == []


@pytest.mark.parametrize("interval", [0.05, 1.0, 20.0])
async def test_a_first_look_has_what_all_workers_say_then(path: Path, interval: float) -> None:
    """However long it is that they have written, and however seldom they do."""
    managers = [AgentManager([scripted("waf")]) for _ in range(3)]
    pages = [status_app(manager, directory=path, interval=interval) for manager in managers]
    async with managers[0], managers[1], managers[2]:
        with anyio.fail_after(PATIENCE):
            while len(list(path.glob("*.json"))) < 3:  # noqa: ASYNC110, ASYNC240 - nobody says when
                await anyio.sleep(0.01)
        for file in path.glob("*.json"):  # noqa: ASYNC240
            os.utime(file, (time.time() - 7200, time.time() - 7200))
        for number, manager in enumerate(managers):
            await manager.process_request_headers(head_event(f"c-{number}", x_waf="block"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(pages[1]), base_url="http://app") as client:
            found = (await client.get("/status.json")).json()
    assert [worker["silent"] for worker in found["workers"]] == [False] * 3
    assert {incident["correlation_id"] for incident in found["agents"][0]["denials"]} == {"c-0", "c-1", "c-2"}
    assert found["unshared"] is None


async def test_a_first_look_by_the_stream_is_complete_as_well(path: Path) -> None:
    managers = [AgentManager([scripted("waf")]) for _ in range(2)]
    pages = [status_app(manager, directory=path) for manager in managers]
    first: list[bytes] = []
    async with managers[0], managers[1]:
        with anyio.fail_after(PATIENCE):
            while len(list(path.glob("*.json"))) < 2:  # noqa: ASYNC110, ASYNC240 - nobody says when
                await anyio.sleep(0.01)
        done = anyio.Event()

        async def receive() -> Message:
            await done.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message.get("body"):
                first.append(message["body"])
                done.set()

        scope = {"type": "http", "method": "GET", "path": "/events", "headers": [], "query_string": b""}
        await pages[0](scope, receive, send)
    assert len(json.loads(first[0].partition(b"data: ")[2])["workers"]) == 2


async def test_what_is_too_much_for_a_file_has_the_latest_incidents(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = AgentManager([scripted("waf")])
    for number in range(50):
        await manager.process_request_headers(head_event(f"c-{number}", x_waf="block"))
    registry = registry_of(manager)
    share = take_share(registry, take_snapshot(registry))
    monkeypatch.setattr("asgi_agents.status.directory.MAX_BYTES", 12_000)
    data, whole = as_written(share)
    assert whole
    assert len(data) <= 12_000
    (agent,) = json.loads(data)["status"]["agents"]
    assert [incident["correlation_id"] for incident in agent["denials"]] == [f"c-{n}" for n in range(49, 44, -1)]


APP = """
import os

from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_agents import AgentManager, AgentRoute, protect, status_app
from tests.status.world import scripted

manager = AgentManager([scripted("waf")])
status = status_app(manager, directory=os.environ["SHARED"], interval=0.1)
app = Starlette(routes=[Mount("/-/agents", status)])
protect(app, manager=manager, routes=[AgentRoute("/-/{rest:path}", agents=[])], default_agents=["waf"])
"""


@pytest.mark.slow
def test_the_workers_of_a_server_are_shown_together_and_one_that_is_killed_is_not(path: Path, tmp_path: Path) -> None:
    """uvicorn with two workers: each shows what both have denied. A new one takes the place of one that is killed."""
    deadline = time.monotonic() + PATIENCE

    def status() -> Any:
        response = get("/-/agents/status.json")
        return None if response is None or response.status_code != 200 else response.json()

    def until(condition: Callable[[Any], bool]) -> Any:
        while not ((found := status()) and condition(found)):
            time.sleep(0.05)
        return found

    with two_workers(APP, path, tmp_path) as get:
        while len(list(path.glob("*.json"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first = until(bool)
        assert [worker["silent"] for worker in first["workers"]] == [False, False]
        workers = {worker["pid"] for worker in first["workers"]}
        for number in range(20):
            get("/", **{"x-waf": "block", "x-request-id": f"c-{number}"})
        found = until(lambda found: len(found["agents"][0]["denials"]) == 20)
        assert {incident["correlation_id"] for incident in found["agents"][0]["denials"]} == {
            f"c-{number}" for number in range(20)
        }
        assert {incident["worker"] for incident in found["agents"][0]["denials"]} <= workers
        assert found["connections"] >= 20
        killed = next(pid for pid in workers if pid != found["worker"]["pid"])
        os.kill(killed, 9)
        found = until(
            lambda found: len(found["workers"]) == 2 and killed not in {worker["pid"] for worker in found["workers"]}
        )
        assert not any(worker["silent"] for worker in found["workers"])
    assert list(path.glob("*.json")) == []
