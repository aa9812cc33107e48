"""Files of the format MMDB that are damaged, half-written, or made to do harm."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import maxminddb
import pytest

from asgi_agents.agents.mmdb import BrokenDatabaseError, Mmdb
from asgi_agents.agents.places import COUNTRY, SYSTEM, places_in

from .mmdb import country, system, write

# Seconds after which what hangs has failed.
PATIENCE = 60
BOTH = frozenset({COUNTRY, SYSTEM})
ADDRESSES = [ip_address(ip) for ip in ("192.0.2.7", "8.8.8.8", "2001:db8::1", "9.9.9.9", "2606:4700::1")]
RECORDS = {
    "192.0.2.0/24": country("DE"),
    "8.8.8.0/24": {**system(15169), **country("US")},
    "2001:db8::/32": {"country_code": "FR", "asn": "AS5"},
}


@pytest.fixture(scope="session", params=[4, 6])
def content(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    records = {net: record for net, record in RECORDS.items() if request.param == 6 or ":" not in net}
    return write(tmp_path_factory.mktemp("mmdb") / "geo.mmdb", records, ip_version=request.param).read_bytes()


def damaged(content: bytes) -> Iterator[bytes]:
    """The database with a wrong byte in each place where it matters, with several, and with less of it."""
    metadata = content.rindex(b"\xab\xcd\xefMaxMind.com")
    records = content.index(b"\0" * 16, max(0, metadata - 400))
    for place in range(records, len(content)):
        for byte in (0x00, 0x20, 0x41, 0x5F, 0xC1, 0xE0, 0xFF):
            yield content[:place] + bytes([byte]) + content[place + 1 :]
    for place in range(0, records, 3):
        for byte in (0x00, 0x01, 0xFF):
            yield content[:place] + bytes([byte]) + content[place + 1 :]
    # As the first part of another one that is written over it.
    for cut in range(0, len(content), 5):
        yield bytes(cut) + content[cut:]
        yield content[:cut]
    random = Random(1)  # noqa: S311 - it has to be repeatable
    for _ in range(1000):
        changed = bytearray(content)
        for _ in range(random.choice([2, 4])):
            changed[random.randrange(random.choice([0, records, metadata]), len(content))] = random.randrange(256)
        yield bytes(changed)


def outcome(function: Callable[[], Any]) -> Any:
    """What comes of it: the message where it is broken."""
    try:
        return function()
    except BrokenDatabaseError as exc:
        return str(exc)


def test_a_damaged_file_is_broken_and_nothing_else(content: bytes) -> None:
    assert Mmdb(content, BOTH).kinds == BOTH
    broken = read = 0
    for each in damaged(content):
        database = outcome(partial(Mmdb, each, BOTH))
        if not isinstance(database, Mmdb):
            assert database == "no such database, or not all of one"
            broken += 1
            continue
        read += 1
        for address in ADDRESSES:
            places = outcome(partial(database.places, address))
            assert places == "is broken" or isinstance(places, frozenset)
    assert broken > 100 < read


def test_the_reader_in_c_is_not_used(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the process where the key of a record is no text."""
    monkeypatch.setattr(maxminddb, "_extension", None)
    monkeypatch.setattr(maxminddb, "open_database", None)
    assert type(Mmdb(content, BOTH)._reader).__module__ == "maxminddb.reader"


def with_tree(content: bytes, first: int, second: int) -> bytes:
    """The database whose nodes all lead to the first and second node after them; the last to nothing."""
    count = maxminddb.Reader(BytesIO(content), maxminddb.MODE_FD).metadata().node_count
    nodes = bytearray()
    for number in range(count):
        for step in (first, second):
            nodes += min(max(number + step, 0), count).to_bytes(3, "big")
    return bytes(nodes) + content[count * 6 :]


@pytest.mark.parametrize(("first", "second"), [(1, 1), (-1, 1), (0, 0), (-1000, 1), (1, 2)])
def test_a_tree_whose_branches_meet_or_lead_back_is_read_to_its_end(tmp_path: Path, first: int, second: int) -> None:
    content = write(tmp_path / "geo.mmdb", {"2001:db8::/120": country("DE")}).read_bytes()
    (tmp_path / "tree.mmdb").write_bytes(with_tree(content, first, second))
    program = (
        "import pathlib, sys; from asgi_agents.agents.mmdb import Mmdb;"
        "print(sorted(Mmdb(pathlib.Path(sys.argv[1]).read_bytes(), {'country'}).kinds))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "tree.mmdb"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_a_record_that_unfolds_to_millions_of_values_is_broken(tmp_path: Path) -> None:
    """A list of eight pointers to a list of eight pointers, and so on, ten times."""
    path = write(tmp_path / "geo.mmdb", {"192.0.2.0/24": {"country": {"iso_code": "DE"}, "x": "A" * 260}})
    content = bytearray(path.read_bytes())
    text = content.index(b"A" * 260)
    records = maxminddb.Reader(BytesIO(content), maxminddb.MODE_FD).metadata().node_count * 6 + 16
    place = previous = text + 20
    content[place : place + 2] = b"\xa1\x01"
    place += 2
    for _ in range(9):
        pointer = previous - records
        piece = bytes([8, 4]) + bytes([0x20 | pointer >> 8, pointer & 0xFF]) * 8
        previous = place
        content[place : place + len(piece)] = piece
        place += len(piece)
    pointer = previous - records
    content[text - 2 : text + 16] = bytes([8, 4]) + bytes([0x20 | pointer >> 8, pointer & 0xFF]) * 8
    assert place < text + 260
    with pytest.raises(BrokenDatabaseError) as error:
        Mmdb(bytes(content), {COUNTRY})
    assert "exceeds the maximum number of values" in str(error.value.__cause__)


def by_hand(size: int, distance: int, *, far_first: bool) -> bytes:
    """A database of IPv4 with one node of twice ``size`` bits, and two records of which one is so far away."""
    germany, france = (b"\xe1\x47country\x42" + code for code in (b"DE", b"FR"))
    left, right = (17 + distance, 17) if far_first else (17, 17 + distance)
    if size == 28:
        node = left.to_bytes(4) + right.to_bytes(4)
        node = node[1:4] + bytes([node[0] << 4 | node[4]]) + node[5:]
    else:
        node = left.to_bytes(size // 8) + right.to_bytes(size // 8)
    metadata: dict[bytes, bytes] = {
        b"binary_format_major_version": b"\xa1\x02",
        b"binary_format_minor_version": b"\xa0",
        b"build_epoch": b"\x00\x02",
        b"database_type": b"\x44Test",
        b"description": b"\xe0",
        b"ip_version": b"\xa1\x04",
        b"languages": b"\x00\x04",
        b"node_count": b"\xc1\x01",
        b"record_size": b"\xa1" + bytes([size]),
    }
    written = b"".join(bytes([0x40 | len(key)]) + key + value for key, value in metadata.items())
    records = germany.ljust(distance, b"\0") + france
    return node + bytes(16) + records + b"\xab\xcd\xefMaxMind.com" + bytes([0xE0 | len(metadata)]) + written


@pytest.mark.parametrize(("size", "distance"), [(24, 50), (28, 50), (32, 50), (28, 1 << 24), (32, 1 << 24)])
@pytest.mark.parametrize("far_first", [False, True])
def test_records_are_found_whatever_the_size_of_a_node(size: int, distance: int, far_first: bool) -> None:
    database = Mmdb(by_hand(size, distance, far_first=far_first), {COUNTRY})
    places = [*database.places(ip_address("1.1.1.1")), *database.places(ip_address("200.1.1.1"))]
    assert places == (["FR", "DE"] if far_first else ["DE", "FR"])
    assert [place for record in database._records() for place in places_in(record)] == places


def test_a_record_to_which_many_networks_lead_is_read_once(tmp_path: Path) -> None:
    records = {f"20.0.{i}.0/24": country("DE" if i % 2 else "FR") for i in range(256)}
    database = Mmdb(write(tmp_path / "geo.mmdb", records).read_bytes(), {COUNTRY})
    assert len([*database._records()]) == 2


@pytest.mark.parametrize("kind", [COUNTRY, SYSTEM])
def test_what_one_record_of_many_tells_is_told(tmp_path: Path, kind: str) -> None:
    """And what none tells is not looked for: each record takes its time."""
    last: dict[str, Any] = country("DE") if kind == COUNTRY else system(64496)
    records: dict[str, Any] = {f"20.{i // 256}.{i % 256}.0/24": {"x": i} for i in range(12_000)}
    database = Mmdb(write(tmp_path / "geo.mmdb", {**records, "90.0.0.0/24": last}).read_bytes(), BOTH)
    assert database.kinds == {kind}


def test_a_name_that_is_nowhere_in_a_file_is_looked_for_in_no_record(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mmdb, "_records", None)
    names = (b"Lcountry_code", b"Gcountry")
    for name in names:
        content = content.replace(name, name[:1] + b"x" * (len(name) - 1))
    assert Mmdb(content, {COUNTRY}).kinds == frozenset()
    with pytest.raises(BrokenDatabaseError):
        Mmdb(content, {SYSTEM})


@pytest.mark.parametrize("version", [0, 1, 3])
def test_another_version_of_the_format_is_not_read(content: bytes, version: int) -> None:
    name = b"binary_format_major_version"
    assert content.count(name + b"\xa1\x02") == 1
    with pytest.raises(BrokenDatabaseError):
        Mmdb(content.replace(name + b"\xa1\x02", name + b"\xa1" + bytes([version])), BOTH)
