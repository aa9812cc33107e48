"""Countries and autonomous systems, as they are written and as files of the format MMDB have them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from ..errors import ConfigurationError
from ..messages.naming import named
from .settings import require_strings

# ISO 3166-1 alpha-2, and what files have for Kosovo.
_CODES: Final = """
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
    CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO
    FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE
    JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO
    MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW
    PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM
    TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW
"""
_COUNTRIES: Final = frozenset(_CODES.split())
_COUNTRY: Final = re.compile(r"[A-Za-z]{2}\Z")
_SYSTEM: Final = re.compile(r"[Aa][Ss]([0-9]{1,10})\Z")
# The highest number of an autonomous system (RFC 6793), which is no system's, and nor is 0 (RFC 7607).
_HIGHEST: Final = 2**32 - 1

COUNTRY: Final = "country"
SYSTEM: Final = "autonomous system"
#: The names in records of files, the first of which with such a place counts.
FIELDS: Final[Mapping[str, Sequence[str]]] = {
    COUNTRY: ("country_code", "country"),
    SYSTEM: ("autonomous_system_number", "asn"),
}


def kind_of_place(place: str) -> str:
    """Whether it is a country or an autonomous system."""
    return COUNTRY if len(place) == 2 else SYSTEM


def places_of(where: str, name: str, given: object) -> frozenset[str]:
    """A list of places, as :func:`places_in` spells them. Raises :class:`ConfigurationError`."""
    places = set()
    for text in require_strings(where, name, given):
        place = _country(text) or _system(text)
        if place is None:
            raise ConfigurationError(
                f"{where}: {name} contains {named(text)}, expected a country of ISO 3166-1 such as 'DE' or 'GB', or an"
                " autonomous system such as 'AS64496'"
            )
        places.add(place)
    return frozenset(places)


def places_in(record: object) -> Iterator[str]:
    """The country and the autonomous system in a record of a file; neither, or one of them, where it has no more.

    These are the names that MaxMind, DB-IP, IPinfo and others give them. A country is that where the address is, and
    not the one where it is registered. Codes that are no country's, such as ``EU``, ``AP`` and ``ZZ``, say nothing.
    """
    if not isinstance(record, Mapping):
        return
    traits = record.get("traits")
    each = (record, traits) if isinstance(traits, Mapping) else (record,)
    yield from _first(_country(record.get(field)) for field in FIELDS[COUNTRY])
    yield from _first(_system(fields.get(field)) for fields in each for field in FIELDS[SYSTEM])


def _first(places: Iterator[str | None]) -> list[str]:
    """The first that is one, if any is."""
    return [*islice(filter(None, places), 1)]


def _country(given: Any) -> str | None:
    """``DE`` for that, in any case, and for a mapping that has it."""
    if isinstance(given, Mapping):
        given = given.get("iso_code")
    # What is no letter of ASCII may become two in capitals.
    if not isinstance(given, str) or not _COUNTRY.match(given) or given.upper() not in _COUNTRIES:
        return None
    return given.upper()


def _system(given: Any) -> str | None:
    """``AS64496`` for that, in any case, and for its number."""
    if isinstance(given, str) and (found := _SYSTEM.match(given)):
        given = int(found[1])
    if isinstance(given, bool) or not isinstance(given, int) or not 0 < given < _HIGHEST:
        return None
    return f"AS{given}"
