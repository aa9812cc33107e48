"""What a neighbour on the machine can make of the directory in which workers leave their metrics for one another."""

import os
import stat
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from asgi_agents import AgentManager
from asgi_agents.manager import registry_of
from asgi_agents.observability import worker_scrapes
from asgi_agents.observability.prometheus import AgentCollector
from asgi_agents.observability.worker_metrics import take
from asgi_agents.prometheus import metrics_app
from tests.status.world import scripted
from tests.support import living_files


async def scrape_of(directory: Path) -> httpx.Response:
    """The answer of a worker that has the directory."""
    manager = AgentManager([scripted("waf")])
    transport: Any = httpx.ASGITransport(metrics_app(manager, directory=directory))
    async with manager, httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return await client.get("/")


def forged(directory: Path) -> None:
    """Another worker's file, which is always of after any scrape."""
    collector = AgentCollector(registry_of(AgentManager([scripted("forged")])))
    share = take(collector, at=2**62, place=5)
    living_files.leave(directory / f"4711-{'0' * 16}.metrics", msgspec.msgpack.encode(share))


def test_only_the_apps_user_can_write_to_the_directory_of_the_metrics_or_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    umask = os.umask(0)
    try:
        assert anyio.run(scrape_of, directory).status_code == 200
    finally:
        os.umask(umask)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_scrape_believes_nothing_in_a_directory_that_others_may_write_to(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir(0o700)
    forged(directory)
    assert 'agent_id="forged"' in anyio.run(scrape_of, directory).text
    directory.chmod(mode)
    before = {file.name for file in directory.iterdir()}
    response = anyio.run(scrape_of, directory)
    assert response.status_code == 503
    assert "may be written to by others" in response.text
    assert "forged" not in response.text
    assert {file.name for file in directory.iterdir()} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_a_link_of_a_neighbour_leads_no_worker_to_another_directory(tmp_path: Path) -> None:
    """In a directory such as /tmp, in which everybody can make the link before the app makes its directory."""
    own = tmp_path / "own"
    own.mkdir(0o700)
    (own / "scraped").write_text("precious")
    directory = tmp_path / "metrics"
    directory.symlink_to(own)
    os.chown(directory, 12345, 12345, follow_symlinks=False)
    response = anyio.run(scrape_of, directory)
    assert response.status_code == 503
    assert "is a link of the user 12345, expected one of this process's user or of root" in response.text
    assert [(file.name, file.read_text()) for file in own.iterdir()] == [("scraped", "precious")]


def test_what_a_neighbour_links_into_the_directory_of_the_metrics_is_neither_read_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it belonged to the app's user alone, say."""
    monkeypatch.setattr(worker_scrapes, "_PATIENCE", 0.1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    forged(elsewhere)
    (target,) = elsewhere.iterdir()
    was = target.read_bytes(), target.stat().st_mtime_ns
    directory = tmp_path / "metrics"
    directory.mkdir(0o700)
    for name in ("scraped", "0.place", target.name):
        (directory / name).symlink_to(target)
    response = anyio.run(scrape_of, directory)
    assert response.status_code == 200
    assert "forged" not in response.text
    assert 'worker="1"' in response.text
    assert (target.read_bytes(), target.stat().st_mtime_ns) == was
    assert not (directory / "scraped").is_symlink()
