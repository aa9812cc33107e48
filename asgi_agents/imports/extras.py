"""What is said where the packages of an extra are missing: the same words wherever one is needed."""

from collections.abc import Iterator
from contextlib import contextmanager


def missing(where: str, extra: str, module: str) -> str:
    """The line of an error; ``where`` says what needs the module."""
    return f"{where}: needs {module}, which is not installed; expected pip install 'asgi-agents[{extra}]'"


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
