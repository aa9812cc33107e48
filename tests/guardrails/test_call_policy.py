"""Which calls a guardrail judges, by what their requests say."""

import random
import re
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Final

import pytest

from asgi_agents import ConfigurationError
from asgi_agents.guardrails import Call, CallPolicy, Guardrail, headers, models, tools, users

_HEADERS: Final = [(b"X-User", b" alice "), (b"x-user", b"bob"), (b"x-plan", b"free\xe9")]


def call(**options: Any) -> Call:
    given = {"dialect": "openai.chat", "model": "gpt-4o", "user": "u-17", "tools": ("send_email", "search")}
    return Call(**{**given, "scope": {"headers": _HEADERS}, **options})


@pytest.mark.parametrize(
    ("policy", "judged"),
    [
        (models("gpt-4o"), True),
        (models("gpt-*"), True),
        (models("*-4o"), True),
        (models("*"), True),
        (models("g*t*o"), True),
        (models("gpt-4?"), True),
        (models("gpt"), False),
        (models("GPT-*"), False),
        (models("gpt-?"), False),
        (models("claude-*", "gpt-*"), True),
        (models("claude-*", "o?"), False),
        (~models("gpt-*"), False),
        (~models("claude-*"), True),
        (~~models("gpt-*"), True),
        (users("u-*"), True),
        (users("admin"), False),
        (tools("send_*"), True),
        (tools("search"), True),
        (tools("delete_*"), False),
        (headers("x-user", "alice"), True),
        (headers("X-USER", "b?b"), True),
        (headers("x-user", "ali"), False),
        (headers("x-plan", "free?"), True),
        (headers("x-other", "*"), False),
        (models("gpt-*") & users("u-*"), True),
        (models("gpt-*") & ~users("u-*"), False),
        (models("claude-*") | users("u-*"), True),
        (~(models("claude-*") | users("u-*")), False),
        (models("gpt-*") & users("x") | tools("search"), True),
        (models("gpt-*") & (users("x") | tools("search")), True),
        (models("gpt-*") & (lambda call: call.stream), False),
        ((lambda call: not call.stream) & models("gpt-*"), True),
        (models("claude-*") | (lambda call: not call.stream), True),
        ((lambda call: call.stream) | models("gpt-*"), True),
    ],
)
def test_a_call_is_judged_as_its_request_says(policy: CallPolicy, judged: bool) -> None:
    assert policy(call()) is judged
    assert Guardrail("g", on={"output"}, when=policy).judges(call()) is judged


def test_a_call_that_says_nothing_is_like_no_pattern_and_judged_where_some_are_left_out() -> None:
    nothing = Call(dialect="json")
    for policy in (models("*"), users("*"), tools("*"), headers("x-user", "*")):
        assert not policy(nothing)
        assert (~policy)(nothing)


def test_an_empty_name_is_a_name() -> None:
    assert models("*")(call(model=""))
    assert not models("?*")(call(model=""))


def test_patterns_mean_what_a_shells_do() -> None:
    rng = random.Random("patterns")  # noqa: S311
    matched = 0
    for _ in range(5_000):
        pattern = "".join(rng.choice("aab**?\n.") for _ in range(rng.randrange(1, 8)))
        text = "".join(rng.choice("aab\n.") for _ in range(rng.randrange(8)))
        expected = fnmatchcase(text, pattern)
        assert models(pattern)(call(model=text)) == expected, (pattern, text)
        matched += expected
    assert 200 < matched < 4_800


@pytest.mark.parametrize("char", r".^$+{}[]()|\-#&~ ")
def test_other_characters_stand_for_themselves(char: str) -> None:
    assert models(f"a{char}b")(call(model=f"a{char}b"))
    assert not models(f"a{char}b")(call(model="axb"))


def test_a_long_name_takes_no_longer_than_its_length_says() -> None:
    # The client chooses it. An expression that tries all ways would take hours.
    policy = models("*a*a*a*a*a*a*a*b")
    before = time.process_time()
    assert not policy(call(model="a" * 200_000))
    assert time.process_time() - before < 60


def test_what_is_not_said_with_the_operators_is_refused() -> None:
    for wrong in (
        lambda: models("a") and users("b"),
        lambda: models("a") or users("b"),
        lambda: not models("a"),
        lambda: bool(models("a")),
    ):
        with pytest.raises(TypeError, match=r"models\('a'\).*expected '&', '\|' and '~'"):
            wrong()


async def _async(call: Call) -> bool:
    return True


#: What is given, and words that the message has in it.
WRONG: Final[list[tuple[Callable[[], object], str]]] = [
    (lambda: models(), r"models: no patterns.*models\('\*'\)"),
    (lambda: users(), r"users: no patterns"),
    (lambda: headers("x-user"), r"headers: no patterns"),
    (lambda: headers("x user", "a"), r"headers: 'x user', expected the name of a header"),
    (lambda: headers("", "a"), r"headers: ''"),
    (lambda: models(""), r"models: an empty pattern"),
    (lambda: models(["a", "b"]), r"models: a list.*models\('a', 'b-\*'\)"),  # type: ignore[arg-type]
    (lambda: tools(None), r"tools: None"),  # type: ignore[arg-type]
    (lambda: models("a") & "b", r"when: 'b', expected a 'def'"),  # type: ignore[operator]
    (lambda: models("a") | _async, r"when: the function _async"),  # type: ignore[operator]
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_can_not_be_a_policy_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_it_shows_what_it_is() -> None:
    def external(call: Call) -> bool:
        return True

    policy = models("gpt-*", "o1") & ~users("admin") | external
    assert repr(policy) == "((models('gpt-*', 'o1') & ~users('admin')) | external)"
    assert re.search(r"when=headers\('x-user', 'a'\)", repr(Guardrail("g", on={"input"}, when=headers("x-user", "a"))))
