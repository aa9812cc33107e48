"""What a dialect is: a way in which apps and clients write calls, answers and streams."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct

from .framing import Framer, Unit
from .json_text import JSON, Path
from .operations import Operation
from .slots import Call

#: What the events of a stream are.
Form = Literal["json", "text", "either"]


class Stop(Struct, frozen=True):
    """Why a call is stopped, as its client is told.

    :ivar message: the reason.
    :ivar status: what an answer that has not started has. 4xx: blocked. 5xx: a guardrail has failed.
    :ivar malformed: whether the request could not be read, so that nobody has judged it.
    """

    message: str
    status: int = 400
    malformed: bool = False

    @property
    def failure(self) -> bool:
        return self.status >= 500


class StopReply(Struct, frozen=True):
    """A whole answer that takes the place of the app's."""

    status: int
    media_type: str
    body: bytes


class Reader(Protocol):
    """Reads one stream."""

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation] | None:
        """What an event says, in order. None for one that says nothing and may overtake those that are held.

        :param value: its JSON, or the text of one that is no JSON.
        :raises UnreadableError: for an event that is none of the dialect's.
        """
        ...

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        """An event with a mark leaves, or is left out. Returns JSON to put in place of values in it."""
        ...

    def ending(self, stop: Stop) -> bytes | None:
        """How the stream ends after what has left. None: no client would understand anything, so cut it off."""
        ...


class Dialect(Protocol):
    """A way in which apps and clients write calls, answers and streams.

    One whose answers depend on the request has the methods of :class:`Binding` as well.
    """

    @property
    def name(self) -> str: ...

    @property
    def form(self) -> Form:
        """What the events of a stream are: JSON, text, or JSON where they are and text otherwise."""
        ...

    @property
    def repeats(self) -> bool:
        """Whether events of a stream repeat the text of slots."""
        ...

    def knows_path(self, path: str) -> bool:
        """Whether requests for ``path`` are in this dialect."""
        ...

    def knows(self, value: JSON) -> bool:
        """Whether a body, or an event of a stream, has the shape of this dialect."""
        ...

    def call(self, value: JSON, path: str) -> Call:
        """What a request for ``path`` asks for; without its scope."""
        ...

    def request(self, value: JSON) -> list[Operation]:
        """The text of a request. Raises UnreadableError for a body that is not in this dialect."""
        ...

    def answer(self, value: JSON) -> list[Operation]:
        """The text of an answer that is no stream. Raises UnreadableError for a body that is not in this dialect."""
        ...

    def framer(self, media_type: str) -> Framer:
        """What cuts a stream of this type into units."""
        ...

    def reader(self, media_type: str) -> Reader:
        """What reads a stream of this type."""
        ...

    def reply(self, stop: Stop) -> StopReply:
        """The whole answer to a call that is stopped before anything has left."""
        ...


@runtime_checkable
class Binding(Protocol):
    """What a dialect has beside the rest if its answers depend on the request.

    Its ``reply``, and the ``ending`` of its readers, can name what was asked.
    """

    @property
    def is_bound(self) -> bool:
        """Whether it is bound to one."""
        ...

    def bind(self, value: JSON) -> Dialect:
        """The dialect for the call whose request is ``value``. It never raises."""
        ...

    def knows_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers, whose body can't be read, is most likely in this dialect."""
        ...

    def in_place_of_request(self, stop: Stop) -> bytes | None:
        """The body that the app gets in place of a request that is stopped. None: the app is not called."""
        ...


def bound(dialect: Dialect, value: JSON) -> Dialect:
    """``dialect`` for the call whose request is ``value``."""
    return dialect.bind(value) if isinstance(dialect, Binding) else dialect


def is_bound(dialect: Dialect) -> bool:
    """Whether it knows the request, so that it can answer that whatever its answer is."""
    return isinstance(dialect, Binding) and dialect.is_bound
