"""What the middleware promises, checked on one response or one websocket at a time. No I/O.

The proxies corrupt what makes an answer an answer, and never a value within one. A network that rewrites values can
make a valid answer of another, allow of block for one: nothing but TLS helps against that, and no check here could
tell it from the agent's own word. So a stamp that is there and wrong is as much a fault as one that is missing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .agents import POISON_CLOSE
from .http_client import Ending, Got
from .stamps import POISON, Reading, Seal
from .targets import READERS, Target
from .texts import Asked, faults

#: The promises, by the names under which breaches are reported.
UNINSPECTED = "let through uninspected, fail-closed"
POISONED = "poison let through"
BLOCKED = "blocked by a failure, fail-open"
NOT_WHOLE = "looks complete and is not"
FOREIGN = "belongs to another request"
STATUS = "a status that is none of the promised"
CLOSE = "a websocket close that is none of the promised"
NO_ANSWER = "no answer"
NOT_RECOVERED = "not as before when all is well again"
LOGGED = "an error in the app's log"
PROMISES = (UNINSPECTED, POISONED, BLOCKED, NOT_WHOLE, FOREIGN, STATUS, CLOSE, NO_ANSWER, NOT_RECOVERED, LOGGED)

#: What a failed agent makes of a request, and of a websocket.
FAILURES: Mapping[int, frozenset[str]] = {
    503: frozenset({"Service unavailable", "Agent unavailable"}),
    504: frozenset({"Gateway timeout"}),
}
FAILURE_CLOSES = frozenset({(1011, reason) for reason in ("Service unavailable", "Agent error", "Gateway timeout")})

_ERROR_EVENT = re.compile(rb"(?<![^\n])event: error\ndata: \{[^\n]*\}\n\n\Z")


#: What the faults of guarded texts are breaches of.
_OF_TEXTS: Mapping[str, str] = {
    "bare": UNINSPECTED,
    "foreign": FOREIGN,
    "forged": UNINSPECTED,
    "torn": NOT_WHOLE,
    "stopped": BLOCKED,
    "status": STATUS,
}


class Violation(NamedTuple):
    """A promise that was not kept; ``when`` is seconds since the beginning."""

    promise: str
    token: str
    path: str
    detail: str
    when: float = 0.0


class Sent(NamedTuple):
    """A request. ``plain`` is what the app says to it; ``poison`` is where there is some: head, body or response.

    ``echoes``: the app says what it was sent. ``events``: it says it as an event stream.
    """

    target: Target
    token: str
    path: str
    plain: bytes
    poison: str = ""
    echoes: bool = False
    events: bool = False


class Session(NamedTuple):
    """A websocket from its beginning to its end.

    ``status`` is 101, or what the handshake was refused with, and ``body`` in which words. ``sent`` are messages, of
    which only the last can be poisoned or ask for poison; ``close`` is what the server has closed with, None where the
    client did. ``ending`` is HUNG where an answer was waited for in vain.
    """

    target: Target
    token: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: str
    sent: Sequence[str]
    received: Sequence[str]
    close: tuple[int, str] | None
    ending: Ending = Ending.COMPLETE


class Checker:
    """Has the seals of all agents."""

    def __init__(self, seals: Mapping[str, Seal]) -> None:
        self._seals = seals

    def response(self, sent: Sent, got: Got) -> list[Violation]:
        """What is wrong with ``got``."""
        return [
            Violation(promise, sent.token, sent.path, f"{detail} (status {got.status}, {got.ending.value})")
            for promise, detail in self._response(sent, got)
        ]

    def session(self, session: Session) -> list[Violation]:
        """What is wrong with a websocket."""
        return [
            Violation(promise, session.token, session.path, f"{detail} (status {session.status}, {session.close})")
            for promise, detail in self._session(session)
        ]

    def texts(self, asked: Asked, got: Got) -> list[Violation]:
        """What is wrong with an answer whose texts are judged."""
        if got.ending in (Ending.NOTHING, Ending.HUNG):
            return [Violation(NO_ANSWER, asked.token, asked.path, got.ending.value)]
        found = faults(asked, got, self._seals[asked.target.agent])
        return [
            Violation(_OF_TEXTS[kind], asked.token, asked.path, f"{detail} (status {got.status}, {got.ending.value})")
            for kind, detail in found
        ]

    def reached(self, target: Target, token: str, path: str) -> list[Violation]:
        """What is wrong with poison that has reached the app."""
        return [Violation(POISONED, token, path, "it has reached the app")] if target.fails_closed else []

    # HTTP

    def _response(self, sent: Sent, got: Got) -> Iterator[tuple[str, str]]:
        target = sent.target
        if got.ending in (Ending.NOTHING, Ending.HUNG):
            yield NO_ANSWER, "nothing came" if got.ending is Ending.NOTHING else "it never ended"
            return
        if got.headers.get("x-request-id") != sent.token:
            yield FOREIGN, f"x-request-id is {got.headers.get('x-request-id')!r}"
        if got.ending is Ending.UNFRAMED:
            yield NOT_WHOLE, "its framing says nothing of an end"
        match got.status:
            case 200:
                yield from self._served(sent, got)
            case 403 if sent.poison:
                yield from self._blocked(target, sent.token, got.headers)
            case 503 | 504 if target.fails_closed:
                if got.ending is not Ending.COMPLETE or got.body.decode() not in FAILURES[got.status]:
                    yield STATUS, f"its body is {got.body!r}"
            case _:
                yield (STATUS if target.fails_closed else BLOCKED), "none that may be"

    def _blocked(self, target: Target, token: str, headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        readings = [
            self._seals[agent].read(headers.get(f"x-blocked-{agent}"), token, "blocked") for agent in target.agents
        ]
        if Reading.FOREIGN in readings:
            yield FOREIGN, "the block is"
        elif Reading.VALID not in readings:
            yield STATUS, "no agent has blocked it"

    def _served(self, sent: Sent, got: Got) -> Iterator[tuple[str, str]]:
        target, token = sent.target, sent.token
        if got.headers.get("x-token") != token:
            yield FOREIGN, f"the app has answered {got.headers.get('x-token')!r}"
        for agent in target.agents:
            seal, closed = self._seals[agent], agent in target.closed
            request = seal.read(got.headers.get(f"x-seen-{agent}"), token, "request")
            response = seal.read(got.headers.get(f"x-response-{agent}"), token, "response", b"200")
            yield from _judged(f"the head of the request, {agent}", request, closed)
            yield from _judged(f"the head of the response, {agent}", response, closed)
            if sent.poison == "head" and request is Reading.VALID:
                yield POISONED, f"in the head, past {agent}, who has seen it"
        if sent.poison in ("head", "body") and target.fails_closed:
            yield POISONED, f"in the {sent.poison}"
        yield from self._body(sent, got)

    def _body(self, sent: Sent, got: Got) -> Iterator[tuple[str, str]]:
        target = sent.target
        body, stopped = got.body, got.ending is not Ending.COMPLETE
        if sent.events:
            body, told = _ERROR_EVENT.subn(b"", body)
            stopped = stopped or bool(told)
        if stopped and not target.fails_closed and not sent.poison:
            yield BLOCKED, "it was stopped"
        phases = ("response", "request") if sent.echoes else ("response",)
        for phase in phases:
            for agent in reversed(target.agents):
                if agent in READERS:
                    continue
                layer = self._seals[agent].unwrap(sent.token, phase, body)
                body = layer.data
                where = f"the body, {phase}, {agent}"
                if layer.bare and agent in target.closed:
                    yield UNINSPECTED, f"{layer.bare} bytes of {where}"
                for reading in layer.readings:
                    yield from _judged(where, reading, True)
                if layer.poisoned:
                    yield POISONED, f"{where}, who has seen it"
                if layer.torn and not stopped:
                    yield NOT_WHOLE, where
        if POISON in body and target.fails_closed:
            yield POISONED, "in the body that came"
        if body != sent.plain and not (stopped and sent.plain.startswith(body)):
            yield NOT_WHOLE, f"{len(body)} bytes, expected {len(sent.plain)}"

    # Websockets

    def _session(self, session: Session) -> Iterator[tuple[str, str]]:
        target = session.target
        if session.ending is Ending.HUNG:
            yield NO_ANSWER, f"to {session.sent[-1:]}"
        if session.status != 101:
            if not target.fails_closed:
                yield BLOCKED, "the handshake was refused"
            elif session.body not in FAILURES.get(session.status, ()):
                yield STATUS, f"the handshake was refused with {session.body!r}"
            return
        for agent in target.agents:
            stamp = session.headers.get(f"x-accepted-{agent}")
            reading = self._seals[agent].read(stamp, session.token, "accept")
            yield from _judged(f"the handshake, {agent}", reading, agent in target.closed)
        yield from _messages(session)
        yield from _closing(session)


def _judged(what: str, reading: Reading, closed: bool) -> Iterator[tuple[str, str]]:
    if reading is Reading.FOREIGN:
        yield FOREIGN, f"the stamp of {what}"
    elif reading is not Reading.VALID and closed:
        yield UNINSPECTED, f"the stamp of {what} is {reading.value}"


def _messages(session: Session) -> Iterator[tuple[str, str]]:
    received = session.received
    poison = POISON.decode()
    if session.target.fails_closed and any(poison in message for message in received):
        yield POISONED, "in a message that came"
    expected = ["echo " + message for message in session.sent]
    echoes = [message for message in received if message != poison]
    if any(session.token not in message for message in echoes):
        yield FOREIGN, f"a message: {echoes}"
    elif echoes != expected[: len(echoes)]:
        yield NOT_WHOLE, f"{echoes} came of {expected}"
    elif session.close is None and session.ending is Ending.COMPLETE and len(echoes) < len(expected):
        yield NOT_WHOLE, "messages are missing"


def _closing(session: Session) -> Iterator[tuple[str, str]]:
    if session.close is None:
        return
    asked_for = any(_asks_for_a_close(message) for message in session.sent)
    if session.close == POISON_CLOSE and asked_for:
        return
    if not session.target.fails_closed:
        yield BLOCKED, "it was closed"
    elif session.close not in FAILURE_CLOSES:
        yield CLOSE, "none that may be"


def _asks_for_a_close(message: str) -> bool:
    return POISON.decode() in message or message.startswith("leak ")


def by_promise(violations: Iterable[Violation]) -> dict[str, int]:
    """How often each promise was broken."""
    counts = dict.fromkeys(PROMISES, 0)
    for violation in violations:
        counts[violation.promise] += 1
    return counts
