"""What an agent in the process finds in its configuration, and what it is told of what is not there."""

import copy
import json
import logging
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from asgi_agents import Agent, AgentConfig, AgentError, AgentManager, FailureMode, Headers
from asgi_agents.calls.given_config import GivenConfig
from asgi_agents.failures import MissingConfigKeyError
from asgi_agents.manager import registry_of
from asgi_agents.protocol import Event, GuardrailInspectEvent, RequestBodyChunkEvent, ResponseHeadersEvent


class Limit(Agent):
    def __init__(self) -> None:
        self.given: Any = None

    async def on_configure(self, event: Any) -> None:
        self.given = event.config
        self.rate = event.config["rate"]

    async def on_request_headers(self, event: Any) -> None: ...


async def configured(config: Any, agent: Agent | None = None) -> str:
    """What the agent's configuration comes to, in words."""
    manager = AgentManager([AgentConfig("limit", Limit() if agent is None else agent, config=config)])
    try:
        await registry_of(manager).guard("limit").configuring.configure()
    except AgentError as exc:
        return str(exc)
    return "configured"


async def test_a_missing_key_is_named_beside_those_that_are_there() -> None:
    assert "its config has no 'rate'; there are: 'Rate'" in await configured({"Rate": 10, 1: 2})
    assert "its config has no 'rate'; there are: none" in await configured({})


async def test_the_values_beside_it_are_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="asgi_agents"):
        told = await configured({"token": "s3cret"})

    assert "s3cret" not in told + caplog.text


async def test_a_key_that_is_looked_up_elsewhere_is_not_named() -> None:
    class Plans(Limit):
        async def on_configure(self, event: Any) -> None:
            {}[event.config["token"]]

    told = await configured({"token": "s3cret"}, Plans())

    assert "raised KeyError at test_given_config.py" in told
    assert "s3cret" not in told


async def test_no_key_is_named_that_a_client_may_have_sent(caplog: pytest.LogCaptureFixture) -> None:
    """Where the agent is configured with its API keys, they would be all in the log, and that of the client."""

    class ApiKeys(Agent):
        async def on_configure(self, event: Any) -> None:
            self.users = event.config

        async def on_response_headers(self, event: Any) -> None:
            self.users[event.header("x-api-key")]

        async def on_request_body_chunk(self, event: Any) -> None:
            await checkpoint()
            self.users[event.data.decode()]

        async def on_guardrail_inspect(self, event: Any) -> None:
            self.users[event.content]

    guard = registry_of(AgentManager([AgentConfig("keys", ApiKeys(), config={"s3cret": "alice"})])).guard("keys")
    asked: list[Event] = [
        ResponseHeadersEvent(correlation_id="c", status=200, headers=Headers({"x-api-key": ["gu3ss"]})),
        RequestBodyChunkEvent(correlation_id="c", data=b"gu3ss", is_last=True),
        GuardrailInspectEvent(correlation_id="c", inspection_type="pii", content="gu3ss"),
    ]
    told = ""
    with caplog.at_level(logging.DEBUG, logger="asgi_agents"):
        for event in asked:
            verdict = await guard.call(event, FailureMode.CLOSED)
            assert verdict.failure is not None
            assert "raised MissingConfigKeyError at test_given_config.py" in verdict.failure.message
            told += verdict.failure.message

    assert "gu3ss" not in told + caplog.text
    assert "s3cret" not in told + caplog.text


async def test_an_agent_without_configuration_is_told_so() -> None:
    told = await configured(None)

    assert "raised TypeError at test_given_config.py" in told
    assert told.endswith("its AgentConfig has no config, expected AgentConfig(..., config={...})")


async def test_what_is_there_is_given_as_it_is() -> None:
    config = {"rate": 10, "nested": {"a": [1]}}
    agent = Limit()

    assert await configured(config, agent) == "configured"
    assert agent.given == config
    assert agent.given.get("missing", 1) == 1
    assert json.loads(json.dumps(agent.given)) == config
    assert copy.deepcopy(agent.given) == config


def test_whoever_expects_a_key_error_gets_one() -> None:
    with pytest.raises(KeyError) as raised:
        GivenConfig(a=1)["b"]

    assert isinstance(raised.value, MissingConfigKeyError)
    assert str(raised.value) == "its config has no 'b'; there are: 'a'"


@pytest.mark.parametrize("config", [["rate"], "rate", 3, {"rate"}])
async def test_what_is_no_dict_is_given_itself(config: Any) -> None:
    class Keep(Limit):
        async def on_configure(self, event: Any) -> None:
            self.given = event.config

    agent = Keep()

    assert await configured(config, agent) == "configured"
    assert agent.given is config


def test_of_the_keys_that_are_there_only_identifiers_are_named() -> None:
    config = GivenConfig({"rate": 1, "sk-live-1": "alice", 5: "five", "x" * 41: 0})

    with pytest.raises(KeyError, match=r"^its config has no 'burst'; there are: 'rate'$"):
        config["burst"]
