"""What counts as a change of a file, and when it is taken."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest

from asgi_agents import protect
from asgi_agents.files.source import digest_of
from asgi_agents.files.watch import INTERVAL, FileWatch, on_change

from .marking import MODULE, File, marked_app, marker, marks

SECOND = 10**9


class Looking:
    """A watch of a file, whose times are set by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The time at which the system has changed the file can't be set: all that happens here is later.
        self.now = time.time_ns() + 1000 * SECOND
        self.put("0")
        self.taken = digest_of(path.read_bytes())
        self._watch = FileWatch(path, lambda: self.taken, lambda: self.now)

    def take(self) -> None:
        """Somebody takes the file as it is, without being asked to."""
        self.taken = digest_of(self.path.read_bytes())

    def put(self, text: str, at: int | None = None) -> None:
        self.path.write_text(text)
        self.touch(at)

    def touch(self, at: int | None = None) -> None:
        written = self.now if at is None else at
        os.utime(self.path, ns=(written, written))

    def look(self, times: int = 1) -> list[bool]:
        """What each of so many looks says, a second after the one before."""
        found = []
        for _ in range(times):
            self.now += SECOND
            found.append(self._watch.look())
        return found


@pytest.fixture
def file(tmp_path: Path) -> Looking:
    return Looking(tmp_path / "agents.toml")


def test_a_file_that_stays_as_it_is_never_changes(file: Looking) -> None:
    assert not any(file.look(20))


def test_a_change_counts_once_it_was_seen_twice(file: Looking) -> None:
    file.put("1")
    assert file.look(10) == [False, True, *[False] * 8]


def test_a_file_that_is_still_being_written_counts_when_it_is_whole(file: Looking) -> None:
    for length in range(1, 6):
        file.put("1" * length)
        assert file.look() == [False]
    assert file.look(3) == [True, False, False]


def test_a_file_that_was_emptied_for_a_moment_has_not_changed(file: Looking) -> None:
    file.put("")
    assert file.look() == [False]
    file.put("0")
    assert not any(file.look(5))


def test_another_time_is_no_change(file: Looking) -> None:
    file.look(5)
    file.touch()
    assert not any(file.look(5))


def test_a_change_back_counts_too(file: Looking) -> None:
    file.put("1")
    file.look(5)
    file.put("0")
    assert file.look(3) == [False, True, False]


def test_a_change_within_the_same_tick_of_a_clock_is_noticed(file: Looking) -> None:
    """A file system may count seconds: the size and the time stay the same."""
    file.look()
    written = file.now
    file.put("1", at=written)
    assert file.look(2) == [False, True]
    file.put("2", at=written)
    assert file.look(2) == [False, True]


def unpack(path: Path, text: str) -> None:
    """As an archive is unpacked over another: name, length and often even the place on the disk are the same."""
    path.unlink()
    path.write_text(text)


def turn_back(path: Path, text: str) -> None:
    path.write_text(text)


def put_in_place(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


@pytest.mark.parametrize("write", [unpack, turn_back, put_in_place])
def test_a_change_whose_time_of_writing_stays_the_same_is_noticed(
    file: Looking, write: Callable[[Path, str], None]
) -> None:
    """As files in archives and images have, which are the same for everybody who makes them."""
    for text in ("1", "2"):
        file.touch(at=0)
        file.look(8)
        changed = os.stat(file.path).st_ctime_ns
        while os.stat(file.path).st_ctime_ns == changed:
            # Its clock may tick but every few milliseconds.
            write(file.path, text)
            file.touch(at=0)
        assert file.look(4) == [False, True, False, False]


def test_a_change_back_of_what_somebody_else_has_taken_is_noticed(file: Looking) -> None:
    file.look(8)
    kept = file.path.with_name("kept")
    file.path.rename(kept)
    file.put("1")
    file.take()
    kept.replace(file.path)
    assert file.look(4) == [False, True, False, False]


def test_what_somebody_else_has_taken_is_no_change_any_more(file: Looking) -> None:
    file.look(8)
    file.put("1")
    file.take()
    assert not any(file.look(8))


def test_a_file_that_is_gone_is_a_change_and_its_return_another(file: Looking) -> None:
    file.path.unlink()
    assert file.look(4) == [False, True, False, False]
    file.put("1")
    assert file.look(3) == [False, True, False]


def test_a_file_that_stays_is_not_read_at_every_look(file: Looking, monkeypatch: pytest.MonkeyPatch) -> None:
    file.look(10)
    monkeypatch.setattr("asgi_agents.files.watch.read_bytes", _never)
    assert not any(file.look(10))


def _never(path: Path) -> bytes:
    raise AssertionError


def by_replacing(directory: Path, text: str) -> None:
    new = directory / "new"
    new.write_text(text)
    new.replace(directory / "agents.toml")


def by_link_of_a_directory(directory: Path, text: str) -> None:
    """As Kubernetes changes a ConfigMap: the file is a link through ``..data``, which is put in place at once."""
    number = len(list(directory.iterdir()))
    data = directory / f"..{number}"
    data.mkdir()
    (data / "agents.toml").write_text(text)
    link = directory / "..new"
    link.symlink_to(data.name)
    link.replace(directory / "..data")
    if not (directory / "agents.toml").is_symlink():
        (directory / "agents.toml").symlink_to(Path("..data") / "agents.toml")


@pytest.mark.parametrize("change", [by_replacing, by_link_of_a_directory])
def test_a_file_that_is_put_in_place_at_once_is_noticed(tmp_path: Path, change: Callable[[Path, str], None]) -> None:
    change(tmp_path, "0")
    path = tmp_path / "agents.toml"
    now = 10**19
    watch = FileWatch(path, lambda: digest_of(b"0"), lambda: now)
    assert [watch.look() for _ in range(4)] == [False] * 4
    for text in ("1", "2"):
        change(tmp_path, text)
        assert [watch.look() for _ in range(4)] == [False, True, False, False]


# Over an app


async def test_a_file_is_taken_when_it_has_changed_and_a_bad_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = File(tmp_path, marks(marker("a", "a1")))
    app = marked_app()
    middleware = protect(app, config=file.path, imports=[MODULE], reload="on-change")
    async with (
        middleware.manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        for data, seen in (
            (marks(marker("a", "a2")), "a2"),
            ("", "a2"),
            ("[[agents]]\nid", "a2"),
            (marks(marker("a", "a3"), marker("b", "b3")), "a3 b3"),
            (marks(marker("a", "a3"), marker("b", "b4", refuses=True)), "a3 b3"),
            (marks(marker("b", "b5")), "b5"),
        ):
            file.write(data)
            await anyio.sleep(3 * INTERVAL)
            assert (await client.get("/")).text == seen
        # A file that was refused is not tried again as long as it stays the same.
        refused = [record for record in caplog.records if record.getMessage().startswith("reload refused, all stays")]
        assert len(refused) == 3


async def test_a_file_that_is_changed_back_after_a_reload_by_hand_is_taken(tmp_path: Path) -> None:
    before, after = marks(marker("a", "a1")), marks(marker("a", "a2"))
    file = File(tmp_path, before)
    app = marked_app()
    middleware = protect(app, config=file.path, imports=[MODULE], reload="on-change")
    async with (
        middleware.manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        await anyio.sleep(3 * INTERVAL)
        file.write(after)
        await middleware.reload()
        assert (await client.get("/")).text == "a2"
        file.write(before)
        await anyio.sleep(3 * INTERVAL)
        assert (await client.get("/")).text == "a1"


async def test_nobody_looks_at_the_file_once_the_last_user_has_left(tmp_path: Path) -> None:
    file = File(tmp_path, marks(marker("a", "a1")))
    middleware = protect(marked_app(), config=file.path, imports=[MODULE], reload="on-change")
    async with middleware.manager:
        pass
    file.write(marks(marker("b", "b1")))
    await anyio.sleep(3 * INTERVAL)
    assert middleware.manager.agent_ids == ("a",)
    # The next user finds what the file says by then.
    async with middleware.manager:
        await anyio.sleep(3 * INTERVAL)
        assert middleware.manager.agent_ids == ("b",)


async def test_what_fails_without_a_reason_of_ours_ends_no_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File(tmp_path, marks(marker("a", "a1")))
    middleware = protect(marked_app(), config=file.path, imports=[MODULE], reload="on-change")
    async with middleware.manager:
        with monkeypatch.context() as patched:
            patched.setattr("asgi_agents.files.reload.load_with", _never)
            file.write(marks(marker("b", "b1")))
            await anyio.sleep(3 * INTERVAL)
        assert "could not be taken, all stays as it was" in caplog.text
        file.write(marks(marker("c", "c1")))
        await anyio.sleep(3 * INTERVAL)
        assert middleware.manager.agent_ids == ("c",)


async def test_a_look_that_fails_ends_no_watch_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File(tmp_path, marks(marker("a", "a1")))
    middleware = protect(marked_app(), config=file.path, imports=[MODULE], reload="on-change")

    async def no_thread(*_: object, **options: object) -> None:
        raise RuntimeError("can't start new thread")

    async with middleware.manager:
        for times, agent_id in enumerate("bc", 1):
            with monkeypatch.context() as patched:
                patched.setattr("anyio.to_thread.run_sync", no_thread)
                file.write(marks(marker(agent_id, "1")))
                await anyio.sleep(5 * INTERVAL)
            assert caplog.text.count(f"{file.path}: can't be looked at") == times
            assert agent_id not in middleware.manager.agent_ids
            await anyio.sleep(3 * INTERVAL)
            assert middleware.manager.agent_ids == (agent_id,)


async def test_a_look_does_not_hold_the_event_loop_up(tmp_path: Path) -> None:
    path = tmp_path / "agents.toml"
    path.write_text("0")
    calls = 0

    async def count() -> None:
        nonlocal calls
        calls += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(on_change, FileWatch(path, lambda: b""), count)
        await anyio.sleep(5 * INTERVAL)
        tasks.cancel_scope.cancel()
    assert calls == 1
