"""All there is to be fuzzed."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final

from msgspec import Struct

from . import codecs, exchanges, framing, http_peers, recordings, reporting, routes, stream_peers, texts, wire


class Target(Struct, frozen=True):
    """A function that raises where something does not hold for the bytes it is given.

    ``seeds`` are inputs to begin with; ``examples`` is how many inputs the test suite makes up.
    """

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    examples: int


def _plain(run: Callable[[bytes], None], examples: int = 150) -> Target:
    return Target(run, wire.seeds(), examples)


def _decoder(run: Callable[[bytes], None], examples: int = 200) -> Target:
    # Choices that lead to the bytes as they are, in either encoding.
    prefixes = [bytes([encoding, kind, 0, 0, 1, 0, 0]) for encoding in (0, 1) for kind in range(8)]
    payloads = wire.legal_payloads()
    return Target(
        run, [*wire.seeds(), *(prefixes[n % len(prefixes)] + payload for n, payload in enumerate(payloads))], examples
    )


def _exchange(run: Callable[[bytes], None], examples: int) -> Target:
    # It takes many choices to make one.
    chance = Random(0)  # noqa: S311 - nobody is to be kept from guessing it
    return Target(run, [b"", *(chance.randbytes(size) for size in (200, 300, 400, 600) for _ in range(8))], examples)


TARGETS: Final[Mapping[str, Target]] = {
    "answers": _decoder(codecs.answers),
    "events": _decoder(codecs.events),
    "challenges": _plain(codecs.challenges),
    "frames": _plain(framing.frames),
    "messages": _decoder(framing.messages),
    "ids": _decoder(framing.ids),
    "redaction": _plain(texts.redaction),
    "audit": _plain(texts.audit),
    "log_lines": _plain(texts.log_lines, 50),
    "heads": _plain(texts.heads),
    "addresses": _plain(texts.addresses, 50),
    "routes": _exchange(routes.routes, 300),
    "reports": _plain(reporting.reports, 60),
    "recordings": _exchange(recordings.recordings, 150),
    "calling_end": _exchange(stream_peers.calling_end, 150),
    "serving_end": _exchange(stream_peers.serving_end, 150),
    "http_calling_end": _decoder(http_peers.http_calling_end, 100),
    "http_serving_end": _decoder(http_peers.http_serving_end, 100),
    "http": _exchange(exchanges.http, 400),
    "websocket": _exchange(exchanges.websocket, 300),
}
