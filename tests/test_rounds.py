"""What many tasks want at a time is made once."""

import gc
import weakref

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents.concurrency.rounds import Rounds


class Made:
    def __init__(self, number: int) -> None:
        self.number = number


class Making:
    """Makes one thing after the other, each when it is told to."""

    def __init__(self, *, anew: bool) -> None:
        self.rounds: Rounds[Made] = Rounds(anew=anew)
        self.begun = 0
        self.gates: list[anyio.Event] = []
        self.failing = False
        self.got: dict[str, Made | str] = {}

    async def make(self) -> Made:
        self.begun += 1
        number = self.begun
        gate = anyio.Event()
        self.gates.append(gate)
        await gate.wait()
        if self.failing:
            raise OSError(f"of {number}")
        return Made(number)

    async def ask(self, name: str) -> None:
        try:
            self.got[name] = await self.rounds.take(self.make)
        except OSError as exc:
            self.got[name] = str(exc)

    def numbers(self) -> dict[str, int | str]:
        return {name: made if isinstance(made, str) else made.number for name, made in self.got.items()}


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await checkpoint()


@pytest.mark.parametrize("anew", [False, True])
async def test_those_that_ask_while_it_is_made_get_this_one_or_the_next_together(anew: bool) -> None:
    making = Making(anew=anew)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(making.ask, "first")
        await settle()
        for name in "abc":
            tasks.start_soon(making.ask, name)
        await settle()
        assert making.begun == 1
        making.gates[0].set()
        await settle()
        assert making.begun == 1 + anew
        making.gates[-1].set()
    assert making.numbers() == {"first": 1, **dict.fromkeys("abc", 1 + anew)}
    # Nobody makes anything now: who asks gets nothing of before.
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(making.ask, "later")
        await settle()
        making.gates[-1].set()
    assert making.numbers()["later"] == 2 + anew


@pytest.mark.parametrize("anew", [False, True])
async def test_where_the_one_that_makes_it_is_cancelled_another_does(anew: bool) -> None:
    making = Making(anew=anew)
    async with anyio.create_task_group() as tasks:
        first = anyio.CancelScope()

        async def cancelled() -> None:
            with first:
                await making.ask("first")

        tasks.start_soon(cancelled)
        await settle()
        for name in "ab":
            tasks.start_soon(making.ask, name)
        await settle()
        first.cancel()
        await settle()
        assert making.begun == 2
        making.gates[1].set()
    assert making.numbers() == {"a": 2, "b": 2}


@pytest.mark.parametrize("anew", [False, True])
async def test_where_it_fails_the_others_try_it_themselves(anew: bool) -> None:
    making = Making(anew=anew)
    making.failing = True
    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(making.ask, name)
        for number in range(3):
            await settle()
            making.gates[number].set()
    assert set(making.numbers().values()) == {"of 1", "of 2", "of 3"}


async def test_nothing_keeps_what_was_made() -> None:
    making = Making(anew=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(making.ask, "a")
        await settle()
        making.gates[0].set()
    made = making.got.pop("a")
    kept = weakref.ref(made) if isinstance(made, Made) else None
    assert kept is not None
    del made
    gc.collect()
    assert kept() is None
