"""Agents that are replaced, added or removed: what is in force, and what is closed, however it ends."""

from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentConnectionError,
    AgentError,
    AgentManager,
    AgentResponse,
    EventType,
    HttpTransport,
    UnknownAgentError,
)
from asgi_agents.manager import registry_of
from asgi_agents.protocol import Acknowledgement, RequestHeadersEvent
from asgi_agents.serve import agent_app

from .test_manager import REQUEST, Fake, answering, config, configured, fake, raising, settle
from .transports.stream.peer import Peer
from .transports.stream.pools import agent, client_in, managing, nowhere, pool_of, until
from .transports.stream.test_configuring import Configured, peer_with

OLD, NEW = AgentResponse.block(411), AgentResponse.block(422)


class Judge(Agent):
    """Takes its configuration, or not."""

    def __init__(self, taking: Callable[[], object] = lambda: None) -> None:
        self._taking = taking

    async def on_configure(self, event: object) -> Any:
        return self._taking()

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return NEW


def fail() -> None:
    raise ValueError("no such rule")


def over_http(judge: Agent) -> HttpTransport:
    return HttpTransport("http://agent", transport=httpx.ASGITransport(agent_app(judge)))


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


REFUSING: dict[str, Callable[[], Any]] = {
    "in process, raises": lambda: Judge(fail),
    "in process, refuses": lambda: Judge(lambda: AgentResponse.block(400)),
    "in process, wrong answer": lambda: Judge(lambda: "yes"),
    "http, raises": lambda: over_http(Judge(fail)),
    "http, refuses": lambda: over_http(Judge(lambda: AgentResponse.block(400))),
    "http, down": lambda: HttpTransport("http://agent", transport=httpx.MockTransport(unreachable)),
    "stream, down": nowhere,
    "transport, raises": lambda: Fake(configure=raising(AgentConnectionError("gone"))),
}


async def decided(manager: AgentManager) -> int:
    """The status that the agent's answer says."""
    decision = (await manager.process_request_headers(REQUEST)).decision
    return getattr(decision, "status", 200)


# The new one refuses


@pytest.mark.parametrize("kind", REFUSING)
async def test_an_agent_that_does_not_take_its_configuration_replaces_nothing(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = AgentManager([config("a", Fake(answering(OLD)))])
    old = registry_of(manager).guard("a")

    with pytest.raises(AgentError, match="agent 'a' was not replaced, the old one stays: "):
        await manager.replace_agent(
            AgentConfig("a", REFUSING[kind](), config={"rules": 1}, events={EventType.REQUEST_HEADERS}, timeout=10.0)
        )

    assert registry_of(manager).guard("a") is old
    assert await decided(manager) == 411
    assert fake(manager, "a").closed == 0
    assert "asked again" not in caplog.text


@pytest.mark.parametrize(
    "refusal", [Acknowledgement(success=False, error="no such rule"), AgentResponse.block(400, "no such rule")]
)
async def test_a_stream_agent_that_refuses_replaces_nothing_and_loses_its_connections(refusal: Any) -> None:
    old, new = peer_with(Configured()), peer_with(Configured(refusal))
    async with managing(old, connections=1, config=1) as manager, new.listening():
        with pytest.raises(AgentError, match=r"the old one stays: .*it refused its configuration: no such rule"):
            await manager.replace_agent(agent(new, config=2))
        assert (await manager.process_request_headers(REQUEST)).is_allow
        assert len(old.links) == 1
        await until(lambda: not new.links)
        asked = new.accepted
        await settle()
        assert new.accepted == asked


async def test_an_agent_that_was_down_can_replace_once_it_is_back() -> None:
    new = configured(raising(AgentConnectionError("refused")))
    manager = AgentManager([configured()])
    with pytest.raises(AgentError, match="was not replaced"):
        await manager.replace_agent(new)
    first: Any = new.resolved_transport
    first.configure = answering(None)

    await manager.replace_agent(new)

    assert fake(manager, "a") is first


async def test_nothing_that_was_counted_is_lost_where_an_agent_is_not_replaced() -> None:
    manager = AgentManager([config("a", Fake())])
    await manager.process_request_headers(REQUEST)
    with pytest.raises(AgentError):
        await manager.replace_agent(configured(raising(AgentError("no"))))
    await manager.process_request_headers(REQUEST)

    assert manager.metrics["a"].calls == 2
    assert len(registry_of(manager).metered) == 1


# Cancelled


class Slow:
    """Takes a configuration when it is let."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.go = anyio.Event()

    async def __call__(self, event: object) -> None:
        self.asked.set()
        await self.go.wait()


async def test_a_replacement_that_is_cancelled_while_configuring_leaves_the_old_one_and_closes_the_new() -> None:
    slow = Slow()
    manager = AgentManager([config("a", Fake(answering(OLD)))])
    new = configured(slow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.replace_agent, new)
        await slow.asked.wait()
        tasks.cancel_scope.cancel()

    assert await decided(manager) == 411
    assert fake(manager, "a").closed == 0
    closed: Any = new.resolved_transport
    assert closed.closed == 1


async def test_a_stream_agent_whose_replacement_is_cancelled_keeps_no_connection_of_the_new() -> None:
    silent = Peer(silent=True)
    old = Peer(behaviour=lambda event: event.answer())
    async with managing(old, connections=1) as manager, silent.listening():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.replace_agent, agent(silent))
            await until(lambda: silent.handshakes)
            tasks.cancel_scope.cancel()
        assert (await manager.process_request_headers(REQUEST)).is_allow
        accepted = silent.accepted
        await settle()
        assert (silent.links, silent.accepted) == ([], accepted)


async def test_one_who_waits_for_another_replacement_can_be_cancelled_and_the_next_gets_its_turn() -> None:
    slow = Slow()
    manager = AgentManager([config("a", Fake(answering(OLD)))])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.replace_agent, configured(slow))
            await slow.asked.wait()
            async with anyio.create_task_group() as others:
                others.start_soon(manager.replace_agent, configured())
                await settle()
                others.cancel_scope.cancel()
            last = config("a", Fake(answering(NEW)))
            tasks.start_soon(manager.replace_agent, last)
            await settle()
            assert await decided(manager) == 411
            slow.go.set()

    assert registry_of(manager).guard("a").config is last


@pytest.mark.parametrize("change", ["replace", "remove"])
async def test_an_old_agent_is_closed_also_where_who_waits_for_it_is_cancelled(change: str) -> None:
    manager = AgentManager([config("a", Fake(answering(OLD)))])
    guard, old = registry_of(manager).guard("a"), fake(manager, "a")
    held = registry_of(manager).resolved_route(None)
    held.held += 1
    async with anyio.create_task_group() as tasks:
        if change == "replace":
            tasks.start_soon(manager.replace_agent, config("a", Fake(answering(NEW))))
        else:
            tasks.start_soon(manager.remove_agent, "a")
        await settle()
        tasks.cancel_scope.cancel()

    assert await decided(manager) == (422 if change == "replace" else 200)
    # The connection that is open still has it, and what is counted of it still shows.
    assert old.closed == 0
    assert held.agents_for(EventType.REQUEST_HEADERS)[0].guard is guard
    if change == "replace":
        assert registry_of(manager).guard("a").predecessor is guard
    else:
        assert guard in registry_of(manager).metered
    held.held -= 1
    await until(lambda: old.closed)
    await settle()
    assert old.closed == 1
    if change == "replace":
        assert registry_of(manager).guard("a").predecessor is None
    else:
        assert guard not in registry_of(manager).metered


@pytest.mark.parametrize("change", ["replace", "remove"])
async def test_a_stream_agent_on_its_way_out_is_gone_when_the_manager_has_shut_down(change: str) -> None:
    old, new = Peer(behaviour=lambda event: event.answer()), Peer(behaviour=lambda event: event.answer())
    async with old.listening(), new.listening():
        manager = AgentManager([agent(old)])
        async with manager:
            registry_of(manager).resolved_route(None).held += 1
            async with anyio.create_task_group() as tasks:
                if change == "replace":
                    tasks.start_soon(manager.replace_agent, agent(new))
                else:
                    tasks.start_soon(manager.remove_agent, "waf")
                await until(lambda: new.links or change == "remove")
                await settle()
                tasks.cancel_scope.cancel()
            assert len(old.links) == 1
        await until(lambda: not old.links and not new.links)
        assert registry_of(manager).metered == (() if change == "remove" else (registry_of(manager).guard("waf"),))


async def test_a_shutdown_ends_the_wait_for_connections_that_still_have_the_old_agent() -> None:
    manager = AgentManager([config("a", Fake())])
    old = fake(manager, "a")
    registry_of(manager).resolved_route(None).held += 1
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.remove_agent, "a")
            await settle()
            assert old.closed == 0
            await manager.shutdown()

    assert old.closed == 1


async def test_what_closing_an_old_agent_raises_is_told_to_whoever_waits_and_else_to_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = AgentManager([config("a", Fake())])
    fake(manager, "a").close_error = OSError("no")
    with pytest.raises(OSError, match="no"):
        await manager.replace_agent(config("a", Fake()))
    assert caplog.text == ""
    old = fake(manager, "a")
    old.close_error = OSError("no")
    held = registry_of(manager).resolved_route(None)
    held.held += 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.remove_agent, "a")
        await settle()
        tasks.cancel_scope.cancel()
    held.held -= 1
    await until(lambda: "agent 'a': its connections could not be closed" in caplog.text)


# Several at once


async def test_of_several_replacements_the_one_that_was_asked_for_last_stays() -> None:
    slow = Slow()
    manager = AgentManager([config("a", Fake(answering(OLD)))])
    old = fake(manager, "a")
    last = config("a", Fake(answering(NEW)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.replace_agent, configured(slow))
        await slow.asked.wait()
        tasks.start_soon(manager.replace_agent, last)
        await settle()
        assert await decided(manager) == 411
        slow.go.set()

    assert registry_of(manager).guard("a").config is last
    assert old.closed == 1
    assert fake(manager, "a").closed == 0


async def test_replacements_of_different_agents_do_not_wait_for_each_other() -> None:
    slow = Slow()
    manager = AgentManager([configured(), configured(id="b")])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.replace_agent, configured(slow))
        await slow.asked.wait()
        with anyio.fail_after(10):
            await manager.replace_agent(configured(id="b"))
        slow.go.set()


async def test_all_who_wait_are_told_when_the_agent_is_removed_meanwhile() -> None:
    slow = Slow()
    manager = AgentManager([configured()])
    told: list[str] = []

    async def replace_it(new: AgentConfig) -> None:
        with pytest.raises(UnknownAgentError) as caught:
            await manager.replace_agent(new)
        told.append(str(caught.value))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(replace_it, configured(slow))
        await slow.asked.wait()
        tasks.start_soon(replace_it, configured())
        await settle()
        await manager.remove_agent("a")
        slow.go.set()

    assert len(told) == 2
    assert not manager.agent_ids


# Added


async def test_an_agent_whose_adding_is_cancelled_counts_and_is_configured_later() -> None:
    manager = AgentManager()
    slow = Slow()
    new = configured(slow)
    async with manager:
        await settle()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.add_agent, new)
            await slow.asked.wait()
            tasks.cancel_scope.cancel()
        assert manager.agent_ids == ("a",)
        slow.go.set()
        await until(lambda: registry_of(manager).guard("a").configured)
        assert (await manager.process_request_headers(REQUEST)).is_allow


async def test_a_retired_stream_agent_keeps_no_pool() -> None:
    peer = Peer(behaviour=lambda event: event.answer())
    async with managing(peer, connections=1) as manager:
        client = client_in(manager)
        assert pool_of(client).connections
        await manager.remove_agent("waf")
        assert client._pools.peek() is None
        assert not client._pools._loops
