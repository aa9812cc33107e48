"""Streams of language models behind text guardrails: what the app says, and what is wrong with what came of it. No I/O.

The agents replace each secret in a text by a stamp for the request and for that secret, so that text that nobody has
judged, or that was judged for somebody else, is told from text that has been.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from tests.guardrails.samples import AnthropicSample, ChatSample, Cut, ResponsesSample, Sample

from .http_client import Ending, Got
from .stamps import Reading, Seal

#: What the agents replace, and its length in code points: no window needs to hold back more.
SECRET: Final = re.compile(r"SECRET-\d{6}")
HOLD: Final = len("SECRET-123456")
#: The phase of their stamps.
PHASE: Final = "text"
#: The dialects that the app speaks, and below which path.
SAMPLES: Final[Mapping[str, Sample]] = {
    "v1/chat/completions": ChatSample(),
    "v1/messages": AnthropicSample(),
    "v1/responses": ResponsesSample(),
}
#: What a stream says, in words of its dialect, that a failure has stopped.
REASONS: Final = ("Service unavailable", "Agent unavailable", "Agent error", "Gateway timeout")

# In the last event of each dialect.
_ENDS: Final = ("data: [DONE]", '"message_stop"', '"response.completed"')
# Of a secret, not even its beginning is to come.
_BEGUN: Final = "SECRET"
_STAMP: Final = re.compile(r"<([^<>]*)>")
_WORDS: Final = ("and", "then", "the", "model", "said", "\u00fcber", "all.")


class TextTarget(NamedTuple):
    """A path, below which the texts of answers are judged by ``agent``."""

    path: str
    agent: str
    fails_closed: bool

    @property
    def id(self) -> str:
        """Of the agent in the app's configuration: it has another one where it fails open."""
        return f"text-{self.agent}-{'closed' if self.fails_closed else 'open'}"


TEXT_TARGETS: Final = tuple(
    TextTarget(f"/{'closed' if closed else 'open'}/text-{agent}", agent, closed)
    for closed in (True, False)
    for agent in ("pool", "lone", "post")
)


class Asked(NamedTuple):
    """A request for a stream."""

    target: TextTarget
    token: str
    dialect: str

    @property
    def path(self) -> str:
        """Where it goes."""
        return f"{self.target.path}/{self.dialect}"


def spoken(token: str, dialect: str) -> tuple[Mapping[str, str], list[bytes]]:
    """The texts that the app says to request ``token``, by slot, and its events."""
    sample = SAMPLES[dialect]
    chance = random.Random(f"{token} {dialect}")  # noqa: S311 - no secret
    texts = {name: _text(name, chance) for name in sample.texts}
    return texts, sample.stream(texts, Cut(chance, longest=chance.choice((4, 12, 40))))


def _text(name: str, chance: random.Random) -> str:
    words = [
        # What is signed is left out whole where anything in it is changed.
        f"SECRET-{chance.randrange(10**6):06}" if chance.random() < 0.2 and "signed" not in name else word
        for word in chance.choices(_WORDS, k=chance.randrange(5, 60))
    ]
    return json.dumps({"say": " ".join(words)}, ensure_ascii=False) if name.startswith("json") else " ".join(words)


def replacement(seal: Seal, token: str, secret: str) -> str:
    """What an agent puts in the place of ``secret``."""
    return f"<{seal.stamp(token, PHASE, secret.encode())}>"


class Fault(NamedTuple):
    """``kind`` is ``bare`` for a secret that came, ``foreign``, ``forged``, ``torn``, ``stopped`` or ``status``."""

    kind: str
    detail: str


def faults(asked: Asked, got: Got, seal: Seal) -> Iterator[Fault]:
    """What is wrong with what came in answer."""
    if got.ending is not Ending.COMPLETE:
        yield Fault("torn", f"its framing is {got.ending.value}")
        return
    if got.status != 200:
        if not asked.target.fails_closed:
            yield Fault("stopped", "before its first byte")
        elif got.status not in (503, 504) or not any(reason.encode() in got.body for reason in REASONS):
            yield Fault("status", f"{got.body[:200]!r}")
        return
    if not _whole_events(got.body):
        yield Fault("torn", f"in the middle of an event: {got.body[-80:]!r}")
        return
    texts, _ = spoken(asked.token, asked.dialect)
    said, stopped = _without_its_end(got.body)
    if stopped is None:
        yield Fault("torn", f"it ends in {got.body[-200:]!r}")
        return
    if stopped and not asked.target.fails_closed:
        yield Fault("stopped", stopped)
    for name, versions in SAMPLES[asked.dialect].read(said).items():
        for version in versions:
            yield from _judged(asked, seal, name, texts[name], version, stopped=bool(stopped))
    missing = texts.keys() - SAMPLES[asked.dialect].read(said).keys()
    if missing and not stopped:
        yield Fault("torn", f"{sorted(missing)} did not come")


def _whole_events(body: bytes) -> bool:
    return body.replace(b"\r\n", b"\n").endswith(b"\n\n")


def _without_its_end(body: bytes) -> tuple[bytes, str | None]:
    """The events of the app, and the reason that stands behind them: empty where it has ended by itself, None where it
    has ended without a reason.
    """
    parts = [part for part in re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", body) if part]
    last = parts[-1].decode() if parts else ""
    reason = next((reason for reason in REASONS if reason in last), "")
    if reason:
        return b"".join(parts[:-1]), reason
    return body, "" if any(end in last for end in _ENDS) else None


def _judged(asked: Asked, seal: Seal, name: str, text: str, came: str, *, stopped: bool) -> Iterator[Fault]:
    """What is wrong with ``came``, which ``text`` has become."""
    closed = asked.target.fails_closed
    where = f"{name!r}: "
    if closed and _BEGUN in came:
        yield Fault("bare", where + came[came.index(_BEGUN) :][:HOLD])
    secrets = {replacement(seal, asked.token, match[0]): match[0] for match in SECRET.finditer(text)}
    for match in _STAMP.finditer(came):
        if match[0] not in secrets:
            of_another = _of_another(match[1], text, seal)
            yield Fault("foreign" if of_another is Reading.FOREIGN else "forged", where + match[0])
    plain = came
    for stamp, secret in secrets.items():
        plain = plain.replace(stamp, secret)
    if plain != text and not (stopped and text.startswith(plain)):
        yield Fault("torn", f"{where}{plain[-80:]!r}, {len(plain)} of {len(text)} code points")


def _of_another(stamp: str, text: str, seal: Seal) -> Reading:
    named = stamp.rpartition(".")[0]
    stamps = {seal.stamp(named, PHASE, match[0].encode()) for match in SECRET.finditer(text)}
    return Reading.FOREIGN if stamp in stamps else Reading.FORGED
