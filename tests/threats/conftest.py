import logging
from typing import Any

import pytest


@pytest.fixture(params=["httptools", "h11"])
def server(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of uvicorn, once for each of its HTTP parsers."""
    return {"http": request.param, "loop": "asyncio"}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All that this package writes to its loggers."""
    caplog.set_level(logging.DEBUG, "asgi_agents")
    return caplog
