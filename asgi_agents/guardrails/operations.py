"""What a dialect says of one event: which text in it belongs to which slot, and what follows from a change.

A path leads to a value in the JSON of the event; the empty path is the data of an event that is no JSON.
"""

from typing import Literal

from msgspec import Struct

from .escapes import Run
from .json_text import Path
from .slots import Slot, SlotKey

#: What is in a text that is held whole: JSON whose strings are judged, text that is judged, or reasoning with a
#: signature, which leaves as it came or not at all.
Form = Literal["json", "text", "signed"]


class Text(Struct, frozen=True, gc=False):
    """The next part of a slot, which leaves as soon as it was judged.

    :ivar instead: JSON that takes the place of the value at ``path`` if the text is changed. None: the changed text.
    :ivar span: where the literal of the text begins and ends, if no path leads to it. Empty: it can't be changed.
    """

    slot: Slot
    path: Path
    text: str
    instead: str | None = None
    span: tuple[int, int] | None = None


class Whole(Struct, frozen=True, gc=False):
    """A text that is complete.

    :ivar instead: JSON that takes the place of the value at ``path`` if the text is changed. None: the changed text.
    """

    slot: Slot
    path: Path
    text: str
    instead: str | None = None


class Key(Struct, frozen=True, gc=False):
    """The key of the member at ``path`` is a text that is complete."""

    slot: Slot
    path: Path
    text: str


class Shadowed(Struct, frozen=True, gc=False):
    """A string that no path leads to, for its key is there again later: where its literal begins and ends."""

    slot: Slot
    start: int
    end: int
    text: str


class AsText(Struct, frozen=True, gc=False):
    """The JSON of the event, with what was changed in it, is the next part of ``slot``, if other events are text.

    Its strings are shown as what they say.
    """

    slot: Slot


class Piece(Struct, frozen=True, gc=False):
    """A piece of a slot that is held until it has ended and was judged. Without a path the event is held with it."""

    slot: Slot
    path: Path | None = None
    text: str = ""
    form: Form = "json"


class End(Struct, frozen=True, gc=False):
    """All slots whose keys begin with ``key`` have ended, with the text of this event: all of it leaves.

    So it seems. Text that comes all the same is judged with what precedes it, for clients join what they read.
    """

    key: SlotKey = ()


class Begin(Struct, frozen=True, gc=False):
    """Slots whose keys begin with ``key`` are others from here on. What has ended precedes nothing in them.

    But what follows a change in the ones before (:class:`Follow`, :class:`Drop`) follows it in these, too.
    """

    key: SlotKey


class Repeat(Struct, frozen=True, gc=False):
    """Text that repeats a slot which has ended: it becomes what that left as. Where it differs, it is judged."""

    slot: Slot
    path: Path
    text: str
    form: Form = "text"


class Follow(Struct, frozen=True, gc=False):
    """The value at ``path`` becomes ``json`` if other text is changed.

    Which text that is: the one at the path ``text`` of this event, what has left of the slot ``key``, or else any text
    of this event.
    """

    path: Path
    json: str
    text: Path | None = None
    key: SlotKey | None = None


class Drop(Struct, frozen=True, gc=False):
    """The event is left out if text of the slot ``key`` has left changed."""

    key: SlotKey


class Remove(Struct, frozen=True, gc=False):
    """The element of an array at ``path`` is taken out if the text at ``text`` is changed."""

    path: Path
    text: Path


class Passed(Struct, frozen=True, gc=False):
    """The string at ``path`` passes as it is, such as reasoning that a client returns with its signature."""

    path: Path


class Mark(Struct, frozen=True, gc=False):
    """The dialect is told of ``value`` when the event leaves."""

    value: tuple[str | int, ...]


class FieldText(Struct, frozen=True, gc=False):
    """Text of an event beside its data: where in the bytes of the unit it begins and ends."""

    slot: Slot
    start: int
    end: int
    text: str


class Escaped(Struct, frozen=True, gc=False):
    """The data of the event is ``text``, and says more where its escapes are read.

    :ivar known: whether what is escaped once is judged elsewhere.
    """

    slot: Slot
    text: str
    runs: tuple[Run, ...]
    known: bool = False


Operation = (
    Text
    | Whole
    | Key
    | Shadowed
    | AsText
    | Piece
    | End
    | Begin
    | Repeat
    | Follow
    | Drop
    | Remove
    | Passed
    | Mark
    | FieldText
    | Escaped
)
