import re
from itertools import permutations
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Mount, WebSocketRoute
from starlette.routing import Route as StarletteRoute
from starlette.types import Receive, Scope, Send

from asgi_agents.agent import Agent
from asgi_agents.config import AgentConfig
from asgi_agents.errors import ConfigurationError
from asgi_agents.middleware import AgentMiddleware
from asgi_agents.policy import FailureMode
from asgi_agents.protocol import AgentResponse, EventType, RequestHeadersEvent
from asgi_agents.routing.routes import Route, Router, path_below_root

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("")(scope, receive, send)


def scope(path: str, *, method: str = "GET", root_path: str = "", kind: str = "http") -> Scope:
    made: Scope = {"type": kind, "path": path, "root_path": root_path, "headers": []}
    if kind == "http":
        made["method"] = method
    return made


def found(router: Router, path: str, **kwargs: str) -> Any:
    """The agents of a connection, and the pattern of its route."""
    return router.agents_of(router.match(scope(path, **kwargs)))


def agents_of(router: Router, path: str, **kwargs: str) -> Any:
    return found(router, path, **kwargs)[0]


def methods_of(*methods: str) -> set[str]:
    return set(Route("/", [], methods=methods).methods or ())


# Patterns


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/", "/", True),
        ("/", "", False),
        ("/", "/a", False),
        ("/healthz", "/healthz", True),
        ("/healthz", "/healthz/", False),
        ("/healthz", "/healthzz", False),
        ("/healthz", "/a/healthz", False),
        ("/healthz", "/HEALTHZ", False),
        ("/a.b", "/a.b", True),
        ("/a.b", "/a-b", False),
        ("/a$", "/a$", True),
        ("/items/{id}", "/items/1", True),
        ("/items/{id}", "/items/", False),
        ("/items/{id}", "/items/1/2", False),
        ("/items/{id:int}", "/items/1", True),
        ("/items/{id:int}", "/items/x", False),
        ("/items/{id:int}/x", "/items/1/x", True),
        ("/v/{x:float}", "/v/1.5", True),
        ("/v/{x:uuid}", "/v/123e4567-e89b-12d3-a456-426614174000", True),
        ("/v/{x:uuid}", "/v/1", False),
        ("/api/{rest:path}", "/api/", True),
        ("/api/{rest:path}", "/api/a/b/c", True),
        ("/api/{rest:path}", "/api", False),
        ("/api/{rest:path}/end", "/api/a/b/end", True),
        ("/caf\xe9", "/caf\xe9", True),
    ],
)
def test_a_pattern_has_the_syntax_of_starlette(pattern: str, path: str, matches: bool) -> None:
    assert Route(pattern, []).matches(path, "GET") is matches


@pytest.mark.parametrize("path", ["/api/\n", "/api/a\nb", "/api/\n\n/admin", "/api/\r", "/api/\u2028", "/api/\x00"])
def test_a_pattern_stops_at_a_line_break_where_that_of_the_app_does(path: str) -> None:
    match, _ = StarletteRoute("/api/{rest:path}", endpoint).matches(scope(path))

    assert Route("/api/{rest:path}", ["waf"]).matches(path, "GET") is (match is Match.FULL)


@pytest.mark.parametrize("path", ["/api/\n", "/api/a\nb", "/api/\n\n/admin", "/api/\r", "/api/\u2028", "/api/\x00"])
async def test_no_path_slips_past_its_agents_by_a_line_break(path: str) -> None:
    agents = [AgentConfig("waf", Blocking())]
    app = AgentMiddleware(endpoint, agents=agents, routes=[Route("/api/{rest:path}", ["waf"])])

    assert await get(app, path) == 418


@pytest.mark.parametrize("pattern", ["/admin", "/items/{id:int}", "/items/{id}"])
@pytest.mark.parametrize("suffix", ["\n", "\n\n", "\r\n", "/", "%0a"])
def test_what_the_app_takes_for_a_path_its_agents_hear_too(pattern: str, suffix: str) -> None:
    path = pattern.replace("{id:int}", "1").replace("{id}", "1") + suffix

    match, _ = StarletteRoute(pattern, endpoint).matches(scope(path))

    assert Route(pattern, ["waf"]).matches(path, "GET") is (match is Match.FULL)


literals = st.sampled_from(["a", "api", "a.b", "x$", "(y)", "caf\xe9", "A", "-", "", "[z]", "1", "%0a"])
parameters = st.sampled_from(["{%s}", "{%s:str}", "{%s:int}", "{%s:float}", "{%s:uuid}", "{%s:path}"])
segments = st.lists(st.tuples(literals, st.none() | parameters, literals), min_size=1, max_size=3)
values = st.sampled_from(
    [
        "1",
        "x",
        "1.5",
        "",
        "a/b",
        "a\nb",
        "\n",
        "\r",
        "/",
        "..",
        "\u2028",
        "123e4567-e89b-12d3-a456-426614174000",
        "\u0661",
    ]
)
ends = st.sampled_from(["", "", "\n", "\n\n", "\r\n", "/", "\x00", " ", "?x", "\u2028", "\x0b"])


@st.composite
def patterns_and_paths(draw: st.DrawFn) -> tuple[str, str]:
    """A pattern, and a path that it may or may not match."""
    pattern = path = ""
    for index, (before, parameter, after) in enumerate(draw(segments)):
        pattern += f"/{before}{parameter % f'p{index}' if parameter else ''}{after}"
        path += f"/{before}{draw(values) if parameter else ''}{after}"
    return pattern, path + draw(ends)


@steady
@example(("/admin", "/admin\n"), ["GET"], "GET")
@example(("/{p0:path}", "/\n"), None, "POST")
@given(
    patterns_and_paths(),
    st.none() | st.lists(st.sampled_from(["GET", "post", "HEAD", "Put"]), min_size=1, max_size=3),
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]),
)
def test_our_route_matches_what_a_starlette_route_matches_and_no_more(
    given_: tuple[str, str], methods: list[str] | None, method: str
) -> None:
    pattern, path = given_
    match, _ = StarletteRoute(
        pattern, endpoint, methods=methods or ["GET", "POST", "PUT", "DELETE", "OPTIONS"]
    ).matches(scope(path, method=method))

    assert Route(pattern, ["waf"], methods=methods).matches(path, method) is (match is Match.FULL)


@steady
@given(patterns_and_paths())
def test_whatever_a_starlette_websocket_route_matches_ours_does_too(given_: tuple[str, str]) -> None:
    pattern, path = given_
    handshake = scope(path, kind="websocket")
    match, _ = WebSocketRoute(pattern, endpoint).matches(handshake)
    assume(match is Match.FULL)

    for methods in (None, ["GET"]):
        assert agents_of(Router([Route(pattern, ["waf"], methods=methods)], None), path, kind="websocket") == ("waf",)


@steady
@given(st.sampled_from(["/api", "/a/b", "/caf\xe9"]), values, values, ends)
def test_a_path_pattern_matches_what_a_mount_matches_and_no_more(mount: str, one: str, other: str, end: str) -> None:
    path = f"{mount}/{one}/{other}{end}"
    match, _ = Mount(mount, endpoint).matches(scope(path))

    assert Route(f"{mount}/{{rest:path}}", ["waf"]).matches(path, "GET") is (match is Match.FULL)


# Methods


def test_a_route_is_for_all_methods_unless_it_says_otherwise() -> None:
    route = Route("/", [])

    assert route.methods is None
    assert all(route.matches("/", method) for method in ("GET", "POST", "BREW", "CONNECT"))


def test_a_route_is_for_its_methods_alone() -> None:
    route = Route("/", [], methods=["post", "PUT"])

    assert route.methods == frozenset({"POST", "PUT"})
    assert [method for method in ("GET", "HEAD", "POST", "PUT", "PATCH") if route.matches("/", method)] == [
        "POST",
        "PUT",
    ]


def test_get_includes_head_and_head_does_not_include_get() -> None:
    assert methods_of("GET") == {"GET", "HEAD"}
    assert methods_of("HEAD") == {"HEAD"}


@pytest.mark.parametrize("method", ["post", "Post", "pOST"])
def test_a_method_that_a_server_did_not_put_into_upper_case_is_no_way_around(method: str) -> None:
    # uvicorn hands on what h11 parsed, and there are apps that fold the case.
    router = Router([Route("/", ["waf"], methods=["POST"])], None)

    assert agents_of(router, "/", method=method) == ("waf",)


def test_a_method_may_be_any_token() -> None:
    assert methods_of("VERSION-CONTROL", "M-SEARCH") == {"VERSION-CONTROL", "M-SEARCH"}


def test_a_websocket_handshake_is_a_get_request() -> None:
    router = Router([Route("/ws", ["a"], methods=["POST"]), Route("/ws", ["b"], methods=["GET"])], None)

    assert agents_of(router, "/ws", kind="websocket") == ("b",)


# Finding


@pytest.mark.parametrize(("path", "root_path"), [("*", ""), ("", ""), ("a/b", ""), ("/v1", "/v1"), ("*", "/v1")])
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_a_target_without_a_slash_is_no_way_around_a_catch_all(path: str, root_path: str, method: str) -> None:
    router = Router([Route("/{rest:path}", ["waf"])], None)

    assert agents_of(router, path, root_path=root_path, method=method) == ("waf",)


def test_the_first_match_wins() -> None:
    router = Router(
        [
            Route("/healthz", []),
            Route("/api/{id:int}", ["int"]),
            Route("/api/{rest:path}", ["post"], methods=["POST"]),
            Route("/api/{rest:path}", ["rest", ("waf", FailureMode.OPEN)]),
        ],
        None,
    )

    assert found(router, "/healthz") == ((), "/healthz")
    assert found(router, "/api/1") == (("int",), "/api/{id:int}")
    assert found(router, "/api/x", method="POST") == (("post",), "/api/{rest:path}")
    assert found(router, "/api/x") == (("rest", ("waf", FailureMode.OPEN)), "/api/{rest:path}")
    assert found(router, "/other") == ((), None)


def test_without_routes_everyone_hears_everything() -> None:
    assert found(Router(None, None), "/") == (None, None)


def test_without_routes_the_default_agents_hear_everything() -> None:
    assert found(Router(None, ["waf"]), "/") == (("waf",), None)


@pytest.mark.parametrize("routes", [[], [Route("/a", ["a"])]])
def test_with_routes_nobody_hears_what_matches_none_of_them(routes: list[Route]) -> None:
    assert found(Router(routes, None), "/other") == ((), None)


def test_default_agents_hear_what_matches_no_route() -> None:
    router = Router([Route("/a", [])], ["waf", ("log", FailureMode.OPEN)])

    assert found(router, "/a") == ((), "/a")
    assert found(router, "/other") == (("waf", ("log", FailureMode.OPEN)), None)


def test_the_router_knows_everyone_who_is_named_anywhere() -> None:
    router = Router([Route("/a", ["a", "b"]), Route("/b", [("a", FailureMode.OPEN)])], ["c"])

    assert router.references == {"a", "b", ("a", FailureMode.OPEN), "c"}
    assert Router(None, None).references == set()


# Below a root path


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/a", "", "/a"),
        ("/v1/a", "/v1", "/a"),
        ("/v1", "/v1", ""),
        ("/v1/", "/v1", "/"),
        ("/v10/a", "/v1", "/v10/a"),
        ("/a", "/v1", "/a"),
        ("/v1/v1/a", "/v1", "/v1/a"),
        ("/v1/a", "/v1/", "/v1/a"),
        ("/V1/a", "/v1", "/V1/a"),
    ],
)
def test_a_root_path_is_left_out_where_it_is_a_prefix_of_whole_segments(path: str, root: str, below: str) -> None:
    assert path_below_root(path, root) == below


roots = st.lists(st.sampled_from(["/v1", "/", "/a", "v1", "\n", "/v1/"]), max_size=3).map("".join)


@steady
@given(roots, roots)
def test_the_path_is_the_one_that_the_apps_own_router_sees(path: str, root: str) -> None:
    assert path_below_root(path, root) == get_route_path({"path": path, "root_path": root})


def test_routes_are_matched_below_the_root_path_of_the_scope() -> None:
    router = Router([Route("/a", ["waf"])], None)

    assert agents_of(router, "/v1/a", root_path="/v1") == ("waf",)
    assert agents_of(router, "/a", root_path="/v1") == ("waf",)
    assert agents_of(router, "/v1/a") == ()


def test_the_root_path_of_the_app_counts_as_it_does_for_the_app() -> None:
    router = Router([Route("/a", ["waf"])], None, "/v1")

    assert agents_of(router, "/v1/a") == ("waf",)
    assert agents_of(router, "/a") == ("waf",)
    assert agents_of(router, "/v1/a", root_path="/other") == ("waf",)
    assert agents_of(router, "/other/a", root_path="/other") == ()


class Blocking(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.block(418)


async def get(app: Any, path: str, *, root_path: str = "", method: str = "GET") -> int:
    """The status of a request, without a client that would tidy the path up."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    made = scope(path, root_path=root_path, method=method)
    made.update(query_string=b"", http_version="1.1", extensions={})
    await app(made, receive, send)
    return statuses[0]


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("server_root", ["", "/v1", "/other"])
@pytest.mark.parametrize("path", ["/v1/items", "/items", "/other/items", "/v1/v1/items", "/v1/items\n", "/v1", "/v1/"])
@pytest.mark.parametrize("where", ["outermost", "around another middleware", "inside"])
async def test_no_path_reaches_a_fastapi_app_with_a_root_path_and_not_its_agents(
    where: str, path: str, server_root: str
) -> None:
    reached = []
    app = FastAPI(root_path="/v1")

    @app.get("/items")
    async def items() -> str:
        reached.append(path)
        return ""

    agents = [AgentConfig("waf", Blocking())]
    guarded: Any = app
    if where != "inside":
        wrapped = app if where == "outermost" else GZipMiddleware(CORSMiddleware(app))
        guarded = AgentMiddleware(wrapped, agents=agents, routes=[Route("/items", agents=["waf"])])
    else:
        app.add_middleware(AgentMiddleware, agents=agents, routes=[Route("/items", agents=["waf"])])

    status = await get(guarded, path, root_path=server_root)

    assert reached == []
    assert status in (418, 404)


async def test_the_agents_of_a_mounted_app_hear_what_is_below_the_mount() -> None:
    inner = AgentMiddleware(endpoint, agents=[AgentConfig("waf", Blocking())], routes=[Route("/items", agents=["waf"])])
    app = Starlette(routes=[Mount("/sub", inner)])

    assert await get(app, "/sub/items") == 418
    assert await get(app, "/sub/other") == 200


# Wrong configuration


@pytest.mark.parametrize("path", ["", "healthz", "{x}.example.org", "*", None, 1, b"/a", ["/a"]], ids=repr)
def test_a_path_that_does_not_start_with_a_slash_is_refused(path: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=re.escape(f"AgentRoute: path={path!r}, expected a pattern that starts")
    ):
        Route(path, [])


@pytest.mark.parametrize("path", ["/{x:date}", "/{x}/{x}"])
def test_a_pattern_that_starlette_does_not_understand_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"AgentRoute({path!r}): path: ")):
        Route(path, [])


@pytest.mark.parametrize("agents", ["waf", None, 1], ids=repr)
def test_agents_that_are_no_list_are_refused(agents: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"AgentRoute('/a'): agents={agents!r}, expected a list")):
        Route("/a", agents)
    if agents is not None:
        with pytest.raises(ConfigurationError, match=re.escape(f"={agents!r}, expected a list")):
            Router(None, agents)


@pytest.mark.parametrize(
    "reference",
    [
        None,
        1,
        ("waf",),
        ("waf", "fail-open"),
        ("waf", ["open"]),
        (FailureMode.OPEN, "waf"),
        ["waf", FailureMode.OPEN, 1],
        AgentConfig("a", "http://agent.example/", events={EventType.REQUEST_HEADERS}),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_reference_that_is_neither_an_id_nor_an_id_and_a_failure_mode_is_refused(reference: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"\AAgentRoute\('/a'\): agents contains .*, expected "):
        Route("/a", [reference])
    with pytest.raises(ConfigurationError, match=r"\AAgentMiddleware: default_agents contains .*, expected "):
        Router(None, [reference])


@pytest.mark.parametrize("mode", FailureMode)
def test_the_failure_mode_of_a_pair_can_be_given_by_its_name(mode: FailureMode) -> None:
    (reference,) = Route("/a", [("waf", mode.value)]).agents

    assert reference[1] is mode


@pytest.mark.parametrize(
    "twice",
    [
        ["waf", "waf"],
        ["waf", "other", "waf"],
        ["waf", ("waf", FailureMode.OPEN)],
        [("waf", FailureMode.OPEN), ("waf", FailureMode.CLOSED)],
        [("waf", FailureMode.OPEN), ("waf", FailureMode.OPEN)],
    ],
)
def test_an_agent_that_is_on_a_route_twice_is_refused(twice: Any) -> None:
    expected = re.escape("agents contains 'waf' more than once, expected each agent once")
    with pytest.raises(ConfigurationError, match=re.escape("AgentRoute('/a'): ") + expected):
        Route("/a", twice)
    with pytest.raises(ConfigurationError, match=expected):
        Router(None, twice)


@pytest.mark.parametrize("methods", ["GET", 1], ids=repr)
def test_methods_that_are_no_list_are_refused(methods: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"AgentRoute('/a'): methods={methods!r}, expected a list")):
        Route("/a", [], methods=methods)


@pytest.mark.parametrize("method", ["", "GET,POST", "G ET", None, 1, b"GET", "GET\n"], ids=repr)
def test_a_method_that_is_none_is_refused(method: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=re.escape(f"AgentRoute('/a'): methods contains {method!r}, expected names")
    ):
        Route("/a", [], methods=["GET", method])


def test_a_route_for_no_method_at_all_is_refused() -> None:
    # To Starlette an empty list means all methods; here its agents would never hear anything.
    with pytest.raises(ConfigurationError, match="methods"):
        Route("/a", ["waf"], methods=[])


@pytest.mark.parametrize("routes", [["/a"], [None], [("/a", ["waf"])]], ids=repr)
def test_anything_else_than_routes_is_refused(routes: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape("expected AgentRoute(path, agents=[...])")):
        Router(routes, None)


@pytest.mark.parametrize("routes", [Route("/a", []), 1], ids=repr)
def test_routes_that_are_no_list_are_refused(routes: Any) -> None:
    with pytest.raises(ConfigurationError, match="routes"):
        Router(routes, None)


def test_references_from_iterators_are_not_lost() -> None:
    references: list[str | tuple[str, FailureMode]] = ["a", ("b", FailureMode.OPEN)]
    route = Route("/a", iter(references), methods=iter(["POST"]))

    assert route.agents == ("a", ("b", FailureMode.OPEN))
    assert route.methods == frozenset({"POST"})
    assert Router(None, iter(references)).default_agents == route.agents


def test_a_pair_may_be_a_list() -> None:
    pair: Any = ["waf", FailureMode.OPEN]

    assert Route("/a", [pair]).agents == (("waf", FailureMode.OPEN),)


def test_a_route_shows_what_it_is() -> None:
    assert repr(Route("/a", ["waf"])) == "AgentRoute('/a', agents=['waf'])"


# Many routes

_OVERLAPPING = [
    Route(pattern, [str(number)], methods=methods)
    for number, (pattern, methods) in enumerate(
        [
            ("/{rest:path}", None),
            ("/{x}", None),
            ("/{x}/b", None),
            ("/{x}/{y}", ["POST"]),
            ("/a", None),
            ("/a/{rest:path}", None),
            ("/a/{x}", ["GET"]),
            ("/a/b", None),
            ("/a/b{x}", None),
            ("/ab", ["POST"]),
        ]
    )
]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_first_match_holds_in_any_order_of_any_three_routes(method: str) -> None:
    for routes in permutations(_OVERLAPPING, 3):
        router = Router(routes, None)
        for path in ("/", "/a", "/ab", "/b", "/a/", "/a/b", "/a/bc", "/b/b", "/a/b/c"):
            matching = [route for route in routes if route.matches(path, method)]
            assert router.match(scope(path, method=method)) is (matching[0] if matching else None), (routes, path)
            assert router.candidates(path, method) == matching, (routes, path)


_segments = st.sampled_from(["a", "b", "ab", "{x}", "{x:int}", "{x:path}", "1", "a.b"])
_patterns = st.lists(_segments, max_size=3, unique_by=lambda segment: segment[:2]).map(
    lambda parts: "/" + "/".join(parts)
)
_methods = st.sampled_from([None, ["GET"], ["POST"], ["POST", "PUT"]])
_paths = st.lists(st.sampled_from(["a", "b", "ab", "1", "a.b", "", "x"]), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


@steady
@given(st.lists(st.tuples(_patterns, _methods), max_size=12), st.lists(_paths, min_size=1, max_size=6), _methods)
def test_the_index_finds_the_route_that_trying_one_after_the_other_finds(
    declared: list[tuple[str, list[str] | None]], paths: list[str], methods: list[str] | None
) -> None:
    routes = [Route(pattern, [str(number)], methods=given) for number, (pattern, given) in enumerate(declared)]
    router = Router(routes, None)
    method = (methods or ["GET"])[0]
    for path in (*paths, *paths):
        expected = next((route for route in routes if route.matches(path, method)), None)
        assert router.match(scope(path, method=method)) is expected


def test_paths_that_are_not_remembered_any_more_find_their_routes_all_the_same() -> None:
    router = Router([Route("/a/{id:int}", ["waf"])], None)
    for number in range(5000):
        assert agents_of(router, f"/a/{number}") == ("waf",)
        assert agents_of(router, f"/b/{number}") == ()
    assert agents_of(router, "/a/0") == ("waf",)
    assert agents_of(router, "/a/" + "1" * 5000) == ("waf",)


def test_a_path_is_remembered_for_its_method() -> None:
    router = Router([Route("/a", ["post"], methods=["POST"]), Route("/a", ["any"])], None)
    for _ in range(2):
        assert agents_of(router, "/a", method="POST") == ("post",)
        assert agents_of(router, "/a", method="post") == ("post",)
        assert agents_of(router, "/a", method="GET") == ("any",)
