"""The files of GeoFilter: which are taken, at the start and when they are replaced, and what happens meanwhile."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio import to_thread

from asgi_agents import AgentsError, ConfigurationError
from asgi_agents.agents import GeoFilter
from asgi_agents.agents.geo_databases import INTERVAL, MAX_ADDRESSES
from asgi_agents.agents.mmdb import BrokenDatabaseError

from .clock import Clock
from .geo_asking import DENIED, UNKNOWN, answer_to, why
from .mmdb import country, replace, system, write

# Seconds after which a test that hangs has failed.
PATIENCE = 60
IP = "192.0.2.7"
NET = "192.0.2.0/24"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file that a test replaces."""
    return write(tmp_path / "geo.mmdb", {NET: country("DE")})


@pytest.fixture
def content(place: Path) -> bytes:
    """What is in that file."""
    return place.read_bytes()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("asgi_agents.agents.geo_databases.time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "asgi_agents")
    return caplog


def overwrite(path: Path, content: bytes) -> None:
    """As ``cp`` does it."""
    path.write_bytes(content)


def made(path: Path, records: Mapping[str, Any]) -> bytes:
    """What a file of these networks has in it."""
    return write(path.with_name("other.mmdb"), records).read_bytes()


def look(agent: GeoFilter) -> None:
    """Two looks: what has just been written is left for the second."""
    for _ in range(2):
        agent._databases.reload()


async def ended(agent: GeoFilter) -> None:
    """Wait for the look that is under way."""
    with anyio.fail_after(PATIENCE):
        while agent._databases._looking.locked():  # noqa: ASYNC110 - in a thread
            await anyio.sleep(0.001)


# At the start


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "no such database, or not all of one"),
        (b"no database", "no such database, or not all of one"),
    ],
)
def test_a_file_that_is_missing_or_broken_is_a_configuration_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "geo.mmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as error:
        GeoFilter(path, allow=["DE"])
    assert str(error.value) == f"GeoFilter: {path}: {message}, expected a file of the format MMDB"


def test_a_file_that_is_cut_off_is_a_configuration_error(place: Path) -> None:
    content = place.read_bytes()
    for length in range(len(content)):
        place.write_bytes(content[:length])
        with pytest.raises(ConfigurationError):
            GeoFilter(place, allow=["DE"])


@pytest.mark.parametrize("kind", ["directory", "pipe", "zero"])
def test_what_is_no_file_is_a_configuration_error_and_waits_for_nobody(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x\0" if kind == "zero" else tmp_path / "geo.mmdb"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="no path of a file" if kind == "zero" else "no regular file"):
        GeoFilter(path, allow=["DE"])


@pytest.mark.parametrize(
    ("records", "rules", "message"),
    [
        ({NET: country("DE")}, {"deny": ["AS1"]}, "autonomous system of an address, .*GeoLite2-ASN"),
        ({NET: system(1)}, {"deny": ["DE"]}, "country of an address, .*GeoLite2-Country"),
        ({NET: {"x": "y"}}, {"allow": ["DE"]}, "country of an address"),
        ({NET: {"country": "Canada"}}, {"allow": ["DE"]}, "country of an address"),
        ({}, {"allow": ["DE"]}, "country of an address"),
    ],
)
def test_a_file_that_does_not_tell_what_is_asked_for_is_a_configuration_error(
    tmp_path: Path, records: dict[str, Any], rules: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "geo.mmdb", records)
    with pytest.raises(ConfigurationError, match=f"GeoFilter: no file of databases tells the {message}"):
        GeoFilter(path, **rules)


# When it is replaced


async def test_a_file_that_is_replaced_is_read_anew(place: Path, clock: Clock, log: pytest.LogCaptureFixture) -> None:
    agent = GeoFilter(place, allow=["DE"])
    assert await why(agent, IP) == ""
    write(place, {NET: country("AT")})
    clock.now += INTERVAL - 1
    assert await why(agent, IP) == ""
    assert not agent._databases._looking.locked()
    # It has just been written: that is left for the second look.
    for _ in range(4):
        clock.now += INTERVAL
        await why(agent, IP)
        await ended(agent)
    assert await why(agent, IP) == DENIED
    assert log.messages == [f"GeoFilter: {place} was read anew"]


async def test_files_are_looked_at_once_an_interval_and_not_for_each_request(
    place: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = GeoFilter([place, place], allow=["DE"])
    looks: list[object] = []
    monkeypatch.setattr(agent._databases, "reload", lambda: looks.append(None))
    for number in range(3):
        for _ in range(5):
            assert await why(agent, IP) == ""
        await ended(agent)
        assert len(looks) == number
        clock.now += INTERVAL


async def test_a_file_system_that_hangs_takes_one_thread_and_none_of_the_apps(
    place: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    agent = GeoFilter(place, allow=["DE"])
    begun: list[Path] = []
    back = Event()

    def hang(path: Path) -> None:
        begun.append(path)
        assert back.wait(PATIENCE)
        raise BrokenDatabaseError("Input/output error")

    for outage in (1, 2):
        back.clear()
        try:
            with monkeypatch.context() as patched:
                patched.setattr("asgi_agents.agents.geo_file._signature_of", hang)
                for _ in range(50):
                    clock.now += INTERVAL
                    assert await why(agent, IP) == ""
                with anyio.fail_after(PATIENCE):
                    while len(begun) < outage:  # noqa: ASYNC110 - in a thread
                        await anyio.sleep(0.001)
                assert to_thread.current_default_thread_limiter().borrowed_tokens == 0
                back.set()
                await ended(agent)
        finally:
            back.set()
        assert begun == [place] * outage
        clock.now += INTERVAL
        assert await why(agent, IP) == ""
        await ended(agent)
    assert log.messages == 2 * [
        "GeoFilter: its files can't be looked at; what was read before holds",
        f"GeoFilter: {place}: Input/output error; what was read before holds",
        f"GeoFilter: {place} is there again, and is what was read before",
    ]


async def test_without_a_thread_for_it_a_look_is_left_out(
    place: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    agent = GeoFilter(place, allow=["DE"])

    def refuse(**_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("asgi_agents.agents.geo_databases.Thread", refuse)
        clock.now += INTERVAL
        assert await why(agent, IP) == ""
    assert log.messages == ["GeoFilter: its files were not looked at: can't start new thread"]
    assert not agent._databases._looking.locked()


# What may still be being written


NOW = 1_800_000_000


@pytest.fixture
def stamp(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the file look as if it was written so many seconds ago, and as if nothing else had changed."""
    monkeypatch.setattr("asgi_agents.agents.geo_file.time", SimpleNamespace(time=lambda: NOW))

    def written(age: int) -> None:
        signature = (1, 2, 3, 4, (NOW - age) * 10**9)
        monkeypatch.setattr("asgi_agents.agents.geo_file._signature_of", lambda path: signature)

    return written


async def test_what_has_just_been_written_is_left_for_the_next_look(
    place: Path, content: bytes, stamp: Callable[[int], None], log: pytest.LogCaptureFixture
) -> None:
    stamp(60)
    agent = GeoFilter(place, allow=["DE"])
    other = made(place, {NET: country("AT")})
    # It grows from look to look.
    for age, so_far in [(2, other[:40]), (1, other[:80]), (0, other)]:
        overwrite(place, so_far)
        stamp(age)
        agent._databases.reload()
        assert (await why(agent, IP), log.messages) == ("", [])
    agent._databases.reload()
    assert (await why(agent, IP), log.messages) == (DENIED, [f"GeoFilter: {place} was read anew"])
    # Written some time before the look, it is taken at once.
    overwrite(place, content)
    stamp(4)
    agent._databases.reload()
    assert await why(agent, IP) == ""


async def test_a_file_of_a_machine_whose_clock_is_ahead_is_taken_at_the_second_look(
    place: Path, stamp: Callable[[int], None]
) -> None:
    stamp(60)
    agent = GeoFilter(place, allow=["DE"])
    write(place, {NET: country("AT")})
    stamp(-3600)
    agent._databases.reload()
    assert await why(agent, IP) == ""
    agent._databases.reload()
    assert await why(agent, IP) == DENIED


@pytest.mark.parametrize(("age", "known"), [(1, DENIED), (-3600, DENIED), (60, "")])
async def test_what_had_just_been_written_at_the_start_is_read_again_at_the_next_look(
    place: Path, stamp: Callable[[int], None], age: int, known: str
) -> None:
    """The clocks of some file systems count seconds: what is written within one has the same times."""
    stamp(age)
    agent = GeoFilter(place, allow=["DE"])
    overwrite(place, made(place, {NET: country("AT")}))
    agent._databases.reload()
    assert await why(agent, IP) == known
    # Once.
    overwrite(place, made(place, {NET: country("DE")}))
    agent._databases.reload()
    assert await why(agent, IP) == known


async def test_a_file_that_is_written_while_it_is_read_is_left_for_a_later_look(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = GeoFilter(place, allow=["DE"])
    read_bytes = Path.read_bytes

    def overtaken(path: Path) -> bytes:
        found = read_bytes(path)
        path.write_bytes(found + b" ")
        return found

    write(place, {NET: country("AT")})
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", overtaken)
        look(agent)
    assert await why(agent, IP) == ""
    write(place, {NET: country("AT")})
    look(agent)
    assert await why(agent, IP) == DENIED


async def test_a_file_that_is_written_to_in_its_place_harms_nobody(place: Path) -> None:
    """A file that is mapped into memory ends the process that reads behind its new end."""
    agent = GeoFilter(place, allow=["DE"])
    with place.open("r+b") as file:
        file.truncate(0)
        assert await why(agent, IP) == ""


# What is not taken


async def test_what_was_read_before_holds_while_a_file_is_missing_or_broken(
    place: Path, content: bytes, log: pytest.LogCaptureFixture
) -> None:
    agent = GeoFilter(place, allow=["DE"])
    steps: list[bytes | None] = [None, b"", content[:-10], content[: len(content) // 2], None]
    for step in steps:
        replace(place, step)
        look(agent)
        assert await why(agent, IP) == ""
    # Each reason once, for as long as it lasts.
    assert log.messages == [
        f"GeoFilter: {place}: {reason}; what was read before holds"
        for reason in ("No such file or directory", "no such database, or not all of one", "No such file or directory")
    ]
    write(place, {NET: country("AT")})
    look(agent)
    assert await why(agent, IP) == DENIED
    assert log.messages[3:] == [f"GeoFilter: {place} was read anew"]


async def test_each_outage_and_each_end_of_one_is_a_line(place: Path, log: pytest.LogCaptureFixture) -> None:
    """Also where the file that is back is the one that was read: on a volume that was away, or behind a link."""
    link = place.with_name("link.mmdb")
    link.symlink_to(place)
    agent = GeoFilter(link, allow=["DE"])
    look(agent)
    for _ in range(2):
        link.unlink()
        look(agent)
        link.symlink_to(place)
        look(agent)
    gone = f"GeoFilter: {link}: No such file or directory; what was read before holds"
    back = f"GeoFilter: {link} is there again, and is what was read before"
    assert log.messages == [gone, back] * 2


BOTH = {"country_code": "DE", "asn": "AS1"}


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ({NET: country("DE")}, {NET: system(1)}, "tells the country of no address any more"),
        ({NET: country("DE")}, {}, "tells the country of no address any more"),
        ({NET: country("DE")}, {NET: country("EU")}, "tells the country of no address any more"),
        ({NET: system(1)}, {NET: country("DE")}, "tells the autonomous system of no address any more"),
        ({NET: BOTH}, {NET: country("DE")}, "tells the autonomous system of no address any more"),
        ({NET: BOTH}, {NET: system(1)}, "tells the country of no address any more"),
    ],
    ids=str,
)
async def test_a_file_that_tells_less_than_before_is_not_taken(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], problem: str, log: pytest.LogCaptureFixture
) -> None:
    """Such as an empty one, or another edition: with unknown="allow" it would deny nobody, without it everybody."""
    path = write(tmp_path / "geo.mmdb", before)
    # Others tell the same; which of two files covers for which nobody can know.
    other = write(tmp_path / "other.mmdb", {"198.51.100.0/24": BOTH})
    agent = GeoFilter([path, other], deny=["DE", "AS1"], unknown="allow")
    assert await why(agent, IP) == DENIED
    write(path, after)
    look(agent)
    assert await why(agent, IP) == DENIED
    assert log.messages == [f"GeoFilter: {path}: {problem}; what was read before holds"]
    write(path, {NET: {"country_code": "AT", "asn": "AS2"}})
    look(agent)
    assert await why(agent, IP) == ""


async def test_a_file_that_told_nothing_that_is_asked_for_may_be_replaced_by_any(tmp_path: Path) -> None:
    paths = [write(tmp_path / "countries.mmdb", {NET: country("DE")}), write(tmp_path / "x.mmdb", {NET: {"x": "y"}})]
    agent = GeoFilter(paths, deny=["DE", "AT"])
    for records in ({NET: system(1)}, {"198.51.100.0/24": country("AT")}, {}):
        write(paths[1], records)
        look(agent)
    assert await why(agent, "198.51.100.7") == UNKNOWN
    assert await why(agent, IP) == DENIED


async def test_a_file_for_ipv4_alone_replaces_none_for_both(place: Path, log: pytest.LogCaptureFixture) -> None:
    write(place, {"2001:db8::/32": country("DE")})
    agent = GeoFilter(place, deny=["DE"], unknown="allow")
    write(place, {NET: country("DE")}, ip_version=4)
    look(agent)
    assert await why(agent, "2001:db8::7") == DENIED
    assert log.messages == [f"GeoFilter: {place}: tells nothing of IPv6 addresses any more; what was read before holds"]


async def test_one_file_that_can_not_be_read_keeps_no_other_from_being_read(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    paths = [write(tmp_path / f"{number}.mmdb", {NET: BOTH}) for number in range(3)]
    agent = GeoFilter(paths, deny=["AS2"])
    assert await why(agent, IP) == ""
    good = paths[0].read_bytes()
    # The size of a record in the metadata is a text.
    replace(paths[0], good.replace(b"record_size\xa1\x18", b"record_size\x41\x18"))
    replace(paths[1], None)
    write(paths[2], {NET: {"country_code": "DE", "asn": "AS2"}})
    look(agent)
    assert await why(agent, IP) == DENIED
    assert len(log.messages) == 3


async def test_a_file_without_room_for_it_in_memory_is_not_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    agent = GeoFilter(place, allow=["DE"])
    write(place, {NET: country("AT")})

    def refuse(path: Path) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        look(agent)
    assert await why(agent, IP) == ""
    assert log.messages == [f"GeoFilter: {place}: MemoryError; what was read before holds"]


# What is remembered


async def test_a_file_that_is_broken_for_some_addresses_is_a_failure_for_these_alone(place: Path) -> None:
    records = {NET: country("DE"), "198.51.100.0/24": {"country": {"iso_code": "AT"}, "x": {"y": "z" * 20}}}
    # The length of a text is beyond the end of the file.
    replace(place, made(place, records).replace(b"\x54" + b"z" * 20, b"\x5f\xff\xff\xff" + b"z" * 17))
    agent = GeoFilter(place, allow=["DE"])
    for _ in range(2):
        with pytest.raises(AgentsError, match=r"GeoFilter: geo\.mmdb is broken"):
            await answer_to(agent, "198.51.100.7")
        assert await why(agent, IP) == ""


async def test_an_address_is_looked_up_once_for_each_file_that_is_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = GeoFilter(place, allow=["DE"])
    [file] = agent._databases._files
    asked: list[object] = []
    places = file.places

    def noted(address: Any) -> Any:
        asked.append(address)
        return places(address)

    monkeypatch.setattr(file, "places", noted)
    for _ in range(3):
        assert await why(agent, IP) == ""
    assert len(asked) == 1
    write(place, {NET: country("AT")})
    look(agent)
    for _ in range(3):
        assert await why(agent, IP) == DENIED
    assert len(asked) == 2
    # Others come and go.
    for number in range(MAX_ADDRESSES + 10):
        await answer_to(agent, f"10.0.{number // 256}.{number % 256}")
    assert await why(agent, IP) == DENIED
    assert len(asked) == MAX_ADDRESSES + 13
    assert agent._databases._remembered.cache_info().currsize == MAX_ADDRESSES
