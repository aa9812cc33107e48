"""What ``module:name`` on a command line names, with a message of one line for each mistake."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..agent import Agent, check_agent
from ..errors import ConfigurationError

# Frames of a traceback that say nothing about where in the user's code it was.
_NOT_THEIRS: Final = (__file__, importlib.__file__, "<frozen importlib.")
_MISSING: Final = object()


class MistakeError(Exception):
    """What was asked for can't be done; the message is all that the user has to see."""


def find_from_here() -> None:
    """Let modules of the working directory be imported, as ``python -m`` does and a console script doesn't."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def find_object(spec: str, *, refusals: bool = False) -> Any:
    """What ``module:name`` names; the name may have dots.

    :param refusals: let a :class:`ConfigurationError` that the module raises through, as it is.
    :raises MistakeError: it is not of that form, can't be imported, or the module has no such name.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise MistakeError(f"{spec!r}, expected module:name")
    with as_mistakes(f"can't import {module_name!r}", refusals=refusals):
        found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        # A module and a class may compute what they have.
        with as_mistakes(f"can't get {name!r} of {module_name!r}", refusals=refusals):
            found = getattr(found, part, _MISSING)
        if found is _MISSING:
            raise MistakeError(f"{module_name!r} has no {name!r}")
    return found


def find_agent(spec: str) -> object:
    """What ``module:name`` names: an Agent, or something that can be called.

    :raises MistakeError: it is neither, or what :func:`find_object` raises it for.
    """
    found = find_object(spec)
    if not isinstance(found, Agent) and _is_async(found):
        kind = type(found).__name__
        raise MistakeError(f"{spec!r} is a {kind}, expected an Agent; an ASGI server serves an app: uvicorn {spec}")
    if not isinstance(found, Agent) and not callable(found):
        raise _not_an_agent(spec, found)
    return found


def load_agent(spec: str) -> Agent:
    """The agent that ``module:name`` names, or that it makes when it's called without arguments.

    :raises MistakeError: as :func:`find_agent`, and where the call fails or returns something else.
    :raises ConfigurationError: the agent's hooks are not what they should be.
    """
    found = find_agent(spec)
    if not isinstance(found, Agent):
        found = call_object(spec, found)
    if not isinstance(found, Agent):
        raise _not_an_agent(spec, found)
    check_agent(repr(spec), found)
    return found


def call_object(spec: str, found: Any, *, refusals: bool = False) -> Any:
    """What ``found``, which ``spec`` names, returns when it's called without arguments.

    :param refusals: let a :class:`ConfigurationError` that it raises through, as it is.
    :raises MistakeError: it raises an exception.
    """
    with as_mistakes(f"{spec!r} can't be called", refusals=refusals):
        return found()


def _is_async(found: object) -> bool:
    """Whether calling it gives a coroutine, as calling an ASGI app does."""
    call = found if inspect.isroutine(found) or isinstance(found, type) else getattr(found, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(call)


def _not_an_agent(spec: str, found: object) -> MistakeError:
    return MistakeError(
        f"{spec!r} is a {type(found).__name__}, expected an Agent, or what makes one when it's called without arguments"
    )


@contextmanager
def as_mistakes(what: str, *, refusals: bool = False) -> Iterator[None]:
    """Turn what is raised within into a :class:`MistakeError` that says ``what`` failed, why, and in which line.

    :param refusals: but for a :class:`ConfigurationError`.
    """
    try:
        yield
    except (Exception, SystemExit) as exc:
        # A module that ends the process must not make its exit code ours.
        if refusals and isinstance(exc, ConfigurationError):
            raise
        frames = traceback.extract_tb(exc.__traceback__)
        # Where it went wrong, if that is in the user's code.
        last = frames[-1] if frames else None
        where = f" ({last.filename}:{last.lineno})" if last and not last.filename.startswith(_NOT_THEIRS) else ""
        raise MistakeError(f"{what}: {type(exc).__name__}: {exc}{where}") from exc
