"""Methods of which one thread at a time runs one, of each object."""

from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class _Locked(Protocol):
    lock: Lock


_Self = TypeVar("_Self", bound=_Locked)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def alone(method: Callable[Concatenate[_Self, _Given], _Result]) -> Callable[Concatenate[_Self, _Given], _Result]:
    """``method`` waits for the others of its object: a call may go on in its thread when the next one comes."""

    @wraps(method)
    def locked(self: _Self, /, *args: _Given.args, **options: _Given.kwargs) -> _Result:
        with self.lock:
            return method(self, *args, **options)

    return locked
