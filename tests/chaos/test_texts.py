"""Each fault of a guarded stream is planted, and has to be found."""

import random
import re
from collections.abc import Mapping
from typing import Final

import pytest

from tests.chaos.checks import BLOCKED, FOREIGN, NO_ANSWER, NOT_WHOLE, STATUS, UNINSPECTED, Checker
from tests.chaos.http_client import Ending, Got
from tests.chaos.stamps import Seal
from tests.chaos.texts import SAMPLES, SECRET, TEXT_TARGETS, Asked, TextTarget, replacement, spoken
from tests.guardrails.samples import Cut

SEALS: Final = {agent: Seal(agent, b"secret") for agent in ("pool", "lone", "post")}
CHECKER: Final = Checker(SEALS)
CLOSED, OPEN = (next(target for target in TEXT_TARGETS if target.fails_closed is closed) for closed in (True, False))
TOKEN: Final = "c1-7"
DIALECTS: Final = pytest.mark.parametrize("dialect", SAMPLES)
TARGETS: Final = pytest.mark.parametrize("target", [CLOSED, OPEN], ids=["closed", "open"])
STOPPED: Final = b'data: {"type": "error", "error": {"message": "Agent unavailable"}}\n\n'


def judged(texts: Mapping[str, str], token: str = TOKEN, agent: str = CLOSED.agent) -> dict[str, str]:
    """What a guardrail makes of the texts of one who has asked."""
    return {
        name: SECRET.sub(lambda match: replacement(SEALS[agent], token, match[0]), text) for name, text in texts.items()
    }


class Words(Cut):
    """Cuts as guardrails do, which let what replaces something leave whole."""

    def __call__(self, text: str) -> list[str]:
        return re.split(r"(?<= )", text)


def came(dialect: str, texts: Mapping[str, str]) -> list[bytes]:
    return SAMPLES[dialect].stream(texts, Cut(random.Random(1), longest=9))  # noqa: S311


def found(
    target: TextTarget, dialect: str, body: bytes, status: int = 200, ending: Ending = Ending.COMPLETE
) -> set[str]:
    asked = Asked(target, TOKEN, dialect)
    return {violation.promise for violation in CHECKER.texts(asked, Got(ending, status, {}, body))}


@DIALECTS
def test_there_is_something_to_be_found(dialect: str) -> None:
    texts, events = spoken(TOKEN, dialect)
    assert sum(len(SECRET.findall(text)) for text in texts.values()) > 3
    assert spoken(TOKEN, dialect) == (texts, events)
    assert spoken("another", dialect) != (texts, events)


@DIALECTS
@TARGETS
def test_a_stream_that_was_judged_is_fine(target: TextTarget, dialect: str) -> None:
    assert found(target, dialect, b"".join(came(dialect, judged(spoken(TOKEN, dialect)[0])))) == set()


@DIALECTS
def test_a_secret_that_came_is_found_where_it_fails_closed(dialect: str) -> None:
    texts, events = spoken(TOKEN, dialect)
    assert found(CLOSED, dialect, b"".join(events)) == {UNINSPECTED}
    assert found(OPEN, dialect, b"".join(events)) == set()
    for name in texts:
        if SECRET.search(texts[name]):
            # In one text alone.
            body = b"".join(came(dialect, {**judged(texts), name: texts[name]}))
            assert found(CLOSED, dialect, body) == {UNINSPECTED}


@DIALECTS
def test_the_beginning_of_a_secret_is_found_where_a_stream_was_stopped(dialect: str) -> None:
    texts, _ = spoken(TOKEN, dialect)
    name = next(name for name, text in texts.items() if SECRET.search(text) and not name.startswith("signed"))
    begun = texts[name][: texts[name].index("SECRET") + len("SECRET-1")]
    empty = dict.fromkeys(texts, "")
    events = [event for event in came(dialect, {**empty, name: begun}) if begun.encode() not in event]
    events = [event for event in events if b"completed" not in event and b"[DONE]" not in event]
    assert UNINSPECTED in found(CLOSED, dialect, b"".join([*events, STOPPED]))


@DIALECTS
@TARGETS
def test_what_was_judged_for_another_request_is_found(target: TextTarget, dialect: str) -> None:
    texts, _ = spoken(TOKEN, dialect)
    assert FOREIGN in found(target, dialect, b"".join(came(dialect, judged(texts, "c9-9"))))
    assert UNINSPECTED in found(target, dialect, b"".join(came(dialect, judged(texts, agent="post"))))


@DIALECTS
def test_a_failure_may_stop_a_stream_where_it_fails_closed(dialect: str) -> None:
    events = SAMPLES[dialect].stream(judged(spoken(TOKEN, dialect)[0]), Words(random.Random(1)))  # noqa: S311
    for count in range(0, len(events) // 2, 7):
        body = b"".join([*events[:count], STOPPED])
        assert found(CLOSED, dialect, body) == set()
        assert BLOCKED in found(OPEN, dialect, body)


@DIALECTS
@TARGETS
def test_a_stream_that_ends_without_a_word_is_found(target: TextTarget, dialect: str) -> None:
    events = came(dialect, judged(spoken(TOKEN, dialect)[0]))
    for count in range(1, len(events), 7):
        assert NOT_WHOLE in found(target, dialect, b"".join(events[:count]))
    assert NOT_WHOLE in found(target, dialect, b"".join(events)[:-5])
    assert NOT_WHOLE in found(target, dialect, b"".join(events), ending=Ending.CUT)
    assert NOT_WHOLE in found(target, dialect, b"")


@DIALECTS
@TARGETS
def test_a_text_that_is_not_what_was_said_is_found(target: TextTarget, dialect: str) -> None:
    texts, _ = spoken(TOKEN, dialect)
    for name in texts:
        other = {**judged(texts), name: judged(texts)[name].replace(" ", "  ", 1)}
        assert found(target, dialect, b"".join(came(dialect, other))) == {NOT_WHOLE}


@DIALECTS
def test_what_came_before_the_first_byte(dialect: str) -> None:
    body = b'{"error": {"message": "Gateway timeout"}}'
    assert found(CLOSED, dialect, body, 504) == set()
    assert found(OPEN, dialect, body, 504) == {BLOCKED}
    assert found(CLOSED, dialect, b"oops", 503) == {STATUS}
    assert found(CLOSED, dialect, body, 500) == {STATUS}
    for ending in (Ending.NOTHING, Ending.HUNG):
        assert found(OPEN, dialect, b"", 0, ending) == {NO_ANSWER}
