"""How the package is built: its layers, its sizes, its names. Computed from the source."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from .support.house import (
    Module,
    between_units,
    circles,
    classes,
    identifiers,
    imports,
    modules,
    not_downward,
    unit,
    widths,
)

ROOT: Final = Path(__file__).parents[1] / "asgi_agents"
PACKAGE: Final = modules(ROOT)

#: From the bottom to the top: what stands in each layer, and why it stands there. Units of one layer don't import one
#: another. `asgi_agents/__init__.py` collects the public names of all of them, and is in no layer.
LAYERS: Final = (
    (
        ["_version", "errors", "imports", "memory", "messages"],
        "values and words that everything uses; they import nothing",
    ),
    (["protocol"], "events and answers, whatever transport carries them"),
    (["concurrency", "policy"], "event loops and limits; the settings of one agent"),
    (["breaker"], "counts outcomes of calls by the settings, and knows no transport"),
    (["failures"], "the kinds of failures of a call, and the rule for each"),
    (["decision"], "the outcomes of calls: verdicts, and all of them together"),
    (["observability"], "records outcomes of calls, and makes no calls"),
    (["agent"], "the class that users derive from"),
    (["terminal"], "what command lines share: arguments, and what module:name names"),
    (["guardrails"], "text in bodies and streams: where it stands and what of it may leave; no I/O"),
    (["transports"], "carry events to agents, one of them to an Agent in the process"),
    (["config", "guardrail_services"], "an agent's configuration; transports in the formats of others"),
    (["advice", "calls"], "warnings about configurations; the steps around one call"),
    (["guard"], "one agent's calls: its transport, limit, breaker, deadline and records"),
    (["evaluation"], "the agents of a route together: in parallel, in chains, one decision"),
    (["retirement"], "closes a guard when the last connection that uses it has ended"),
    (["lifecycle"], "when agents are connected and closed, on each event loop"),
    (["registry"], "the guards of all agents, and the resolved routes"),
    (["manager"], "the part of both that applications use"),
    (["routing"], "from a path to the agents of a manager"),
    (["exchange"], "one request or websocket session, judged as it passes"),
    (["audit"], "the record of an exchange"),
    (["middleware", "prometheus", "status"], "apps: guarded, of metrics, the status page"),
    (["serve"], "one agent at an address; behind Envoy, the middleware asks it"),
    (["ray"], "an agent that is served, as a deployment on Ray"),
    (["files"], "configuration from files, loaded and reloaded"),
    (["fastapi", "placement"], "put the middleware into an app"),
    (["agents"], "ready-made agents: adapters of libraries, each imported when it is asked for"),
    (["testing"], "for the tests of guarded apps: takes their agents out, and puts others there"),
    (["recording"], "what agents were asked and have answered: into a file, and asked again"),
    (["commands"], "the subcommands of the command line"),
    (["__main__"], "the command line"),
)
_UNITS: Final = [names for names, _ in LAYERS]

MOST_LINES: Final = 499
MOST_MODULES_IN_THE_ROOT: Final = 20
MOST_METHODS: Final = 30
MOST_METHODS_OF_THE_GUARD: Final = 24

_TRANSPORTS: Final = frozenset(
    {"ForwardAuthTransport", "GrpcTransport", "HttpTransport", "InProcessTransport", "StreamTransport"}
)
#: Modules that name a transport, and why; transports/ and the public names of the package aside.
NAME_TRANSPORTS: Final = {
    "asgi_agents.guardrail_services.service": "services of others are reached over HTTP as agents are",
    "asgi_agents.serve.grpc.ext_proc": "an agent that is served runs in the process that serves it",
    "asgi_agents.serve.hooks": "an agent that is served runs in the process that serves it",
}

#: Classes whose names are twice there, and why.
TWICE: Final = {"Block": "an answer of the protocol, and what a guardrail says of a text"}

#: Names that were replaced. Of the first no identifier may have the word in it, in whatever part of it.
OLD_WORDS: Final = {
    "authorisation": "authorization",
    "authorise": "authorize",
    "authorised": "authorized",
    "calm": "no_recent_failures",
    "catalogue": "instruments",
    "consented": "_record_allow",
    "consult": "evaluate",
    "consulted": "evaluated",
    "discreet": "RedactedRepr",
    "hindered": "flow_limited",
    "keeper": "Connector",
    "lineup": "ResolvedRoute",
    "spell": "encode",
    "spelt": "encoded",
    "spoil": "send_abort_marker",
    "steady": "non_suspending_hooks",
    "uneven": "heterogeneous",
    "wasted": "failed_early",
}
#: No identifier may be one of these.
OLD_IDENTIFIERS: Final = {
    "_NoVerdict": "CallFailure",
    "hear": "evaluate",
    "hear_heads": "agents_for(EventType.REQUEST_HEADERS)",
    "heads_stay": "headers_in_process_only",
    "hearing": "agents_for",
    "one_write": "coalescing_backend",
    "OneWriteBackend": "CoalescingBackend",
    "OneWriteStream": "CoalescingStream",
    "proved": "confirmed",
    "reach": "resolved_transport",
    "room_made": "capacity_freed",
    "told_as": "metric_outcome",
}
#: These are words of everyday code, or of other libraries. No definition may have such a name: the kinds of definitions
#: that it is forbidden for, and the new one.
OLD_DEFINITIONS: Final = {
    "Connection": ({"class"}, "one of AgentConnection, HttpConnection and ServedConnection"),
    "Line": ({"class"}, "PendingCalls"),
    "enter": ({"function"}, "set_current"),
    "leave": ({"function"}, "reset_current"),
    "line": ({"module"}, "pending_calls"),
    "showing": ({"module"}, "redacted_repr"),
    "shown": ({"function"}, "redacted_repr"),
    "tell": ({"function", "method"}, "record"),
}


_LETTER: Final = re.compile("[a-z]", re.IGNORECASE)


def old_names(package: Mapping[str, Module]) -> list[str]:
    found: list[str] = []
    for module in package.values():
        for identifier in identifiers(module):
            name = identifier.name
            kinds, new = OLD_DEFINITIONS.get(name, (set(), ""))
            if identifier.defines not in kinds:
                new = OLD_IDENTIFIERS.get(name, "")
            new = new or next((OLD_WORDS[word] for word in _words(name) if word in OLD_WORDS), "")
            if new:
                found.append(f"{identifier.where}: {name}, expected {new}")
    return found


def _words(name: str) -> list[str]:
    """``_spellOrFail``, ``spell_or_fail`` and ``SpellOrFail`` are three words each."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def wrongly_layered(package: Mapping[str, Module], layers: Sequence[Collection[str]]) -> list[str]:
    """The units that are in no layer or in several, and those in a layer that the package doesn't have."""
    times = Counter(name for names in layers for name in names)
    units = {unit(name) for name in package} - {""}
    return sorted(name for name in units | set(times) if times[name] != 1 or name not in units)


def modules_of_the_root(root: Path) -> list[str]:
    return sorted(path.stem for path in root.glob("*.py"))


def names_of_several_classes(package: Mapping[str, Module]) -> list[str]:
    times = Counter(node.name for _, node in classes(package))
    return sorted(name for name, count in times.items() if count > 1 and name not in TWICE)


def naming_transports(package: Mapping[str, Module]) -> set[str]:
    return {
        name
        for name, module in package.items()
        if unit(name) not in {"", "transports"}
        and any(identifier.name in _TRANSPORTS for identifier in identifiers(module))
    }


def too_long(package: Mapping[str, Module]) -> dict[str, int]:
    return {name: module.lines for name, module in package.items() if module.lines > MOST_LINES}


def too_wide(package: Mapping[str, Module], most: int) -> dict[str, int]:
    return {name: count for name, count in widths(package).items() if count > most}


def changed_in_passing(package: Mapping[str, Module]) -> list[str]:
    """Characters that an editor may replace by others that look the same, and that are to be written as escapes.

    NFC makes others of them, or they are ASCII letters where capitals don't count.
    """
    return [
        f"{name}:{number}: {char!a}"
        for name, module in package.items()
        for number, line in enumerate(module.path.read_text(encoding="utf-8").split("\n"), 1)
        for char in (line if not line.isascii() else "")
        if not char.isascii() and (unicodedata.normalize("NFC", char) != char or _LETTER.fullmatch(char))
    ] + [
        f"{name}: not in NFC"
        for name, module in package.items()
        if not unicodedata.is_normalized("NFC", module.path.read_text(encoding="utf-8"))
    ]


def test_no_module_imports_itself_through_others() -> None:
    assert circles(imports(PACKAGE)) == []


def test_no_package_imports_itself_through_others() -> None:
    assert circles(between_units(imports(PACKAGE))) == []


def test_every_package_and_every_module_of_the_root_is_in_one_layer() -> None:
    assert wrongly_layered(PACKAGE, _UNITS) == []


def test_imports_only_go_down_the_layers() -> None:
    assert not_downward(imports(PACKAGE), _UNITS) == []


def test_every_file_can_be_read_in_one_go() -> None:
    assert too_long(PACKAGE) == {}


def test_the_root_has_few_modules() -> None:
    assert len(modules_of_the_root(ROOT)) <= MOST_MODULES_IN_THE_ROOT


def test_the_guard_has_few_functions() -> None:
    assert widths(PACKAGE)["asgi_agents.guard.Guard"] <= MOST_METHODS_OF_THE_GUARD


def test_no_class_is_wide() -> None:
    assert too_wide(PACKAGE, MOST_METHODS) == {}


def test_only_these_modules_name_a_transport() -> None:
    assert naming_transports(PACKAGE) == set(NAME_TRANSPORTS)


def test_names_that_were_replaced_are_gone() -> None:
    assert old_names(PACKAGE) == []


def test_no_two_classes_have_one_name() -> None:
    assert names_of_several_classes(PACKAGE) == []


def test_nothing_in_a_source_file_changes_unseen() -> None:
    assert changed_in_passing(PACKAGE) == []


# That each check finds what it is for is shown on packages that are wrong.


def package_of(directory: Path, files: Mapping[str, str]) -> dict[str, Module]:
    """The modules of a package `wrong` with these files, and an ``__init__`` in every directory."""
    root = directory / "wrong"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for place in (root, *(path.parent for path in root.rglob("*.py"))):
        (place / "__init__.py").touch()
    return modules(root)


@pytest.mark.parametrize(
    "statement",
    [
        "from .b import name",
        "from . import b",
        "import wrong.b",
        "from wrong.b import name",
        "def later():\n    from .b import name",
        "import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    from . import b",
        "class A:\n    try:\n        from . import b\n    finally:\n        pass",
    ],
)
def test_a_circle_of_modules_is_found_however_it_is_written(tmp_path: Path, statement: str) -> None:
    package = package_of(tmp_path, {"a.py": statement, "b.py": "from .a import name", "c.py": "from . import a, b"})
    assert circles(imports(package)) == [["wrong.a", "wrong.b"]]


@pytest.mark.parametrize("guard", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_an_import_for_type_checkers_is_none(tmp_path: Path, guard: str) -> None:
    package = package_of(tmp_path, {"a.py": f"if {guard}:\n    from . import b", "b.py": "from . import a"})
    assert circles(imports(package)) == []


def test_a_module_that_takes_names_from_the_package_itself_is_in_a_circle(tmp_path: Path) -> None:
    package = package_of(tmp_path, {"__init__.py": "from .a import A", "a.py": "from . import B"})
    assert circles(imports(package)) == [["wrong", "wrong.a"]]


def test_a_circle_of_packages_is_found_where_its_modules_are_in_none(tmp_path: Path) -> None:
    files = {"a/one.py": "from ..b.one import name", "b/one.py": "", "b/two.py": "from ..a import two", "a/two.py": ""}
    graph = imports(package_of(tmp_path, files))
    assert circles(graph) == []
    assert circles(between_units(graph)) == [["a", "b"]]


def test_an_import_that_goes_up_or_sideways_is_found(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from . import low, high",
        "low.py": "from .high import name",
        "side/one.py": "from . import two\nfrom .. import low",
        "side/two.py": "from ..other import name",
        "other.py": "def later():\n    from . import low",
        "high.py": "from . import low, other, side",
        "rooted.py": "from . import name",
    }
    graph = imports(package_of(tmp_path, files))
    assert not_downward(graph, [["low"], ["other", "side"], ["high"], ["rooted"]]) == [
        "wrong.low imports wrong.high",
        "wrong.rooted imports wrong",
        "wrong.side.two imports wrong.other",
    ]


def test_what_a_table_of_layers_lacks_or_has_too_much_is_found(tmp_path: Path) -> None:
    package = package_of(tmp_path, {"a.py": "", "b/c.py": "", "new.py": ""})
    assert wrongly_layered(package, [["a"], ["b"], ["new"]]) == []
    assert wrongly_layered(package, [["a", "gone"], ["a"], ["b"]]) == ["a", "gone", "new"]


def test_modules_of_the_root_are_its_files_and_not_its_folders(tmp_path: Path) -> None:
    package_of(tmp_path, {"a.py": "", "b/c.py": "", "page.js": ""})
    assert modules_of_the_root(tmp_path / "wrong") == ["__init__", "a"]


def test_a_module_of_too_many_lines_is_found(tmp_path: Path) -> None:
    package = package_of(tmp_path, {"long.py": "\n" * (MOST_LINES + 1), "short.py": "\n" * MOST_LINES})
    assert too_long(package) == {"wrong.long": MOST_LINES + 1}


def test_a_wide_class_is_found_by_its_functions_and_properties(tmp_path: Path) -> None:
    text = """
class Wide:
    def one(self):
        def inner(): ...
    async def two(self): ...
    @property
    def three(self): ...
    @three.setter
    def three(self, value): ...
    four = 4
"""
    package = package_of(tmp_path, {"a.py": text})
    assert too_wide(package, 3) == {"wrong.a.Wide": 4}
    assert too_wide(package, 4) == {}


@pytest.mark.parametrize(
    "text",
    ["from .transports import StreamTransport", "def f(t):\n    return isinstance(t, transports.StreamTransport)"],
)
def test_a_module_that_names_a_transport_is_found(tmp_path: Path, text: str) -> None:
    files = {"a.py": text, "b.py": '"""Not a StreamTransport."""  # nor here', "transports/c.py": text}
    assert naming_transports(package_of(tmp_path, files)) == {"wrong.a"}


@pytest.mark.parametrize(
    "text",
    [
        "class Lineup: ...",
        "from .b import consult_head",
        "import b as lineup",
        "route.hear_heads()",
        "def f(hearing): ...",
        "f(authorise=None)",
        "self._uneven = False",
        "async def _consulted_by_name(): ...",
        "class _NoVerdict(Exception): ...",
        "class A:\n    def tell(self): ...",
        "class Connection: ...",
        "def leave(token): ...",
    ],
)
def test_a_name_that_was_replaced_is_found(tmp_path: Path, text: str) -> None:
    assert len(old_names(package_of(tmp_path, {"a.py": text}))) == 1


def test_a_module_whose_name_was_replaced_is_found(tmp_path: Path) -> None:
    assert old_names(package_of(tmp_path, {"stream/line.py": ""})) == [
        "wrong.stream.line:1: line, expected pending_calls"
    ]


def test_everyday_words_may_be_used(tmp_path: Path) -> None:
    text = (
        "line = frame.tell()  # not a Lineup\nclass A:\n    def leave(self): ...\ntransport.hears, spelling, 'consult'"
    )
    assert old_names(package_of(tmp_path, {"a.py": text})) == []


def test_classes_of_one_name_are_found(tmp_path: Path) -> None:
    files = {"a.py": "class Call: ...\nclass Other: ...", "b/c.py": "def f():\n    class Call: ..."}
    assert names_of_several_classes(package_of(tmp_path, files)) == ["Call"]


@pytest.mark.parametrize("char", ["\u212a", "\u212b", "e\u0301", "\u017f", "\u0130", "\u0131"])
def test_a_character_that_changes_unseen_is_found(tmp_path: Path, char: str) -> None:
    package = package_of(
        tmp_path, {"a.py": f"x = 1\n# {char}", "b.py": f"# \xe9 {char.encode('unicode_escape').decode()}"}
    )
    assert [found.partition(":")[0] for found in changed_in_passing(package)][:1] == ["wrong.a"]
    assert not [found for found in changed_in_passing(package) if found.startswith("wrong.b")]
