"""From a file to the objects of the Python API."""

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from ..config import AgentConfig
from ..errors import ConfigurationError
from ..evaluation.stages import find_cycle
from ..evaluation.text_judges import check_guardrail_of
from ..guardrails import Guardrail, ToolPolicy
from ..guardrails.guardrail import checked_guardrails
from ..manager import AgentManager
from ..messages.naming import named
from ..middleware import AgentMiddleware
from ..policy import FailureMode
from ..routing.routes import AgentRoute, checked_references
from .checking import MISSING, Checker, TableValues, missing
from .configuration import Configuration
from .mistakes import Mistakes, Place, found_named, nearest, place_named, refusal
from .objects import names_object, object_named
from .shape import ROOT, SCHEMA_KEY, Table
from .source import check_suffix, parse, read_bytes
from .variables import Variables
from .wording import in_words_of_files, object_meant

logger: Final = logging.getLogger("asgi_agents")

# How the classes begin their messages: themselves, perhaps with an id, and the parameter that is wrong.
_PREFIX: Final = re.compile(r"(?:[A-Z]\w+(?:\.\w+)?(?:\([^()]*\))?: )+")
_PARAMETER: Final = re.compile(r"(?P<name>[a-z_]+)(?:=| contains | is |: )")
_EXPECTED: Final = re.compile(r"[,;] expected ")
# Hints about these would show parts of what was given.
_ADDRESSES: Final = frozenset({"transport", "url", "address", "endpoints", "target", "uds"})


def load(
    path: str | os.PathLike[str],
    *,
    agents: Iterable[AgentConfig] = (),
    guardrails: Iterable[Guardrail | ToolPolicy] = (),
    imports: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """Load what protects an app from a TOML, YAML or JSON file.

    Its keys are the parameters of :func:`protect`, :class:`AgentConfig`, :class:`AgentRoute` and the like.

    :param path: the file. Its suffix says what it is: ``.toml``, ``.json``, or ``.yaml``, for which the extra ``yaml``
        is needed. A relative path begins at the working directory of the process.
    :param agents: agents that only code can make. They come first, and the file may name them.
    :param guardrails: likewise.
    :param imports: the modules of which the file may name agents: ``transport = "my_app.agents:Waf"``. They are
        imported then, and so is code that the file chooses: name no others than modules of agents.
    :param environ: the variables that ``${VAR}`` stands for. None: those of the process.
    :raises ConfigurationError: with a line for each mistake: the file, where in it, what was found and what was
        expected. What comes from a variable is shown by the variable's name.
    """
    return load_with(path, agents, guardrails, imports, environ, None)


def load_with(
    path: str | os.PathLike[str],
    agents: Iterable[AgentConfig],
    guardrails: Iterable[Guardrail | ToolPolicy],
    imports: Iterable[str],
    environ: Mapping[str, str] | None,
    before: Configuration | None,
) -> Configuration:
    """:func:`load`; agents of which the file says the same as ``before`` are taken from there, and not made anew."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigurationError(f"load: path={named(path)}, expected the path of a file")
    if isinstance(imports, str) or not isinstance(imports, Iterable):
        raise ConfigurationError(f"load: imports={named(imports)}, expected a list of names of modules")
    if isinstance(agents, str) or not isinstance(agents, Iterable):
        raise ConfigurationError(f"load: agents={named(agents)}, expected a list of AgentConfig")
    own = tuple(agents)
    for agent in own:
        if not isinstance(agent, AgentConfig):
            raise ConfigurationError(f"load: agents contains {named(agent)}, expected AgentConfig(id, transport)")
    own_guardrails = checked_guardrails("load: guardrails", guardrails)
    file = Path(path)
    check_suffix(file)
    try:
        return _loaded(file, own, own_guardrails, tuple(imports), os.environ if environ is None else environ, before)
    except RecursionError:
        deep = refusal(str(file), "nested too deeply")
    raise deep


def _loaded(
    file: Path,
    own: Sequence[AgentConfig],
    own_guardrails: Sequence[Guardrail | ToolPolicy],
    imports: Collection[str],
    environ: Mapping[str, str],
    before: Configuration | None,
) -> Configuration:
    content = parse(file, read_bytes(file))
    mistakes = Mistakes(str(file), content.lines)
    variables = Variables(environ, mistakes)
    mistakes.hide = variables.hide
    raw = {key: value for key, value in content.data.items() if key != SCHEMA_KEY}
    data = variables.expand(raw)
    # Before anything is made of them: what lacks a variable would be wrong in other ways too.
    mistakes.check()
    checker = Checker(raw, variables, mistakes, content.unclear)
    checked = checker.table(ROOT, data, ())
    builder = _Builder(checker, variables, mistakes, imports, data, before)
    made = builder.agents(checked.get("agents", []))
    routes = builder.all_of("routes", checked)
    of_file = builder.all_of("guardrails", checked)
    builder.check_settings(checked)
    if not len(mistakes):
        _check_names((*own, *made), len(own), checked, mistakes)
    if not len(mistakes):
        builder.check_guardrails((*own, *made), checked, routes or (), of_file or ())
    mistakes.check()
    if not (own or made or own_guardrails or of_file):
        mistakes.add((), "neither agents nor guardrails, expected [[agents]]")
        mistakes.check()
    for place, name in variables.bare:
        logger.warning(
            "%s: %s: $%s is read as text, though the environment has such a variable; for its value write ${%s}, for"
            " the text $$%s",
            file,
            place_named(place),
            name,
            name,
            name,
        )
    return Configuration(
        path=str(file),
        agents=(*own, *made),
        routes=routes,
        default_agents=checked.get("default_agents"),
        guardrails=(*own_guardrails, *(of_file or ())),
        settings={key: value for key, value in checked.items() if key not in _OBJECTS},
        entries={agent.id: entry for agent, entry in zip(made, data.get("agents", ()), strict=True)},
        digest=content.digest,
        hide=variables.hide,
    )


_MODES: Final = frozenset(FailureMode)
_OBJECTS: Final = frozenset({"agents", "routes", "default_agents", "guardrails"})


class _Builder:
    """Makes the objects of the Python API. What they refuse is a mistake of the file."""

    def __init__(
        self,
        checker: Checker,
        variables: Variables,
        mistakes: Mistakes,
        imports: Collection[str],
        data: Mapping[str, Any],
        before: Configuration | None,
    ) -> None:
        self._checker = checker
        self._variables = variables
        self._mistakes = mistakes
        self._imports = imports
        self._data = data
        self._known = {} if before is None else {agent.id: agent for agent in before.agents}
        self._entries = {} if before is None else before.entries

    def agents(self, checked: list[Any]) -> list[Any]:
        """The agents, as far as they can be made."""
        made = []
        for number, fields in enumerate(checked):
            if fields is MISSING:
                continue
            entry = self._data["agents"][number]
            agent_id = fields.get("id")
            if agent_id in self._entries and self._entries[agent_id] == entry:
                made.append(self._known[agent_id])
                continue
            agent = self._make(fields, ("agents", number))
            if agent is not MISSING:
                made.append(agent)
        return made

    def all_of(self, key: str, checked: Mapping[str, Any]) -> list[Any] | None:
        """The routes or the guardrails; None where the file has none."""
        if key not in checked:
            return None
        return self._list(checked[key], (key,))

    def _list(self, items: list[Any], place: Place) -> list[Any]:
        made = [self._value(item, (*place, number)) for number, item in enumerate(items)]
        return [one for one in made if one is not MISSING]

    def _value(self, value: Any, place: Place) -> Any:
        """The object for a table, or for the tables in a list; all else is what it is."""
        if isinstance(value, list):
            return self._list(value, place)
        return self._make(value, place) if isinstance(value, TableValues) else value

    def _make(self, fields: TableValues, place: Place) -> Any:
        table = fields.table
        values = {key: self._value(value, (*place, key)) for key, value in fields.items()}
        # Of these it was said already what is wrong; what else is wrong is to be found too.
        unusable = [key for key, value in values.items() if _lacks_some(value, fields[key])]
        for key in unusable:
            del values[key]
        unusable += fields.mistaken
        if any(missing(table.fields, values)):
            return MISSING
        if isinstance(values.get("cert"), list):
            values["cert"] = tuple(values["cert"])
        transport = values.get("transport")
        if isinstance(transport, str) and names_object(transport):
            fault, found = _tried(lambda: object_named(transport, self._imports))
            if fault is not None:
                if self._variables.within((*place, "transport")):
                    # What is wrong is told in parts of the value.
                    written = found_named(self._checker.raw((*place, "transport")))
                    fault = f"found {written}, expected an agent in one of the modules of imports"
                self._mistakes.add((*place, "transport"), fault)
                return MISSING
            values["transport"] = found
        return self._tried_until_right(table, values, unusable, place, table.made())

    def check_settings(self, checked: TableValues) -> None:
        """Note what the middleware refuses of the settings at the top of the file."""
        values = {key: value for key, value in checked.items() if key not in _OBJECTS and key != "debug"}
        # Without agents: those are checked by themselves.
        make = partial(AgentMiddleware, _nowhere, manager=AgentManager())
        mistaken = [key for key in checked.mistaken if key not in _OBJECTS]
        self._tried_until_right(checked.table, values, mistaken, (), make)
        if "default_agents" in checked:
            fault, _ = _tried(lambda: checked_references("default_agents", checked["default_agents"]))
            if fault is not None:
                self._complain(fault, checked.table, checked, (), ())

    def check_guardrails(
        self,
        agents: Iterable[AgentConfig],
        checked: Mapping[str, Any],
        routes: Sequence[AgentRoute],
        guardrails: Sequence[Guardrail | ToolPolicy],
    ) -> None:
        """Note guardrails whose agents can't judge what they ask for."""
        by_id = {agent.id: agent for agent in agents}
        lists: list[tuple[Place, Sequence[Guardrail | ToolPolicy], Sequence[Any]]] = [
            (("guardrails",), guardrails, checked.get("guardrails", ()))
        ]
        for number, route in enumerate(routes):
            given = checked["routes"][number].get("guardrails", ())
            lists.append((("routes", number, "guardrails"), route.guardrails or (), given))
        for place, made, entries in lists:
            for number, (guardrail, values) in enumerate(zip(made, entries, strict=True)):
                if not isinstance(guardrail, Guardrail):
                    continue
                fault, _ = _tried(partial(check_guardrail_of, guardrail, by_id[guardrail.agent_id]))
                if fault is not None:
                    self._complain(fault, values.table, values, (*place, number), ())

    def _tried_until_right(
        self, table: Table, values: dict[str, Any], unusable: list[str], place: Place, make: Callable[..., Any]
    ) -> Any:
        """What ``make`` returns for ``values``. MISSING where it refuses any, each of which is noted."""
        while True:
            fault, made = _tried(lambda: make(**values))
            if fault is None:
                return MISSING if unusable else made
            wrong = self._complain(fault, table, values, place, unusable)
            if wrong is None or table.fields[wrong].required:
                return MISSING
            unusable.append(wrong)
            del values[wrong]

    def _complain(
        self, fault: str, table: Table, values: Mapping[str, Any], place: Place, left_out: Collection[str]
    ) -> str | None:
        """Note what a class has refused; returns the parameter that it is about, if it is one of ``values``.

        ``left_out``: these were mistakes. What is wrong because they are not there is none.
        """
        text = in_words_of_files(_PREFIX.sub("", fault, count=1))
        parameter = _PARAMETER.match(text)
        name = parameter["name"] if parameter is not None else ""
        if any(re.search(rf"\b{key}\b", text) for key in left_out) or (left_out and name not in values):
            return name if name in values else None
        expected = _EXPECTED.split(text, maxsplit=1)[1:] if parameter is not None and parameter[0][-1] == "=" else []
        if name not in values:
            if name in table.fields and expected:
                # What is refused is what holds where the file says nothing.
                self._mistakes.add(place, f"no {name}, expected {expected[0]}")
                return None
            address = next((key for key in _ADDRESSES if self._variables.within((*place, key))), None)
            if address is None:
                self._mistakes.add(place, text)
                return None
            # It is about the address, in words that may show it.
            name = address
        place = (*place, name)
        if name in _ADDRESSES and self._variables.within(place):
            self._mistakes.add(place, f"found {found_named(self._checker.raw(place))}, expected an address")
        elif name == "path" and self._variables.within(place):
            # Starlette tells what is wrong by the parameters of the pattern.
            self._mistakes.add(place, f"found {found_named(self._checker.raw(place))}, expected a pattern of paths")
        elif expected:
            given = self._checker.raw(place)
            meant = object_meant(given, self._imports) if name == "transport" else None
            right = expected[0] if meant is None else repr(meant)
            self._mistakes.add(place, f"found {found_named(given)}, expected {right}")
        else:
            self._mistakes.add(place, text.removeprefix(name).lstrip(": "))
        return name


def _lacks_some(made: Any, checked: Any) -> bool:
    """Whether a value, or an item of a list, could not be made."""
    return made is MISSING or (isinstance(made, list) and len(made) < len(checked))


def _tried(make: Callable[[], Any]) -> tuple[str | None, Any]:
    """What ``make`` returns, or the message of what it refuses, without the exception, which may show secrets."""
    try:
        return None, make()
    except ConfigurationError as exc:
        return str(exc), None


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that is never called."""


def _check_names(agents: Iterable[AgentConfig], own: int, checked: Mapping[str, Any], mistakes: Mistakes) -> None:
    """Note ids that are twice there, and names of agents that there are not."""
    after: dict[str, tuple[str, ...]] = {}
    configs = tuple(agents)
    known = dict.fromkeys(agent.id for agent in configs)

    def check(agent_id: str, place: Place, before: str | None = None) -> None:
        if agent_id in known:
            return
        pair = before in known and agent_id in _MODES
        right = f"did you mean the pair [{before!r}, {agent_id!r}]?" if pair else nearest(agent_id, known)
        mistakes.add(place, f"{agent_id!r} is no agent; {right}")

    for number, agent in enumerate(configs, -own):
        if agent.id in after:
            where = ("agents", number, "id") if number >= 0 else ()
            mistakes.add(where, f"two agents have the id {agent.id!r}, expected each to be unique")
        after[agent.id] = tuple(agent.after)
        for index, agent_id in enumerate(agent.after):
            if number >= 0:
                check(agent_id, ("agents", number, "after", index))
    cycle = find_cycle(after)
    if cycle is not None:
        mistakes.add((), f"after makes a cycle, expected none: {' -> '.join([*cycle, cycle[0]])}")
    _check_references(checked.get("default_agents"), ("default_agents",), check)
    for number, route in enumerate(checked.get("routes", ())):
        _check_references(route["agents"], ("routes", number, "agents"), check)
        _check_guardrails(route.get("guardrails"), ("routes", number, "guardrails"), check)
    _check_guardrails(checked.get("guardrails"), ("guardrails",), check)


def _check_references(references: Any, place: Place, check: Callable[[str, Place, str | None], None]) -> None:
    before = None
    for number, reference in enumerate(references or ()):
        # Behind its id, a failure mode that is written without brackets looks like another id.
        check(reference if isinstance(reference, str) else reference[0], (*place, number), before)
        before = reference if isinstance(reference, str) else None


def _check_guardrails(guardrails: Any, place: Place, check: Callable[[str, Place], None]) -> None:
    for number, guardrail in enumerate(guardrails or ()):
        if "agent_id" in guardrail:
            check(guardrail["agent_id"], (*place, number, "agent_id"))
