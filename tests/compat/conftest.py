from collections.abc import Iterator

import httpx
import pytest

from .stage import PATIENCE, Stage, staged


@pytest.fixture(scope="class")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """What the class's ``make_app`` makes, served."""
    assert request.cls is not None
    with staged(request.cls.make_app) as stage:
        yield stage


@pytest.fixture
def client(stage: Stage) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stage.url, timeout=PATIENCE) as client:
        yield client
