"""What two patterns have in common, against Starlette's own regular expressions."""

import re
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import compile_path

from asgi_agents.errors import ConfigurationError
from asgi_agents.routing.patterns import below, covers, may_meet
from asgi_agents.routing.routes import Route

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

pieces = st.sampled_from(
    ["a", "b", "1", "/", "/", "-", ".", "{%s}", "{%s:int}", "{%s:path}", "{%s:float}", "{%s:uuid}", "ab", "12"]
)
paths = ["/" + "".join(parts) for length in range(5) for parts in product("ab1/-.", repeat=length)]
UUID = "123e4567-e89b-12d3-a456-426614174000"
paths += [f"/{UUID}", f"/a/{UUID}", f"/{UUID}/a", "/1.5", "/a/1.5", "/a/b/1", "/12", "/12/12"]


@st.composite
def patterns(draw: st.DrawFn) -> str:
    drawn = draw(st.lists(pieces, max_size=5))
    return "/" + "".join(piece % f"p{number}" if "%s" in piece else piece for number, piece in enumerate(drawn))


def matched(pattern: str) -> set[str]:
    return {path for path in paths if re.compile(compile_path(pattern)[0].pattern, re.DOTALL).match(path)}


@steady
@given(patterns(), patterns())
def test_two_patterns_that_match_the_same_path_may_meet(one: str, other: str) -> None:
    if matched(one) & matched(other):
        assert may_meet(one, other)
        assert may_meet(other, one)


@steady
@given(patterns(), patterns())
def test_a_pattern_that_covers_another_matches_all_that_it_matches(wide: str, narrow: str) -> None:
    if covers(wide, narrow):
        assert matched(narrow) <= matched(wide)
        assert may_meet(wide, narrow)


@steady
@given(patterns())
def test_every_pattern_covers_itself_and_is_covered_by_the_catch_all(pattern: str) -> None:
    assert covers(pattern, pattern)
    assert covers("/{rest:path}", pattern)


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("/{rest:path}", "/admin", True),
        ("/admin/{rest:path}", "/admin", False),
        ("/admin/{rest:path}", "/admin/{name}", True),
        ("/{name}", "/{number:int}", True),
        ("/{number:int}", "/{name}", False),
        ("/{number:int}", "/12", True),
        ("/{a}/{b}", "/{rest:path}", False),
        ("/{rest:path}/x", "/a/b/x", True),
        ("/{id}", "/{id:uuid}", True),
        ("/{id:uuid}", "/{other:uuid}", True),
        ("/{name}", "/a{rest:path}", False),
    ],
)
def test_what_covers_what(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("/admin", "/admin/", False),
        ("/api/{rest:path}", "/users", False),
        ("/{a}/b", "/a/{b}", True),
        ("/{number:int}", "/x", False),
        ("/{number:float}", "/x", True),
        ("/x/{rest:path}", "/{name}", False),
    ],
)
def test_what_may_meet(one: str, other: str, expected: bool) -> None:
    assert may_meet(one, other) is expected


@pytest.mark.parametrize(
    ("pattern", "top"), [("/a/{x:path}", "/a"), ("/{x:path}", None), ("/a", None), ("/a/{x}", None)]
)
def test_what_a_pattern_is_below(pattern: str, top: str | None) -> None:
    assert below(pattern) == top


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/admin/*", "'/admin/{rest:path}'"),
        ("/*", "'/{rest:path}'"),
        ("/admin/**", "'/admin/{rest:path}'"),
        ("/admin*", "'/{rest:path}'"),
        ("/a/{rest:.*}", "{rest:path}"),
        ("/a/{id:[0-9]+}", "{name:int}"),
        ("/a/<int:id>", "{name:int}"),
        ("/a/{id?}", "{name:int}"),
        ("/a/{", "{name:int}"),
        ("/a?b=c", "leave it out"),
        ("{rest:path}", "'/{rest:path}', which matches every path"),
        ("admin", "'/admin'"),
    ],
)
def test_a_pattern_as_other_frameworks_write_it_is_refused_with_the_right_one(path: str, right: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(right)):
        Route(path, [])
