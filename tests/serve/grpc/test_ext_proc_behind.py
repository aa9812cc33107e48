"""What Envoy shows of a request behind the end of its response: an app may have answered before it has read it."""

import pytest

from asgi_agents import Agent, AgentResponse, RequestBodyChunkEvent, RequestHeadersEvent
from asgi_agents.transports.grpc.channel import Channel
from asgi_agents.transports.grpc.ext_proc_messages import Side

from .proxy import Proxy, serving

pytestmark = pytest.mark.anyio

REQUEST, RESPONSE = Side.REQUEST, Side.RESPONSE


class DeniesBodies(Agent):
    def __init__(self) -> None:
        self.heard = b""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        self.heard += event.data
        return AgentResponse.block(418) if b"bad" in event.data else None


async def answered(channel: Channel, mode: str, *, has_body: bool) -> Proxy:
    """An exchange whose response is complete, while the request goes on."""
    proxy = Proxy(channel, mode)
    await proxy.request()
    assert await proxy.receive()
    await proxy.response(ends=not has_body)
    assert await proxy.receive()
    if has_body:
        await proxy.body(RESPONSE, b"x", True)
        assert await proxy.receive()
    return proxy


@pytest.mark.parametrize("mode", ["STREAMED", "FULL_DUPLEX_STREAMED"])
@pytest.mark.parametrize("has_body", [True, False])
async def test_a_body_denied_behind_a_complete_response_goes_no_further(mode: str, has_body: bool) -> None:
    async with serving(DeniesBodies()) as channel:
        proxy = await answered(channel, mode, has_body=has_body)
        await proxy.body(REQUEST, b"bad", False)
        answer = await proxy.receive()
        assert answer is not None
        assert answer.immediate_response.status.code == 418
        await proxy.end()
        assert await proxy.receive() is None


@pytest.mark.parametrize("mode", ["STREAMED", "FULL_DUPLEX_STREAMED"])
@pytest.mark.parametrize("pieces", [[b"ok", b"bad"], [b"bad"], [b"", b"bad"], [b"ok", b"", b"ok", b"bad"], [b"ok"] * 9])
@pytest.mark.parametrize("has_body", [True, False])
async def test_nothing_that_nobody_judges_passes(mode: str, pieces: list[bytes], has_body: bool) -> None:
    """Whatever comes behind the end of the response, in however many pieces, is judged or goes no further."""
    async with serving(agent := DeniesBodies()) as channel:
        proxy = await answered(channel, mode, has_body=has_body)
        passed = b""
        for piece in pieces:
            await proxy.body(REQUEST, piece, False)
            if mode == "FULL_DUPLEX_STREAMED" and not piece:
                continue
            answer = await proxy.receive()
            assert answer is not None
            if answer.HasField("immediate_response"):
                break
            passed += piece
        assert b"bad" not in passed
        assert agent.heard.startswith(passed)


class HearsHeads(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        pass


@pytest.mark.parametrize("mode", ["STREAMED", "FULL_DUPLEX_STREAMED"])
async def test_where_no_agent_is_to_judge_the_body_it_passes(mode: str) -> None:
    async with serving(HearsHeads()) as channel:
        proxy = await answered(channel, mode, has_body=False)
        for piece in (b"ok", b"bad"):
            await proxy.body(REQUEST, piece, piece == b"bad")
            answer = await proxy.receive()
            assert answer is not None
            assert answer.HasField("request_body")
        await proxy.end()
        assert await proxy.receive() is None
