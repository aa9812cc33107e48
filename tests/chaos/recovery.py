"""What has to be true again when every agent is well: all is inspected, and nothing is left of what went wrong."""

import asyncio
import itertools
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .checks import LOGGED, NOT_RECOVERED, Checker, Violation
from .clients import Client
from .fleet import Fleet, until
from .http_client import Ending, HttpConnection
from .stamps import Reading, Seal
from .targets import TARGETS, Target
from .texts import SAMPLES, TEXT_TARGETS

# Rounds, one after the other, in which nothing is amiss.
_ROUNDS = 3
#: Seconds in which that has to come about. The longest step of a backoff is 5; the rest is for a machine that has
#: better things to do.
PATIENCE = 40.0
# How a server is told to close the connection; it logs every exception.
_BROKEN_OFF = "asgi_agents.errors.ResponseAborted: "


async def recovered(client: Client) -> tuple[float, list[Violation]]:
    """Ask for everything everywhere until all is well; returns the seconds that it took, and what is still amiss."""
    began = time.monotonic()
    rounds = 0
    amiss: list[str] = []
    while rounds < _ROUNDS and time.monotonic() - began < PATIENCE:
        amiss = [
            f"{target.path}/{what}: {outcome}"
            for target in TARGETS
            for what, wanted in (("echo", "200"), ("upload", "200"), ("events", "200"), ("socket", "ws 101"))
            if (outcome := await client.ask(target, what)) != wanted
        ]
        amiss += [
            f"{target.path}/{dialect}: {outcome}"
            for target, dialect in zip(TEXT_TARGETS, itertools.cycle(SAMPLES), strict=False)
            if (outcome := await client.read(target, dialect)) != "200"
        ]
        rounds = 0 if amiss else rounds + 1
        await asyncio.sleep(0.1)
    seconds = time.monotonic() - began
    if rounds < _ROUNDS:
        return seconds, [Violation(NOT_RECOVERED, "", "", line) for line in amiss]
    return seconds, []


async def inspected(target: Target, port: int, seals: Mapping[str, Seal]) -> list[Violation]:
    """Whether every agent of a fail-open route is asked as well."""
    connection = HttpConnection(port, PATIENCE)
    token = f"recovered-{target.path.replace('/', '-')}"
    got = await connection.request("GET", f"{target.path}/echo", [("x-request-id", token)])
    connection.close()
    return [
        Violation(NOT_RECOVERED, token, target.path, f"{agent} was not asked")
        for agent in target.agents
        if got.ending is not Ending.COMPLETE
        or seals[agent].read(got.headers.get(f"x-seen-{agent}"), token, "request") is not Reading.VALID
    ]


async def at_rest(fleet: Fleet) -> list[Violation]:
    """Whether nothing is under way in the app, soon after nobody wants anything of it any more."""
    found: list[str] = []

    async def nothing_left() -> bool:
        found[:] = left(await fleet.statistics())
        return not found

    with suppress(AssertionError):
        await until(nothing_left, lambda: found, PATIENCE)
    return [Violation(NOT_RECOVERED, "", "", line) for line in found]


def left(statistics: Any) -> list[str]:
    """What is still under way, or not as it should be.

    An endpoint that is ejected is as it should be: others stand in for it, and it is not asked before its time.
    """
    found = [f"{statistics['open']} correlation ids"] if statistics["open"] else []
    for agent, state in statistics["agents"].items():
        found += [f"{agent}: {name} {state[name]}" for name in ("in_flight", "waiting") if state[name]]
        if state["breaker"] != "closed":
            found.append(f"{agent}: its breaker is {state['breaker']}")
        found += [
            f"{agent}: {endpoint}"
            for endpoint in state["endpoints"]
            if endpoint["in_flight"] or endpoint["state"] not in ("up", "ejected")
        ]
    return found


def reached(statistics: Any, checker: Checker) -> list[Violation]:
    """Poison that has come as far as the app."""
    targets = {target.path: target for target in TARGETS}
    return [
        violation
        for path, token in statistics["poisoned"]
        for violation in checker.reached(targets[path.rpartition("/")[0]], token, path)
    ]


def logged(said: str) -> list[Violation]:
    """Errors in the app's log, other than how a response is broken off."""
    found = [line for line in said.splitlines() if "never retrieved" in line or "never awaited" in line]
    within = False
    for line in said.splitlines():
        if line.startswith("Traceback "):
            within = True
        elif within and line and not line.startswith(" "):
            within = False
            if not line.startswith(_BROKEN_OFF):
                found.append(line)
    return [Violation(LOGGED, "", "", line) for line in found]
