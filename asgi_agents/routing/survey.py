"""Every endpoint and websocket route of an app, with the agents that are asked when it is called.

Nothing is read a second time: for each endpoint a path is made up that leads there, and the middlewares on the way say
whom they ask about it, as they do for a client's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Final
from uuid import UUID

from msgspec import Struct
from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import PARAM_REGEX, compile_path
from starlette.types import Scope

from ..evaluation.resolved_route import ResolvedRoute
from .endpoints import AppEndpoint, AppWalk, EndpointKind, Within, app_key, name_of
from .finder import RouteFinder
from .matching import Around, innermost, router_of
from .openness import declared_open
from .patterns import covers, may_meet
from .tracer import FinderOf, Tracer, Way, finders_of, root_path_of

# What stands for the methods where an endpoint takes all of them.
_USUAL: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Stands for the method of a websocket.
_HANDSHAKE: Final = "WS"
# How many of an endpoint's paths are looked at, for each of its methods.
_MOST_TRIED: Final = 200
# In how many ways two patterns are merged: parameters that take any path meet in many.
_MOST_MERGED: Final = 6
# What `_narrowness` says of a parameter that takes any path, and of a segment without parameters.
_ANY_PATH: Final = 0
_LITERAL: Final = 4
# Tried in this order for parameters of types that are not Starlette's: words, numbers, dates, versions, and identifiers
# as catalogues and databases have them.
# fmt: off
_TRIED: Final = (
    "1", "a", "en", "A", "en-US", "abc", "ABC", "12", "123", "1234", "2026", "123456", "-1", "1.5", "v1", "1.2.3",
    "ab12", "AB12", "AB-1234", "ABC-123", "ABC123", "a_b", "a.b", "a@b.example", "true", "a/b", "2026-01-31",
    "20260131", "2026-01-31T12:00:00Z", "0" * 24, "0" * 32, "0" * 40, "0" * 64, "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    str(UUID(int=1)),
)
# fmt: on
# Of Starlette's types, and of those a number that nobody writes into a pattern.
_TEXT: Final = "an-example"
_NUMBER: Final = 7919
# Long, so that it is none of the paths that patterns with a certain number of segments match.
_DEEP: Final = "/of/a/path/with/many/segments"


class SurveyedEndpoint(Struct, frozen=True, kw_only=True):
    """An endpoint, or some of its paths or methods.

    :ivar kind: ``http``, ``websocket``, ``app`` for what is mounted without routes that can be read, or
        ``unreadable`` for a route without a pattern.
    :ivar path: its pattern, with the prefixes of mounts and included routers.
    :ivar methods: None means all. Empty for websockets.
    :ivar host: the pattern of the Host that it is in.
    :ivar name: of its function or class.
    :ivar only: where some of its paths have other agents than the rest: a pattern of these, in which patterns of ours
        and its own meet.
    :ivar example: the path that was asked about; None where none leads there.
    :ivar taken_by: the pattern of the endpoint that runs in its place, because it is before it. None: it runs.
    :ivar asked: what each middleware on the way has found, outermost first.
    :ivar within: the routers of the apps that it is in, outermost first, each with the pattern that it has there.
    """

    kind: EndpointKind
    path: str
    methods: frozenset[str] | None
    host: str | None
    name: str
    only: str | None
    example: str | None
    taken_by: str | None
    asked: tuple[ResolvedRoute, ...]
    within: Within


class Survey(Struct, frozen=True, kw_only=True):
    """The endpoints of an app, in its order.

    :ivar finders: those of all middlewares that ask agents, in the order in which they were met.
    :ivar unmatched: patterns of ours that can match no endpoint.
    :ivar open_ended: prefixes of routers that answer more than their routes say.
    :ivar cut: patterns of endpoints that meet so many of ours that not all of their paths were looked at.
    :ivar readable: whether the app has a router at all.
    """

    endpoints: tuple[SurveyedEndpoint, ...]
    finders: tuple[RouteFinder, ...]
    unmatched: tuple[str, ...]
    open_ended: tuple[str, ...]
    cut: tuple[str, ...]
    readable: bool


def survey_app(app: object, finder_of: FinderOf) -> Survey:
    """List the endpoints of an app. Its middleware stacks are built, as with its first connection; nothing is called.

    :param finder_of: from a middleware to its finder.
    :raises Exception: whatever a middleware raises when it is made, or a route when it is read.
    """
    around = tuple(finders_of(app, finder_of))
    router, _ = router_of(app)
    if router is None:
        within = innermost(app)
        leaves: Sequence[AppEndpoint] = (AppEndpoint(app_key("", None), name_of(within)),)
        open_ended: Iterable[str] = ()
    else:
        walk = AppWalk(router, Around())
        if walk.error is not None:
            raise walk.error
        leaves, open_ended = walk.endpoints, walk.open_ended
    surveyor = _Surveyor(app, Tracer(app, finder_of), leaves, around)
    endpoints = tuple(one for leaf in leaves for one in surveyor.endpoint(leaf))
    finders = tuple(dict.fromkeys((*around, *surveyor.finders)))
    return Survey(
        endpoints=endpoints,
        finders=finders,
        unmatched=tuple(surveyor.unmatched(finders)),
        open_ended=tuple(open_ended),
        cut=tuple(surveyor.cut),
        readable=router is not None,
    )


def survey_of(layer: object, finder: RouteFinder, app: object) -> Sequence[SurveyedEndpoint]:
    """The endpoints behind one middleware, with the agents that it alone asks about them.

    For an app that serves, or is to be started by somebody else: nothing is built, remembered or logged.

    :param layer: the middleware, and its finder.
    :param app: the app whose router is asked where nothing leads to one from the middleware.
    """
    router = router_of(layer)[0] or router_of(app)[0]
    if router is None:
        return ()
    leaves = AppWalk(router, Around()).endpoints
    surveyor = _Surveyor(layer, Tracer(layer, lambda one: finder if one is layer else None, app), leaves, [finder])
    return tuple(one for leaf in leaves for one in surveyor.endpoint(leaf))


class _Surveyor:
    def __init__(
        self, app: object, tracer: Tracer, leaves: Sequence[AppEndpoint], known: Iterable[RouteFinder]
    ) -> None:
        self._tracer = tracer
        self._root = root_path_of(app)
        self._leaves = leaves
        self._patterns = {leaf.key: leaf.path for leaf in leaves}
        #: Those that were met on the way, with the root paths that they saw.
        self.finders: dict[RouteFinder, set[str]] = {}
        self.cut: dict[str, None] = {}
        self._values = _values_beside(
            [*(leaf.path for leaf in leaves), *(one for each in known for one in each.patterns)]
        )

    def endpoint(self, leaf: AppEndpoint) -> Iterator[SurveyedEndpoint]:
        """An endpoint: its methods by what is asked about them, then those of its paths about which others are."""
        if leaf.kind == "unreadable":
            yield _listed(leaf, leaf.methods, None, None, None, Way((), None), leaf.kind)
            return
        found: list[tuple[list[str], str | None, str | None, str, Way]] = []
        for method in _methods_of(leaf):
            for only, path, way in self._ways(leaf, method):
                for methods, same_only, taken_by, _, same in found:
                    if (
                        same_only == only
                        and _signature(same, leaf) == _signature(way, leaf)
                        and taken_by == self._taker(leaf, way)
                    ):
                        methods.append(method)
                        break
                else:
                    found.append(([method], only, self._taker(leaf, way), path, way))
        # What holds for all of its paths goes first.
        for methods, only, taken_by, path, way in sorted(found, key=lambda one: one[1] is not None):
            example = path if way.key == leaf.key or taken_by is not None else None
            listed = [method for method in methods if method != _HANDSHAKE]
            which: frozenset[str] | None = frozenset(listed)
            if leaf.methods is None and len(listed) == len(_USUAL):
                which = None
            # A mounted app may have other agents on websockets, where an endpoint before it takes the requests.
            kind = leaf.kind if listed else "websocket"
            yield _listed(leaf, which, only, example, taken_by, way, kind)

    def unmatched(self, finders: Sequence[RouteFinder]) -> Iterator[str]:
        """The patterns of ours that can match no endpoint."""
        for finder in finders:
            roots = self.finders.get(finder) or {""}
            for pattern in finder.patterns:
                if not any(may_meet(root + pattern, leaf.path) for root in roots for leaf in self._leaves):
                    yield pattern

    def _ways(self, leaf: AppEndpoint, method: str) -> Iterator[tuple[str | None, str, Way]]:
        """The way to an endpoint, and those to paths of it about which a route of ours says something else."""
        base, way = self._trace_first(leaf, method, _fill(leaf.path, self._values))
        yield None, base, way
        if way.key != leaf.key:
            return
        told: list[tuple[re.Pattern[str], object]] = []
        tried, todo = {leaf.path}, [leaf.path]
        while todo:
            # Where two patterns of ours meet, a third thing may hold.
            around = todo.pop(0)
            ours = [self._below_root(asked.root) + pattern for asked in way.asked for pattern in asked.finder.patterns]
            narrower = (merged for pattern in ours for merged in _merged(pattern, around))
            for merged in chain(narrower, _shallow(around) if ours else ()):
                if merged in tried:
                    continue
                if len(tried) > _MOST_TRIED:
                    self.cut[leaf.path] = None
                    return
                tried.add(merged)
                path, special = self._trace_first(leaf, method, _fill(merged, self._values))
                if special.key != leaf.key:
                    continue
                todo.append(merged)
                # What a reader would take to hold here, of the lines so far.
                filled = next(_fill(merged, self._values), path)
                said = [signature for regex, signature in told if regex.match(filled)]
                taken = said or [_signature(way, leaf)]
                if _signature(special, leaf) not in taken:
                    told.append((compile_path(merged)[0], _signature(special, leaf)))
                    yield merged, path, special

    def _trace_first(self, leaf: AppEndpoint, method: str, paths: Iterator[str]) -> tuple[str, Way]:
        """The first of some paths that leads to the endpoint, else the first of all."""
        first: tuple[str, Way] | None = None
        # What is mounted below a root path is only found where the path has that, as the ASGI specification asks for.
        for path in (root + path for path in paths for root in dict.fromkeys(("", self._root))):
            way = self._tracer.trace(_scope(leaf, method, path, self._values))
            for asked in way.asked:
                self.finders.setdefault(asked.finder, set()).add(self._below_root(asked.root))
            if way.key == leaf.key:
                return path, way
            first = first or (path, way)
        return first or ("", Way((), None))

    def _below_root(self, root: str) -> str:
        """The root path of a middleware further in, as it stands in the patterns of the app's routes."""
        return root.removeprefix(self._root)

    def _taker(self, leaf: AppEndpoint, way: Way) -> str | None:
        return None if way.key is None or way.key == leaf.key else self._patterns.get(way.key)


def _listed(
    leaf: AppEndpoint,
    methods: frozenset[str] | None,
    only: str | None,
    example: str | None,
    taken_by: str | None,
    way: Way,
    kind: EndpointKind,
) -> SurveyedEndpoint:
    return SurveyedEndpoint(
        kind=kind,
        path=leaf.path,
        methods=methods,
        host=leaf.host,
        name=leaf.name,
        only=only,
        example=example,
        taken_by=taken_by,
        asked=tuple(asked.resolved_route for asked in way.asked),
        within=leaf.within,
    )


def _methods_of(leaf: AppEndpoint) -> Sequence[str]:
    """The methods that are asked about, and what stands for a websocket."""
    match leaf.kind:
        case "websocket":
            return (_HANDSHAKE,)
        case "app":
            return (*_USUAL, _HANDSHAKE)
    return _USUAL if leaf.methods is None else sorted(leaf.methods, key=_rank)


def _signature(way: Way, leaf: AppEndpoint) -> object:
    """What is the same where the same is asked, and where nobody is, whether that is meant."""
    declared = declared_open([asked.resolved_route for asked in way.asked], leaf.path) is not None
    return declared, tuple(
        (
            tuple((agent.guard, agent.failure_mode) for agent in asked.resolved_route.agents),
            None if asked.resolved_route.judges is None else asked.resolved_route.judges.guardrails,
            None if asked.resolved_route.judges is None else asked.resolved_route.judges.policies,
            asked.resolved_route.refusal,
        )
        for asked in way.asked
    )


def _scope(leaf: AppEndpoint, method: str, path: str, values: Mapping[str, str]) -> Scope:
    host = "localhost" if leaf.host is None else next(_fill(leaf.host, values), leaf.host)
    websocket = method == _HANDSHAKE
    scope: Scope = {
        "type": "websocket" if websocket else "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws" if websocket else "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", host.encode())],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    if websocket:
        scope["subprotocols"] = []
    else:
        scope["method"] = method
    return scope


def _values_beside(patterns: Sequence[str]) -> Mapping[str, str]:
    """A value for each type of parameters that is no part of any pattern, so that none is met by chance."""

    def is_met(value: str) -> bool:
        return any(value in pattern for pattern in patterns)

    text, number = _TEXT, _NUMBER
    while is_met(text):
        text += "-"
    while is_met(str(number)):
        number += 1
    values = {
        "str": text,
        "path": text + _DEEP,
        "int": str(number),
        "float": f"{number}.5",
        "uuid": str(UUID(int=number)),
    }
    for name, convertor in CONVERTOR_TYPES.items():
        if name not in values:
            fitting = [tried for tried in (text, *_TRIED) if re.fullmatch(convertor.regex, tried)]
            values[name] = next((tried for tried in fitting if not is_met(tried)), next(iter(fitting), text))
    return values


def _fill(pattern: str, values: Mapping[str, str]) -> Iterator[str]:
    """A path that matches a pattern, or may; none where it has a parameter of a type that is not there any more."""
    names = {(found[2] or ":str")[1:] for found in PARAM_REGEX.finditer(pattern)}
    if names <= values.keys():
        yield PARAM_REGEX.sub(lambda found: values[(found[2] or ":str")[1:]], pattern)


def _merged(ours: str, theirs: str) -> Iterator[str]:
    """Patterns of paths that match both patterns, or may; none where ``ours`` matches all that ``theirs`` does."""
    if covers(ours, theirs) or not may_meet(ours, theirs):
        return
    yield ours
    if not covers(theirs, ours):
        found = _met(ours.split("/"), theirs.split("/"), (0, 0), set())
        yield from map(_with_names, islice(map("/".join, found), _MOST_MERGED))


def _shallow(pattern: str) -> Iterator[str]:
    """The pattern of those of its paths in which each parameter that takes any path is one segment, if it has any."""
    if ":path}" in pattern:
        yield PARAM_REGEX.sub(lambda found: f"{{{found[1]}}}" if found[2] == ":path" else found[0], pattern)


def _met(
    first: Sequence[str], second: Sequence[str], at: tuple[int, int], hopeless: set[tuple[int, int]]
) -> Iterator[tuple[str, ...]]:
    """The segments of such patterns, from there on. A parameter that takes any path stands for one segment or more.

    :param hopeless: the places from which there are none.
    """
    i, j = at
    if i == len(first) and j == len(second):
        yield ()
    if i == len(first) or j == len(second) or at in hopeless:
        return
    one, other = first[i], second[j]
    steps = []
    if one == other or _narrowness(one) < _LITERAL or _narrowness(other) < _LITERAL:
        steps.append((max(other, one, key=_narrowness), (i + 1, j + 1)))
    if _narrowness(one) == _ANY_PATH:
        steps.append((other, (i, j + 1)))
    if _narrowness(other) == _ANY_PATH:
        steps.append((one, (i + 1, j)))
    found = False
    for segment, then in steps:
        for rest in _met(first, second, then, hopeless):
            found = True
            yield (segment, *rest)
    if not found:
        hopeless.add(at)


def _narrowness(segment: str) -> int:
    """The more, the fewer texts it matches, as far as can be told."""
    if "{" not in segment:
        return _LITERAL
    whole = PARAM_REGEX.fullmatch(segment)
    if whole is None:
        return 3
    return {None: 1, ":str": 1, ":path": _ANY_PATH}.get(whole[2], 2)


def _with_names(pattern: str) -> str:
    """The pattern with a name of its own for each parameter."""
    seen: set[str] = set()

    def renamed(found: re.Match[str]) -> str:
        name = found[1]
        while name in seen:
            name += "_"
        seen.add(name)
        return f"{{{name}{found[2] or ''}}}"

    return PARAM_REGEX.sub(renamed, pattern)


def _rank(method: str) -> tuple[int, str]:
    """Methods in the order in which people name them."""
    return (_USUAL.index(method) if method in _USUAL else len(_USUAL), method)
