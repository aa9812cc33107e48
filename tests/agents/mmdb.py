"""Files of the format MMDB, as the tests need them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet


def write(path: Path, records: Mapping[str, Any], *, ip_version: int = 6) -> Path:
    """Put a file of these networks there, in one step, as tools that fetch such files do. Returns where it is."""
    writer = MMDBWriter(ip_version, "Test", ipv4_compatible=ip_version == 6, int_type="u32")
    for network, record in records.items():
        writer.insert_network(IPSet([network]), record)
    fresh = path.with_suffix(".new")
    writer.to_db_file(str(fresh))
    fresh.replace(path)
    return path


def replace(path: Path, content: bytes | None) -> None:
    """Put this there, in the place of what is there; None: nothing."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def country(code: str) -> dict[str, Any]:
    """As MaxMind and DB-IP have it."""
    return {"country": {"iso_code": code, "names": {"en": "Somewhere"}}, "continent": {"code": "EU"}}


def system(number: int) -> dict[str, Any]:
    """As MaxMind and DB-IP have it."""
    return {"autonomous_system_number": number, "autonomous_system_organization": "Example"}
