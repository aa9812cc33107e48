"""How a value that was given by mistake is named in the message of an error."""

from typing import Final

_PLAIN: Final = (str, bytes, int, float, bool, type(None))
_MAX_LENGTH: Final = 80
_VOWELS: Final = tuple("AEIOaeio")


def named(value: object) -> str:
    """What ``value`` is, as a user would point at it: plain values as they are written, everything else by its kind.

    The content of other objects is left out: it can be long, it can be secret, and an address in memory helps nobody.
    """
    if isinstance(value, _PLAIN):
        shown = repr(value)
        return shown if len(shown) <= _MAX_LENGTH else f"{shown[:_MAX_LENGTH]}..."
    return kind_of(value)


def kind_of(value: object) -> str:
    """What ``value`` is, and nothing of its content, also where that is plain: for places where secrets may stand."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = getattr(value, "__name__", None)
    if isinstance(name, str) and callable(value):
        return f"the function {name}"
    kind = type(value).__name__
    return f"an {kind}" if kind[:1] in _VOWELS else f"a {kind}"
