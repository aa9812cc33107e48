"""Agents that a file names in place of an address: ``"my_app.agents:Waf"``.

Who may write such a file could have any code run. So the application says which modules may be named, and nothing of
them is called but the class of an agent.
"""

import re
from collections.abc import Collection
from importlib import import_module
from typing import Any, Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..transports.base import BindableTransport, PlainTransport
from .mistakes import nearest, one_of

_OBJECT: Final = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)\Z", re.ASCII)


def names_object(transport: str) -> bool:
    """Whether it is the name of an object, and no address."""
    return _OBJECT.match(transport) is not None


def object_named(transport: str, imports: Collection[str]) -> Any:
    """The agent or transport of that name. Raises :class:`ConfigurationError`.

    :param imports: the modules that may be named.
    """
    found = _OBJECT.match(transport)
    assert found is not None
    module_name, name = found.groups()
    if module_name not in imports:
        allowed = f"one of {one_of(sorted(imports))}" if imports else f"imports=[{module_name!r}] beside it in the code"
        raise ConfigurationError(f"a file may not name the module {module_name!r}, expected {allowed}")
    try:
        module = import_module(module_name)
    except Exception as exc:
        raise ConfigurationError(f"{module_name!r} can't be imported: {type(exc).__name__}: {exc}") from exc
    if not hasattr(module, name):
        agents = [key for key in dir(module) if not key.startswith("_") and _is_usable(getattr(module, key, None))]
        raise ConfigurationError(f"{module_name!r} has no {name!r}; {nearest(name, agents)}")
    # A module may import what it is asked for (PEP 562), as that of the ready-made agents does.
    value = getattr(module, name)
    if not _is_usable(value):
        raise ConfigurationError(
            f"{name!r} of {module_name!r} is of type {type(value).__name__}, expected an Agent, a class of agents"
            " or a Transport"
        )
    if isinstance(value, type):
        try:
            return value()
        except Exception as exc:
            raise ConfigurationError(
                f"{name}() of {module_name!r} has raised {type(exc).__name__}: {exc}; expected a class"
                " that takes no arguments"
            ) from exc
    return value


def _is_usable(value: object) -> bool:
    if isinstance(value, type):
        return issubclass(value, Agent) and value is not Agent
    return isinstance(value, Agent | BindableTransport | PlainTransport)
