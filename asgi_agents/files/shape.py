"""What a file may hold: tables whose keys are the parameters of the Python API.

The shapes are made of the signatures of those classes, so that a parameter whose values are plain data is a key of the
file by itself. What only code can hold is left out: functions, objects, and what is made of them.
"""

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache, partial
from typing import Any, Final, Literal, Union, get_args, get_origin

from msgspec import Struct

from ..config import AgentConfig
from ..guardrails import Guardrail, ToolPolicy
from ..guardrails.tool_policy import ToolRule
from ..middleware import AgentMiddleware
from ..policy import BodyMode, CircuitBreakerConfig
from ..routing.routes import AgentRoute
from ..transports.resolve import transport_class


class Shape(Struct, frozen=True):
    """What may stand at a place.

    :ivar leaf: the type of what is no table, as msgspec has them; None: only tables.
    :ivar tables: the tables that may stand there. The key :attr:`Table.mark` says which.
    :ivar many: a list of these.
    :ivar nullable: ``false``, or null, may stand there: what is None in Python.
    :ivar without: None says that there is no such thing. Elsewhere it may say "all", or "what the agent says itself".
    """

    leaf: Any = None
    tables: Sequence["Table"] = ()
    many: bool = False
    nullable: bool = False
    without: bool = False


class Field(Struct, frozen=True):
    """A key of a table. ``default`` is that of the parameter, where JSON has it too."""

    shape: Shape
    required: bool
    default: Any = None


class Table(Struct, frozen=True):
    """A table of a file, which becomes an object.

    :ivar name: of the class, for JSON Schema.
    :ivar made: returns the class.
    :ivar mark: the key that no other table has that may stand at the same place.
    """

    name: str
    made: Callable[[], Any]
    mark: str = ""

    @property
    def fields(self) -> Mapping[str, Field]:
        """The keys."""
        return _fields_of(self.made(), self.name)

    @property
    def descriptions(self) -> Mapping[str, str]:
        """What the documentation says of the keys."""
        return _descriptions_of(self.made())


def _texts(*tables: Table, nullable: bool = False, many: bool = False) -> Shape:
    return Shape(leaf=str, tables=tables, many=many, nullable=nullable)


AGENT: Final = Table("AgentConfig", lambda: AgentConfig, "id")
_GUARDRAIL: Final = Table("Guardrail", lambda: Guardrail, "agent_id")
_TOOLS: Final = Table("ToolPolicy", lambda: ToolPolicy)
_ROUTE: Final = Table("AgentRoute", lambda: AgentRoute)
_HTTP: Final = Table("HttpTransport", partial(transport_class, "url"), "url")
_FORWARD_AUTH: Final = Table("ForwardAuthTransport", partial(transport_class, "address"), "address")
_STREAM: Final = Table("StreamTransport", partial(transport_class, "endpoints"), "endpoints")
_GRPC: Final = Table("GrpcTransport", partial(transport_class, "target"), "target")
_MODE: Final = Shape(Literal["buffer", "stream", "hybrid"], (Table("BodyMode", lambda: BodyMode, "name"),))
_RULES: Final = _texts(Table("ToolRule", lambda: ToolRule, "name"), many=True)
_CERT: Final = Shape(str | list[str], nullable=True, without=True)
_BREAKER: Final = Shape(
    tables=(Table("CircuitBreakerConfig", lambda: CircuitBreakerConfig),), nullable=True, without=True
)
_GUARDRAILS: Final = Shape(tables=(_GUARDRAIL, _TOOLS), many=True)
#: All of a file.
ROOT: Final = Table("File", lambda: AgentMiddleware)
#: Says where the JSON Schema is, to editors.
SCHEMA_KEY: Final = "$schema"

# What a signature does not say as plain data: by class and parameter. None: only code can hold it.
_SPECIAL: Final[Mapping[str, Mapping[str, Shape | None]]] = {
    "File": {
        **dict.fromkeys(
            (
                "app",
                "others",
                "manager",
                "dialects",
                "challenge_renderer",
                "render_error",
                "on_audit",
                "audit_redact",
                "tracer_provider",
                "meter_provider",
            )
        ),
        "agents": Shape(tables=(AGENT,), many=True),
        "routes": Shape(tables=(_ROUTE,), many=True),
        "guardrails": _GUARDRAILS,
    },
    "AgentConfig": {
        "transport": Shape(str | list[str], (_FORWARD_AUTH, _HTTP, _GRPC, _STREAM)),
        "circuit_breaker": _BREAKER,
        "request_body_mode": _MODE,
        "response_body_mode": _MODE,
    },
    "AgentRoute": {"guardrails": _GUARDRAILS},
    "Guardrail": {"when": None},
    "ToolPolicy": {"allow": _RULES, "deny": _RULES},
    "ToolRule": {"when": None},
    "HttpTransport": {
        "transport": None,
        "encoding": Shape(Literal["json", "msgpack"]),
        "verify": Shape(bool | str),
        "cert": _CERT,
    },
    "ForwardAuthTransport": {"transport": None, "verify": Shape(bool | str), "cert": _CERT},
    "StreamTransport": {"verify": Shape(bool | str), "cert": _CERT},
    "GrpcTransport": {"verify": Shape(bool | str), "cert": _CERT},
}


@cache
def _fields_of(made: Any, table: str) -> Mapping[str, Field]:
    special = _SPECIAL.get(table, {})
    fields = {}
    for parameter in inspect.signature(made).parameters.values():
        name = parameter.name
        shape = special[name] if name in special else shape_of(parameter.annotation)
        if shape is not None:
            required = parameter.default is parameter.empty
            default = parameter.default if type(parameter.default) in (bool, int, float, str) else None
            fields[name] = Field(shape, required, default)
    return fields


def shape_of(hint: Any) -> Shape:
    """The shape of what a parameter takes. Raises TypeError for a hint that says of no plain data."""
    kinds = [kind for alternative in _alternatives(hint) for kind in _plain(alternative)]
    texts = tuple(kind for kind in kinds if isinstance(kind, str))
    others = [kind for kind in dict.fromkeys(kinds) if not isinstance(kind, str) and kind is not type(None)]
    if texts:
        others.append(Literal[tuple(dict.fromkeys(texts))])
    if not others:
        raise TypeError(f"{hint!r} says of no plain data")
    return Shape(Union[tuple(others)], nullable=type(None) in kinds)  # noqa: UP007


def _alternatives(hint: Any) -> Sequence[Any]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _plain(hint: Any) -> list[Any]:
    """The types of plain data that stand for ``hint``; texts stand for themselves."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return list(arguments)
    if origin is tuple:
        return [tuple[tuple(shape_of(argument).leaf for argument in arguments)]]  # type: ignore[misc]
    if origin in (Iterable, Sequence):
        return [list[shape_of(arguments[0]).leaf]]  # type: ignore[misc]
    if origin is Mapping:
        return [dict[str, shape_of(arguments[1]).leaf]]  # type: ignore[misc]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [member.value for member in hint]
    if hint in (str, bool, int, float, type(None), Any):
        return [hint]
    raise TypeError(f"{hint!r} says of no plain data")


@cache
def _descriptions_of(made: Any) -> Mapping[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(made) or "").splitlines():
        if line.startswith(":param "):
            name, _, text = line.removeprefix(":param ").partition(": ")
            found[name] = text
        elif name and line.startswith("    "):
            found[name] += f" {line.strip()}"
        else:
            name = ""
    return {key: text.replace("``", "`") for key, text in found.items()}
