"""A mistake, as data."""

from msgspec import Struct


class Mistake(Struct, frozen=True, kw_only=True):
    """Something that people write, and what they should have written.

    :ivar title: what is wrong, in a few words.
    :ivar code: what they write. It runs where ``given`` (running.py) has run.
    :ivar ask: the path of a request that is sent to ``app`` afterwards; None: none is sent.
    :ivar instead: what would be right, in Markdown.
    :ivar command: whether ``code`` is a command line, and not Python.
    """

    title: str
    code: str
    ask: str | None = None
    instead: str
    command: bool = False
