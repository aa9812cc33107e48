"""Messages of the engine's reader of XML, which quote what clients sent: dropped where they arise."""

import ctypes
from contextlib import suppress
from typing import Any, Final

from libmodsecurity import _libmodsecurity

# It is called with a format and what is to be filled in. Only the first two arguments are taken.
_HANDLER: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_NOTHING: Final = _HANDLER(lambda context, message: None)


def _setter() -> Any:
    """What says where the messages of this thread go; None where the wheel hides it. By default, to standard error."""
    with suppress(OSError, AttributeError):
        # Looked for in all that the module was linked with.
        found = ctypes.CDLL(_libmodsecurity.__file__).xmlSetGenericErrorFunc
        found.argtypes, found.restype = [ctypes.c_void_p, _HANDLER], None
        return found
    return None


_SET: Final = _setter()


def drop_messages() -> None:
    """In this thread, from now on."""
    if _SET is not None:
        _SET(None, _NOTHING)
