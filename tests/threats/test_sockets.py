"""What a neighbour on the same machine can do with the sockets of agents."""

import os
import stat
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from asgi_agents import Agent, AgentConfig, AgentResponse, ConfigurationError, FailureMode, RequestHeadersEvent
from asgi_agents.serve import serve_stream
from asgi_agents.serve.sockets import listen
from asgi_agents.transports.wire import parse_address

from .asking import ask


async def test_a_socket_is_for_its_owner_and_group_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    for umask in (0o000, 0o022, 0o077):
        before = os.umask(umask)
        try:
            (listening,) = await listen(parse_address("bind", f"unix://{path}"))
        finally:
            os.umask(before)
        try:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        finally:
            listening.close()
        assert not path.exists()


async def test_what_stands_where_a_socket_should_be_is_never_replaced_or_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "agent.sock"
    victim.write_text("precious")
    victim.chmod(0o600)
    address = parse_address("bind", f"unix://{path}")

    for target in (victim, tmp_path / "missing", tmp_path):
        path.symlink_to(target)
        with pytest.raises((ConfigurationError, OSError)):
            await listen(address)
        assert path.is_symlink()
        path.unlink()
    path.write_text("a file")
    with pytest.raises(ConfigurationError):
        await listen(address)

    assert path.read_text() == "a file"
    assert victim.read_text() == "precious"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert not (tmp_path / "missing").exists()


async def test_a_socket_that_is_served_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    address = parse_address("bind", f"unix://{path}")
    (first,) = await listen(address)
    try:
        with pytest.raises(OSError, match="in use"):
            await listen(address)
        assert path.exists()
    finally:
        first.close()


async def test_a_socket_that_is_no_agents_is_the_failure_mode(tmp_path: Path) -> None:
    """A neighbour that listens there first can't make a request pass by saying nothing, or nonsense."""
    path = tmp_path / "agent.sock"

    async def nonsense(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b"\x00\x00\x00\x02{}")

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, nonsense)
        client, _, app = await ask(AgentConfig("agent", f"unix://{path}", timeout=0.5, failure_mode=FailureMode.CLOSED))
        tasks.cancel_scope.cancel()

    assert client.status == 503
    assert app.calls == 0


async def test_a_served_agent_answers_whoever_reaches_it(tmp_path: Path) -> None:
    """What is not defended: it asks no caller who it is; file modes, client certificates and networks have to."""
    path = tmp_path / "agent.sock"

    class Blocks(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
            return AgentResponse.block(418)

    async with anyio.create_task_group() as tasks:
        await tasks.start(_serve, Blocks(), f"unix://{path}")
        client, _, _ = await ask(AgentConfig("stranger", f"unix://{path}", timeout=10))
        tasks.cancel_scope.cancel()

    assert client.status == 418


async def _serve(agent: Agent, address: str, *, task_status: Any) -> None:
    await serve_stream(agent, address, task_status=task_status)
