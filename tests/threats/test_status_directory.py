"""What a neighbour on the machine can make of the directory that the status pages of workers share."""

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import AgentManager, status_app
from tests.status.world import scripted
from tests.support import living_files


async def page_of(directory: Path, agent_id: str) -> Any:
    """What the page of a worker with that agent says, which has the directory."""
    manager = AgentManager([scripted(agent_id)])
    app = status_app(manager, directory=directory)
    async with manager, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        return (await client.get("/status.json")).json()


def ids(status: Any) -> list[str]:
    return [agent["id"] for agent in status["agents"]]


def forged(directory: Path, status: Any, host: str = "elsewhere") -> None:
    """Another worker's file, which says `status`."""
    status = {**status, "worker": {**status["worker"], "host": host}}
    share = {"status": status, "slot": 1, "durations": {}}
    file = living_files.leave(directory / f"4711-{'0' * 16}.json", json.dumps(share).encode())
    # As of one that answers whoever looks: what is older than the look is of one that has gone silent.
    answered = time.time() + 1.0
    os.utime(file, (answered, answered))


def test_only_the_apps_user_can_write_to_the_directory_of_the_status_page_or_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "status"
    umask = os.umask(0)
    try:
        anyio.run(page_of, directory, "waf")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_status_page_believes_nothing_in_a_directory_that_others_may_write_to(tmp_path: Path, mode: int) -> None:
    status = anyio.run(page_of, tmp_path / "first", "forged")
    directory = tmp_path / "status"
    directory.mkdir(0o700)
    forged(directory, status)
    believed = anyio.run(page_of, directory, "waf")
    assert ids(believed) == ["waf", "forged"]
    directory.chmod(mode)
    before = {file.name for file in directory.iterdir()}
    shown = anyio.run(page_of, directory, "waf")
    assert ids(shown) == ["waf"]
    assert "may be written to by others" in shown["unshared"]
    assert {file.name for file in directory.iterdir()} == before


def test_what_a_neighbour_links_into_the_directory_of_the_status_page_is_neither_read_nor_changed(
    tmp_path: Path,
) -> None:
    """Before it belonged to the app's user alone, say."""
    target = tmp_path / "secret"
    target.write_text("as it was")
    directory = tmp_path / "status"
    directory.mkdir(0o700)
    (directory / "watched").symlink_to(target)
    (directory / f"4711-{'0' * 16}.json").symlink_to(target)
    assert ids(anyio.run(page_of, directory, "waf")) == ["waf"]
    assert target.read_text() == "as it was"
    assert not (directory / "watched").is_symlink()
