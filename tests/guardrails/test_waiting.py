"""How long text waits: for what follows it, for a judge that takes its time, and for a model that says nothing."""

import json
import re
from itertools import accumulate

import pytest

from asgi_agents.guardrails import TextGuardrail
from tests.benchmarks.chat import ADDRESS, ENTITY, HOLD, REDACTED, Settled, Waiting, WaitingSettled, text, tokens_of
from tests.benchmarks.waiting import RATE, TOKENS, Passage, passage
from tests.support.virtual_time import nothing_comes_from_outside

MAX_HOLD = 0.5
# Between two looks at the clock it advances.
EPSILON = 0.01

JUDGES = pytest.mark.parametrize("judge", [Waiting, WaitingSettled])


@pytest.fixture(autouse=True)
async def quick() -> None:
    nothing_comes_from_outside()


def said(passed: Passage) -> str:
    events = b"".join(passed.received).split(b"\n\n")
    values = [json.loads(event[6:]) for event in events if event.startswith(b"data: {")]
    return "".join(choice["delta"].get("content", "") for value in values for choice in value["choices"])


@pytest.mark.slow
@JUDGES
@pytest.mark.parametrize(
    ("seconds", "longer"), [(0.005, 0.05 * TOKENS / RATE), (0.3, 0.5)], ids=["a judge of 5 ms", "of 300 ms"]
)
async def test_a_stream_takes_hardly_longer_past_a_judge_that_waits(
    judge: type[Waiting], seconds: float, longer: float
) -> None:
    bare = await passage(None)
    assert bare.total == pytest.approx(TOKENS / RATE, abs=2 / RATE)
    passed = await passage(judge(seconds))
    assert bare.total <= passed.total <= bare.total + longer
    assert ADDRESS not in said(passed)
    assert REDACTED in said(passed)


@pytest.mark.parametrize("size", [1, 4, 100], ids=["letters", "tokens", "sentences"])
async def test_what_is_settled_is_delayed_by_at_most_a_word(size: int) -> None:
    whole = ENTITY.sub("something", text(500))
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    passed = await passage(Settled(), parts=parts)
    ends = [*accumulate(map(len, parts))]
    for number, end in enumerate(ends):
        # The part leaves when one has come with something behind the word in which it ends.
        word = re.compile(r"[^ ]*").match(whole, end)
        assert word is not None
        by = next((later for later, its_end in enumerate(ends) if its_end > word.end()), len(parts))
        assert passed.left[number] <= passed.came[by] + EPSILON, (number, parts[number])


async def test_the_first_word_leaves_when_the_second_begins() -> None:
    words = re.findall(r"\S+ |\S+$", text(100))
    # As models cut them: each word has the space before it.
    parts = [words[0].rstrip(), *(f" {word.rstrip()}" for word in words[1:])]
    assert (await passage(Settled(), parts=parts)).parts_before_the_first == 2


@JUDGES
@pytest.mark.parametrize("seconds", [0.005, 0.3])
async def test_a_stall_holds_text_no_longer_than_max_hold_and_the_judge(judge: type[Waiting], seconds: float) -> None:
    before = TOKENS // 8
    parts = tokens_of(text(2 * before))
    passed = await passage(judge(seconds), parts=parts, stall=(before, 2.0))
    assert passed.came[before] - passed.came[before - 1] >= 2.0
    ends = [*accumulate(map(len, parts))]
    # What stands so far before the end can't be part of anything that is still to come, whatever it is.
    settled = [number for number in range(before) if ends[number] <= ends[before - 1] - HOLD]
    assert len(settled) > before - HOLD
    for number in settled:
        assert passed.left[number] - passed.came[before - 1] <= MAX_HOLD + seconds + EPSILON


@pytest.mark.parametrize(
    "agent", [Settled(), Waiting(0.005), WaitingSettled(0.005)], ids=lambda agent: type(agent).__name__
)
async def test_a_stall_releases_nothing_that_may_still_become_something(agent: TextGuardrail) -> None:
    parts = ["Mail alice.smith@exa", "mple.com now. ", "Thanks."]
    passed = await passage(agent, parts=parts, stall=(1, 2.0))
    assert passed.left[0] >= passed.came[1]
    assert said(passed) == f"Mail {REDACTED} now. Thanks."
