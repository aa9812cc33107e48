"""Long texts are looked at in pieces. What is found in one is the same wherever in it the pieces end."""

import random
from functools import partial

import pytest

from asgi_agents import redact_secrets
from asgi_agents.observability import brackets, pieces, redaction
from asgi_agents.observability.pieces import matches
from asgi_agents.recording import extents, forms, texts
from asgi_agents.recording.texts import without_named_secrets
from tests.support.examples import the_first_is_short

SECRET = "Zq9X"
# What a secret may begin with, what may be repeated in it, and what decides.
BEGINNINGS = [
    *("://", ":\\/\\/", "%3a%2f%2f", "%253a%252f%252f", ":%2f%2f", "://a@", "://a:", "%3a%2f%2fa%40", "?", "&", "%26"),
    *("password=", 'password="', 'password=["', "password: bearer ", "token = ", '"password":', "Bearer ", " digest "),
    *("eyJ", " eyJ", "authorization: ", "?a", "?sid", "&a[", "[", "(", '["', '"pin"', '["pin"', "pin", "\npin", "\n"),
    *("\n- ", '"pin":', "\ndata:", "<pin", "<pin a=", "pin:", "pin: \\", "content-disposition", "content-disposition:"),
    *("-----BEGIN PRIVATE KEY-----", "\n--", 'password="[redacted]', "<!--", "{", '"', "\\"),
]
REPEATED = [
    *(
        "a",
        " ",
        "\t",
        "\n",
        "a@",
        "@",
        ":",
        "%40",
        "%2540",
        "%41",
        "%",
        "25",
        "-",
        "- ",
        "[b]",
        "\\",
        "\\\\",
        "'",
        "\ndata: ",
    ),
    *(
        "é",
        ".",
        "a.",
        "<a>",
        "=",
        "a=",
        "%61",
        "\r\n\t",
        "#",
        "+",
        "{",
        "[redacted]",
        "://a",
        "%3a%2f%2fa",
        "?a",
        "eyJa",
    ),
]
DECIDING = [
    *(
        "@h/ ",
        "%40h ",
        "%2540h ",
        "=S ",
        "%3DS ",
        '" ',
        '", "S"]',
        "S ",
        ": S\n",
        ":S",
        '"S"',
        ',"S"',
        ">S</pin>",
        "\n",
    ),
    *(
        ": form-data; name=pin\n\nS\n",
        "form-data;name=pin\n\n",
        ".S.S ",
        "/",
        '"',
        "'",
        "'S'",
        "]",
        "}",
        "\\",
        '\\"S"',
        " ",
    ),
]
PATTERNS = {
    "secrets": (redaction._SECRETS, redaction._SECRETS_BEGUN),
    "parameters": (redaction._PARAMETER, redaction._PARAMETER_BEGUN),
    "names": (texts._NAME, texts._NAME_BEGUN),
    "parts": (forms._PART, forms._PART_BEGUN),
    "brackets": (brackets.NESTING['"'], None),
    "tags": (extents._TAG, None),
}


def text_of(seed: int) -> str:
    one = random.Random(seed)  # noqa: S311 - no secret
    text = ""
    while len(text) < 30_000:
        text += one.choice(["", "", " ", "\n", "x "]) + one.choice(BEGINNINGS)
        for _ in range(one.choice((0, 1, 1, 1, 2))):
            unit = one.choice(REPEATED)
            text += unit * (one.choice((1, 5, 100, 3_000, 4_000, 5_000, 9_000)) // len(unit))
            text += one.choice(["", "", one.choice(BEGINNINGS)])
        text += one.choice(DECIDING)
    return text


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("seed", the_first_is_short(range(40)))
def test_what_is_found_is_the_same_in_pieces(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, undecided = PATTERNS[kind]
    for number in range(5):
        text = text_of(5 * seed + number)
        whole = [match.span() for match in pattern.finditer(text)]
        for piece in (977, 5_000, 16 * 1024):
            monkeypatch.setattr(pieces, "_PIECE", piece)
            assert [match.span() for match in matches(pattern, text, undecided=undecided)] == whole


@pytest.mark.parametrize(
    "secret",
    [
        "https://u:S@h/ ",
        "https%3A%2F%2Fu%3AS%40h/ ",
        "https://S@S@h ",
        "https://u:S'S@h ",
        "/?[L][pin]=S ",
        "/%3FL[pin]%3DS ",
        'password="S" ',
        'password="\\S" ',
        'password=["S", "S"] ',
        'password="L\\"S" ',
        "bearer BS ",
        "eyJS.S.S ",
        '"pin"B:"S" ',
        '["pin"B,"S"] ',
        "\npinB:S\n",
        "\n-Bpin:S\n",
    ],
)
def test_a_long_secret_is_found_wherever_a_piece_ends(secret: str) -> None:
    """What decided, such as the @ of a URL, was not seen where it stood more than 4,096 characters behind the end."""
    clean = partial(without_named_secrets, clean=str) if "pin" in secret and "[pin]" not in secret else redact_secrets
    for length in (5_000, 12_000):
        text = secret.replace("S", SECRET * (length // 4)).replace("L", "a" * length).replace("B", " " * length)
        for before in (0, 14_000, 16_300, 16_372, 16_378, 16_382):
            assert SECRET not in clean(f"{'x' * before} {text}{'y ' * 20_000}")
