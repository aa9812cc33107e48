"""What is said where the packages of an extra are missing: the same words wherever one is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Packages whose modules have other names. Of `google` alone, which several packages are in, only one is of an extra.
_PACKAGES: Final = {
    "envoy": "xds-protos",
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "yaml": "pyyaml",
}


def package_of(module: str) -> str:
    """The package that is to be installed where ``module`` is missing, as package registries spell it."""
    if module == "google":
        # Python names the outermost one that it does not find.
        return "protobuf"
    for known, package in _PACKAGES.items():
        if f"{module}.".startswith(f"{known}."):
            return package
    return module if "." in module else module.replace("_", "-")


def missing(where: str, extra: str, module: str) -> str:
    """The line of an error; ``where`` says what needs the module."""
    return f"{where}: needs {package_of(module)}, which is not installed; expected pip install 'asgi-agents[{extra}]'"


@contextmanager
def from_extra(where: str, extra: str, error: type[Exception]) -> Iterator[None]:
    """Around imports of what comes with an extra: an ``error`` of one line says how to install what is missing.

    So it is where a package is there in a version that does not have what is imported. What is missing of this package
    itself is a mistake in it, and is raised as it is.
    """
    try:
        yield
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] == __name__.partition(".")[0]:
            raise
        if isinstance(exc, ModuleNotFoundError) and exc.name:
            raise error(missing(where, extra, exc.name)) from exc
        raise error(f"{where}: {exc}; expected pip install 'asgi-agents[{extra}]'") from exc
