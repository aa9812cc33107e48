"""What the classes refuse, in the words of a file: they name what is to be written in Python."""

import re
from collections.abc import Collection
from typing import Final

# What is spelt otherwise in files.
_WORDS: Final = {"None": "false", "True": "true", "False": "false"}
_PYTHON: Final = re.compile(r"\b(?:None|True|False)\b")
_SET: Final = re.compile(r"\ba set such as \{([^{}]*)\}")
_PAIR: Final = re.compile(r"\bsuch as \(('[^()']*'(?:, '[^()']*')+)\)")
_EVENT: Final = re.compile(r"\bEventType\.([A-Z_]+)")
_OBJECTS: Final = re.compile(r"(?: URL)?, an Agent or a Transport$")
_DOTTED: Final = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\.(?P<name>[A-Za-z_]\w*)\Z", re.ASCII)


def in_words_of_files(text: str) -> str:
    """A message about parameters, as one about keys."""
    text = _PYTHON.sub(lambda found: _WORDS[found[0]], text)
    text = _EVENT.sub(lambda found: repr(found[1].lower()), text)
    text = _PAIR.sub(r"such as [\1]", _SET.sub(r"a list such as [\1]", text))
    return _OBJECTS.sub(" URL, or an agent as 'module:Name'", text)


def object_meant(transport: object, imports: Collection[str]) -> str | None:
    """The name of an object that was most likely meant by what is no address; None where there is no good guess.

    Names of hosts have dots as well. So the last part is a class, or the others are a module that may be named.
    """
    found = _DOTTED.match(transport) if isinstance(transport, str) else None
    if found is None or not (found["name"][0].isupper() or found["module"] in imports):
        return None
    return f"{found['module']}:{found['name']}"
