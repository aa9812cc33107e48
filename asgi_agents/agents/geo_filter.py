"""An agent that lets requests pass by the country and the autonomous system of the client's address."""

import os
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Final, Literal

from ..agent import Agent
from ..errors import ConfigurationError
from ..imports.extras import from_extra
from ..messages.naming import kind_of, named
from ..protocol import AgentResponse, AuditMetadata, RequestHeadersEvent
from .addresses import ADDRESS_UNKNOWN, FORWARDED_FOR, ClientAddress
from .networks import Address, is_local
from .places import COUNTRY, SYSTEM, kind_of_place, places_of

_ACTIONS: Final = ("deny", "allow")
_EXAMPLES: Final = {COUNTRY: "GeoLite2-Country.mmdb", SYSTEM: "GeoLite2-ASN.mmdb"}


class GeoFilter(Agent):
    """Answers 403 to requests and websocket handshakes from countries or networks that are not allowed, or are denied.

    Where an address is, files of the format MMDB say, such as those of MaxMind, DB-IP and IPinfo. They are read anew
    some seconds after they were replaced, while there are requests::

        GeoFilter(["GeoLite2-Country.mmdb", "GeoLite2-ASN.mmdb"], allow=["DE", "AT", "CH"], deny=["AS16509"])

    A client whose address nobody tells is denied, as :class:`IpFilter` does. Needs the ``geo`` extra.

    :param databases: a file or several, which together tell what ``allow`` and ``deny`` name.
    :param allow: countries (ISO 3166-1, ``"DE"``) and autonomous systems (``"AS64496"``): who is in one of them passes.
        Empty: all that are not denied.
    :param deny: the same; they are denied also where they are allowed.
    :param unknown: what becomes of addresses for which the files lack what would decide.
    :param private: the same of those that are nowhere: of private networks, networks of carriers (100.64.0.0/10), this
        machine and one link.
    :param trusted_proxies: as for :class:`IpFilter`, and ``forwarded_header``.
    :raises ConfigurationError: for what can't work, for files that can't be read or do not tell what is needed, and
        without the extra.
    """

    def __init__(
        self,
        databases: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        unknown: Literal["deny", "allow"] = "deny",
        private: Literal["deny", "allow"] = "deny",
        trusted_proxies: Iterable[str] = (),
        forwarded_header: str = FORWARDED_FOR,
    ) -> None:
        with from_extra("GeoFilter", "geo", ConfigurationError):
            from .geo_databases import GeoDatabases
        self._allowed = places_of("GeoFilter", "allow", allow)
        self._denied = places_of("GeoFilter", "deny", deny)
        if not self._allowed and not self._denied:
            raise ConfigurationError("GeoFilter: nothing to allow or to deny, expected allow=[...] or deny=[...]")
        if both := sorted(self._allowed & self._denied):
            raise ConfigurationError(f"GeoFilter: {both[0]!r} is in allow and in deny, expected it in one of them")
        for name, value in (("unknown", unknown), ("private", private)):
            if value not in _ACTIONS:
                raise ConfigurationError(f"GeoFilter: {name}={named(value)}, expected 'deny' or 'allow'")
        self._unknown, self._private = unknown, private
        self._client = ClientAddress("GeoFilter", trusted_proxies, forwarded_header)
        wanted = {kind_of_place(place) for place in self._allowed | self._denied}
        self._databases = GeoDatabases("GeoFilter", _paths(databases), wanted)
        for kind, example in _EXAMPLES.items():
            if kind in wanted - self._databases.kinds:
                raise ConfigurationError(
                    f"GeoFilter: no file of databases tells the {kind} of an address, expected one such as {example}"
                )

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self._databases.look()
        address = self._client.of(event)
        if address is None:
            return ADDRESS_UNKNOWN
        places = self._databases.places(address)
        if denied := places & self._denied:
            return _refusal("place_denied", places, denied)
        # What is not known may be what is denied.
        if _lack(places, self._denied):
            return self._undecided(address, places)
        if not self._allowed or places & self._allowed:
            return None
        return self._undecided(address, places) if _lack(places, self._allowed) else _refusal("place_denied", places)

    def _undecided(self, address: Address, places: Set[str]) -> AgentResponse | None:
        if is_local(address):
            return None if self._private == "allow" else _refusal("address_private", places)
        return None if self._unknown == "allow" else _refusal("place_unknown", places)


def _lack(places: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether there is a kind of place in ``wanted`` that is not among ``places``."""
    return not {kind_of_place(place) for place in wanted} <= {kind_of_place(place) for place in places}


def _refusal(reason: str, places: Iterable[str], rules: Iterable[str] = ()) -> AgentResponse:
    audit = AuditMetadata(reason_codes=(reason,), rule_ids=sorted(rules), tags=sorted(places))
    return AgentResponse.block(403, audit=audit)


def _paths(given: object) -> list[Path]:
    each = [given] if isinstance(given, str | os.PathLike) else given
    paths = list(each) if isinstance(each, Iterable) and not isinstance(each, bytes) else []
    if not paths or not all(isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str) for path in paths):
        raise ConfigurationError(f"GeoFilter: databases is {kind_of(given)}, expected a path, or a list of paths")
    return [Path(path) for path in paths]
