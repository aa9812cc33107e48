"""A plugin for pytest: fixtures with the test kit of asgi-agents, ``asgi_agents.testing``.

pytest finds it where asgi-agents is installed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

import pytest
from starlette.types import ASGIApp

from .overriding import Replacement, override_agents
from .recording import Recording
from .virtual_time import virtual_time as in_virtual_time

#: From the name of a backend to what the fixture ``anyio_backend`` returns.
VirtualTime = Callable[[str], tuple[str, dict[str, Any]]]


class AgentOverrides(Protocol):
    """The type of the fixture :func:`agent_overrides`."""

    def __call__(
        self, app: ASGIApp, agents: Mapping[str, Replacement] | None = None, /, **more: Replacement
    ) -> Recording:
        """Put agents in the places of others, until the test is over."""
        ...


@pytest.fixture
def agent_overrides() -> Iterator[AgentOverrides]:
    """``agent_overrides(app, waf=FakeAgent())``: :func:`asgi_agents.testing.override_agents`, until the test is over.

    Returns the :class:`asgi_agents.testing.Recording`. May be called more than once.
    """
    with ExitStack() as stack:

        def override(
            app: ASGIApp, agents: Mapping[str, Replacement] | None = None, /, **more: Replacement
        ) -> Recording:
            return stack.enter_context(override_agents(app, agents, **more))

        yield override


@pytest.fixture
def virtual_time() -> Iterator[VirtualTime]:
    """``virtual_time("asyncio")``, in a fixture ``anyio_backend``: coroutine functions are run in virtual time.

    ::

        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request, virtual_time):
            return virtual_time(request.param)

    The limits are those of :func:`asgi_agents.testing.virtual_time`.
    """
    with ExitStack() as stack:

        def virtual(backend: str) -> tuple[str, dict[str, Any]]:
            return stack.enter_context(in_virtual_time(backend))

        yield virtual
