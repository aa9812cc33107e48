"""Whatever the cutting, what leaves is what redacting the whole text at once gives."""

import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asgi_agents.errors import AgentProtocolError
from asgi_agents.guardrails.slots import Block, Decision, Flag, Redact, Window
from asgi_agents.guardrails.windows import AskedWindow, SlotWindows, WindowLimits
from tests.guardrails.detectors import CARD, EMAIL, HOLD, KEY, Detector, detector, redacted, settled
from tests.support.examples import examples

# Texts in which finds begin, end and overlap everywhere.
_PIECES = st.one_of(
    st.sampled_from(
        [
            "alice@example.com",
            "a.b+c@x.co",
            "4111 1111 1111 1111",
            "sk-abcdefgh12",
            "@",
            ".",
            " ",
            "word ",
            "1",
            "-",
            "é",
            "\U0001f600",
        ]
    ),
    st.text(alphabet="ab1@. -\n", max_size=6),
)
TEXTS = st.lists(_PIECES, max_size=30).map("".join)
LIMITS = st.builds(
    lambda hold, more, in_flight, eager, use_settled: WindowLimits(
        hold=hold, window=2 * hold + more, in_flight=in_flight, eager=eager, settled=settled if use_settled else None
    ),
    hold=st.integers(HOLD, HOLD + 40),
    more=st.integers(1, 300),
    in_flight=st.integers(1, 3),
    eager=st.booleans(),
    use_settled=st.booleans(),
)


def judge(
    windows: SlotWindows, parts: Sequence[str], check: Detector, rng: random.Random | None = None
) -> list[tuple[str, str]]:
    """What leaves when the parts arrive one by one, and verdicts come in any order, now or later."""
    out: list[tuple[str, str]] = []
    waiting: list[AskedWindow] = []
    now = 0.0

    def settle(*, everything: bool) -> None:
        while True:
            while (asked := windows.ask(now)) is not None:
                waiting.append(asked)
            if not waiting:
                return
            if rng is not None and not everything and rng.random() < 0.5:
                return
            asked = waiting.pop(rng.randrange(len(waiting)) if rng is not None else 0)
            windows.verdict(asked, check(asked.window))
            out.extend(windows.released())

    for part in parts:
        windows.feed(part, now)
        settle(everything=False)
        if rng is not None and rng.random() < 0.3:
            now += 1.0
            settle(everything=False)
        out.extend(windows.released())
    windows.finish()
    settle(everything=True)
    out.extend(windows.released())
    assert windows.complete
    return out


def cut(text: str, rng: random.Random, *, longest: int = 12) -> list[str]:
    """``text`` in parts, some of them empty."""
    parts = []
    while text:
        size = rng.randrange(longest + 1)
        parts.append(text[:size])
        text = text[size:]
    return parts


@given(TEXTS, LIMITS, st.randoms(use_true_random=False))
def test_any_cutting_gives_what_the_whole_text_gives(text: str, limits: WindowLimits, rng: random.Random) -> None:
    for check in (detector(EMAIL), detector(EMAIL, CARD, KEY)):
        parts = cut(text, rng)
        out = judge(SlotWindows(limits), parts, check, rng)
        assert [before for before, _ in out] == parts
        assert "".join(after for _, after in out) == redacted(text, check)


@given(TEXTS, LIMITS, LIMITS, st.randoms(use_true_random=False))
def test_a_guardrail_on_the_output_of_another(
    text: str, first: WindowLimits, second: WindowLimits, rng: random.Random
) -> None:
    emails, others = detector(EMAIL), detector(CARD, KEY)
    between = [after for _, after in judge(SlotWindows(first), cut(text, rng), emails, rng)]
    out = judge(SlotWindows(second), between, others, rng)
    assert "".join(after for _, after in out) == redacted(redacted(text, emails), others)


@pytest.mark.hypothesis
def test_any_cutting_of_one_text() -> None:
    rng = random.Random(11)  # noqa: S311
    check = detector(EMAIL, CARD, KEY)
    text = "write to alice@example.com or pay with 4111 1111 1111 1111; the key is sk-abcdefgh12 thanks. " * 12
    expected = redacted(text, check)
    for _ in range(examples(1000)):
        limits = WindowLimits(
            hold=HOLD,
            window=rng.randrange(2 * HOLD + 1, 500),
            in_flight=rng.randrange(1, 4),
            eager=rng.random() < 0.3,
            settled=settled if rng.random() < 0.5 else None,
        )
        out = judge(SlotWindows(limits), cut(text, rng, longest=40), check, rng)
        assert "".join(after for _, after in out) == expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eager", [False, True])
def test_however_long_a_slot_is_each_window_has_its_context(eager: bool, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    limits = WindowLimits(hold=HOLD, window=3 * HOLD, in_flight=1 + seed, eager=eager)
    find = detector(EMAIL, CARD, KEY)
    text = "".join(rng.choice("a1 .@-") for _ in range(6000))
    begun: list[int] = []

    def check(window: Window) -> Sequence[Decision]:
        begin = window.start + window.fresh
        assert window.fresh >= min(HOLD, begin)
        assert window.text == text[window.start : window.start + len(window.text)]
        begun.append(begin)
        return find(window)

    out = judge(SlotWindows(limits), cut(text, rng), check, rng)
    assert "".join(after for _, after in out) == redacted(text, find)
    assert max(begun) > 5000


def test_text_is_kept_back_until_what_follows_it_was_judged() -> None:
    windows = SlotWindows(WindowLimits(hold=10, window=30, eager=True))
    windows.feed("0123456789", 0.0)
    assert windows.ask(0.0) is None
    windows.feed("abcde", 0.0)
    asked = windows.ask(0.0)
    assert asked is not None
    assert asked.window == Window("0123456789abcde", 0, 0, final=False)
    windows.verdict(asked, ())
    # Only five code points have ten behind them that were judged, and a part leaves whole.
    assert windows.released() == []
    assert windows.held == 10
    windows.feed("fghij", 0.0)
    asked = windows.ask(0.0)
    assert asked is not None
    assert (asked.window.start, asked.window.fresh) == (0, 5)
    windows.verdict(asked, ())
    assert windows.released() == [("0123456789", "0123456789")]


def test_settled_text_leaves_at_once() -> None:
    windows = SlotWindows(WindowLimits(eager=True, settled=settled))
    windows.feed("one, ", 0.0)
    asked = windows.ask(0.0)
    assert asked is not None
    windows.verdict(asked, ())
    assert windows.held == 1
    windows.feed("\n", 0.0)
    asked = windows.ask(0.0)
    assert asked is not None
    windows.verdict(asked, ())
    assert [after for _, after in windows.released()] == ["one, ", "\n"]


def test_a_timer_releases_no_more_than_what_was_judged_with_what_follows() -> None:
    windows = SlotWindows(WindowLimits(hold=10, window=100, max_hold=0.5))
    windows.feed("x" * 25, 1.0)
    assert windows.ask(1.4) is None
    assert windows.wake_at() == 1.5
    asked = windows.ask(1.5)
    assert asked is not None
    assert (asked.limit, asked.end) == (15, 25)
    assert windows.wake_at() is None
    windows.verdict(asked, ())
    assert windows.held == 10
    assert windows.wake_at() is None


def test_a_timer_does_not_ask_for_what_it_could_not_release() -> None:
    windows = SlotWindows(WindowLimits(hold=10, window=100, max_hold=0.5, settled=lambda text: 0))
    windows.feed("12345678", 1.0)
    assert windows.wake_at() == 1.5
    assert windows.ask(1.5) is None
    assert windows.wake_at() is None


def test_a_find_that_crosses_the_limit_is_judged_again_with_what_follows() -> None:
    windows = SlotWindows(WindowLimits(hold=10, window=30, in_flight=2))
    text = "." * 18 + "aa@bb" + "." * 60
    windows.feed(text, 0.0)
    first, second = windows.ask(0.0), windows.ask(0.0)
    assert first is not None
    assert second is not None
    assert (first.fresh, first.limit, first.end) == (0, 20, 30)
    windows.verdict(second, ())
    windows.verdict(first, [Redact(18, 23, "#")])
    assert second.stale
    again = windows.ask(0.0)
    assert again is not None
    assert again.fresh == 18
    windows.verdict(again, [Redact(10, 15, "#")])
    windows.finish()
    while (asked := windows.ask(0.0)) is not None:
        windows.verdict(asked, ())
    assert windows.released() == [(text, "." * 18 + "#" + "." * 60)]


def test_a_find_longer_than_hold_counts_as_it_is() -> None:
    windows = SlotWindows(WindowLimits(hold=5, window=20))
    windows.feed("." * 20, 0.0)
    asked = windows.ask(0.0)
    assert asked is not None
    windows.verdict(asked, [Redact(0, 20, "gone")])
    assert windows.released() == [("." * 20, "gone")]


def test_overlapping_redactions_are_one_with_the_text_of_the_first() -> None:
    windows = SlotWindows(WindowLimits())
    windows.feed("0123456789", 0.0)
    windows.finish()
    asked = windows.ask(0.0)
    assert asked is not None
    windows.verdict(asked, [Redact(4, 8, "b"), Redact(2, 5, "a"), Redact(8, 9, "c")])
    assert windows.released() == [("0123456789", "01ac9")]
    assert [(found.start, found.end) for found in windows.found] == [(2, 8), (8, 9)]


def test_a_block_stops_what_has_not_left() -> None:
    windows = SlotWindows(WindowLimits(hold=1, window=4, in_flight=2))
    windows.feed("abcdefgh", 0.0)
    first, second = windows.ask(0.0), windows.ask(0.0)
    assert first is not None
    assert second is not None
    windows.verdict(second, [Block("no")])
    assert windows.blocked is None, "verdicts are applied in order"
    windows.verdict(first, ())
    assert windows.blocked == Block("no")
    assert windows.released() == []
    assert windows.ask(0.0) is None


def test_a_flag_is_recorded_once_and_changes_nothing() -> None:
    windows = SlotWindows(WindowLimits(hold=4, window=10))
    windows.feed("..bad...bad.....", 0.0)
    windows.finish()
    pattern = re.compile("bad")
    while (asked := windows.ask(0.0)) is not None:
        finds = [Flag(m.start(), m.end(), "word") for m in pattern.finditer(asked.window.text)]
        windows.verdict(asked, finds)
    assert windows.released() == [("..bad...bad.....", "..bad...bad.....")]
    assert [(found.start, found.end, found.category) for found in windows.found] == [(2, 5, "word"), (8, 11, "word")]


@pytest.mark.parametrize(
    "decision",
    [Redact(0, 4), Redact(-1, 2), Redact(2, 1), Flag(0, 9, "x"), Redact(0, 1.0)],  # type: ignore[arg-type]
)
def test_a_span_outside_of_the_window_is_an_error(decision: Decision) -> None:
    windows = SlotWindows(WindowLimits())
    windows.feed("abc", 0.0)
    windows.finish()
    asked = windows.ask(0.0)
    assert asked is not None
    with pytest.raises(AgentProtocolError, match="code points of the window"):
        windows.verdict(asked, [decision])
    windows.verdict(asked, ())
    assert windows.complete


def test_more_text_than_the_windows_take_makes_it_full() -> None:
    windows = SlotWindows(WindowLimits(hold=10, window=100, in_flight=2))
    windows.feed("x" * 350, 0.0)
    first = windows.ask(0.0)
    assert first is not None
    assert windows.ask(0.0) is not None
    assert windows.ask(0.0) is None
    assert windows.full
    windows.verdict(first, ())
    assert windows.ask(0.0) is not None
    assert not windows.full


def test_an_agent_that_redacts_without_spans_is_shown_all_of_a_slot_at_its_end() -> None:
    windows = SlotWindows(WindowLimits(whole=True))
    for _ in range(300):
        windows.feed("word ", 0.0)
        assert windows.ask(9.0) is None
    assert not windows.full
    assert windows.wake_at() is None
    windows.finish()
    asked = windows.ask(9.0)
    assert asked is not None
    assert asked.window == Window("word " * 300, 0, 0, final=True)
    windows.verdict(asked, [Redact(0, 1500, "all of it")])
    assert "".join(after for _, after in windows.released()) == "all of it"


def test_a_slot_that_goes_on_is_judged_with_what_it_had_said() -> None:
    windows = SlotWindows(WindowLimits(eager=True, settled=settled))
    windows.feed("alice@exa", 0.0)
    windows.finish()
    asked = windows.ask(0.0)
    assert asked is not None
    windows.verdict(asked, ())
    windows.resume()
    windows.feed("mple.com\n", 0.0)
    asked = windows.ask(0.0)
    assert asked is not None
    assert (asked.window.text, asked.window.fresh) == ("alice@example.com\n", 0)
    windows.verdict(asked, [Redact(0, 17, "[0]")])
    windows.finish()
    while (asked := windows.ask(0.0)) is not None:
        windows.verdict(asked, ())
    assert [after for _, after in windows.released()] == ["alice@exa", "[0]\n"]


def test_memory_stays_flat() -> None:
    windows = SlotWindows(WindowLimits(hold=20, window=60, eager=True))
    for _ in range(20_000):
        windows.feed("word ", 0.0)
        while (asked := windows.ask(0.0)) is not None:
            windows.verdict(asked, ())
        windows.released()
    assert len(windows._text) < 2000
    assert len(windows._parts) < 20


@pytest.mark.parametrize("fields", [{"hold": -1}, {"hold": 100, "window": 100}, {"in_flight": 0}])
def test_limits_that_can_not_work(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        WindowLimits(**fields)  # type: ignore[arg-type]


# A find without an end of its own: it goes on over windows, as a private key does.
_REGION = re.compile(r"<[^>]*>?")


def regions(window: Window) -> Sequence[Decision]:
    text, begin = window.text, window.fresh
    found: list[Decision] = []
    if window.going_on:
        assert re.match(r"<[^>]*\Z", window.going_on)
        if text[begin - 1] != ">":
            begin = text.find(">", window.fresh) + 1 or len(text)
            found.append(Redact(window.fresh, begin))
    found += [Redact(match.start(), match.end(), "[region]") for match in _REGION.finditer(text, begin)]
    return found


def before_a_region(text: str) -> int:
    return len(text) if (begun := re.search(r"<[^>]*\Z", text)) is None else begun.start()


@given(
    st.lists(st.sampled_from(["<", ">", "a", "b ", "<a>", "a" * 30, "<" + "b" * 25, "><", "\n" * 90]), max_size=20).map(
        "".join
    ),
    st.integers(1, 20),
    st.integers(1, 60),
    st.booleans(),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_what_goes_on_over_windows_is_redacted_to_its_end(
    text: str, hold: int, more: int, eager: bool, settles: bool, rng: random.Random
) -> None:
    limits = WindowLimits(
        hold=hold, window=hold + more, eager=eager, settled=before_a_region if settles else None, in_flight=3
    )
    windows = SlotWindows(limits)
    out = judge(windows, cut(text, rng), regions, rng)
    assert "".join(after for _, after in out) == _REGION.sub("[region]", text)
    # However many windows it goes over, it is one find.
    assert len(windows.found) == len(_REGION.findall(text))


def test_what_goes_on_behind_a_slot_that_seemed_to_have_ended_is_redacted() -> None:
    windows = SlotWindows(WindowLimits(hold=10, window=30, eager=True, settled=before_a_region))
    left = []
    for part in ("a <" + "b" * 20, "c> d"):
        windows.resume()
        windows.feed(part, 0.0)
        windows.finish()
        asked = windows.ask(0.0)
        assert asked is not None
        windows.verdict(asked, regions(asked.window))
        left += [after for _, after in windows.released()]
    assert left == ["a [region]", " d"]


# One that is known by how it begins, which may be as long as what is held back.
_MARKED = re.compile(r"<m*[ab][^>]*>?")


def marked(window: Window) -> Sequence[Decision]:
    text, begin = window.text, window.fresh
    found: list[Decision] = []
    if re.match(r"<m*[ab]", window.going_on) and text[begin - 1] != ">":
        begin = text.find(">", begin) + 1 or len(text)
        found.append(Redact(window.fresh, begin))
    found += [Redact(match.start(), match.end(), "[marked]") for match in _MARKED.finditer(text, begin)]
    return found


@given(
    st.lists(st.sampled_from(["m", "a", "b ", ">", "<", "<ma", "m" * 90, "m" * 270, "c" * 500]), max_size=20).map(
        "".join
    ),
    st.integers(0, 400),
    st.integers(0, 100),
    st.integers(1, 500),
    st.integers(0, 2**32),
)
@example("", 85, 0, 100, 0)
@example("", 300, 0, 100, 0)
def test_of_what_goes_on_all_is_told_by_which_it_is_known(
    text: str, length: int, more: int, longer: int, seed: int
) -> None:
    text += "<" + "m" * length + "a" + "b" * 1000 + "> and more"
    longest = max(map(len, re.findall(r"<m*[ab]?", text)))
    limits = WindowLimits(hold=longest + more, window=longest + more + longer, in_flight=3)
    rng = random.Random(seed)  # noqa: S311
    out = judge(SlotWindows(limits), cut(text, rng), marked, rng)
    assert "".join(after for _, after in out) == _MARKED.sub("[marked]", text)
