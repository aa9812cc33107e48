"""Places in the source: where a hook is defined, and where an exception was raised.

Nothing here reads a file, which would block the event loop.
"""

import inspect
import re
import sys
import traceback
from contextlib import suppress
from types import CodeType
from typing import Any, Final

_SEPARATOR: Final = re.compile(r"[/\\]")
# The directory of this package, with its separator.
_PACKAGE: Final = __file__[: -len("messages/places.py")]

_Place = tuple[str, int]


def definition_of(function: object) -> str:
    """``module.Class.hook (line 12)``; without a line where the function is not written in Python."""
    inner = _innermost(function)
    module = getattr(inner, "__module__", None) or "an unknown module"
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    code = _code_of(inner)
    return f"{module}.{name}" if code is None else f"{module}.{name} (line {code.co_firstlineno})"


def raised_by(exc: BaseException, function: object) -> str:
    """What ``function`` has raised and where: ``raised KeyError at waf.py:12``. The exception's text is left out.

    The place is the last running line in the file of the function, or of its object's class. If that line called
    something that raised, the second place follows: ``raised JSONDecodeError at waf.py:12 (in
    json/decoder.py:355)``. An exception group is described by the first exception in it.
    """
    leaf = exc
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    name = type(exc).__name__ if leaf is exc else f"{type(exc).__name__} of {type(leaf).__name__}"
    return f"raised {name} at {_origin_of(leaf, function)}"


def _origin_of(exc: BaseException, function: object) -> str:
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(exc.__traceback__)]
    own = _last_own(lines, function)
    if not lines:
        return "an unknown place" if own is None else _shown(own, 1)
    if own is None or own == lines[-1]:
        return _shown(lines[-1], 1)
    return f"{_shown(own, 1)} (in {_shown(lines[-1], 2)})"


def _last_own(lines: list[_Place], function: object) -> _Place | None:
    """The last of ``lines`` that is in the function's own file. If none is, the line where the function begins."""
    code = _code_of(_innermost(function))
    files = _files_of(function, code)
    if files.isdisjoint(file for file, _ in lines):
        # The class may have inherited the function: then the first file outside of this package counts.
        files = {file for file, _ in [place for place in lines if not place[0].startswith(_PACKAGE)][:1]}
    for place in reversed(lines):
        if place[0] in files:
            return place
    # The function was called with wrong arguments, so that none of its lines ran.
    return None if code is None else (code.co_filename, code.co_firstlineno)


def _files_of(function: object, code: CodeType | None) -> set[str]:
    files = set() if code is None else {code.co_filename}
    owner = getattr(function, "__self__", None)
    file = getattr(sys.modules.get(type(owner).__module__), "__file__", None)
    if isinstance(file, str) and owner is not None:
        files.add(file)
    return {file for file in files if not file.startswith(_PACKAGE)}


def _innermost(function: object) -> Any:
    """The function behind decorators, partials and objects with ``__call__``."""
    while hasattr(function, "func") and not hasattr(function, "__code__"):
        function = function.func
    function = getattr(function, "__func__", function)
    if callable(function):
        # ValueError: it wraps itself.
        with suppress(ValueError):
            function = inspect.unwrap(function)
        if not hasattr(function, "__code__") and not hasattr(function, "__qualname__"):
            called = getattr(type(function).__call__, "__func__", type(function).__call__)
            function = called if hasattr(called, "__code__") else function
    return function


def _code_of(function: object) -> CodeType | None:
    code = getattr(function, "__code__", None)
    return code if type(code) is CodeType else None


def _shown(place: _Place, parts: int) -> str:
    file, line = place
    return f"{'/'.join(_SEPARATOR.split(file)[-parts:])}:{line}"
