"""Turns of the calls that replace an agent."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ..errors import UnknownAgentError
from .shared_limiter import SharedLimiter


class Turns:
    """One at a time for each agent, in the order in which they were asked for, for tasks of several event loops."""

    def __init__(self) -> None:
        self._limiters: dict[str, SharedLimiter] = {}

    @asynccontextmanager
    async def turn(self, agent_id: str) -> AsyncIterator[Callable[[], None]]:
        """Wait for one. Yields a function that raises :class:`UnknownAgentError` once the turn is :meth:`void`."""
        limiter = self._limiters.setdefault(agent_id, SharedLimiter(1))

        def check() -> None:
            if self._limiters.get(agent_id) is not limiter:
                raise UnknownAgentError(f"agent {agent_id!r} was removed meanwhile")

        await limiter.acquire()
        try:
            yield check
        finally:
            limiter.release()

    def void(self, agent_id: str) -> None:
        """The agent was removed. Those who have a turn, or wait for one, were to replace it, and nothing else.

        Turns that are asked for from now on don't wait for them.
        """
        self._limiters.pop(agent_id, None)
