"""Clients that want all sorts of things, one after the other, and have every outcome checked."""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import websockets
from websockets.asyncio.client import ClientConnection, connect

from .app import content
from .checks import Checker, Sent, Session, Violation
from .http_client import Ending, Got, HttpConnection
from .stamps import POISON
from .targets import TARGETS, Target
from .texts import REASONS, SAMPLES, TEXT_TARGETS, Asked, TextTarget

#: Seconds after which what has not come never will. The longest that may come is a dozen pieces of a streamed body,
#: each of them judged by two agents that are given 0.7 s.
PATIENCE: Final = 40.0
# Seconds that a client takes to think.
_PAUSE: Final = 0.005
_HTTP: Final = ("echo", "upload", "download", "sized", "events")
# Of all that clients ask for, the part that is streams whose texts are judged.
_TEXTS: Final = 0.3
_WHAT: Final = (*_HTTP, "socket")


@dataclass
class Results:
    """What has come of everything."""

    began: float = field(default_factory=time.monotonic)
    violations: list[Violation] = field(default_factory=list)
    #: By path and by outcome.
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    #: Seconds that requests took, by path.
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, target: Target | TextTarget, outcome: str, seconds: float, violations: Sequence[Violation]) -> None:
        """Count one."""
        self.outcomes[target.path][outcome] += 1
        self.seconds[target.path].append(seconds)
        now = time.monotonic() - self.began
        self.violations += [violation._replace(when=now) for violation in violations]


class Client:
    """Asks for one thing at a time, over a connection that it keeps while it can."""

    def __init__(self, name: str, port: int, checker: Checker, results: Results, chance: random.Random) -> None:
        self._name = name
        self._port = port
        self._checker = checker
        self._results = results
        self._chance = chance
        self._connection = HttpConnection(port, PATIENCE)
        self._count = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Ask for anything until told to stop."""
        while not stop.is_set():
            target, what = self._chance.choice(TARGETS), self._chance.choice(_WHAT)
            roll = self._chance.random()
            if roll < _TEXTS:
                await self.read(self._chance.choice(TEXT_TARGETS), self._chance.choice(tuple(SAMPLES)))
                await asyncio.sleep(self._chance.uniform(0, 2 * _PAUSE))
                continue
            roll = self._chance.random()
            if roll < 0.03:
                await self._abandon(target, what)
            else:
                await self.ask(target, what, poisoned=roll < 0.18)
            await asyncio.sleep(self._chance.uniform(0, 2 * _PAUSE))
        self.close()

    async def ask(self, target: Target, what: str, *, poisoned: bool = False) -> str:
        """Ask for ``what``; returns the outcome."""
        if what == "socket":
            return await self._talk(target, poisoned=poisoned)
        sent, method, headers, body = self._request(target, what, poisoned=poisoned)
        chunked = what == "upload" and self._chance.random() < 0.5
        got = await self._connection.request(method, sent.path, headers, body, chunked=chunked)
        outcome = _outcome(sent, got)
        self._results.add(target, outcome, got.seconds, self._checker.response(sent, got))
        return outcome

    async def read(self, target: TextTarget, dialect: str) -> str:
        """Ask for a stream of a language model, and read all of it; returns the outcome."""
        asked = Asked(target, self._token(), dialect)
        headers = [("x-request-id", asked.token), ("content-type", "application/json")]
        got = await self._connection.request("POST", asked.path, headers, [b'{"messages": [], "stream": true}'])
        outcome = f"{got.status}" if got.ending is Ending.COMPLETE else f"{got.status} {got.ending.value}"
        if got.status == 200 and any(reason.encode() in got.body for reason in REASONS):
            outcome = "200 stopped"
        self._results.add(target, outcome, got.seconds, self._checker.texts(asked, got))
        return outcome

    def close(self) -> None:
        """Have done with the connection."""
        self._connection.close()

    def _token(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def _request(
        self, target: Target, what: str, *, poisoned: bool
    ) -> tuple[Sent, str, list[tuple[str, str]], list[bytes]]:
        token, chance = self._token(), self._chance
        headers = [("x-request-id", token)]
        if chance.random() < 0.1:
            # Somebody who would like to be taken for inspected.
            headers += [(f"x-inspected-{agent}", "forged") for agent in target.agents]
        poison = chance.choice(("head", "body" if what == "upload" else "response")) if poisoned else ""
        if what == "echo":
            poison = poison and "head"
        if poison == "head":
            headers.append(("x-poison", "head"))
        if what in ("echo", "upload"):
            body: list[bytes] = []
            if what == "upload":
                body = [b"%b %d;" % (token.encode(), number) * chance.randrange(1, 200) for number in range(5)]
                if poison == "body":
                    # At the beginning of a piece, which arrives in one.
                    number = chance.randrange(len(body))
                    body[number] = POISON + body[number]
            sent = Sent(target, token, f"{target.path}/echo", b"".join(body), poison, echoes=True)
            return sent, "POST" if body else "GET", headers, body
        chunks, leak = chance.randrange(1, 6), poison == "response"
        path = f"{target.path}/{what}?chunks={chunks}" + ("&leak=1" if leak else "")
        plain = b"".join(content(token, chunks, leak=leak))
        return Sent(target, token, path, plain, poison, events=what == "events"), "GET", headers, []

    async def _abandon(self, target: Target, what: str) -> None:
        """Go away before there is an answer, or in the middle of it."""
        began = time.monotonic()
        connection = HttpConnection(self._port, PATIENCE)
        path = f"{target.path}/{'echo' if what in ('upload', 'socket') else what}?chunks=5"
        headers = [("x-request-id", self._token())]
        await connection.abandon(
            "POST" if what == "upload" else "GET", path, headers, self._chance.choice((0.0, 0.01, 0.05))
        )
        self._results.add(target, "gone away", time.monotonic() - began, ())

    async def _talk(self, target: Target, *, poisoned: bool) -> str:
        began = time.monotonic()
        session = await self._session(target, poisoned=poisoned and target.hears_messages)
        outcome = f"ws {session.status}"
        if session.close is not None:
            outcome = f"ws {session.close[0]} {session.close[1]}"
        self._results.add(target, outcome, time.monotonic() - began, self._checker.session(session))
        return outcome

    async def _session(self, target: Target, *, poisoned: bool) -> Session:
        token, path = self._token(), f"{target.path}/socket"
        session = Session(target, token, path, 0, {}, "", [], [], None)
        messages = [f"{token} {number}" for number in range(self._chance.randrange(1, 5))]
        if poisoned:
            messages.append(self._chance.choice((f"{POISON.decode()} {token}", f"leak {token}")))
        try:
            async with asyncio.timeout(PATIENCE):
                try:
                    async with connect(
                        f"ws://127.0.0.1:{self._port}{path}",
                        additional_headers={"x-request-id": token},
                        ping_interval=None,
                        compression=None,
                        proxy=None,
                    ) as socket:
                        assert socket.response is not None
                        session = session._replace(
                            status=101, headers={k.lower(): v for k, v in socket.response.headers.raw_items()}
                        )
                        return await _converse(socket, session, messages)
                except websockets.InvalidStatus as exc:
                    response = exc.response
                    return session._replace(status=response.status_code, body=(response.body or b"").decode())
        except TimeoutError:
            return session._replace(ending=Ending.HUNG)
        except (OSError, EOFError, websockets.WebSocketException):
            return session


async def _converse(socket: ClientConnection, session: Session, messages: Sequence[str]) -> Session:
    """Say each of ``messages`` when the one before has been answered."""
    sent: list[str] = []
    received: list[str] = []
    close = None
    try:
        for message in messages:
            sent.append(message)
            await socket.send(message)
            answer = ""
            while not answer.startswith("echo "):
                answer = str(await socket.recv())
                received.append(answer)
    except websockets.ConnectionClosed as exc:
        # No close frame is what browsers call 1006.
        close = (exc.rcvd.code, exc.rcvd.reason) if exc.rcvd is not None else (1006, "")
    return session._replace(sent=sent, received=received, close=close)


def _outcome(sent: Sent, got: Got) -> str:
    if got.ending is not Ending.COMPLETE:
        return f"{got.status} {got.ending.value}"
    if sent.events and b"event: error\n" in got.body:
        return "200 event: error"
    return str(got.status)
