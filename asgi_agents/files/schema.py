"""The JSON Schema of a file, for editors; made of the shapes (``python -m asgi_agents.files.schema``).

It accepts all that :func:`load` accepts. What depends on other parts of the file, or on the range of a number, only
:func:`load` knows.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from .shape import ROOT, SCHEMA_KEY, Field, Shape, Table
from .variables import WHOLE

#: Where the schema is kept, which is part of the package.
SCHEMA_PATH: Final = Path(__file__).with_name("schema.json")
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE: Final = {"$ref": "#/$defs/variable"}
# What holds a variable may become any text, so that it can't be one of several yet.
_VARIABLE_IN_TEXT: Final = {"type": "string", "pattern": r"\$"}
_ROLE: Final = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")


def schema() -> dict[str, Any]:
    """The JSON Schema, as plain data."""
    tables: dict[str, Any] = {}
    root = _table(ROOT, tables)
    root["properties"] = {SCHEMA_KEY: {"type": "string"}, **root["properties"]}
    variable = {"type": "string", "pattern": WHOLE, "description": "A variable of the environment."}
    return {"$schema": _DIALECT, "title": "asgi-agents", **root, "$defs": {"variable": variable, **tables}}


def schema_text() -> str:
    """The schema as it is in the file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _table(table: Table, tables: dict[str, Any]) -> dict[str, Any]:
    required = [key for key, field in table.fields.items() if field.required]
    return {
        "type": "object",
        "additionalProperties": False,
        **({"required": required} if required else {}),
        "properties": {key: _property(key, field, table, tables) for key, field in table.fields.items()},
    }


def _property(key: str, field: Field, table: Table, tables: dict[str, Any]) -> dict[str, Any]:
    described = table.descriptions.get(key)
    return {
        **({"description": _ROLE.sub(r"`\1`", described)} if described else {}),
        **({} if field.default is None else {"default": field.default}),
        **_shape(field.shape, tables),
    }


def _shape(shape: Shape, tables: dict[str, Any]) -> dict[str, Any]:
    alternatives: list[Any] = []
    if shape.leaf is not None:
        leaf = msgspec.json.schema(shape.leaf)
        alternatives += leaf.get("anyOf", [leaf])
    for table in shape.tables:
        if table.name not in tables:
            tables[table.name] = {}
            tables[table.name] |= _table(table, tables)
        alternatives.append({"$ref": f"#/$defs/{table.name}"})
    one = _any_of([part for alternative in alternatives for part in _with_variables(alternative)])
    if shape.many:
        one = {"type": "array", "items": one}
    if shape.nullable:
        variable = [] if shape.leaf is str else [_VARIABLE]
        one = _any_of([*one.get("anyOf", [one]), *variable, {"const": False}, {"type": "null"}])
    return one


def _with_variables(leaf: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """A schema, and what else may stand there: a variable that becomes what is wanted."""
    match leaf:
        case {"enum": _}:
            return (leaf, _VARIABLE_IN_TEXT)
        case {"type": "integer" | "number" | "boolean"}:
            return (leaf, _VARIABLE)
        case {"type": "array", "items": dict(items)}:
            alternatives = items.get("anyOf", [items])
            inner = [part for alternative in alternatives for part in _with_variables(alternative)]
            return ({**leaf, "items": _any_of(inner)},)
        case {"type": "array", "prefixItems": list(items)}:
            inside = [_any_of(_with_variables(item)) for item in items]
            return ({**leaf, "prefixItems": inside},)
    return (leaf,)


def _any_of(alternatives: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    distinct = [one for number, one in enumerate(alternatives) if one not in alternatives[:number]]
    return dict(distinct[0]) if len(distinct) == 1 else {"anyOf": distinct}


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
