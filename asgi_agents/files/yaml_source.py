"""YAML, with the line of each value. Only plain data is made: no tag makes an object."""

from typing import Any, Final

from ..errors import ConfigurationError
from .mistakes import Place, refusal

# References to other parts of a file multiply them. Far more than anybody writes by hand.
_MOST_NODES: Final = 100_000


def parse_yaml(path: str, text: str) -> tuple[Any, dict[Place, int]]:
    """The data, and the lines on which it stands. Raises :class:`ConfigurationError`."""
    try:
        import yaml
    except ImportError:
        raise ConfigurationError(f"{path}: YAML needs PyYAML, expected pip install 'asgi-agents[yaml]'") from None

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        reader = _YamlReader(path, loader, yaml)
        return (None if node is None else reader.read(node, (), ())), reader.lines
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
        self.lines: dict[Place, int] = {}

    def read(self, node: Any, place: Place, around: tuple[int, ...]) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        self._count += 1
        if id(node) in around:
            raise refusal(self._path, "a value that is part of itself", line)
        if self._count > _MOST_NODES:
            raise refusal(self._path, f"more than {_MOST_NODES} values, references counted", line)
        around = (*around, id(node))
        if isinstance(node, self._yaml.MappingNode):
            return self._table(node, place, around)
        if isinstance(node, self._yaml.SequenceNode):
            return [self.read(inner, (*place, number), around) for number, inner in enumerate(node.value)]
        return self._loader.construct_object(node)

    def _table(self, node: Any, place: Place, around: tuple[int, ...]) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, self._yaml.ScalarNode):
                raise refusal(self._path, "a key that is no text", line)
            if key.value in seen:
                raise refusal(self._path, f"the key {key.value!r} is there twice, expected each once", line)
            seen.add(key.value)
        # Puts in place what `<<` refers to, before what is written here.
        self._loader.flatten_mapping(node)
        table = {}
        for key, inner in node.value:
            self.lines[(*place, key.value)] = key.start_mark.line + 1
            table[key.value] = self.read(inner, (*place, key.value), around)
        return table
