from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from example_app.app import create_app

ALICE = {"x-api-key": "key-of-alice"}
BOB = {"x-api-key": "key-of-bob"}


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(token_delay=0), follow_redirects=False) as client:
        yield client
