"""Text that several guardrails judge, in a row and beside one another: what leaves, and not before whose verdict."""

import random
from collections.abc import Sequence
from itertools import permutations

import pytest

from asgi_agents.guardrails.judges import Inspection, Judge
from asgi_agents.guardrails.slot_text import Outcome, SlotText, WholeText
from asgi_agents.guardrails.slots import Block, Decision, Flag, Slot, Window

from .detectors import CARD, EMAIL, KEY, Detector, detector, redacted
from .driving import limits

SLOT = Slot(("text",), "output")
# Each may change what the one before it has made: the last one finds what the others leave behind.
ROW: tuple[tuple[str, Detector], ...] = (
    ("emails", detector(EMAIL)),
    ("cards", detector(CARD)),
    ("keys", detector(KEY)),
)


def text_of(rng: random.Random) -> str:
    """One in which finds are everywhere, and longer than what is kept of it at once."""
    pieces = ("alice@example.com", "4111 1111 1111 1111", "sk-abcdefgh12", "word ", " ", "1", "-", "@", ". ")
    return "".join(rng.choice(pieces) for _ in range(rng.randrange(20, 160)))


class Driver:
    """Gives verdicts in any order, and notes up to where each judge has judged.

    :ivar out: what has left, part by part.
    :ivar judged: by judge, up to where it has given its verdict on all of the text.
    """

    def __init__(self, checks: dict[str, Detector], rng: random.Random) -> None:
        self.outcome = Outcome()
        self.out: list[str] = []
        self.judged = dict.fromkeys(checks, 0)
        self._checks = checks
        self._rng = rng
        self._waiting: list[Inspection] = []
        self._answered: dict[str, list[tuple[int, int]]] = {name: [] for name in checks}

    def released(self, text: str) -> None:
        self.out.append(text)

    def judge(self, *, all_of_it: bool, now: float) -> None:
        while self.outcome.blocked is None:
            self._waiting += self.outcome.inspections
            self.outcome.inspections.clear()
            if not self._waiting or (not all_of_it and self._rng.random() < 0.5):
                return
            inspection = self._waiting.pop(self._rng.randrange(len(self._waiting)))
            name, window = inspection.judge.name, inspection.window
            self._answered[name].append((window.start + window.fresh, window.start + len(window.text)))
            for begin, end in sorted(self._answered[name]):
                if begin <= self.judged[name]:
                    self.judged[name] = max(self.judged[name], end)
            inspection.judged.decide(inspection, self._checks[name](window))
            if self.outcome.blocked is None:
                inspection.judged.advance(now)


def judges(count: int, beside: int, rng: random.Random) -> tuple[tuple[Judge, ...], tuple[Judge, ...]]:
    row = tuple(Judge(name=name, limits=limits(rng)) for name, _ in ROW[:count])
    return row, tuple(Judge(name=f"beside {index}", redacts=False, limits=limits(rng)) for index in range(beside))


def flags(finds: Sequence[Decision]) -> list[Decision]:
    return [Flag(find.start, find.end, "found") for find in finds if not isinstance(find, Block)]


def run(row: int, beside: int, seed: int, blocked_at: int | None = None) -> tuple[Driver, str, int]:
    """The driver, the whole text, and how much of it has come to be released."""
    rng = random.Random(seed)  # noqa: S311
    text = text_of(rng)
    find = detector(EMAIL)
    checks = dict(ROW[:row])
    for index in range(beside):
        checks[f"beside {index}"] = lambda window: flags(find(window))
    if blocked_at is not None:
        place = len(text) * blocked_at // 100
        checks[f"beside {beside - 1}"] = lambda window: (
            [Block("no")] if window.start + window.fresh <= place < window.start + len(window.text) else []
        )
    driver = Driver(checks, rng)
    left = 0
    ends: list[int] = []

    def released(after: str) -> None:
        nonlocal left
        driver.released(after)
        left = ends[len(driver.out) - 1]
        # Redacting judges behind the first count in what they were shown.
        for judge in (*those[0][:1], *those[1]):
            behind = 0 if slot_text.ended or judge.limits.settled is not None else judge.limits.hold
            assert driver.judged[judge.name] >= left + behind

    those = judges(row, beside, rng)
    slot_text = SlotText(SLOT, *those, driver.outcome, released)
    now, at = 0.0, 0
    while at < len(text) and driver.outcome.blocked is None:
        part = text[at : at + rng.randrange(1, 40)]
        at += len(part)
        ends.append(at)
        slot_text.feed(part, now)
        slot_text.advance(now)
        driver.judge(all_of_it=False, now=now)
        now += 1.0 if rng.random() < 0.2 else 0.0
    if driver.outcome.blocked is None:
        slot_text.finish()
        slot_text.advance(now)
        driver.judge(all_of_it=True, now=now)
    return driver, text, left


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("row", "beside"), [(row, beside) for row in range(4) for beside in range(3) if row or beside])
def test_nothing_leaves_before_every_judge_has_judged_it(row: int, beside: int, seed: int) -> None:
    driver, text, left = run(row, beside, seed)
    for _, find in ROW[:row]:
        text = redacted(text, find)
    assert "".join(driver.out) == text
    assert left > 0


@pytest.mark.parametrize("blocked_at", [0, 10, 50, 99])
@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_nothing_behind_a_block_leaves(row: int, seed: int, blocked_at: int) -> None:
    driver, text, left = run(row, 2, seed, blocked_at)
    assert driver.outcome.blocked is not None
    assert driver.outcome.blocked.judge.name == "beside 1"
    assert left <= len(text) * blocked_at // 100


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("beside", [0, 1, 2])
@pytest.mark.parametrize("row", [1, 2, 3])
def test_a_whole_text_leaves_once_after_all_verdicts(row: int, beside: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    text = expected = text_of(rng)
    checks = dict(ROW[:row]) | {f"beside {index}": lambda window: () for index in range(beside)}
    driver = Driver(checks, rng)

    def released(after: str) -> None:
        driver.released(after)
        assert all(driver.judged[f"beside {index}"] == len(text) for index in range(beside))
        assert all(driver.judged[name] > 0 for name, _ in ROW[:row])

    whole = WholeText(SLOT, text, *judges(row, beside, rng), driver.outcome, released)
    whole.advance(0.0)
    driver.judge(all_of_it=True, now=0.0)
    for _, find in ROW[:row]:
        expected = redacted(expected, find)
    assert driver.out == [expected]


# Who stands beside the others, and says of a find that it is to be redacted


BESIDE = (("beside 0", detector(KEY)), ("beside 1", detector(CARD)))


def redacted_in_turn(text: str, names: Sequence[str]) -> str:
    for name in names:
        text = redacted(text, dict((*ROW, *BESIDE))[name])
    return text


def either_order(text: str, row: int, beside: int) -> set[str]:
    """What may leave: those beside the row come behind it, in the order in which they find something."""
    names = [name for name, _ in ROW[:row]]
    return {redacted_in_turn(text, [*names, *order]) for order in permutations([name for name, _ in BESIDE[:beside]])}


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(("row", "beside"), [(row, beside) for row in range(3) for beside in (1, 2)])
def test_what_a_judge_beside_the_others_redacts_leaves_redacted(row: int, beside: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    text = text_of(rng)
    driver = Driver(dict((*ROW[:row], *BESIDE[:beside])), rng)
    slot_text = SlotText(SLOT, *judges(row, beside, rng), driver.outcome, driver.released)
    now, at, parts = 0.0, 0, 0
    while at < len(text):
        part = text[at : at + rng.randrange(1, 40)]
        at += len(part)
        parts += 1
        slot_text.feed(part, now)
        slot_text.advance(now)
        driver.judge(all_of_it=False, now=now)
        now += 1.0 if rng.random() < 0.2 else 0.0
    slot_text.finish()
    slot_text.advance(now)
    driver.judge(all_of_it=True, now=now)
    assert slot_text.complete
    assert len(driver.out) == parts
    assert "".join(driver.out) in either_order(text, row, beside)


@pytest.mark.parametrize("seed", range(60))
def test_it_is_as_if_it_had_stood_in_the_row(seed: int) -> None:
    """Also for text that goes on although it had ended."""
    outs: list[list[str]] = []
    for redacts in (True, False):
        rng = random.Random(seed)  # noqa: S311
        text = text_of(rng)
        judge = Judge(name="keys", redacts=redacts, limits=limits(rng))
        driver = Driver(dict(ROW), rng)
        row, beside = ((judge,), ()) if redacts else ((), (judge,))
        slot_text = SlotText(SLOT, row, beside, driver.outcome, driver.released)
        at = 0
        steps = random.Random(seed)  # noqa: S311
        while at < len(text):
            part = text[at : at + steps.randrange(1, 40)]
            at += len(part)
            slot_text.feed(part, float(at))
            if steps.random() < 0.3:
                slot_text.finish()
            slot_text.advance(float(at))
            driver.judge(all_of_it=True, now=float(at))
            if slot_text.ended:
                slot_text.resume()
        slot_text.finish()
        slot_text.advance(float(at))
        driver.judge(all_of_it=True, now=float(at))
        assert slot_text.complete
        outs.append(driver.out)
    assert outs[0] == outs[1]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("beside", [1, 2])
@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_what_it_redacts_of_a_whole_text_leaves_redacted(row: int, beside: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    text = text_of(rng)
    driver = Driver(dict((*ROW[:row], *BESIDE[:beside])), rng)
    whole = WholeText(SLOT, text, *judges(row, beside, rng), driver.outcome, driver.released)
    whole.advance(0.0)
    driver.judge(all_of_it=True, now=0.0)
    [after] = driver.out
    assert after in either_order(text, row, beside)


def test_it_is_not_asked_again_about_what_nobody_has_changed() -> None:
    asked: list[Window] = []

    def find(window: Window) -> Sequence[Decision]:
        asked.append(window)
        return detector(KEY)(window)

    judge = Judge(name="beside 0", redacts=False)
    driver = Driver({"beside 0": find}, random.Random(0))  # noqa: S311
    whole = WholeText(SLOT, "a sk-abcdefgh12", (), (judge,), driver.outcome, driver.released)
    whole.advance(0.0)
    driver.judge(all_of_it=True, now=0.0)
    assert driver.out == ["a [0]"]
    assert asked == [Window("a sk-abcdefgh12")]
