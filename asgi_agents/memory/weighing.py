"""An estimate of the memory that a value takes."""

import sys
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple


def weigh(value: object, limit: int) -> int:
    """About how many bytes of memory ``value`` takes with all that is in it. Counting stops above ``limit``."""
    total = 0
    unseen: list[Any] = [value]
    # A value that contains itself is counted until the limit.
    while unseen and total <= limit:
        each = unseen.pop()
        if each is None or isinstance(each, bool):
            total += 8
            continue
        total += sys.getsizeof(each, 64)
        if isinstance(each, str | bytes | int | float):
            continue
        if isinstance(each, Struct):
            unseen += astuple(each)
        elif isinstance(each, Mapping):
            total += 16 * len(each)
            unseen += [part for item in each.items() for part in item] if len(each) <= limit else ()
        elif isinstance(each, list | tuple | set | frozenset):
            unseen += each if len(each) <= limit else ()
    return total
