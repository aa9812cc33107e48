"""A hook is called with its event, and one that can't be is refused when it is configured."""

import functools
from typing import Any

import pytest

from asgi_agents import Agent, AgentConfig, ConfigurationError, InProcessTransport
from asgi_agents.agent import HOOKS
from tests.support.sample_events import RESPONSE_HEAD as EVENT


def _hooks_with_other_parameters() -> list[tuple[str, Any]]:
    async def none() -> None: ...
    async def only_self(self: Any) -> None: ...
    async def more(self: Any, event: Any, database: Any) -> None: ...
    async def keyword(self: Any, event: Any, *, database: Any) -> None: ...
    async def by_name(self: Any, *, event: Any) -> None: ...

    @functools.wraps(more)
    async def wrapper(self: Any) -> None: ...

    return [
        ("()", none),
        ("(self)", only_self),
        ("(self, event, database)", more),
        ("(self, event, *, database)", keyword),
        ("(self, *, event)", by_name),
        ("(self)", wrapper),
        ("(self, event, database), a static method,", staticmethod(more)),
        ("(), a static method,", staticmethod(none)),
        ("(self)", classmethod(only_self)),
    ]


@pytest.mark.parametrize("hook", HOOKS.values())
@pytest.mark.parametrize(("written", "function"), _hooks_with_other_parameters(), ids=lambda each: str(each)[:12])
def test_a_hook_that_takes_something_else_than_the_event_is_refused(hook: str, written: str, function: Any) -> None:
    kind: Any = type("Waf", (Agent,), {hook: function})

    with pytest.raises(ConfigurationError) as raised:
        AgentConfig("waf", kind())

    fault = f"Waf.{hook}{written} can't be called with an event alone, expected {hook}(self, event)"
    assert str(raised.value) == f"AgentConfig('waf'): {fault}"


def _hooks_with_fitting_parameters() -> list[Any]:
    async def plain(self: Any, event: Any) -> None: ...
    async def default(self: Any, event: Any, database: Any = None) -> None: ...
    async def anything(*args: Any, **kwargs: Any) -> None: ...
    async def event_only(event: Any) -> None: ...

    @functools.wraps(default)
    async def filled_in(self: Any, event: Any) -> None: ...

    return [plain, default, anything, filled_in, staticmethod(event_only), classmethod(plain)]


@pytest.mark.parametrize("function", _hooks_with_fitting_parameters(), ids=range(6))
async def test_a_hook_that_can_be_called_with_the_event_is_called(function: Any) -> None:
    kind: Any = type("Waf", (Agent,), {"on_response_headers": function})
    transport = InProcessTransport(kind())

    assert await transport.call(EVENT) is None
