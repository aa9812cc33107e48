"""One replica of a deployment, without a cluster."""

import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")

from asgi_agents import Agent, AgentResponse, ConfigureEvent, RequestHeadersEvent
from asgi_agents.protocol import Encoding
from asgi_agents.protocol.codec import decode_value, encode_value
from asgi_agents.ray.replica import AgentReplica
from asgi_agents.transports.ray_client import RayQuestion, RayReply, config_id_of


class Picky(Agent):
    """Has taken a part of a configuration when it refuses it."""

    def __init__(self) -> None:
        self.mode = ""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        pass

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        self.mode = event.config["mode"]
        return AgentResponse.block(400, "unknown mode") if self.mode == "off" else None


async def ask(replica: AgentReplica, mode: str, *, sends: bool = True) -> RayReply:
    config = encode_value({"mode": mode}, Encoding.JSON, "config")
    question = RayQuestion(None, config_id_of(config), config if sends else None)
    reply = await replica.ask(encode_value(question, Encoding.MSGPACK, "question"))
    decoded: RayReply = decode_value(RayReply, reply, Encoding.MSGPACK, at="reply")
    return decoded


async def test_an_agent_that_has_refused_a_configuration_gets_the_one_before_again() -> None:
    agent = Picky()
    replica = AgentReplica(lambda: agent, None, 1)
    assert (await ask(replica, "on")).capabilities is not None
    assert (await ask(replica, "off")).refused
    # What it has now is for the agent to say: events are not judged by it.
    assert (await ask(replica, "on", sends=False)).needs_config
    assert (await ask(replica, "on")).capabilities is not None
    assert agent.mode == "on"
