"""How long a text takes to be cleaned depends on its length, whatever is repeated in it."""

import random
from collections.abc import Callable
from functools import partial

import pytest

from asgi_agents import redact_secrets
from asgi_agents.observability.secret_names import is_secret_member
from asgi_agents.recording.cleaning import Cleaner
from tests.support.examples import the_first_is_short
from tests.test_redaction import seconds

TOKENS = [
    *("\\", '"', "'", "{", "}", "[", "]", "(", "<", ">", "/", ":", ",", "=", "&", "?", ";", "|", "-", ".", "%", "#"),
    *("1", "1.5", "ms", "a", " ", "\n", "\r\n", "\n  ", "\n- ", "--a\n", "%5B", "%255B", "%7B%22", "%22", "%3D", "%26"),
    *("a=", "&token=", "?a_tokens=", '"tokens":', '"tokens_details":', '"password":', "password", "password:", "pin="),
    *("name=", '"name":', '"key":"', '"value":', "value:", "name: otp", "otp", "authorization_code", '"code":'),
    *('<a name="token_details"><b>', "<p key='token_details'><q>"),
    *("<token>", "<token ", "</token>", "<name>", "<value>", "<tokens_details>", "<![CDATA[", "]]>", "<!--", "-->"),
    *(
        ", pin: ",
        "{pin: ",
        "? pin\n",
        "my pin",
        "--- ",
        "&a ",
        "!!str ",
        "pin: '",
        'pin: "',
        "pin: [",
        "\t=\t",
        "<![CDATA[",
    ),
    *(
        "<name>&#112;",
        "<?x ",
        "</",
        "data: ",
        "form-data",
        'content-disposition: form-data; name="otp"',
        "\n\n",
        '="a; ',
        "Bearer ",
    ),
]
BEGINNINGS = [
    "x ",
    'x "password":{',
    'name="',
    '"value":{',
    "<password>",
    "<a ",
    "/?a_tokens=",
    "a=1&",
    "password:\n",
    "{",
]


def cleaned(text: str) -> str:
    return Cleaner(bodies=True).text(text)


def cleaned_url(text: str) -> str:
    return Cleaner(bodies=True).url(f"/?{text}")


WAYS: list[Callable[[str], object]] = [cleaned, cleaned_url, redact_secrets, partial(is_secret_member, "a_tokens")]


def check(beginning: str, unit: str, size: int = 3_000) -> None:
    repeated = unit * (4 * size // len(unit) + 1)
    short, long = beginning + repeated[:size], beginning + repeated[: 4 * size]
    for way in WAYS:
        # Who has the processor beside the test may disturb one comparison.
        ratios: list[float] = []
        while len(ratios) < 4 and (not ratios or ratios[-1] > 7):
            ratios.append((seconds(partial(way, long)) + 1e-4) / (seconds(partial(way, short)) + 1e-4))
        assert min(ratios) <= 7, (
            f"{ratios} times as long for 4 times {size} characters of {unit!r} behind {beginning!r}"
        )


@pytest.mark.parametrize("seed", the_first_is_short(range(200)))
def test_whatever_is_repeated_takes_time_in_proportion_to_its_length(seed: int) -> None:
    one = random.Random(seed)  # noqa: S311 - no secret
    unit = "".join(one.choices(TOKENS, k=one.choice((1, 1, 2, 2, 3, 4))))
    check(one.choice(BEGINNINGS), unit)


@pytest.mark.parametrize(
    "case",
    the_first_is_short(
        [
            ('x password="', "\\"),
            ('x name="', "\\"),
            ('x "password":{', "\\"),
            ("x ", '"tokens_details":{'),
            ("<", "<tokens_details><a>"),
            ("x ", '"value":{'),
            ("x ", '"value":{"name":"a",'),
            ("x ", "<value>"),
            ("x ", '<a key="otp"'),
            ("<a ", ' key="otp"'),
            ("\n", "value:\n "),
            ("", "max_tokens:\n"),
            ("", "password:1\n\n\n\n"),
            ("content-disposition: form-data; ", 'a="; name=b'),
            ("content-disposition: form-data; ", "\n a"),
            ("a=1&", "name="),
            ("", "pin: '\n"),
            ("", "pin: [\n"),
            ("", "? pin\n"),
            ("x ", ", pin: a\n "),
            ("x ", "{pin: {"),
            ("pin: ''", "''"),
            ("a=1&pin=\n", "b\n"),
            ("pin=x", "\nb "),
            ("<name>", "<![CDATA["),
            ("<a>", '<token ">'),
            ("<a>", "<token '"),
            ("<token a='", '<token b=">'),
            ("x ", "pin\n"),
            ("x ", "a b "),
        ]
    ),
)
def test_what_once_took_the_square_of_its_length_takes_time_in_proportion(case: tuple[str, str]) -> None:
    check(*case, size=8_000)


def test_whether_a_value_is_an_amount_is_seen_in_one_look() -> None:
    for digits in ("1", "1s", "111111111111.111111111", "11111111.11111", "111111.1"):
        for size in (12, 24, 48, 60):
            value = (digits * size)[:size] + "x"
            short = seconds(lambda: [is_secret_member("a_tokens", "x") for _ in range(100)])
            long = seconds(lambda value=value: [is_secret_member("a_tokens", value) for _ in range(100)])  # type: ignore[misc]
            assert long < 30 * short
