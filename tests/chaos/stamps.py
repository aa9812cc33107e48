"""What agents put on everything that they have inspected, and nobody else could have.

A stamp names the request that it is for, so that one that has come to another request is told from one that nobody
has made. The secret is the agents' and the checks'; the app and the middleware never see it.
"""

import hmac
from enum import Enum
from hashlib import sha256
from typing import NamedTuple

#: What no agent lets pass.
POISON = b"EVIL"
# Neither is in what clients and the app say.
_BEGIN, _END = b"\x01", b"\x02"
# Hexadecimal digits of a stamp.
_DIGITS = 32


class Reading(Enum):
    """What is to be made of a stamp."""

    VALID = "valid"
    MISSING = "missing"
    #: The agent has made it, for another request.
    FOREIGN = "for another request"
    FORGED = "not the agent's"


class Unwrapped(NamedTuple):
    """A body without the wrapping of one agent.

    ``bare`` counts the bytes that were not wrapped; ``poisoned`` says that poison was. ``torn``: the last piece has an
    end that is missing.
    """

    data: bytes
    bare: int
    poisoned: bool
    torn: bool
    readings: frozenset[Reading]


class Seal:
    """One agent's.

    :param agent: its id, in ASCII.
    """

    def __init__(self, agent: str, secret: bytes) -> None:
        self.agent = agent
        self._key = hmac.digest(secret, agent.encode(), "sha256")

    def stamp(self, token: str, phase: str, data: bytes = b"") -> str:
        """For request ``token``: that ``data`` was seen in ``phase``."""
        said = b"%b\0%b\0%b" % (token.encode(), phase.encode(), data)
        return f"{token}.{hmac.new(self._key, said, sha256).hexdigest()[:_DIGITS]}"

    def read(self, stamp: str | None, token: str, phase: str, data: bytes = b"") -> Reading:
        """Whether ``stamp`` is what :meth:`stamp` gives for the same."""
        if stamp is None:
            return Reading.MISSING
        if stamp == self.stamp(token, phase, data):
            return Reading.VALID
        named = stamp.rpartition(".")[0]
        return Reading.FOREIGN if stamp == self.stamp(named, phase, data) else Reading.FORGED

    def wrap(self, token: str, phase: str, data: bytes) -> bytes:
        """``data``, with a stamp that covers it."""
        return b"%b%d:%b%b%b" % (self._mark(phase), len(data), self.stamp(token, phase, data).encode(), _END, data)

    def unwrap(self, token: str, phase: str, body: bytes) -> Unwrapped:
        """What is left of ``body``, of which some pieces may be wrapped, without this agent's wrapping."""
        mark = self._mark(phase)
        data: list[bytes] = []
        readings: set[Reading] = set()
        bare, poisoned, torn = 0, False, False
        position = 0
        while position < len(body):
            begin = body.find(mark, position)
            if begin < 0 and (missing := _begun(body, position, mark)) < len(body):
                # A mark that is cut itself.
                body, torn = body[:missing], True
                continue
            if begin != position:
                begin = len(body) if begin < 0 else begin
                data.append(body[position:begin])
                bare += begin - position
                position = begin
                continue
            begin += len(mark)
            end = body.find(_END, begin)
            if end < 0:
                torn = True
                break
            size, _, stamp = body[begin:end].partition(b":")
            if not size.isdigit():
                readings.add(Reading.FORGED)
                break
            start = end + len(_END)
            position = start + int(size)
            piece = body[start:position]
            data.append(piece)
            if position > len(body):
                torn = True
            else:
                readings.add(self.read(stamp.decode(), token, phase, piece))
                poisoned = poisoned or POISON in piece
        return Unwrapped(b"".join(data), bare, poisoned, torn, frozenset(readings))

    def _mark(self, phase: str) -> bytes:
        return b"%b%b/%b/" % (_BEGIN, phase.encode(), self.agent.encode())


def _begun(body: bytes, position: int, mark: bytes) -> int:
    """Where the end of ``body`` is the beginning of a mark; its length where it is not."""
    last = body.rfind(_BEGIN, position)
    return last if last >= 0 and mark.startswith(body[last:]) else len(body)
