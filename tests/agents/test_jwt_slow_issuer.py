"""Made-up key ids while the issuer is slow: in virtual time, which no server in a thread could have."""

import math
from collections import Counter
from typing import Any

import anyio
import pytest

from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, FailureKind
from asgi_agents.agents import JwtAuth
from asgi_agents.agents.key_fetches import KeyFetch
from asgi_agents.agents.key_sets import Keys, NoKeysError, PublicKey
from tests.support.asgi import App, Client

from .issuer import EC, ISSUER, OTHER_EC, token

GOOD, MADE_UP = token(EC), token(OTHER_EC)


class SlowIssuer:
    """In place of ``fetch``.

    :ivar takes: the seconds of a fetch. One of more than five is given up, as ``fetch`` does it.
    """

    def __init__(self) -> None:
        self.takes = 0.0
        self.asked = 0
        self.keys: dict[str | None, dict[str, PublicKey]] = {"ec": {"EC": EC}}

    async def __call__(self, *args: Any) -> Keys:
        self.asked += 1
        await anyio.sleep(min(self.takes, 5.0))
        if self.takes > 5:
            raise NoKeysError("the server has not answered within 5 s")
        return dict(self.keys)


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> SlowIssuer:
    issuer = SlowIssuer()
    monkeypatch.setattr("asgi_agents.agents.jwks.fetch", issuer)
    return issuer


async def status_of(middleware: AgentMiddleware, given: str) -> int | None:
    client = Client(headers=[(b"authorization", b"Bearer " + given.encode())])
    await client.call(middleware)
    return client.status


@pytest.mark.parametrize("takes", [0.3, 1.5, 3.0, 60.0])
@pytest.mark.parametrize("permits", [4, 100])
async def test_more_made_up_tokens_than_calls_at_a_time_open_no_breaker(
    issuer: SlowIssuer, permits: int, takes: float
) -> None:
    agent = JwtAuth("https://id.example/jwks", issuer=ISSUER, audience="shop", cooldown=1.0)
    async with AgentManager([AgentConfig("jwt", agent, max_concurrent_calls=permits)]) as manager:
        middleware = AgentMiddleware(App(), manager=manager)
        assert await status_of(middleware, GOOD) == 200
        await anyio.sleep(10)
        issuer.takes = takes
        statuses: Counter[int | None] = Counter()
        valid: Counter[int | None] = Counter()

        async def send(given: str, into: Counter[int | None]) -> None:
            into[await status_of(middleware, given)] += 1

        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                for _ in range(150):
                    tasks.start_soon(send, MADE_UP, statuses)
                await anyio.sleep(0.1)
                tasks.start_soon(send, GOOD, valid)
            await send(GOOD, valid)
            await anyio.sleep(2)
        assert statuses.keys() <= {401, 503}
        outcomes = manager.metrics["jwt"].outcomes
        late = {FailureKind.TIMEOUT, FailureKind.QUEUE_TIMEOUT, FailureKind.BREAKER_OPEN}
        # No call was late, and whoever has a valid token has noticed nothing.
        assert (valid, outcomes.keys() & late) == ({200: 6}, set())


async def test_a_few_wait_for_a_key_that_is_new(issuer: SlowIssuer) -> None:
    agent = JwtAuth("https://id.example/jwks", issuer=ISSUER, audience="shop", cooldown=1.0)
    async with AgentManager([AgentConfig("jwt", agent)]) as manager:
        middleware = AgentMiddleware(App(), manager=manager)
        assert await status_of(middleware, GOOD) == 200
        await anyio.sleep(10)
        issuer.keys["other-ec"], issuer.takes = {"EC": OTHER_EC}, 0.3
        statuses: list[int | None] = []

        async def send() -> None:
            statuses.append(await status_of(middleware, MADE_UP))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(send)
        assert (statuses.count(200), statuses.count(503), issuer.asked) == (8, 12, 2)


async def test_a_call_waits_for_half_of_what_is_left_of_its_deadline() -> None:
    fetch = KeyFetch(0.0)
    for deadline, patience, waits in ((1.0, 0.5, 0.5), (0.4, 0.5, 0.2), (0.2, 0.5, 0.0), (math.inf, 0.5, 0.5)):
        began = anyio.current_time()
        with anyio.CancelScope(deadline=began + deadline):
            assert not await fetch.ends_within(patience, 1)
        assert anyio.current_time() - began == pytest.approx(waits, abs=1e-3)
    fetch.end()
    assert await fetch.ends_within(0.5, 1)
