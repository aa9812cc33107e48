"""Whatever the app's router takes for a path, the agents of that path hear."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, WebSocketRoute
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router as StarletteRouter
from starlette.types import Scope

from asgi_agents import ConfigurationError, Route
from asgi_agents.routing import Router

from .choices import Choices

_LITERALS = ("a", "api", "", "a.b", "é", "A", "-", "x$", "(y)", "[z]", "%0a", ".*", "\\d", "^", "|", "\n", "a\n")
_PARAMETERS = ("", "{%s}", "{%s:str}", "{%s:int}", "{%s:float}", "{%s:uuid}", "{%s:path}", "{%s:nope}", "{", "}", "{1}")
_VALUES = (
    *("1", "x", "1.5", "", "a/b", "a\nb", "\n", "\r", "/", "..", "\u2028", "٣", "\x00", "\x85", "%2f"),
    *("123e4567-e89b-12d3-a456-426614174000", "9" * 400, "1.", ".5"),
)
_METHODS = ("GET", "HEAD", "POST", "OPTIONS", "get")


def _endpoint(request: Request) -> Response:
    return Response()


def routes(data: bytes) -> None:
    """A list of routes behind Starlette's router and in front of it: the same one is found."""
    choices = Choices(data)
    patterns: list[str] = []
    theirs: list[BaseRoute] = []
    ours: list[Route] = []
    values: list[str] = []
    websocket = choices.flag()
    for number in range(1 + choices.below(3)):
        pattern = path = ""
        for index in range(1 + choices.below(3)):
            before, after = choices.pick(_LITERALS), choices.pick(_LITERALS)
            parameter = choices.pick(_PARAMETERS)
            pattern += f"/{before}{parameter % f'p{index}' if '%s' in parameter else parameter}{after}"
            path += f"/{before}{choices.text() if choices.one_in(8) else choices.pick(_VALUES)}{after}"
        methods = choices.pick((None, ["GET"]) if websocket else (None, ["GET"], ["POST", "put"]))
        try:
            route = Route(pattern, [f"agent-{number}"], methods=methods)
        except ConfigurationError:
            return
        try:
            theirs.append(_their_route(choices, pattern, methods, websocket))
        except (AssertionError, ValueError):
            return
        if isinstance(theirs[-1], Mount):
            route = Route(f"{pattern.rstrip('/')}/{{rest:path}}", [f"agent-{number}"])
        ours.append(route)
        patterns.append(pattern)
        values.append(path)
    path = choices.pick(values) + choices.pick(("", "", "/", "\n", "\n\n", "?x", "\x00"))
    root = choices.pick(("", "", "/root", "/root/"))
    scope: Scope = {"type": "http", "path": root + path, "method": choices.pick(_METHODS), "headers": []}
    if websocket:
        scope = {"type": "websocket", "path": root + path, "headers": []}
    if root:
        scope["root_path"] = root
    found, _ = Router(ours, None).find(scope)
    assert found is not None
    their = next((i for i, route in enumerate(theirs) if _matches(route, scope)), None)
    if their is None:
        return
    # Ours may match more, so an earlier one may hear it instead.
    assert found, (patterns, scope)
    assert int(found[0].removeprefix("agent-")) <= their if isinstance(found[0], str) else False, (patterns, scope)


def _matches(route: BaseRoute, scope: Scope) -> bool:
    try:
        match, _ = route.matches({**scope})
    except (ValueError, AssertionError):
        # What Starlette itself can't convert never gets to an endpoint.
        return False
    return match is Match.FULL


def _their_route(choices: Choices, pattern: str, methods: list[str] | None, websocket: bool) -> BaseRoute:
    if choices.one_in(4):
        return Mount(pattern, app=StarletteRouter())
    if websocket:

        async def session(socket: object) -> None: ...

        return WebSocketRoute(pattern, session)
    return StarletteRoute(pattern, _endpoint, methods=methods or list(_METHODS))
