"""Header fields as agents see them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import msgspec


class Headers(Mapping[str, Sequence[str]]):
    """Immutable, case-insensitive header fields: name to all its values, in the order received.

    Names are lower-case. Bytes are decoded as latin-1, which never fails: a value that is not valid text still reaches
    the agent. The dictionary is only built when something asks for more than :meth:`first`.
    """

    __slots__ = ("_fields", "_firsts", "_raw")

    def __init__(self, fields: Mapping[str, Iterable[str]] | None = None) -> None:
        self._raw: tuple[tuple[bytes, bytes], ...] = ()
        self._firsts: dict[bytes, bytes] | None = None
        self._fields: dict[str, tuple[str, ...]] | None = {}
        for name, values in (fields or {}).items():
            if isinstance(values, str):
                raise TypeError(f"headers: {name!r} needs a list of values, got the string {values!r}")
            key = _lower(name)
            self._fields[key] = self._fields.get(key, ()) + tuple(values)

    @classmethod
    def from_raw(cls, raw: Iterable[tuple[bytes, bytes]], *, whole: bool = False) -> Self:
        """From ASGI header pairs, which are copied: later changes to the list don't show.

        ``whole``: all of them will be asked for, so that there is no use in being lazy.
        """
        headers = cls.__new__(cls)
        headers._raw = tuple(raw)
        headers._fields = headers._firsts = None
        if whole:
            headers._dict()
        return headers

    def first(self, name: str) -> str | None:
        """The first value of a field, or None. ``name`` in any case."""
        if self._fields is not None:
            values = self._fields.get(name if name.islower() and name.isascii() else _lower(name))
            return values[0] if values else None
        if self._firsts is None:
            self._firsts = _first_values(self._raw)
        try:
            value = self._firsts.get(name.encode("latin-1").lower())
        except UnicodeEncodeError:
            return None
        return None if value is None else value.decode("latin-1")

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._dict()[_lower(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict())

    def __len__(self) -> int:
        return len(self._dict())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Headers):
            return self._dict() == other._dict()
        if isinstance(other, Mapping):
            return self._dict() == {name: tuple(values) for name, values in other.items()}
        return NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._dict().items()))

    def __repr__(self) -> str:
        # Names only: an event that ends up in a log must not take credentials with it.
        return f"Headers({sorted(self._dict())})"

    def _dict(self) -> dict[str, tuple[str, ...]]:
        fields = self._fields
        if fields is None:
            fields = {key.lower().decode("latin-1"): (value.decode("latin-1"),) for key, value in self._raw}
            if len(fields) < len(self._raw):
                collected: dict[str, list[str]] = {name: [] for name in fields}
                for key, value in self._raw:
                    collected[key.lower().decode("latin-1")].append(value.decode("latin-1"))
                fields = {name: tuple(values) for name, values in collected.items()}
            self._fields = fields
        return fields


def _first_values(raw: tuple[tuple[bytes, bytes], ...]) -> dict[bytes, bytes]:
    """By name, in lower case."""
    firsts = dict(raw[::-1])
    # Servers hand names on in lower case; a scope made by hand may not.
    if b"".join(firsts).islower():
        return firsts
    return {name.lower(): value for name, value in raw[::-1]}


def _lower(name: str) -> str:
    """Lower case for ASCII only, as for the bytes that names are (RFC 9110, section 5.1)."""
    return name.lower() if name.isascii() else "".join(char.lower() if char.isascii() else char for char in name)


def encode_extension(value: object) -> object:
    """msgspec ``enc_hook``: what the wire carries for :class:`Headers`."""
    if isinstance(value, Headers):
        return value._dict()
    raise NotImplementedError(f"can't encode {type(value).__name__}")


def decode_extension(kind: type, value: Any) -> object:
    """msgspec ``dec_hook``: :class:`Headers` from the wire."""
    if kind is Headers:
        try:
            return Headers(msgspec.convert(value, dict[str, list[str]]))
        except msgspec.ValidationError as exc:
            # As a plain ValueError it gets the path of the field.
            raise ValueError(f"headers: {exc}") from None
    raise NotImplementedError(f"can't decode {kind.__name__}")
