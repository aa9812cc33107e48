"""A strike of IpBan that is cancelled, or fails, on its way: it may be counted already."""

import anyio
import pytest

from asgi_agents import AgentError
from asgi_agents.agents import IpBan
from asgi_agents.agents.bans import Ban, Requester
from asgi_agents.testing import request_complete_event, request_headers_event, request_metadata, response_headers_event


@pytest.mark.parametrize("fails", [False, True], ids=["cancelled", "failed"])
async def test_no_request_counts_twice(fails: bool) -> None:
    agent = IpBan(after=2)
    counts, event = agent._strike, request_headers_event(metadata=request_metadata(client_ip="192.0.2.7"))

    async def counts_and_is_lost(client: Requester, rule: str | None) -> Ban | None:
        await counts(client, rule)
        if fails:
            raise AgentError("nobody answers")
        await anyio.sleep_forever()
        raise AssertionError

    assert await agent.on_request_headers(event) is None
    agent._strike = counts_and_is_lost
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:

        async def head() -> None:
            with scope:
                try:
                    await agent.on_response_headers(
                        response_headers_event(correlation_id=event.correlation_id, status=404)
                    )
                except AgentError:
                    assert fails

        tasks.start_soon(head)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
    agent._strike = counts
    await agent.on_request_complete(request_complete_event(correlation_id=event.correlation_id, status=404))
    assert await agent.on_request_headers(event) is None
