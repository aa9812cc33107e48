"""YAML, with the line of each value. Only plain data is made: no tag makes an object."""

import re
from typing import Any, Final

from msgspec import Struct

from ..errors import ConfigurationError
from ..imports.extras import from_extra
from ..messages.naming import named
from .mistakes import Place, refusal

# References to other parts of a file multiply them. Far more than anybody writes by hand.
_MOST_NODES: Final = 100_000
_MERGE: Final = "tag:yaml.org,2002:merge"

# Numbers that readers of YAML 1.1, such as this one, and of YAML 1.2 read differently: to the base of 60, and of 8.
_UNCLEAR_NUMBER: Final = re.compile(r"[-+]?(?:.*:.*|0[0-7_]+)\Z")
_NUMBERS: Final = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
# Truth values in YAML 1.1, texts in YAML 1.2.
_UNCLEAR_TRUTH: Final = frozenset({"yes", "no", "on", "off"})

# Nodes of keys and values, by key.
_Entries = dict[str, tuple[Any, Any]]


class YamlContent(Struct, frozen=True):
    """The data, and the lines on which it stands.

    :ivar unclear: what is written, by place, where YAML 1.2 has a text in place of a truth value.
    """

    data: Any
    lines: dict[Place, int]
    unclear: dict[Place, str]


def parse_yaml(path: str, text: str) -> YamlContent:
    """Raises :class:`ConfigurationError`."""
    with from_extra(path, "yaml", ConfigurationError):
        import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        reader = _YamlReader(path, loader, yaml)
        return YamlContent(None if node is None else reader.read(node, (), ()), reader.lines, reader.unclear)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        raise refusal(path, f"no YAML: {exc.problem}", None if mark is None else mark.line + 1) from None
    except yaml.YAMLError as exc:
        raise refusal(path, f"no YAML: {type(exc).__name__}") from None


class _YamlReader:
    """Makes plain data of nodes. Keys are the texts that are written: ``on`` is no truth value there."""

    def __init__(self, path: str, loader: Any, yaml: Any) -> None:
        self._path = path
        self._loader = loader
        self._yaml = yaml
        self._count = 0
        self._tables: dict[int, _Entries] = {}
        self.lines: dict[Place, int] = {}
        self.unclear: dict[Place, str] = {}

    def read(self, node: Any, place: Place, around: tuple[int, ...]) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        if id(node) in around:
            raise refusal(self._path, "a value that is part of itself", line)
        self._add(1, line)
        around = (*around, id(node))
        if isinstance(node, self._yaml.MappingNode):
            return self._table(node, place, around)
        if isinstance(node, self._yaml.SequenceNode):
            return [self.read(inner, (*place, number), around) for number, inner in enumerate(node.value)]
        if node.tag in _NUMBERS and _UNCLEAR_NUMBER.match(node.value):
            base = 60 if ":" in node.value else 8
            shown = named(node.value)
            raise refusal(
                self._path, f"{shown} is a number to the base of {base} in YAML 1.1, expected decimals or quotes", line
            )
        try:
            value = self._loader.construct_object(node)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # So PyYAML fails for a text that is not what its tag says: `!!bool maybe`.
            raise refusal(self._path, f"a value that is no {node.tag.rpartition(':')[2]}", line) from None
        if isinstance(value, bool) and node.value.lower() in _UNCLEAR_TRUTH:
            self.unclear[place] = node.value
        return value

    def _table(self, node: Any, place: Place, around: tuple[int, ...]) -> dict[str, Any]:
        table = {}
        for name, (key, inner) in self._entries(node).items():
            self.lines[(*place, name)] = key.start_mark.line + 1
            table[name] = self.read(inner, (*place, name), around)
        return table

    def _entries(self, node: Any) -> _Entries:
        """Keys and values of a table, with those of the tables that ``<<`` refers to, of which the first one counts.

        PyYAML does that too, but its versions differ in which one counts, and make tables of any length.
        """
        known = self._tables.get(id(node))
        if known is not None:
            return known
        # A table within itself adds nothing.
        self._tables[id(node)] = {}
        own: _Entries = {}
        merged: _Entries = {}
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, self._yaml.ScalarNode):
                raise refusal(self._path, "a key that is no text", line)
            if key.value in seen:
                raise refusal(self._path, f"the key {key.value!r} is there twice, expected each once", line)
            seen.add(key.value)
            if key.tag != _MERGE:
                own[key.value] = (key, value)
                continue
            for one in value.value if isinstance(value, self._yaml.SequenceNode) else (value,):
                if not isinstance(one, self._yaml.MappingNode):
                    raise refusal(self._path, "<< without a table, expected a table or a list of tables", line)
                entries = self._entries(one)
                self._add(len(entries), line)
                merged = {**entries, **merged}
        self._tables[id(node)] = entries = {**merged, **own}
        return entries

    def _add(self, number: int, line: int) -> None:
        self._count += number
        if self._count > _MOST_NODES:
            raise refusal(self._path, f"more than {_MOST_NODES} values, references counted", line)
