"""What a description that FastAPI has made means to Pydantic, where JSON Schema has it otherwise."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import jsonschema_rs
from pydantic_core import SchemaError, SchemaValidator, core_schema

_LOOKING_AROUND: Final = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000)


class AppPattern:
    """The keyword ``pattern``, by Pydantic's engine, which takes time that is linear in the text.

    JSON Schema has the expressions of ECMAScript, where ``\\w`` is no ``é``. Pydantic has Rust's, where it is.
    """

    def __init__(self, parent_schema: dict[str, Any], value: Any, schema_path: list[str | int]) -> None:
        self._matches: Callable[[str], bool]
        try:
            self._matches = SchemaValidator(core_schema.str_schema(pattern=value)).isinstance_python
        except SchemaError:
            # Rust has nothing that looks around: of decimals, and of models that ask for Python's engine. An error of
            # the description is raised here.
            validator = jsonschema_rs.Draft202012Validator({"pattern": value}, pattern_options=_LOOKING_AROUND)
            self._matches = validator.is_valid

    def validate(self, instance: Any) -> None:
        if isinstance(instance, str) and not self._matches(instance):
            raise ValueError


def as_pydantic_reads(node: Any) -> Any:
    """A description in which a union whose members a function tells apart may have several that fit.

    Pydantic writes ``oneOf`` for it, which allows one alone.
    """
    if isinstance(node, list):
        return [as_pydantic_reads(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    read = {key: as_pydantic_reads(value) for key, value in node.items()}
    if isinstance(read.get("oneOf"), list) and "discriminator" not in read and "anyOf" not in read:
        read["anyOf"] = read.pop("oneOf")
    return read
