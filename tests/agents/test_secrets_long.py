"""Secrets that are longer than what a stream holds back, and those that something long stands within."""

import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asgi_agents.agents import Secrets
from asgi_agents.agents.secrets import _BEGIN
from asgi_agents.guardrails import Flag, Redact, Window
from asgi_agents.guardrails.slots import Slot
from asgi_agents.guardrails.text_guardrail import metadata_of, window_of
from asgi_agents.guardrails.windows import _TOLD, AskedWindow, SlotWindows, WindowLimits
from asgi_agents.protocol import GuardrailInspectEvent
from tests.agents.test_secrets import served
from tests.agents.test_secrets_cut import OTHERS, SECRETS

AGENT = Secrets()
WHOLE = WindowLimits(hold=AGENT.hold, window=AGENT.window, whole=True)
LIMITS = {
    "at each event": WindowLimits(hold=AGENT.hold, window=AGENT.window, eager=True, settled=AGENT.settled),
    # As an agent is asked that is somewhere else.
    "in windows": WindowLimits(hold=AGENT.hold, window=AGENT.window, in_flight=3),
    "in longer windows": WindowLimits(hold=AGENT.hold + 904, window=9000, in_flight=2),
}
BEGIN = "-----BEGIN RSA PRIVATE " + "KEY-----"
END = "-----END RSA PRIVATE KEY-----"
HEX = "0123456789abcdef" * 4


async def left(limits: WindowLimits, parts: Sequence[str], rng: random.Random) -> str:
    """What leaves when the parts come one by one, with verdicts in any order."""
    windows, asked, out, now = SlotWindows(limits), list[AskedWindow](), list[str](), 0.0
    for part in (*parts, None):
        now += rng.choice((0.0, 0.1, 1.0))
        if part is None:
            windows.finish()
        else:
            windows.feed(part, now)
        while True:
            if (more := windows.ask(now)) is not None:
                asked.append(more)
            elif not asked or (part is not None and rng.random() < 0.2):
                break
            else:
                judged = asked.pop(rng.randrange(len(asked)))
                # What is sent to an agent elsewhere says the same.
                sent = GuardrailInspectEvent(
                    correlation_id="1",
                    inspection_type="secrets",
                    content=judged.window.text[judged.window.fresh :],
                    metadata=metadata_of(judged.window, Slot(("a",), "output")),
                )
                assert window_of(sent) == judged.window
                windows.verdict(judged, await AGENT.check(judged.window))
        out += [after for _, after in windows.released()]
    assert windows.complete
    assert windows.failed is None
    return "".join(out)


def piece(rng: random.Random) -> str:
    def run(length: int) -> str:
        return "".join(rng.choices("abcXYZ019_-", k=length))

    length = rng.choice((5, 100, 3890, 4000, 4097, 6000, 9000))
    before = rng.choice((5, 100, 3880, 3900, 5000))
    return rng.choice(
        (
            lambda: "eyJ" + run(before) + "." + rng.choice(("", "eyJ")) + run(length) + rng.choice(("", ".", ".a-b")),
            lambda: "AKIA" + "B" * 16 + rng.choice(("", "/", "..", "-")) + run(length),
            lambda: BEGIN + rng.choice(("\n", "M\n", "abc", "ab/", " ")) * length + rng.choice(("", END, END[:-12])),
            lambda: "sk-" + run(before) + "a" * 20 + "T3BlbkFJ" + "b" * 20 + run(length),
            lambda: (
                rng.choice(("api_key", "//r/:_authToken=", "https://", "cl_key"))
                + rng.choice((" ", "\n", "u")) * length
                + rng.choice(("= ", ":pw@", "npm_abc", f"= {HEX}"))
            ),
            lambda: rng.choice(SECRETS),
            lambda: rng.choice(OTHERS),
            lambda: rng.choice((" ", "\n", ".", "-", "cl_key", f" = {HEX}", BEGIN[:10], BEGIN[15:], f"/{BEGIN}")),
            lambda: rng.choice(SECRETS)[: rng.randrange(30)],
        )
    )()


@pytest.mark.parametrize("how", LIMITS)
@given(st.integers(0, 2**32))
# Short finds that overlap in a row fill a window, and the last of them goes on.
@example(195)
async def test_however_it_is_cut_what_leaves_is_what_would_leave_of_the_whole(how: str, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    pieces = [piece(rng) for _ in range(rng.randrange(1, 6))]
    text = "".join(pieces)
    cuts, at = {rng.randrange(len(text) + 1) for _ in range(rng.randrange(8))}, 0
    for each in pieces:
        at += len(each)
        # What is at the ends of pieces is cut, too.
        cuts.update(at + rng.randrange(-90, 20) for _ in range(rng.randrange(3)))
    cuts.update(range(rng.choice((1000, 4090)), len(text), rng.choice((700, 2000, 4096, 4097))))
    inner = sorted(cut for cut in cuts if 0 < cut < len(text))
    parts = [text[start:end] for start, end in zip([0, *inner], [*inner, len(text)], strict=True)]

    whole = await left(WHOLE, [text], rng)
    assert await left(LIMITS[how], parts, rng) == whole, [*map(len, parts)]


LONG = {
    "a token of 6,955": ("eyJhbGciOiJIUzI1NiJ9." + "eyJz" * 1000 + "." + "c2ln" * 733 + "b", "json_web_token"),
    "a key of 8,192 bits and more": (f"{BEGIN}\n" + ("MIIEpAIBAAKCAQEA" * 4 + "\n") * 200 + END, "private_key"),
    "a key behind 9,000 line ends": (f"{BEGIN}\n" + "\n" * 9000 + "MIIEpAIBAAKCAQEA\n" * 50 + END, "private_key"),
    "a key behind 9,000 blanks": (BEGIN + " " * 9000 + "MIIEpAIBAAKCAQEA" * 50 + END, "private_key"),
}


@pytest.mark.parametrize(("secret", "kind"), LONG.values(), ids=LONG)
@pytest.mark.parametrize("how", LIMITS)
async def test_none_leaves_in_part_however_long_it_is(how: str, secret: str, kind: str) -> None:
    text = f"Use {secret} for it.\nThat is all."
    for seed, length in enumerate((7, 64, 1000, 4096, 5000)):
        parts = [text[at : at + length] for at in range(0, len(text), length)]
        if len(parts) > 200:
            # Word by word only where the window ends, and the secret does.
            parts = [text[:4090], *text[4090:4110], text[4110:-60], *text[-60:]]
        rng = random.Random(seed)  # noqa: S311
        assert await left(LIMITS[how], parts, rng) == f"Use [{kind}] for it.\nThat is all."


@pytest.mark.parametrize("how", LIMITS)
@given(
    st.text("AZ09 ", min_size=0, max_size=40),
    st.text("AZ ", min_size=0, max_size=20),
    st.integers(-200, 200),
    st.lists(st.integers(1, 9000), max_size=3),
    st.integers(0, 2**32),
)
# The longest and the shortest first line.
@example("MY COMPANY INTERNAL SERVICE ACCOUNT RSA ".rjust(40, "A"), " BLOCK".ljust(20), 0, [50], 0)
@example("", "", 0, [4096], 0)
async def test_a_long_key_is_redacted_whatever_its_first_line_says(
    how: str, before: str, behind: str, ends: int, cuts: list[int], seed: int
) -> None:
    first = f"-----BEGIN {before}PRIVATE " + f"KEY{behind}-----"
    assert _BEGIN.fullmatch(first)
    text = f"Use {first}\n" + ("MIIEpAIBAAKCAQEA" * 4 + "\n") * 150 + "M" * (200 + ends) + END + "\nbye"
    inner = sorted({min(cut, len(text)) for cut in (*cuts, AGENT.hold, AGENT.window)})
    parts = [text[start:end] for start, end in zip([0, *inner], [*inner, len(text)], strict=True)]

    rng = random.Random(seed)  # noqa: S311
    assert await left(LIMITS[how], parts, rng) == "Use [private_key]\nbye"


def test_the_longest_first_line_of_a_key_is_told_whatever_is_held_back() -> None:
    _, longest = re._parser.parse(_BEGIN.pattern).getwidth()  # type: ignore[attr-defined]
    assert longest <= _TOLD


SEPARATORS = ".+/-="


@pytest.mark.parametrize("how", LIMITS)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["AKIA" + "B" * 16, "glpat-" + "a1" * 12, "eyJa.b", "x", "xyz", "word"]),
            st.integers(1, 300) | st.sampled_from([4000, 4095, 4097]),
            st.text(SEPARATORS, min_size=0, max_size=2),
            st.integers(1, 3) | st.integers(60, 70) | st.sampled_from([4090, 4097]),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 5000),
    st.integers(0, 2**32),
)
@example([("AKIA" + "B" * 16, 1, "=", 9000), ("AKIA" + "B" * 16, 1, "", 1)], 4097, 0)
@example([("AKIA" + "B" * 16, 1, "-", 9000), ("AKIA" + "B" * 16, 1, "", 1)], 4097, 0)
# A window ends behind "=".
@example([("AKIA" + "B" * 16, 1, "", 1), ("x", 4076, "=", 1), ("y", 5000, "", 1)], 4097, 0)
@example([("AKIA" + "B" * 16, 1, "-", 64), ("AKIA" + "B" * 16, 1, "-", 65), ("xyz", 9000, "", 1)], 500, 0)
async def test_a_long_token_is_redacted_whatever_stands_within_it(
    how: str, pieces: list[tuple[str, int, str, int]], length: int, seed: int
) -> None:
    text = (
        "AKIA"
        + "A" * 16
        + "".join(word * (1 if len(word) > 4 else times) + sign * n for word, times, sign, n in pieces)
    )
    length = max(length, len(text) // 20)
    rng = random.Random(seed)  # noqa: S311
    whole = await left(WHOLE, [text], rng)
    assert await left(LIMITS[how], [text[at : at + length] for at in range(0, len(text), length)], rng) == whole


async def test_a_token_ends_where_more_than_64_separators_stand_in_a_row() -> None:
    token = "AKIA" + "B" * 16
    for sign in ".+/-":
        assert await Secrets().check(Window(token + sign * 64 + "x")) == [Redact(0, 85, "[aws_access_key]")]
        assert await Secrets().check(Window(token + sign * 65 + "x")) == [Redact(0, 20, "[aws_access_key]")]
    assert await Secrets().check(Window(token + "=" * 65 + "x")) == [Redact(0, 86, "[aws_access_key]")]


@pytest.mark.parametrize("at", [40, 4200, 9020])
def test_a_padded_key_is_redacted_in_a_stream(at: int) -> None:
    secret, kind = LONG["a key behind 9,000 line ends"]
    assert served(f"A key:\n{secret}\nThat was it.", at) == f"A key:\n[{kind}]\nThat was it."


async def test_what_is_not_looked_for_does_not_go_on() -> None:
    window = Window("MIIE\n and more", 5000, 5, going_on=BEGIN)
    assert await Secrets().check(window) == [Redact(5, 14)]
    assert await Secrets(leave_out=["private_key"]).check(window) == []


async def test_finds_are_told_once_where_each_is_in_another() -> None:
    [*flags] = await Secrets(action="flag").check(Window("AKIA" + "A" * 2000)) or ()
    assert flags == [Flag(0, 2004, "aws_access_key")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("access_token=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl", "json_web_token"),
        ("a-eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl", "json_web_token"),
        ("eyJ.eyJa.eyJhbGciOiJIUzI1NiJ9.c2lnbmF0dXJl", "json_web_token"),
        ("keysk-a-" + "a" * 20 + "T3BlbkFJ" + "b" * 20, "openai_token"),
        ("sk-a sk-" + "T3BlbkFJ" * 9 + "b" * 20, "openai_token"),
    ],
)
async def test_a_token_is_found_wherever_it_begins_in_its_word(text: str, kind: str) -> None:
    [first, *_] = await Secrets().check(Window(text)) or ()
    assert isinstance(first, Redact)
    assert (first.text, first.end) == (f"[{kind}]", len(text))
    assert text[first.start :].startswith(("eyJ", "sk-"))


@pytest.mark.parametrize(
    "text", ["eyJ", "eyJ.a", "eyJa.", "eyJa. b", "sk-" + "a" * 19 + "T3BlbkFJ" + "b" * 20, "T3BlbkFJ"]
)
async def test_what_is_too_short_is_no_token(text: str) -> None:
    assert not await Secrets().check(Window(text))
