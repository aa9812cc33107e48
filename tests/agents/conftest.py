"""What the tests of several ready-made agents need."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from .clock import Clock
from .redis_server import RedisServer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("asgi_agents.agents.counters", "asgi_agents.agents.memory_storage", "limits.aio.strategies"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=clock))
    return clock


@pytest.fixture(scope="module")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that runs as long as the tests of a module do."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One to be started and killed."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()
