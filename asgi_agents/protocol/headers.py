"""Header fields as agents receive them."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import msgspec

from .responses import HeaderOp

# Encoding a name takes longer than looking it up.
_OFTEN_ASKED_FOR: Mapping[str, bytes] = {
    name: name.encode()
    for name in (
        "accept",
        "authorization",
        "content-type",
        "cookie",
        "host",
        "traceparent",
        "user-agent",
        "x-request-id",
    )
}


class Headers(Mapping[str, Sequence[str]]):
    """Immutable, case-insensitive header fields: name to all its values, in the order received.

    Names are lower-case. Several ``cookie`` fields are one, joined with ``; ``. Bytes are decoded as latin-1, which
    never fails: a value that is not valid text still reaches the agent. The dictionary is only built when something
    asks for more than :meth:`first`.
    """

    __slots__ = ("_fields", "_raw", "cookies_joined", "firsts")

    #: Whether there were several ``cookie`` fields. Only :meth:`of_request` sets it.
    cookies_joined: bool
    #: The first values by name, in lower case. None: nobody has asked for one. For what looks several up.
    firsts: dict[bytes, bytes] | None

    def __init__(self, fields: Mapping[str, Iterable[str]] | None = None) -> None:
        self._raw: tuple[tuple[bytes, bytes], ...] = ()
        self.firsts = None
        # A name with n letters has 2**n spellings in upper and lower case: the cache has to be bounded.
        found: dict[str, list[str]] = {}
        for name, values in (fields or {}).items():
            if isinstance(values, str):
                raise TypeError(f"headers: {name!r} needs a list of values, got the string {values!r}")
            found.setdefault(_lower(name), []).extend(values)
        self._fields: dict[str, tuple[str, ...]] | None = {name: tuple(values) for name, values in found.items()}
        _join_cookies_in(self._fields)

    @classmethod
    def from_raw(cls, raw: Iterable[tuple[bytes, bytes]], *, whole: bool = False) -> Self:
        """From ASGI header pairs. They are copied, so that later changes to the list have no effect.

        ``whole``: build the dictionary at once, because all fields will be needed.
        """
        headers = cls.__new__(cls)
        headers._raw = tuple(raw)
        headers._fields = headers.firsts = None
        if whole:
            headers._dict()
        return headers

    @classmethod
    def of_request(cls, raw: Iterable[tuple[bytes, bytes]], *, whole: bool = False) -> Self:
        """:meth:`from_raw`, for the fields of a client's request, of which some will be asked for in any case."""
        headers = cls.__new__(cls)
        headers._raw = raw = tuple(raw)
        headers._fields = None
        headers.cookies_joined = False
        firsts = headers.firsts = dict(raw)
        if len(firsts) < len(raw) or not b"".join(firsts).islower():
            # Few requests have several fields of a name.
            names = len(headers._find_firsts())
            headers.cookies_joined = names < len(raw) and join_cookies(raw) is not None
            if whole:
                headers._dict()
        elif whole:
            headers._fields = {name.decode("latin-1"): (value.decode("latin-1"),) for name, value in raw}
        return headers

    def first(self, name: str) -> str | None:
        """The first value of a field, or None. ``name`` in any case."""
        if self._fields is not None:
            values = self._fields.get(name if name.islower() and name.isascii() else _lower(name))
            return values[0] if values else None
        firsts = self.firsts or self._find_firsts()
        key = _OFTEN_ASKED_FOR.get(name)
        if key is None:
            try:
                key = name.encode("latin-1").lower()
            except UnicodeEncodeError:
                return None
        value = firsts.get(key)
        return None if value is None else value.decode("latin-1")

    def without(self, names: Container[str]) -> "Headers":
        """The fields without those of ``names``, which are spelled as :func:`as_one_spelling` returns them."""
        return Headers({name: values for name, values in self.items() if as_one_spelling(name) not in names})

    def changed(self, ops: Iterable[HeaderOp]) -> "Headers":
        """The fields after ``ops``, applied in order as they are for the app."""
        fields = dict(self._dict())
        for op in ops:
            name = _lower(op.name)
            if op.kind != "add":
                fields.pop(name, None)
            if op.kind != "remove":
                fields[name] = (*fields.get(name, ()), without_blanks(op.value))
        return Headers(fields)

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._dict()[_lower(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict())

    def __len__(self) -> int:
        return len(self._dict())

    @property
    def size(self) -> int:
        """Bytes of all names and values, or characters where they were given as text."""
        if self._fields is None:
            return sum(len(name) + len(value) for name, value in self._raw)
        return sum(len(name) + sum(map(len, values)) for name, values in self._fields.items())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Headers):
            return self._dict() == other._dict()
        if isinstance(other, Mapping):
            return self._dict() == {name: tuple(values) for name, values in other.items()}
        return NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._dict().items()))

    def __repr__(self) -> str:
        # Names only: an event in a log must not reveal credentials.
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
                _join_cookies_in(fields)
            self._fields = fields
        return fields

    def _find_firsts(self) -> dict[bytes, bytes]:
        """The first values by name, in lower case."""
        raw = self._raw
        firsts = dict(raw[::-1])
        # Servers pass names in lower case; a scope that is made by hand may not.
        if not b"".join(firsts).islower():
            firsts = {name.lower(): value for name, value in raw[::-1]}
        if len(firsts) < len(raw) and b"cookie" in firsts:
            firsts[b"cookie"] = b"; ".join([value for name, value in raw if name.lower() == b"cookie"])
        self.firsts = firsts
        return firsts


def join_cookies(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]] | None:
    """Raw fields in which one ``cookie`` field replaces several, at the place of the first. None if at most one.

    A client may send its cookies in several fields. They are joined before they are passed on (RFC 9113, section
    8.2.3).
    """
    cookies = [value for name, value in headers if name.lower() == b"cookie"]
    if len(cookies) < 2:
        return None
    joined: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name.lower() != b"cookie":
            joined.append((name, value))
        elif cookies:
            joined.append((name, b"; ".join(cookies)))
            cookies.clear()
    return joined


def without_blanks(value: str) -> str:
    """A value without the spaces and tabs around it, which are no part of it (RFC 9110, section 5.5)."""
    return value.strip(" \t")


def as_one_spelling(name: str) -> str:
    """One spelling for all names that WSGI and CGI treat as the same (RFC 3875, section 4.1.18)."""
    return name.lower().replace("_", "-")


def _join_cookies_in(fields: dict[str, tuple[str, ...]]) -> None:
    if len(fields.get("cookie", ())) > 1:
        fields["cookie"] = ("; ".join(fields["cookie"]),)


def _lower(name: str) -> str:
    """Lower case for ASCII only, as for the bytes that names are (RFC 9110, section 5.1)."""
    return name.lower() if name.isascii() else "".join(char.lower() if char.isascii() else char for char in name)


def encode_extension(value: object) -> object:
    """msgspec ``enc_hook``: :class:`Headers` as a plain value for the wire."""
    if isinstance(value, Headers):
        return value._dict()
    raise NotImplementedError(f"can't encode {type(value).__name__}")


def decode_extension(kind: type, value: Any) -> object:
    """msgspec ``dec_hook``: :class:`Headers` from the wire."""
    if kind is Headers:
        try:
            return Headers(msgspec.convert(value, dict[str, list[str]]))
        except msgspec.ValidationError as exc:
            # msgspec adds the path of the field to a ValueError.
            raise ValueError(f"headers: {exc}") from None
    raise NotImplementedError(f"can't decode {kind.__name__}")
