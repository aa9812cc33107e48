"""Text that comes in pieces: what leaves is what would leave if it had come whole, and it leaves word by word."""

import re
import time
from collections.abc import Sequence
from itertools import cycle

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.agents import Secrets
from asgi_agents.agents.parsed_patterns import shortest
from asgi_agents.agents.secret_patterns import patterns
from asgi_agents.agents.unfinished import may_contain, unfinished
from asgi_agents.guardrails import Window
from asgi_agents.guardrails.windows import SlotWindows, WindowLimits

# In parts, so that nobody who searches this file takes them for real ones.
_AWS = "AKIA" + "IOSFODNN7EXAMPLE"
_JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiJhbGljZSJ9." + "c2lnbmF0dXJlLW9mLWl0"
_KEY = "-----BEGIN RSA PRIVATE " + "KEY-----\n" + "MIIEpAIBAAKCAQEA\n" * 8 + "-----END RSA PRIVATE KEY-----"
_FORTY = "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"
SECRETS = (
    *(_AWS, _JWT, _KEY),
    "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2,
    f"aws secret key = '{_FORTY}'",
    f'AWS_SECRET_ACCESS_KEY: "{_FORTY}"',
    "cloudant_apikey = " + "0123456789abcdef" * 4,
    "api key := " + "a1B2" * 11,
    "ibm_cloud_iam_api_key  =  '" + "a1B2" * 11 + "'",
    "cos_hmac_secret_access_key = " + "abcdef12" * 6,
    "sl_api_key => " + "a0" * 32,
    "http://api.softlayer.com/soap/v3.1/" + "a0" * 32,
    "https://user:pa55word@host/",
    "//registry.example/:_authToken=npm_abcdefghijkl and more",
    "//r/:_authToken= \n npm_abc def",
    "AKCabcdefghijklm",
    " AKCabcdefghijklm AKCbbbbbbbbbbbbbb ",
    "xoxb-" + "123456789012-123456789012-abcdefghijkl",
    "sk-" + "a" * 20 + "T3BlbkFJ" + "b" * 20,
    "glpat-" + "a1" * 12,
    "0123456789:" + "a" * 35,
    "pypi-AgEIcHlwaS5vcmc" + "a" * 80,
    "a1b2" * 8 + "-us12",
    "BEGIN SSH2 ENCRYPTED PRIVATE KEY",
)
# What may stand between them, or begin or end one.
OTHERS = (
    *(
        " ",
        "\n",
        "  ",
        "\t",
        ". ",
        ", ",
        "\uff0c",
        "\u3000",
        "=",
        "'",
        '"',
        "://",
        "//",
        "-----BEGIN ",
        "PRIVATE KEY-----",
    ),
    *(
        "hello",
        "world",
        "key",
        "pass ",
        "token: ",
        "laws of",
        "aws",
        "\u662f\u7684",
        "\xe9",
        "\uff2b",
        "\u017f",
        "\u212a",
    ),
    *("a1", "123", "AC", "aws", "PRIVATE KEY-----"),
)
AGENT = Secrets()
BREAKS = " \t\n\x85\xa0\u2028\u3000\xe9\u0416\u4e2d\uac00\uff0c"


@st.composite
def pieces_of(draw: st.DrawFn) -> str:
    """A secret, or some of one, or something else."""
    text = draw(st.sampled_from([*SECRETS, *OTHERS]))
    end = draw(st.integers(0, len(text)) | st.just(len(text)))
    return text[draw(st.integers(0, end) | st.just(0)) : end] + draw(st.sampled_from(["", " ", "\n"]))


async def left(agent: Secrets, parts: Sequence[str]) -> Sequence[str]:
    """What has left after each part, as the middleware asks the agent, and after the end."""
    windows = SlotWindows(WindowLimits(hold=agent.hold, window=agent.window or 0, eager=True, settled=agent.settled))
    out = []
    for part in (*parts, None):
        if part is None:
            windows.finish()
        else:
            windows.feed(part, 0.0)
        while (asked := windows.ask(0.0)) is not None:
            windows.verdict(asked, await agent.check(asked.window))
        assert windows.failed is None
        out.append("".join(text for _, text in windows.released()))
    return out


@given(st.lists(pieces_of(), max_size=10), st.lists(st.sampled_from((1, 2, 3, 5, 8, 13, 40)), min_size=1, max_size=50))
async def test_however_it_is_cut_what_leaves_is_what_would_leave_of_the_whole(
    texts: list[str], lengths: list[int]
) -> None:
    text = "".join(texts)
    parts = []
    for length in cycle(lengths):
        if not text:
            break
        parts.append(text[:length])
        text = text[length:]

    assert "".join(await left(AGENT, parts)) == "".join(await left(AGENT, ["".join(parts)]))


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("before", ["Use ", "\uff0c"])
async def test_none_leaves_in_part_however_it_is_cut(before: str, secret: str) -> None:
    text = f"{before}{secret} for it.\nThat is all."
    whole = "".join(await left(AGENT, [text]))
    # Some forms count only behind a blank.
    assert whole != text or before != "Use "
    for at in range(0, len(text), 3):
        assert "".join(await left(AGENT, [text[:at], text[at:]])) == whole
    assert "".join(await left(AGENT, list(text))) == whole


@pytest.mark.parametrize(
    "text",
    ["It is a matter of taste, they say, and of the weather. " * 3, "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c" * 12],
    ids=["with blanks", "without"],
)
async def test_ordinary_text_leaves_word_by_word(text: str) -> None:
    out = await left(AGENT, list(text))

    held = 0
    for char, gone in zip(text, out, strict=False):
        held += len(char) - len(gone)
        # The longest word, or what begins like an assignment.
        assert held <= 12


async def test_what_a_secret_may_have_begun_with_is_held() -> None:
    for held in ("aws secret key = '", "my password = ", "BEGIN RSA ", "//r/:_authToken=\n", f"x {_KEY[:60]}\n"):
        begun = re.escape(held.removeprefix("my ").removeprefix("x ").removeprefix("//r"))
        assert re.match(begun, held[AGENT.settled(held) :]) is not None


EVERY = [each for kind in patterns().values() for each in kind]


@pytest.mark.parametrize("pattern", EVERY, ids=range(len(EVERY)))
@given(st.data())
def test_every_beginning_of_a_match_is_unfinished(pattern: re.Pattern[str], data: st.DataObject) -> None:
    text = data.draw(st.from_regex(pattern, fullmatch=True))
    at = data.draw(st.integers(1, len(text)))
    found = unfinished(pattern).search(text[: at - 1] or text[:1])

    assert found is not None
    assert found.start() == 0 or len(text) == 1
    assert len(text) >= shortest(pattern)


@pytest.mark.parametrize("pattern", EVERY, ids=range(len(EVERY)))
@given(st.data())
def test_what_is_said_to_contain_no_break_contains_none(pattern: re.Pattern[str], data: st.DataObject) -> None:
    text = data.draw(st.from_regex(pattern, fullmatch=True))

    assert may_contain(pattern, BREAKS) or not any(char in BREAKS for char in text)


# What stands for letters of ASCII where capitals don't count.
RELATIVES = [chr(code) for code in range(0x80, 0x3000) if re.fullmatch("[a-z]", chr(code), re.IGNORECASE)]
IN_ANY_CASE = [each for each in EVERY if each.flags & re.IGNORECASE]


@pytest.mark.parametrize("pattern", IN_ANY_CASE, ids=range(len(IN_ANY_CASE)))
@given(st.data())
def test_letters_that_count_as_those_of_ascii_are_no_breaks(pattern: re.Pattern[str], data: st.DataObject) -> None:
    """Where one of them ended a word, the first part of a token left before the rest had come."""
    text = data.draw(st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) < 500))
    places = [(at, char) for at in range(len(text)) for char in RELATIVES if _is_letter(text, at, char, pattern)]
    if not places:
        return
    at, char = data.draw(st.sampled_from(places))
    text = f"{data.draw(st.sampled_from(['', 'x ']))}{text[:at]}{char}{text[at + 1 :]}' and"

    async def check() -> None:
        whole = "".join(await left(AGENT, [text]))
        assert "".join(await left(AGENT, list(text))) == whole
        for cut in range(1, len(text)):
            assert "".join(await left(AGENT, [text[:cut], text[cut:]])) == whole

    anyio.run(check)


def _is_letter(text: str, at: int, char: str, pattern: re.Pattern[str]) -> bool:
    """Whether a letter may be written as ``char``, and the pattern matches none the less."""
    return text[at].isascii() and text[at].isalpha() and bool(pattern.fullmatch(f"{text[:at]}{char}{text[at + 1 :]}"))


def test_what_is_not_known_counts_as_unfinished() -> None:
    for pattern in (r"(a)b\1", r"(?i:a) b", r"(?>a) b"):
        compiled = re.compile(pattern)
        assert unfinished(compiled).match("anything at all") is not None
        assert may_contain(compiled, " ")


@pytest.mark.parametrize(
    ("pattern", "text", "start"),
    [
        (r"ab c", "x ab", 2),
        (r"ab c", "x ab d", 6),
        (r"(?:a|bc) d", "bc ", 0),
        (r"a{2,3} b", "xaa", 1),
        (r"a(?= b)", "xa ", 1),
        (r"a(?!\w)", "xa", 1),
        (r"(?<=x)a b", "a ", 0),
        (r"a b\b", "a b", 0),
        (r"^a b", "xa", 1),
        (r"a b$", "a b\n", 0),
        (r"[^a] b", "a ", 1),
        (r"[^ ab] b", "ca ", 3),
        (r".\d\D b", "ab", 1),
    ],
)
def test_where_a_match_could_begin(pattern: str, text: str, start: int) -> None:
    found = unfinished(re.compile(pattern)).search(text)
    assert found is not None
    assert found.start() == start


@pytest.mark.parametrize(
    "text",
    ["key " + " " * 4000 + ".", "key =     " * 400 + ".", "//" * 2000, "aws key ' " * 400, "-----BEGIN " * 370],
    ids=["blanks", "assignments", "slashes", "quotes", "headers"],
)
async def test_no_text_takes_as_long_as_its_length_squared(text: str) -> None:
    """Blanks behind "key" took the cube of their number: 400 of them 1.6 s, 4,000 half an hour."""
    begin = time.process_time()
    AGENT.settled(text)
    await AGENT.check(Window(text))
    assert time.process_time() - begin < 60
