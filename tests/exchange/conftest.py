import pytest

from tests.support.asgi import Probe, SlowProbe


@pytest.fixture(params=[Probe, SlowProbe], ids=["prompt", "slow"])
def probe(request: pytest.FixtureRequest) -> type[Probe]:
    """Agents whose hooks never suspend take shorter ways through the package than those whose hooks do."""
    kind: type[Probe] = request.param
    return kind
