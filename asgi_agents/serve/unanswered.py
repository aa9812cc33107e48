"""The events of one connection that are not answered at once, and the order of their answers. No I/O."""

from collections.abc import Collection, Iterator

from .dispatch import ServedCall


class Unanswered:
    """Calls in the order in which they came.

    Calls with a call id are answered as they finish. The others are *ordered*: those with the same correlation id are
    answered in the order in which they came, and one without any id is answered when it is the oldest of all that are
    ordered. This is how clients match such answers.
    """

    __slots__ = ("_by_id", "_count", "_ordered")

    def __init__(self) -> None:
        self._by_id: dict[str, dict[ServedCall, None]] = {}
        self._ordered: dict[ServedCall, None] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ServedCall]:
        return (call for calls in self._by_id.values() for call in calls)

    def holds_up(self, call: ServedCall) -> bool:
        """Whether an earlier call has to be answered before ``call``, which is ordered."""
        correlation_id = call.ids.correlation_id
        return correlation_id in self._by_id or (not correlation_id and bool(self._ordered))

    def with_id(self, correlation_id: str) -> Collection[ServedCall]:
        """Those about one request."""
        return tuple(self._by_id.get(correlation_id, ()))

    def add(self, call: ServedCall) -> None:
        """``call`` is not answered yet."""
        self._by_id.setdefault(call.ids.correlation_id, {})[call] = None
        if call.ordered:
            self._ordered[call] = None
        self._count += 1

    def remove(self, call: ServedCall) -> None:
        """``call`` is being answered."""
        calls = self._by_id[call.ids.correlation_id]
        del calls[call]
        if not calls:
            del self._by_id[call.ids.correlation_id]
        self._ordered.pop(call, None)
        self._count -= 1

    def take_due(self, call: ServedCall) -> list[ServedCall]:
        """Remove the ordered calls that can be answered now that ``call`` has its answer, and return them in order."""
        correlation_id = call.ids.correlation_id
        due = self._take(correlation_id)
        if correlation_id:
            # Calls without any id may have waited for this one.
            due += self._take("")
        return due

    def _take(self, correlation_id: str) -> list[ServedCall]:
        answered: list[ServedCall] = []
        for call in self._by_id.get(correlation_id, ()):
            if call.ordered:
                if call.answer is None:
                    break
                answered.append(call)
        taken: list[ServedCall] = []
        for call in answered:
            if not correlation_id and next(iter(self._ordered)) is not call:
                break
            self.remove(call)
            taken.append(call)
        return taken

    def clear(self) -> None:
        """The connection is over."""
        self._by_id.clear()
        self._ordered.clear()
        self._count = 0
