"""Checks of what agents are made with. The messages name the field, the value and what would be right."""

from collections.abc import Iterable, Mapping

from ..errors import ConfigurationError
from ..messages.naming import kind_of, named
from ..protocol import TOKEN
from ..protocol.headers import without_blanks
from ..protocol.validation import is_sendable, is_untouchable


def require_header(where: str, name: str, value: object) -> str:
    """The header name ``value``, in lower case, where it is one that an agent may set."""
    if not isinstance(value, str) or not TOKEN.match(value):
        raise ConfigurationError(f"{where}: {name}={named(value)}, expected the name of a header such as 'x-user'")
    lower = value.lower()
    if is_untouchable(lower) or lower == "host":
        raise ConfigurationError(f"{where}: {name}={value!r} belongs to the server, expected another header")
    return lower


def own_headers(sets: Iterable[str], takes: Iterable[str] = ()) -> tuple[frozenset[str], frozenset[str]]:
    """What an agent has for :attr:`Agent.own_headers` and :attr:`Agent.replaced_headers`.

    :param sets: the headers that it sets.
    :param takes: those that it reads of clients, and takes out of their requests.
    """
    names = frozenset(sets)
    own = names - {"authorization", "cookie", *takes}
    return own, names.union(takes) - own


def require_strings(where: str, name: str, given: object) -> tuple[str, ...]:
    """A list or set of strings as a tuple. One string is never meant as the list of its characters."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}: {name}={named(given)}, expected a list of strings")
    items = tuple(given)
    for item in items:
        if not isinstance(item, str):
            raise ConfigurationError(f"{where}: {name} contains {kind_of(item)}, expected strings")
    return items


def require_mapping(where: str, name: str, given: object) -> dict[str, str]:
    """A mapping of strings to strings as a dict."""
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for item in given.items() for text in item):
        raise ConfigurationError(f"{where}: {name} is {kind_of(given)}, expected a dict of strings to strings")
    return dict(given)


def require_user(where: str, value: object) -> str:
    """The name of a user that can be put into a header as it is."""
    if not isinstance(value, str) or not is_user(value):
        raise ConfigurationError(
            f"{where}: the user {named(value)}, expected a name of latin-1 characters without blanks around it"
        )
    return value


def is_user(value: str) -> bool:
    """Whether a header can carry this name, so that the app reads the same: blanks around a value are no part of it."""
    return value != "" and without_blanks(value) == value and is_sendable("x", value)
