"""Names of a package that are imported when they are asked for (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_names(
    package: dict[str, Any], modules: Mapping[str, str], *, beside: tuple[str, ...] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    A public name that another package has, or that is only written in other letter case, is an ImportError that says
    where it is. Python shows the text of no AttributeError where a name is imported with ``from``.

    :param package: its ``globals()``, with its ``__all__`` once they are asked.
    :param modules: in which module below the package each name is.
    :param beside: packages that are searched for a name that this one does not have.
    """
    own = package["__name__"]

    def get(name: str) -> object:
        if name not in modules:
            hint = _hint(own, [own, *beside], name)
            if hint is not None:
                raise ImportError(f"cannot import name {name!r} from {own!r}; {hint}", name=own)
            raise AttributeError(f"module {own!r} has no attribute {name!r}")
        value = package[name] = getattr(import_module(f"{own}.{modules[name]}"), name)
        return value

    def names() -> list[str]:
        return sorted({*package, *package["__all__"]})

    return get, names


def _hint(own: str, packages: list[str], name: str) -> str | None:
    """What was meant by a name that the package ``own`` does not have; None where that is not known."""
    # Python itself asks for names of modules that were not imported yet.
    if name.startswith("_") or not name.isidentifier() or find_spec(f"{own}.{name}") is not None:
        return None
    for package in packages:
        for public in getattr(import_module(package), "__all__", ()):
            if public.lower() == name.lower():
                return f"expected from {package} import {public}"
    return None
