"""The directory in which workers tell one another how they are, and what may be in it."""

import json
import logging
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from msgspec.structs import replace

from asgi_agents import AgentManager, ConfigurationError, status_app
from asgi_agents.manager import registry_of
from asgi_agents.status import directory as under_test
from asgi_agents.status.cleaning import IncidentCleaner
from asgi_agents.status.directory import SharedDirectory, UnusableDirectoryError
from asgi_agents.status.model import WorkerShare
from asgi_agents.status.sharing import SharedStatus
from asgi_agents.status.snapshot import hostname, take_share, take_snapshot

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
    shared = SharedDirectory(path, hostname(), 10.0)
    shared.look(watching=True)
    return shared


def leave(path: Path, share: WorkerShare | bytes, pid: int | None = None, token: str = "0" * 16) -> Path:
    """Have another process leave this."""
    pid = (share.status.worker.pid if isinstance(share, WorkerShare) else os.getppid()) if pid is None else pid
    file = path / f"{pid}-{token}.json"
    file.write_bytes(encoded(share) if isinstance(share, WorkerShare) else share)
    file.chmod(0o600)
    return file


def pids(heard: Any) -> list[int]:
    return [each.share.status.worker.pid for each in heard]


# What is written


def test_it_is_made_for_its_user_alone_and_so_are_its_files(path: Path, shared: SharedDirectory) -> None:
    os.umask(os.umask(0))
    assert shared.exchange(OWN) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = sorted(path.iterdir())
    assert [file.name.partition("-")[0] for file in files] == [str(os.getpid()), "watched"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_whoever_reads_finds_a_file_whole(path: Path, shared: SharedDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.exchange(OWN)
    (file,) = path.glob("*.json")
    kept = file.open("rb")
    shared.exchange(OWN + b" ")
    # The old one is as it was for who has begun to read it, and the new one came in one step.
    assert kept.read() == OWN
    assert file.read_bytes() == OWN + b" "
    kept.close()

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        shared.exchange(OWN)
    assert [each.name for each in path.glob(".*")] == []
    assert file.read_bytes() == OWN + b" "


def test_what_is_too_large_is_not_written(path: Path, shared: SharedDirectory) -> None:
    shared.exchange(b" " * (under_test.MAX_BYTES + 1))
    assert list(path.glob("*.json")) == []


def test_a_process_takes_its_file_away(path: Path, shared: SharedDirectory) -> None:
    shared.exchange(OWN)
    shared.leave()
    shared.leave()
    assert [file.name for file in path.iterdir()] == ["watched"]


def test_a_forked_process_has_a_file_of_its_own(path: Path, shared: SharedDirectory) -> None:
    shared.exchange(OWN)
    child = os.fork()
    if child == 0:
        shared.leave()
        shared.exchange(encoded(share_of(os.getpid())))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(int(file.name.partition("-")[0]) for file in path.glob("*.json")) == sorted([os.getpid(), child])
    # The child is dead by now.
    assert shared.exchange(OWN) == []
    assert len(list(path.glob("*.json"))) == 1


# Who looks


def test_it_says_whether_somebody_looks_and_since_when(path: Path) -> None:
    one, other = (SharedDirectory(path, hostname(), 10.0) for _ in range(2))
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
    (heard,) = shared.exchange(OWN)
    assert heard.share == msgspec.json.decode(file.read_bytes(), type=WorkerShare)
    assert heard.at == file.stat().st_mtime


def test_what_has_not_changed_is_not_read_again(
    path: Path, shared: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(path, share_of(os.getppid()))
    shared.exchange(OWN)
    read: list[str] = []
    actual = under_test._read

    def note(directory: int, name: str, most: int) -> bytes:
        read.append(name)
        return actual(directory, name, most)

    monkeypatch.setattr(under_test, "_read", note)
    assert pids(shared.exchange(OWN)) == [os.getppid()]
    assert [name for name in read if name.endswith(".json")] == []
    leave(path, share_of(os.getppid(), manager=AgentManager([scripted("b"), scripted("c")])))
    (heard,) = shared.exchange(OWN)
    assert [agent.id for agent in heard.share.status.agents] == ["b", "c"]


def test_a_dead_process_is_forgotten_at_once_with_its_file(path: Path, shared: SharedDirectory) -> None:
    gone = leave(path, share_of(NOBODY))
    # A process before this one may have had its id.
    before = leave(path, share_of(os.getpid()), token="f" * 16)
    assert shared.exchange(OWN) == []
    assert not gone.exists()
    assert not before.exists()


def test_a_process_of_another_container_is_not_dead_because_its_id_is_unknown_here(
    path: Path, shared: SharedDirectory
) -> None:
    leave(path, share_of(NOBODY, host="elsewhere"))
    leave(path, share_of(os.getpid(), host="elsewhere"), token="a" * 16)
    assert sorted(pids(shared.exchange(OWN))) == sorted([NOBODY, os.getpid()])


@pytest.mark.parametrize("name", ["{pid}-{token}.json", ".{pid}-{token}.tmp"])
def test_what_nobody_has_written_for_long_is_removed_if_somebody_looks(
    path: Path, shared: SharedDirectory, name: str
) -> None:
    left = path / name.format(pid=NOBODY, token="0" * 16)
    left.write_bytes(encoded(share_of(NOBODY, host="elsewhere")))
    left.chmod(0o600)
    old = time.time() - 700
    os.utime(left, (old, old))
    shared.exchange(OWN)
    # Nobody has looked for long: it had no reason to write.
    assert left.exists()
    (path / "watched").write_text(repr(old))
    shared.exchange(OWN)
    assert not left.exists()


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
def test_a_file_that_makes_no_sense_is_passed_over(path: Path, shared: SharedDirectory, content: str) -> None:
    leave(path, share_of(NOBODY, host="elsewhere"))
    leave(path, CONTENTS[content], token="e" * 16)
    assert pids(shared.exchange(OWN)) == [NOBODY]


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
    assert pids(shared.exchange(OWN)) == [NOBODY]
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
            shared.exchange(OWN)
    else:
        assert shared.exchange(OWN) == []
        (file,) = path.glob("*.json")
        assert not file.is_symlink()
        assert file.read_bytes() == OWN


NAMES = ["x.json", "-1-0000000000000000.json", "1-0.json", "1-000000000000000g.json", "01-0000000000000000.json"]


@pytest.mark.parametrize("name", [*NAMES, "1-0000000000000000.json\n", "1-0000000000000000.JSON", "..json"])
def test_files_of_other_names_are_left_alone(path: Path, shared: SharedDirectory, name: str) -> None:
    file = path / name
    file.write_bytes(encoded(share_of(NOBODY)))
    os.utime(file, (1.0, 1.0))
    assert shared.exchange(OWN) == []
    assert file.exists()


def test_of_many_the_newest_are_read_and_of_very_many_only_some_are_looked_at(
    path: Path, shared: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "MAX_WORKERS", 3)
    for number in range(6):
        file = leave(path, share_of(NOBODY, host=f"host-{number}"), token=f"{number:016x}")
        os.utime(file, (time.time() - number, time.time() - number))
    heard = shared.exchange(OWN)
    assert sorted(each.share.status.worker.host for each in heard) == ["host-0", "host-1", "host-2"]
    monkeypatch.setattr(under_test, "MAX_ENTRIES", 2)
    assert len(shared.exchange(OWN)) <= 2


# Whose it is


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
def test_a_directory_that_others_may_write_to_is_not_used(path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)
    shared = SharedDirectory(path, hostname(), 10.0)
    for use in (lambda: shared.look(watching=True), lambda: shared.exchange(OWN)):
        with pytest.raises(UnusableDirectoryError, match="may be written to by others, expected a directory that only"):
            use()
    assert list(path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_not_used(path: Path) -> None:
    path.mkdir(0o700)
    os.chown(path, 12345, 12345)
    with pytest.raises(UnusableDirectoryError, match="belongs to the user 12345"):
        SharedDirectory(path, hostname(), 10.0).exchange(OWN)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_read(path: Path, shared: SharedDirectory) -> None:
    os.chown(leave(path, share_of(NOBODY, host="elsewhere")), 12345, 12345)
    assert shared.exchange(OWN) == []


@pytest.mark.parametrize("given", ["", 5, b"/run/x", "a\0b", ["/run/x"]])
def test_what_is_no_path_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"status_app: directory=.*, expected the path of a directory"):
        status_app(AgentManager([scripted("waf")]), directory=given)


# What a worker makes of it


async def heard_by(shared: SharedStatus) -> None:
    with anyio.fail_after(PATIENCE):
        await shared.watch()
        await anyio.sleep(0.002)


@pytest.fixture
def two(path: Path) -> tuple[SharedStatus, AgentManager]:
    """One worker, and the manager of another, which leaves what `leave` says."""
    manager = AgentManager([scripted("waf")])
    return SharedStatus(path, registry_of(manager), 0.001, IncidentCleaner()), AgentManager([scripted("waf")])


async def test_two_workers_are_shown_together(two: tuple[SharedStatus, AgentManager], path: Path) -> None:
    shared, other = two
    await other.process_request_headers(head_event("of-the-other", x_waf="block"))
    await heard_by(shared)
    assert [worker.pid for worker in shared.take().workers] == [os.getpid()]
    leave(path, share_of(os.getppid(), manager=other))
    await heard_by(shared)
    status = shared.take()
    assert [worker.pid for worker in status.workers] == [os.getpid(), os.getppid()]
    (agent,) = status.agents
    assert [(incident.correlation_id, incident.worker) for incident in agent.denials] == [
        ("of-the-other", os.getppid())
    ]


async def test_one_that_says_nothing_any_more_is_silent_and_its_figures_are_left_out(
    two: tuple[SharedStatus, AgentManager], path: Path
) -> None:
    shared, other = two
    await other.process_request_headers(head_event("c", x_waf="block"))
    await heard_by(shared)
    file = leave(path, share_of(os.getppid(), manager=other))
    old = time.time() - 30
    os.utime(file, (old, old))
    await heard_by(shared)
    # Nobody looked before: it had no reason to write.
    assert [worker.silent for worker in shared.take().workers] == [False, False]
    (path / "watched").write_text(repr(time.time() - 20))
    await heard_by(shared)
    status = shared.take()
    assert [worker.silent for worker in status.workers] == [False, True]
    assert [agent.calls for agent in status.agents] == [0]


async def test_a_directory_that_can_not_be_used_is_said_in_the_page_and_in_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()  # noqa: ASYNC240 - quick
    path.chmod(0o777)  # noqa: ASYNC240
    shared = SharedStatus(path, registry_of(AgentManager([scripted("waf")])), 0.001, IncidentCleaner())
    for _ in range(5):
        await heard_by(shared)
    status = shared.take()
    assert "may be written to by others" in (status.unshared or "")
    assert [agent.id for agent in status.agents] == ["waf"]
    (record,) = [record for record in caplog.records if "other workers are not shown" in record.getMessage()]
    assert record.levelno == logging.WARNING
    path.chmod(0o700)  # noqa: ASYNC240
    await heard_by(shared)
    assert shared.take().unshared is None


async def test_the_task_of_a_worker_writes_only_while_somebody_looks_and_takes_its_file_away(path: Path) -> None:
    manager = AgentManager([scripted("waf")])
    status_app(manager, directory=path, interval=0.05)
    marker = SharedDirectory(path, hostname(), 10.0)

    def files() -> list[Path]:
        return list(path.glob("*.json"))

    async with manager:
        with anyio.fail_after(PATIENCE):
            while not path.exists():  # noqa: ASYNC110, ASYNC240 - nobody says when
                await anyio.sleep(0.01)
            await anyio.sleep(0.1)
            assert files() == []
            marker.look(watching=True)
            while not files():  # noqa: ASYNC110
                await anyio.sleep(0.01)
    assert files() == []


async def test_what_is_too_much_for_a_file_has_the_latest_incidents(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = AgentManager([scripted("waf")])
    for number in range(50):
        await manager.process_request_headers(head_event(f"c-{number}", x_waf="block"))
    shared = SharedStatus(path, registry_of(manager), 0.001, IncidentCleaner())
    monkeypatch.setattr("asgi_agents.status.sharing.MAX_BYTES", 12_000)
    await heard_by(shared)
    (file,) = path.glob("*.json")  # noqa: ASYNC240 - quick
    (agent,) = json.loads(file.read_bytes())["status"]["agents"]
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
    (tmp_path / "guarded.py").write_text(APP)
    place = str(tmp_path / "app.sock")
    arguments = ["uvicorn", "guarded:app", "--workers", "2", "--uds", place, "--log-level", "warning"]
    places = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {**os.environ, "SHARED": str(path), "PYTHONPATH": places}
    server = subprocess.Popen([sys.executable, "-m", *arguments], env=environment)
    deadline = time.monotonic() + PATIENCE

    def get(path_of_it: str, **headers: str) -> httpx.Response | None:
        assert time.monotonic() < deadline
        try:
            # Each time on a new connection, which any of the workers may take.
            with httpx.Client(transport=httpx.HTTPTransport(uds=place), base_url="http://app") as client:
                return client.get(path_of_it, headers=headers)
        except httpx.TransportError:
            time.sleep(0.1)
            return None

    def status() -> Any:
        response = get("/-/agents/status.json")
        return None if response is None or response.status_code != 200 else response.json()

    def until(condition: Callable[[Any], bool]) -> Any:
        while not ((found := status()) and condition(found)):
            time.sleep(0.05)
        return found

    try:
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(place):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        first = until(lambda found: len(found["workers"]) == 2)
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
    finally:
        server.terminate()
        server.wait(PATIENCE)
    assert list(path.glob("*.json")) == []
