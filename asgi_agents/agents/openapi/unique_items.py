"""Which values of JSON are equal, in time that is linear in their size, whatever they are."""

from collections.abc import Callable, Mapping
from threading import local
from typing import Any, Final

_CONTAINERS: Final = frozenset((list, dict))


class UniqueItems:
    """The keyword ``uniqueItems``.

    The library's own takes the square of the number of items for integers that 64 bits don't hold.
    """

    def __init__(self, parent_schema: dict[str, Any], value: Any, schema_path: list[str | int]) -> None:
        self._applies = value is True

    def validate(self, instance: Any) -> None:
        if self._applies and isinstance(instance, list) and not _are_unique(instance):
            raise ValueError


class _Forms:
    """Texts of the values within one value. Equal values have the same, and others have others.

    They are texts, because anybody can find many numbers, and so tuples of numbers, that have one hash in Python. Each
    list and object is read once, also where lists within one another have to be unique at every level.
    """

    def __init__(self) -> None:
        self._known: dict[int, str] = {}
        # So that no other one gets the id of one that is known.
        self._kept: list[list[Any]] = []
        self._names: dict[str, str] = {}

    def within(self, value: Any) -> list[str]:
        """Of its items, or of its members by their names."""
        if id(value) not in self._known:
            self._read(value)
        return self._inner(value)

    def _read(self, value: Any) -> None:
        # No recursion: what calls this may be deep already.
        known, names, found = self._known, self._names, [value]
        for one in found:
            inner = one.values() if type(one) is dict else one
            found += [each for each in inner if type(each) in _CONTAINERS and id(each) not in known]
        # Those within come before those that they are in, and are known to these by short names.
        for one in reversed(found):
            text = ("{ " if type(one) is dict else "[ ") + " ".join(self._inner(one))
            known[id(one)] = names.setdefault(text, f"@{len(names)}")
        self._kept.append(found)

    def _inner(self, one: Any) -> list[str]:
        known = self._known
        ordered = [part for name in sorted(one) for part in (name, one[name])] if type(one) is dict else one
        return [known[id(each)] if type(each) in _CONTAINERS else _SCALARS[type(each)](each) for each in ordered]


def _text(value: str) -> str:
    # With its length it is told from all that may follow.
    return f"{len(value)}:{value}"


def _float(value: float) -> str:
    return hex(int(value)) if value.is_integer() else value.hex()


#: In hexadecimal, because decimal digits take the square of their number.
_SCALARS: Final[Mapping[type, Callable[[Any], str]]] = {
    str: _text,
    int: hex,
    float: _float,
    bool: repr,
    type(None): repr,
}
_OF_THREAD: Final = local()


def forget() -> None:
    """What is known of a value is forgotten: it was judged."""
    _OF_THREAD.__dict__.clear()


def _are_unique(items: list[Any]) -> bool:
    if len(items) < 2:
        return True
    types = set(map(type, items))
    if types == {str}:
        return len(set(items)) == len(items)
    if types == {int}:
        return len(set(map(hex, items))) == len(items)
    forms: _Forms = _OF_THREAD.__dict__.setdefault("forms", _Forms())
    return len(set(forms.within(items))) == len(items)
