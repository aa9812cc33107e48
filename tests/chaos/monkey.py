"""Does what the schedule says, and puts everything right in the end."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping

from .corruption import Wire
from .fleet import QUICK, SLOW, Instance
from .schedule import Blow, Injection, Kind


class Monkey:
    """Has all instances at its mercy."""

    def __init__(self, instances: Mapping[str, Instance]) -> None:
        self._instances = instances
        #: What was done, and how often.
        self.done: Counter[Kind] = Counter()

    async def run(self, schedule: Iterable[Injection]) -> None:
        """Inject all of ``schedule``, and return when every agent is as it was before."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for injection in schedule:
                await asyncio.sleep(max(0.0, began + injection.at - time.monotonic()))
                tasks.create_task(self._inject(injection))

    async def _inject(self, injection: Injection) -> None:
        instance = self._instances[injection.instance]
        # One at a time for each, or a process that is being started would be killed by the signal that slows it.
        async with instance.turn:
            self.done[injection.kind] += 1
            if isinstance(injection.kind, Blow):
                await _strike(instance, injection.kind, injection.duration)
            else:
                await _disturb(instance, injection.kind, injection.duration)


async def _strike(instance: Instance, blow: Blow, duration: float) -> None:
    process = instance.process
    match blow:
        case Blow.KILL:
            process.kill()
            await asyncio.sleep(duration)
        case Blow.RESTART:
            process.kill()
        case Blow.DRAIN:
            process.send(signal.SIGTERM)
            await asyncio.to_thread(process.end)
        case Blow.FREEZE:
            process.send(signal.SIGSTOP)
            await asyncio.sleep(duration)
            process.send(signal.SIGCONT)
        case Blow.SLOW:
            process.send(SLOW)
            await asyncio.sleep(duration)
            process.send(QUICK)
    if process.ended:
        process.start()
        await instance.up()


async def _disturb(instance: Instance, wire: Wire, duration: float) -> None:
    assert instance.proxy is not None
    instance.proxy.wire = wire
    await asyncio.sleep(duration)
    instance.proxy.wire = None
