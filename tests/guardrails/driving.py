"""A driver for streams and bodies: verdicts come at once, or late and in any order."""

import random
from collections.abc import Callable, Sequence

from asgi_agents.guardrails.body import Body
from asgi_agents.guardrails.dialect import Dialect
from asgi_agents.guardrails.json_text import JSON
from asgi_agents.guardrails.judges import Inspection, Judge, Judges
from asgi_agents.guardrails.operations import Operation
from asgi_agents.guardrails.stream import Stream
from asgi_agents.guardrails.windows import WindowLimits
from tests.guardrails.detectors import CARD, EMAIL, HOLD, Detector, detector, settled

EVERYTHING = detector(EMAIL, CARD)
LOCAL = Judge(name="local", limits=WindowLimits(hold=HOLD, window=4 * HOLD, eager=True, settled=settled))


def limits(rng: random.Random) -> WindowLimits:
    """What a guardrail may be like."""
    return WindowLimits(
        hold=HOLD,
        window=rng.randrange(2 * HOLD + 1, 500),
        in_flight=rng.randrange(1, 4),
        eager=rng.random() < 0.5,
        settled=settled if rng.random() < 0.5 else None,
    )


class Driver:
    """Passes one stream.

    :param checks: what each guardrail finds, by its name.
    :param rng: when verdicts come; at once without it.
    """

    def __init__(self, stream: Stream, checks: dict[str, Detector], rng: random.Random | None = None) -> None:
        self.stream = stream
        self.out: list[bytes] = []
        self._checks = checks
        self._rng = rng
        self._now = 0.0
        self._waiting: list[Inspection] = []

    def feed(self, data: bytes) -> None:
        while self.stream.full:
            self._judge(all_of_it=True)
        self.stream.feed(data, self._now)
        self._judge(all_of_it=False)

    def end(self) -> None:
        self.stream.end(self._now)
        self._judge(all_of_it=True)

    @property
    def sent(self) -> bytes:
        return b"".join(self.out)

    def _judge(self, *, all_of_it: bool) -> None:
        rng = self._rng
        while True:
            self._waiting += self.stream.inspections()
            if not self._waiting or (rng is not None and not all_of_it and rng.random() < 0.4):
                break
            inspection = self._waiting.pop(rng.randrange(len(self._waiting)) if rng is not None else 0)
            self.stream.verdict(inspection, self._checks[inspection.judge.name](inspection.window), self._now)
        if rng is not None and rng.random() < 0.2:
            self._now += 1.0
            self.stream.tick(self._now)
        self.out.append(self.stream.take())


def passed(
    dialects: Dialect | Sequence[Dialect],
    media_type: str,
    pieces: Sequence[bytes],
    check: Detector | None = None,
    rng: random.Random | None = None,
) -> bytes:
    """What leaves of a stream that one guardrail judges."""
    check = check or (lambda window: ())
    judge = LOCAL if rng is None else Judge(name="local", limits=limits(rng))
    candidates = dialects if isinstance(dialects, Sequence) else [dialects]
    driver = Driver(Stream(candidates, media_type, Judges([judge])), {"local": check}, rng)
    for piece in pieces:
        driver.feed(piece)
    driver.end()
    assert driver.stream.done
    assert driver.stream.ending is None, driver.stream.ending
    assert driver.stream.held_bytes == 0
    return driver.sent


def judged_body(
    data: bytes, operations: Callable[[JSON], list[Operation]], check: Detector = EVERYTHING, judge: Judge = LOCAL
) -> Body:
    """A body that one guardrail has judged."""
    body = Body(data, operations, Judges([judge]))
    while inspections := body.inspections():
        for inspection in inspections:
            body.verdict(inspection, check(inspection.window))
    return body
