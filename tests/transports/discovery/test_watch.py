"""When a name is looked up, and what its members are between two lookups. In virtual time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from asgi_agents.errors import AgentConnectionError
from asgi_agents.transports.discovery import Watch
from tests.support.names import Names, no_such_name
from tests.support.virtual_time import nothing_comes_from_outside

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
NAME = "waf.test"


class Followed:
    """A watch, and what it has told."""

    def __init__(self, names: Names, **options: Any) -> None:
        nothing_comes_from_outside()
        self.told: list[list[str]] = []
        self.watch = Watch(NAME, 9000, where="waf at waf.test", changed=self._changed, resolver=names, **options)

    @property
    def hosts(self) -> list[str]:
        return [member.host for member in self.watch.members]

    def _changed(self) -> None:
        self.told.append(self.hosts)


@asynccontextmanager
async def following(names: Names, **options: Any) -> AsyncIterator[Followed]:
    followed = Followed(names, **options)
    try:
        yield followed
    finally:
        followed.watch.cancel()
        await followed.watch.wait()


def log(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname}: {record.getMessage()}" for record in caplog.records if record.name == "asgi_agents"]


async def test_a_name_is_looked_up_at_once_and_every_five_seconds() -> None:
    names = Names({NAME: [A, B]})
    async with following(names) as followed:
        await followed.watch.ready()
        assert followed.hosts == [A, B]
        await anyio.sleep(60)
    pauses = [later - earlier for earlier, later in zip(names.times, names.times[1:], strict=False)]
    assert len(pauses) >= 12
    assert all(4.5 <= pause <= 5.01 for pause in pauses)
    # Not at the same time as all others.
    assert len({round(pause, 2) for pause in pauses}) > 1
    assert followed.told == [[A, B]]


@pytest.mark.parametrize("interval", [0.2, 30.0])
async def test_the_interval_can_be_another(interval: float) -> None:
    names = Names({NAME: [A]})
    async with following(names, interval=interval):
        await anyio.sleep(10 * interval)
    assert 10 <= len(names.lookups) <= 13


async def test_a_change_is_told_within_the_interval_and_once() -> None:
    names = Names({NAME: [A, B, C]})
    async with following(names) as followed:
        await followed.watch.ready()
        for addresses in ([A, B], [A, B], [B, A], [C, B]):
            names.answers[NAME] = addresses
            await anyio.sleep(5.1)
            assert set(followed.hosts) == set(addresses)
    assert len(followed.told) <= 4
    assert [set(told) for told in followed.told if told != [B, A]] == [{A, B, C}, {A, B}, {C, B}]


async def test_the_order_of_an_answer_is_no_change() -> None:
    """Resolvers rotate their answers."""
    names = Names({NAME: [A, B, C]})
    async with following(names) as followed:
        await followed.watch.ready()
        for addresses in ([B, C, A], [C, A, B], [A, B, C]):
            names.answers[NAME] = addresses
            await anyio.sleep(5.1)
    assert followed.told == [[A, B, C]]


async def test_after_a_failure_the_name_is_looked_up_at_once() -> None:
    names = Names({NAME: [A, B]})
    async with following(names) as followed:
        await followed.watch.ready()
        await anyio.sleep(2)
        names.answers[NAME] = [B]
        followed.watch.failed()
        await anyio.sleep(0.01)
        assert followed.hosts == [B]


async def test_however_much_fails_there_is_one_lookup_a_second() -> None:
    names = Names({NAME: [A, B]})
    async with following(names) as followed:
        await followed.watch.ready()
        for _ in range(1000):
            followed.watch.failed(followed.watch.members[0])
            await anyio.sleep(0.01)
    assert 9 <= len(names.lookups) <= 12


async def test_a_failure_during_a_lookup_is_followed_by_another() -> None:
    go_on = anyio.Event()
    lookups = 0

    async def slow(host: str, port: int) -> list[str]:
        nonlocal lookups
        lookups += 1
        await go_on.wait()
        return [A]

    followed = Followed(slow)  # type: ignore[arg-type]
    await anyio.wait_all_tasks_blocked()
    followed.watch.failed()
    go_on.set()
    await anyio.sleep(1.1)
    assert lookups == 2
    followed.watch.cancel()


@pytest.mark.parametrize("answer", [no_such_name(), OSError("no network"), ValueError("label too long"), ()])
async def test_what_a_name_has_led_to_last_holds_while_it_can_not_be_looked_up(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "asgi_agents")
    names = Names({NAME: [A, B]})
    async with following(names) as followed:
        await followed.watch.ready()
        names.answers[NAME] = answer
        await anyio.sleep(600)
        assert followed.hosts == [A, B]
        assert len(names.lookups) >= 120
        names.answers[NAME] = [B, C]
        await anyio.sleep(5.1)
        assert followed.hosts == [B, C]
    assert followed.told == [[A, B], [B, C]]
    failed, again, changed = log(caplog)
    assert failed.startswith("WARNING: waf at waf.test: ")
    assert failed.endswith("; what it has led to last holds (2)")
    assert again == "INFO: waf at waf.test: it can be looked up again"
    assert changed == "INFO: waf at waf.test leads to 2 addresses now: 1 are new, 1 are gone"


async def test_a_name_that_never_led_to_anything_is_looked_up_after_waits_that_grow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = Names({NAME: no_such_name()})
    async with following(names) as followed:
        with pytest.raises(AgentConnectionError, match=r"gaierror: .*Name or service not known"):
            await followed.watch.ready()
        await anyio.sleep(20)
        pauses = [later - earlier for earlier, later in zip(names.times, names.times[1:], strict=False)]
        assert pauses[0] <= 0.11
        assert all(2.5 <= pause <= 5.01 for pause in pauses[6:])
        # Whoever waits for it is told each time.
        assert followed.told == [[]] * len(names.lookups)
        names.answers[NAME] = [A]
        await anyio.sleep(5.1)
        await followed.watch.ready()
        assert followed.told[-1] == [A]
    assert log(caplog)[0].endswith("looking it up again")


async def test_whoever_wants_a_name_that_can_not_be_found_has_it_looked_up_within_a_second() -> None:
    names = Names({NAME: no_such_name()})
    async with following(names) as followed:
        await anyio.sleep(30)
        names.answers[NAME] = [A]
        with pytest.raises(AgentConnectionError):
            await followed.watch.ready()
        await anyio.sleep(1.1)
        await followed.watch.ready()


async def test_a_resolver_that_raises_anything_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    names = Names({NAME: RuntimeError("out of order")})
    async with following(names) as followed:
        with pytest.raises(AgentConnectionError, match="RuntimeError"):
            await followed.watch.ready()
        names.answers[NAME] = [A]
        await anyio.sleep(1)
        assert followed.hosts == [A]
    assert "ERROR: waf at waf.test can't be looked up" in log(caplog)


async def test_one_lookup_at_a_time_however_long_it_takes() -> None:
    running = most = 0

    async def slow(host: str, port: int) -> list[str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(30)
        running -= 1
        return [A]

    followed = Followed(slow)  # type: ignore[arg-type]
    for _ in range(100):
        followed.watch.failed()
        await anyio.sleep(1)
    assert most == 1
    followed.watch.cancel()


async def test_those_who_wait_are_told_when_it_is_closed() -> None:
    async def never(host: str, port: int) -> list[str]:
        await anyio.sleep_forever()
        return []

    followed = Followed(never)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_later, followed.watch)
        with pytest.raises(AgentConnectionError, match="being closed"):
            await followed.watch.ready()


async def _cancel_later(watch: Watch) -> None:
    await anyio.sleep(1)
    watch.cancel()


async def test_nothing_is_looked_up_after_the_end() -> None:
    names = Names({NAME: [A]})
    async with following(names) as followed:
        await followed.watch.ready()
    count = len(names.lookups)
    await anyio.sleep(60)
    assert len(names.lookups) == count


async def test_changes_that_go_on_and_on_are_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Some names lead elsewhere each time they are looked up."""
    caplog.set_level("INFO", "asgi_agents")
    names = Names({NAME: [A, B]})
    async with following(names) as followed:
        await followed.watch.ready()
        for number in range(100):
            names.answers[NAME] = [f"10.0.1.{number}", f"10.0.2.{number}"]
            await anyio.sleep(5.1)
    assert 5 <= len(log(caplog)) <= 10


async def test_addresses_that_are_left_out_are_told(caplog: pytest.LogCaptureFixture) -> None:
    names = Names({NAME: [f"10.0.0.{number}" for number in range(120)]})
    async with following(names) as followed:
        await followed.watch.ready()
        assert len(followed.hosts) == 100
        await anyio.sleep(20)
    assert log(caplog) == ["WARNING: waf at waf.test leads to too many addresses: 20 are left out"]
