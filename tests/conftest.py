import re
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

# Every run takes the same examples, and takes as long over each as it needs: what passes here passes there.
# Other examples are looked for by `pytest --hypothesis-profile=hunting`, and by tests/fuzz.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("hunting", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

_ADDRESS: Final = re.compile(r"\bat 0x[0-9a-f]+|\bid='\d+'")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture(autouse=True)
def steps_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warnings of hooks that block the event loop, as any seems to on a busy machine. Their own tests have them."""
    monkeypatch.setattr("asgi_agents.blocking.Steps.took", lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test has the same name in every process, or it could not be run again by name, nor be handed to a worker."""
    named_by_address = [item.nodeid for item in items if _ADDRESS.search(item.nodeid)]
    if named_by_address:
        raise pytest.UsageError(f"tests whose names contain an address in memory: {named_by_address[:5]}")
