"""Inspections that are judged several at a time: a model takes hardly longer for thirty texts than for one."""

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from msgspec import Struct

from ..agent import Agent
from ..errors import ConfigurationError
from ..guardrails import TextGuardrail

#: What judges a batch, and what judges one, by the class of the agent.
_OF_TEXT: Final = ("check_batch", "check")
_OF_OTHERS: Final = ("inspect_batch", "on_guardrail_inspect")


class Batching(Struct, frozen=True, kw_only=True):
    """How inspections of one replica are collected (``serve.batch``).

    :param max_size: how many are judged at once, at most.
    :param wait: seconds that the first of them waits for more.
    :param at_a_time: how many batches are judged at a time.
    :raises ConfigurationError: for numbers that can't work.
    """

    max_size: int = 32
    wait: float = 0.005
    at_a_time: int = 1

    def __post_init__(self) -> None:
        for name, number in (("max_size", self.max_size), ("at_a_time", self.at_a_time)):
            if type(number) is not int or number < 1:
                raise ConfigurationError(f"Batching: {name}={number!r}, expected a whole number of at least 1")
        if type(self.wait) not in (int, float) or not math.isfinite(self.wait) or self.wait < 0:
            raise ConfigurationError(f"Batching: wait={self.wait!r}, expected seconds")


class _Failed(Struct, frozen=True):
    """There is no verdict, and why."""

    exc: Exception


def require_batches(where: str, kind: object) -> None:
    """Raise :class:`ConfigurationError` for a class of agents, or an agent, that judges no batches."""
    of_text = issubclass(kind, TextGuardrail) if isinstance(kind, type) else isinstance(kind, TextGuardrail)
    name, _ = _OF_TEXT if of_text else _OF_OTHERS
    if not inspect.iscoroutinefunction(getattr(kind, name, None)):
        takes = "windows" if of_text else "events"
        shown = kind.__name__ if isinstance(kind, type) else type(kind).__name__
        raise ConfigurationError(f"{where}: batching of {shown}, expected it to have 'async def {name}(self, {takes})'")


def batched(agent: Agent, batching: Batching) -> None:
    """Let ``agent`` judge in batches what it is asked one at a time. A batch that fails is judged one by one.

    A :class:`~asgi_agents.TextGuardrail` has ``check_batch``, which takes windows and returns for each what ``check``
    would. Others have ``inspect_batch``, which takes events and returns for each what ``on_guardrail_inspect`` would.
    """
    from ray import serve

    require_batches("agent_deployment", agent)
    several, one = _OF_TEXT if isinstance(agent, TextGuardrail) else _OF_OTHERS
    judge: Callable[[list[Any]], Awaitable[Sequence[Any]]] = getattr(agent, several)

    async def together(asked: list[Any]) -> list[Any]:
        try:
            verdicts = await judge(asked)
            if not isinstance(verdicts, list | tuple) or len(verdicts) != len(asked):
                # A verdict must never be taken for another's.
                raise TypeError(f"{several} of {len(asked)}: expected as many verdicts, in their order")
        except Exception as exc:
            if len(asked) == 1:
                return [_Failed(exc)]
            # One client's text that can't be judged must not leave those of others without a verdict.
            return [outcome for each in asked for outcome in await together([each])]
        return list(verdicts)

    collected = serve.batch(
        max_batch_size=batching.max_size,
        batch_wait_timeout_s=batching.wait,
        max_concurrent_batches=batching.at_a_time,
    )(together)

    async def alone(asked: Any) -> Any:
        outcome = await collected(asked)
        if isinstance(outcome, _Failed):
            raise outcome.exc
        return outcome

    setattr(agent, one, alone)
