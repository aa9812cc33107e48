"""Strings in JSON that no path leads to."""

from . import json_text
from .operations import Operation, Shadowed
from .slots import Kind, Slot


def shadowed(text: str, kind: Kind) -> list[Operation]:
    """What is under keys that their objects have again later: some reader may take the first, so they are judged."""
    return [
        Shadowed(Slot(("shadowed", start), kind), start, end, json_text.decode(text[start:end]))
        for start, end in json_text.shadowed(text)
    ]
