"""Two values beside one another, so that a reader sees where they differ. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec import Struct

from ..errors import escaped

#: So many places of one field are shown.
MOST_PLACES: Final = 5
_NAME: Final = 10
_INDENT: Final = "    "
# Characters before the first one that differs, where the beginning is left out.
_BEFORE: Final = 16
# What stands for a value that is not there, so that it is told from a text.
_NOTHING: Final = "-"
_ELLIPSIS: Final = "…"


class _Absent:
    """What one of the two values does not have."""


_ABSENT: Final = _Absent()


class DifferingPlace(Struct, frozen=True):
    """A place where two values differ: ``path`` is as in ``[1].set.value``, empty for the values themselves."""

    path: str
    recorded: Any
    now: Any


def lines_beside(name: str, recorded: Any, now: Any, width: int) -> Iterator[str]:
    """A field that differs, in lines of at most ``width`` columns.

    The values are shown whole where they fit. Of longer ones the places are shown in which they differ, and of a text
    that is too long the part around the first character that differs.
    """
    room = width - len(_INDENT) - _NAME
    if recorded == now:
        # Both were cleaned of what looks like a credential, and were not the same before.
        yield cut(f"  {name}", width)
        yield cut(f"{_INDENT}differs in what is not shown: {_shown(now, nested=False)}", width)
        return
    whole = _both(recorded, now, nested=False)
    places = [DifferingPlace("", recorded, now)]
    if max(map(len, whole)) > room:
        places = list(islice(_places(recorded, now, ""), MOST_PLACES + 1))
    for place in places[:MOST_PLACES]:
        yield cut(f"  {name}{escaped(place.path)}", width)
        nested = bool(place.path)
        for label, text in zip(
            ("recorded", "now"), _around(*_both(place.recorded, place.now, nested), room), strict=True
        ):
            yield f"{_INDENT}{label:<{_NAME}}{text}"
    if len(places) > MOST_PLACES:
        yield cut(f"  {name}: more places differ; --json has all", width)


def cut(text: str, width: int) -> str:
    """A line of at most ``width`` columns."""
    text = escaped(text)
    return text if len(text) <= width else text[: width - 1] + _ELLIPSIS


def _places(recorded: Any, now: Any, path: str) -> Iterator[DifferingPlace]:
    if isinstance(recorded, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*recorded, *now)):
            one, other = recorded.get(key, _ABSENT), now.get(key, _ABSENT)
            if one != other:
                yield from _places(one, other, f"{path}.{key}")
    elif _is_list(recorded) and _is_list(now):
        yield from _places_of_lists(recorded, now, path)
    else:
        yield DifferingPlace(path, recorded, now)


def _places_of_lists(recorded: Sequence[Any], now: Sequence[Any], path: str) -> Iterator[DifferingPlace]:
    """An element that one of them has more is a place by itself, and not the cause of others behind it."""
    begin, end = 0, 0
    shorter = min(len(recorded), len(now))
    while begin < shorter and recorded[begin] == now[begin]:
        begin += 1
    while end < shorter - begin and recorded[-1 - end] == now[-1 - end]:
        end += 1
    for index in range(begin, max(len(recorded), len(now)) - end):
        one = recorded[index] if index < len(recorded) - end else _ABSENT
        other = now[index] if index < len(now) - end else _ABSENT
        if one != other:
            yield from _places(one, other, f"{path}[{index}]")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _both(recorded: Any, now: Any, nested: bool) -> tuple[str, str]:
    """Both as text, which differs where they do: the text ``1`` is not shown as the number 1 is."""
    texts = _shown(recorded, nested=nested), _shown(now, nested=nested)
    return texts if texts[0] != texts[1] else (_shown(recorded, nested=True), _shown(now, nested=True))


def _shown(value: Any, *, nested: bool) -> str:
    if value is _ABSENT or (value is None and not nested):
        return _NOTHING
    if isinstance(value, str) and not nested:
        return escaped(value)
    return escaped(msgspec.json.encode(value).decode())


def _around(recorded: str, now: str, room: int) -> tuple[str, str]:
    """Of texts of which one is too long, the same part of both, with the first character that differs."""
    if max(len(recorded), len(now)) <= room:
        return recorded, now
    differ = next(
        (index for index, (one, other) in enumerate(zip(recorded, now, strict=False)) if one != other),
        min(len(recorded), len(now)),
    )
    # All of the beginning is shown where the difference is in it.
    start = 0 if differ < room - 1 else differ - _BEFORE
    return _part(recorded, start, room), _part(now, start, room)


def _part(text: str, start: int, room: int) -> str:
    shown = _ELLIPSIS + text[start + 1 :] if start else text
    return shown if len(shown) <= room else shown[: room - 1] + _ELLIPSIS
