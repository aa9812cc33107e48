"""What a request is for, where a description is given alone and several of its paths fit."""

from itertools import pairwise, product
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.routing import compile_path

from asgi_agents import ConfigurationError
from asgi_agents.agents import OpenApiValidation
from asgi_agents.agents.openapi.description import Description
from asgi_agents.agents.openapi.templates import PARAMETER, Template
from asgi_agents.testing import request_headers_event
from tests.support.asgi import App
from tests.unjudged.asking import ask, config

from .test_openapi_description import asking

METHODS = ("GET", "PUT", "HEAD", "OPTIONS")
# Segments, `*` for a parameter, those before others that fit less.
SEGMENTS = ("me.json", "a-b", "me", "*-*.json", "*.json", "*-*", "*")
GIVEN = ("me", "a-b", "me.json", "a-b.json", "other", "-", ".json", "a\n")
OPERATIONS = st.tuples(
    st.lists(st.integers(0, len(SEGMENTS) - 1), min_size=1, max_size=2).map(tuple), st.sampled_from(METHODS)
)


def named(shape: tuple[int, ...], method: str) -> str:
    """The template, whose parameters have other names for each method: then one shape is in several paths."""
    parts = ("/" + "/".join(SEGMENTS[index] for index in shape)).split("*")
    return parts[0] + "".join(f"{{{method.lower()}{index}}}{part}" for index, part in enumerate(parts[1:]))


def app_of(operations: set[tuple[tuple[int, ...], str]]) -> FastAPI:
    """An app whose router goes through its paths as OpenAPI says, those that are concrete first."""
    app = FastAPI()
    for shape, method in sorted(operations):
        app.add_api_route(named(shape, method), lambda: None, methods=[method])
    return app


def found_by(description: Description, method: str, path: str) -> Any:
    """The path and the method of the operation that a request is for, with the values in its path."""
    target = description.find(request_headers_event(method=method, uri=path))
    if target is None or target.operation is None:
        return None
    known = {id(operation): key[1:] for key, operation in description._operations.items()}
    return (*known[id(target.operation)], dict(target.values))


@settings(max_examples=25, deadline=None)
@given(st.sets(OPERATIONS, min_size=1, max_size=6))
@example({((2,), "GET"), ((6,), "PUT")})
@example({((6,), "GET"), ((6,), "PUT"), ((6,), "HEAD")})
@example({((6,), "GET"), ((5,), "GET"), ((4,), "GET"), ((3,), "GET")})
@example({((2, 6), "GET"), ((6, 2), "GET")})
@example({((2,), "GET"), ((6,), "HEAD")})
def test_a_description_alone_finds_what_the_app_runs(operations: set[tuple[tuple[int, ...], str]]) -> None:
    app = app_of(operations)
    by_app, alone = Description(app, None), Description(app.openapi(), None)
    for path in (*(f"/{one}" for one in GIVEN), *(f"/{one}/{other}" for one, other in pairwise((*GIVEN, GIVEN[0])))):
        for method in METHODS:
            found = found_by(by_app, method, path.replace("\n", "%0A"))
            # FastAPI answers 405 to HEAD where it has GET alone. Other apps answer it as GET.
            if found is not None or method != "HEAD":
                assert found_by(alone, method, path.replace("\n", "%0A")) == found


def of_paths(*operations: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    """A description of operations, each with the schema of a parameter ``n`` in its query."""
    paths: dict[str, Any] = {}
    for path, method, schema in operations:
        parameter = {"name": "n", "in": "query", "required": True, "schema": schema}
        inner = [{"name": name, "in": "path", "required": True, "schema": {}} for name in PARAMETER.findall(path)]
        paths.setdefault(path, {})[method] = {"parameters": [parameter, *inner]}
    return {"openapi": "3.1.0", "paths": paths}


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("PUT", "/users/me?n=1", 200),
        ("PUT", "/users/me?n=9", 422),
        ("PUT", "/users/me", 422),
        ("GET", "/users/me?n=a", 200),
        ("GET", "/users/me?n=1", 422),
        ("GET", "/users/other?n=true", 200),
        ("GET", "/users/other?n=1x", 422),
        ("HEAD", "/users/me?n=1", 422),
        ("DELETE", "/users/me", 404),
        ("GET", "/users", 404),
    ],
)
async def test_a_path_that_lacks_the_method_hides_no_other_that_has_it(method: str, target: str, status: int) -> None:
    description = of_paths(
        ("/users/me", "get", {"const": "a"}),
        ("/users/{name}", "put", {"type": "integer", "maximum": 5}),
        ("/users/{user}", "get", {"type": "boolean"}),
    )
    agent = OpenApiValidation(description, undocumented="block")
    app = App()
    client = await ask(app, config(agent), client=asking(method, target, {}))
    assert (client.status, app.calls) == (status, int(status == 200))


def test_two_paths_that_are_one_are_an_error_where_they_have_the_same_method() -> None:
    description = of_paths(("/a/{x}/{y}.json", "get", {}), ("/a/{y}/{z}.json", "put", {}), ("/a/{x}/{y}", "get", {}))
    OpenApiValidation(description)
    description["paths"]["/a/{y}/{z}.json"]["get"] = {}
    with pytest.raises(ConfigurationError, match=r"'/a/\{x\}/\{y\}\.json' and '/a/\{y\}/\{z\}\.json' in paths are one"):
        OpenApiValidation(description)


def up_to_four(pieces: str) -> list[str]:
    return ["".join(chosen) for number in range(5) for chosen in product(pieces, repeat=number)]


def test_a_template_matches_what_starlette_matches() -> None:
    paths = [(f"/{path}", f"/{path}".split("/")) for path in up_to_four("a-/\n")]
    for pieces in up_to_four("*a-/"):
        template = "/" + "".join(f"{{p{index}}}" if piece == "*" else piece for index, piece in enumerate(pieces))
        ours, starlettes = Template(template), compile_path(template)[0]
        for path, segments in paths:
            matched = starlettes.match(path)
            expected = None if matched is None else matched.groupdict()
            assert ours.match(segments) == expected, (template, path)
