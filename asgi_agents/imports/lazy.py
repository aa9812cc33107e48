"""Names of a package that are imported when they are asked for (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: dict[str, Any], modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    :param package: its ``globals()``, with its ``__all__`` once they are asked.
    :param modules: in which module below the package each name is.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        value = package[name] = getattr(import_module(f"{package['__name__']}.{modules[name]}"), name)
        return value

    def names() -> list[str]:
        return sorted({*package, *package["__all__"]})

    return get, names
