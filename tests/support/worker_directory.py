"""What happens to the directory by which workers see one another."""

import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from asgi_agents.observability.worker_directory import Others, WorkerDirectory


class Seen(Others[Any], frozen=True, weakref=True):
    """What was read, and whether somebody still has it."""


def watch_reading(monkeypatch: pytest.MonkeyPatch) -> Sequence[weakref.ref[Seen]]:
    """What is read from now on, as long as somebody has it."""
    seen: list[weakref.ref[Seen]] = []
    actual = WorkerDirectory.read

    def read(self: Any, before: Any = None, **options: Any) -> Seen:
        others = actual(self, before, **options)
        found = Seen(others.heard, others.old, others.unread, others.found)
        seen.append(weakref.ref(found))
        return found

    monkeypatch.setattr(WorkerDirectory, "read", read)
    return seen


class Disk:
    """:ivar full: whether nothing can be written to it. Reading works all the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        actual = WorkerDirectory.write

        def write(directory: Any, data: bytes) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            actual(directory, data)

        monkeypatch.setattr(WorkerDirectory, "write", write)
