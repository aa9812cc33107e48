"""Batches of inspections, without a cluster: what Ray Serve collects only in a replica is collected here."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest

serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")

from asgi_agents import Agent, GuardrailInspectEvent, GuardrailResponse
from asgi_agents.ray import Batching
from asgi_agents.ray.batching import batched


class Fragile(Agent):
    """Can't judge one text, and so raises an exception for each batch that has it."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        raise AssertionError

    async def inspect_batch(self, events: Sequence[Any]) -> Sequence[str]:
        self.batches.append(len(events))
        if "poison" in events:
            raise ValueError("can't be read")
        return [f"{event}!" for event in events]


def collect(max_batch_size: int, **_: object) -> Callable[[Callable[[list[Any]], Awaitable[list[Any]]]], Any]:
    """As ``serve.batch``, of batches that become full."""

    def decorate(judge: Callable[[list[Any]], Awaitable[list[Any]]]) -> Any:
        asked: list[Any] = []
        outcomes: list[Any] = []
        judged = anyio.Event()

        async def one(each: Any) -> Any:
            place = len(asked)
            asked.append(each)
            if len(asked) == max_batch_size:
                try:
                    outcomes.extend(await judge(asked))
                finally:
                    judged.set()
            await judged.wait()
            return outcomes[place]

        return one

    return decorate


async def test_what_can_not_be_judged_takes_no_other_of_its_batch_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "batch", collect)
    agent = Fragile()
    batched(agent, Batching(max_size=3))
    judge: Any = agent.on_guardrail_inspect
    found: dict[str, object] = {}

    async def ask(text: str) -> None:
        try:
            found[text] = await judge(text)
        except ValueError as exc:
            found[text] = str(exc)

    async with anyio.create_task_group() as tasks:
        for text in ("a", "poison", "b"):
            tasks.start_soon(ask, text)
    assert found == {"a": "a!", "poison": "can't be read", "b": "b!"}
    assert agent.batches == [3, 1, 1, 1]
