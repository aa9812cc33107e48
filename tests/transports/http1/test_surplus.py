"""What comes after an answer is not taken for the next one: on uvloop as well, which reads in another way."""

import pytest
import trustme

from asgi_agents import HttpTransport
from tests.transports.test_surplus import HTTP_KINDS, KINDS, TIMES, Http, authority, contexts, hostile, provoke

# Each test has a hostile server in threads, and waits for it.
pytestmark = pytest.mark.slow

__all__ = ["authority"]


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("style", ["content-length", "chunked"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_it_is_not_taken_for_the_next_one(
    tls: bool, style: str, kind: str, time: str, authority: trustme.CA
) -> None:
    server, client = contexts(authority, tls)
    async with hostile(Http(style), HTTP_KINDS[kind], time, server) as agent:
        transport = HttpTransport(
            f"http{'s' if tls else ''}://127.0.0.1:{agent.port}/", verify=True if client is None else client
        )
        verdicts = await provoke(agent, transport.call)
        await transport.aclose()

        assert verdicts == ["first", "own", "own"]
        assert not agent.reused


@pytest.mark.parametrize("size", [65536, 131072, 250000, 256000, 262144, 512000, 524288])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_nor_where_the_answer_fills_what_is_read_at_once(tls: bool, size: int, authority: trustme.CA) -> None:
    server, client = contexts(authority, tls)
    async with hostile(Http(size), KINDS["again"], "together", server) as agent:
        transport = HttpTransport(
            f"http{'s' if tls else ''}://127.0.0.1:{agent.port}/", verify=True if client is None else client
        )
        verdicts = await provoke(agent, transport.call)
        await transport.aclose()

        assert verdicts == ["first", "own", "own"]
        assert not agent.reused
