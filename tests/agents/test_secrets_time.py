"""However long a text is, and whatever is in it, `Secrets` takes time in proportion to its length."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from re import _constants as ops  # type: ignore[attr-defined]

import pytest

from asgi_agents.agents import Secrets
from asgi_agents.agents.long_tokens import FINDERS
from asgi_agents.agents.parsed_patterns import CHARACTERS, REPEATS, Node, parsed, text_of, within
from asgi_agents.agents.secret_patterns import LONGEST, patterns
from asgi_agents.agents.secrets import _IN_A_ROW, _PRIVATE_KEY
from asgi_agents.guardrails import Window

# One of each class of characters that a pattern may name.
_CANDIDATES = "aA0-_=./+: \n'\"MNOrsghpouk"
EVERY = (
    *((kind, pattern) for kind, those in patterns().items() for pattern in those),
    *((kind, re.compile(text)) for text, (kind, _) in FINDERS.items()),
    ("private_key", _PRIVATE_KEY),
)


def _matched(node: Node, flags: int) -> str:
    """Those of the candidates that a node for one character matches, or the character that it is."""
    if node[0] is ops.LITERAL:
        return chr(node[1])
    return "".join(re.findall(text_of(node), _CANDIDATES, flags))


def _beginnings(nodes: Sequence[Node], flags: int) -> Iterator[str]:
    """What some text that ``nodes`` match begins with, one node longer each time."""
    text = ""
    for code, argument in nodes:
        if code in (ops.ASSERT, ops.ASSERT_NOT, ops.AT):
            continue
        if code in CHARACTERS:
            text += _matched((code, argument), flags)[0]
        else:
            *_, inner = ("", *_beginnings(max(within(code, argument), key=len), flags))
            text += inner * (max(1, min(argument[0], 60)) if code in REPEATS else 1)
        yield text


def _members(nodes: Sequence[Node], flags: int) -> set[str]:
    found: set[str] = set()
    for code, argument in nodes:
        if code in CHARACTERS:
            found.update(_matched((code, argument), flags) if code is not ops.LITERAL else "")
        elif code not in (ops.ASSERT, ops.ASSERT_NOT, ops.AT):
            found.update(*(_members(inner, flags) for inner in within(code, argument)))
    return found


def _units(pattern: re.Pattern[str]) -> Iterator[str]:
    """What is repeated: each beginning of a match, alone and with a character that may go on with one."""
    nodes, flags = list(parsed(pattern)), pattern.flags
    begun = list(dict.fromkeys(each for each in _beginnings(nodes, flags) if len(each) > 1))
    # The shortest, the longest, and those in the middle of the pattern.
    chosen = dict.fromkeys((*begun[:2], *begun[2 : -1 : max(1, len(begun) // 3)], *begun[-2:]))
    members = sorted(_members(nodes, flags) & set("aA0-=. '"))
    for text in chosen:
        yield text
        for member in members:
            yield text + member
    yield from members


@cache
def _agent(kind: str) -> Secrets:
    """One that only looks for these."""
    return Secrets(leave_out=[other for other in patterns() if other != kind])


def _check(agent: Secrets, text: str) -> None:
    with pytest.raises(StopIteration):
        agent.check(Window(text)).__await__().__next__()


def _seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(2):
        begin = time.thread_time()
        work()
        taken.append(time.thread_time() - begin)
    return min(taken)


def growth(work: Callable[[str], object], text_of_length: Callable[[int], str], length: int) -> float:
    """How many times as long four times ``length`` takes: 4 where it is in proportion, 16 for the square."""
    short, long = text_of_length(length), text_of_length(4 * length)
    best = float("inf")
    # What something else has disturbed is measured again.
    for _ in range(6):
        best = min(best, _seconds(lambda: work(long)) / _seconds(lambda: work(short)))
        if best < 9:
            break
    return best


@pytest.mark.parametrize(("kind", "pattern"), EVERY, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(EVERY)])
def test_no_text_takes_more_than_its_length(kind: str, pattern: re.Pattern[str]) -> None:
    agent = _agent(kind)
    for unit in _units(pattern):

        def repeated(length: int, unit: str = unit) -> str:
            # Behind its end nothing goes on.
            return unit * (length // len(unit)) + "\n!"

        for work in (lambda text: _check(agent, text), agent.settled):
            # What may repeat 1,600 times takes the square of a length up to that.
            assert growth(work, repeated, 400) < 30, f"{unit!r}: the cube of the length, or more"
            assert growth(work, repeated, 5_000) < 9, f"{unit!r}: more than the length"


@pytest.mark.parametrize("unit", ["sk-", "=eyJ", "AKIA" + "A" * 16, "xoxb-1-", "ghp_" + "a" * 36, "eyJa.a-"])
def test_no_run_of_tokens_takes_more_than_its_length(unit: str) -> None:
    """For 80,000 characters: 8 s, 0.8 s, 0.3 s, when each of them was read to the end of the run."""
    agent = Secrets()
    assert growth(lambda text: _check(agent, text), lambda length: unit * (length // len(unit)), 20_000) < 9


def test_no_pattern_is_longer_than_what_a_window_of_a_stream_has() -> None:
    for kind, those in patterns().items():
        for pattern in those:
            _, longest = re._parser.parse(pattern.pattern, pattern.flags).getwidth()  # type: ignore[attr-defined]
            assert longest <= LONGEST < Secrets.hold - _IN_A_ROW, kind
