"""How an error message names a value that was given by mistake."""

from typing import Final

_PLAIN: Final = (str, bytes, int, float, bool, type(None))
_MAX_LENGTH: Final = 80
_VOWELS: Final = tuple("AEIOaeio")


def named(value: object) -> str:
    """What ``value`` is: plain values as they are written in Python, every other object by its class.

    The content of other objects is left out: it can be long or secret.
    """
    if isinstance(value, _PLAIN):
        try:
            shown = repr(value)
        except ValueError:
            # An integer of more digits than Python writes: one in hexadecimal is read all the same.
            return kind_of(value)
        return shown if len(shown) <= _MAX_LENGTH else f"{shown[:_MAX_LENGTH]}..."
    return kind_of(value)


def kind_of(value: object) -> str:
    """What ``value`` is, without the content of plain values either: for places where secrets may stand."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = getattr(value, "__name__", None)
    if isinstance(name, str) and callable(value):
        return f"the function {name}"
    kind = type(value).__name__
    return f"an {kind}" if kind[:1] in _VOWELS else f"a {kind}"
