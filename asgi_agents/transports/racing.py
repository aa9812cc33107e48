"""Connects to a host that has several addresses, on asyncio (RFC 8305)."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any, Final

#: Seconds that the next address of a host waits for the one before it (RFC 8305, section 5).
ATTEMPT_DELAY: Final = 0.25


def is_ip_address(host: str) -> bool:
    """Whether there is nothing to look up."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return True
    return False


async def connect_socket(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A socket that is connected to one of a host's addresses (RFC 8305).

    asyncio would wait for one address after the other, which takes minutes where one of them does not answer; what it
    can do about that, uvloop can't.
    """
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    attempts: dict[asyncio.Task[socket.socket], None] = {}
    waiting = _in_turns(found)
    faults: list[BaseException] = []
    winner: socket.socket | None = None
    try:
        while waiting or attempts:
            if waiting:
                attempts[loop.create_task(_attempt(loop, waiting.pop(0)))] = None
            done, _ = await asyncio.wait(
                attempts, timeout=ATTEMPT_DELAY if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                fault = task.exception()
                if fault is None:
                    winner = task.result()
                    attempts.pop(task)
                    return winner
                faults.append(fault)
                attempts.pop(task)
    finally:
        for task in attempts:
            task.cancel()
            # It may have succeeded already, or be about to.
            task.add_done_callback(_close_result)
    raise faults[0] if len({str(fault) for fault in faults}) == 1 else OSError("; ".join(map(str, faults)))


async def _attempt(loop: asyncio.AbstractEventLoop, found: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = found
    attempt = socket.socket(family, kind, protocol)
    try:
        attempt.setblocking(False)
        await loop.sock_connect(attempt, address)
    except BaseException:
        attempt.close()
        raise
    return attempt


def _close_result(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _in_turns(found: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The family of the first address and the others in turns (RFC 8305, section 4)."""
    first = [each for each in found if each[0] == found[0][0]]
    others = [each for each in found if each[0] != found[0][0]]
    return [each for each in chain.from_iterable(zip_longest(first, others)) if each is not None]
