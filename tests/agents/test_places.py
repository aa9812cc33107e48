"""Countries and autonomous systems, as files of several providers have them and as users write them."""

from typing import Any

import pytest

from asgi_agents import ConfigurationError
from asgi_agents.agents.places import COUNTRY, SYSTEM, kind_of_place, places_in, places_of

from .mmdb import country, system


@pytest.mark.parametrize(
    ("record", "places"),
    [
        # GeoLite2-Country and -City, DB-IP Lite.
        (country("DE"), ["DE"]),
        ({"country": {"iso_code": "de"}, "registered_country": {"iso_code": "US"}}, ["DE"]),
        # GeoLite2-ASN, DB-IP ASN Lite.
        (system(64496), ["AS64496"]),
        # GeoIP2 Enterprise.
        ({"country": {"iso_code": "DE"}, "traits": {"autonomous_system_number": 64496}}, ["DE", "AS64496"]),
        # IPinfo Lite, and what was its free file before.
        ({"country": "Canada", "country_code": "CA", "asn": "AS174", "as_name": "Cogent"}, ["CA", "AS174"]),
        ({"country": "CA", "country_name": "Canada", "asn": "AS174"}, ["CA", "AS174"]),
        # ip-location-db, IPLocate.
        ({"country_code": "CA"}, ["CA"]),
        ({"asn": 174, "country_code": "CA"}, ["CA", "AS174"]),
        # Where an address is registered, or whom it stands for, is not where it is.
        ({"registered_country": {"iso_code": "US"}, "represented_country": {"iso_code": "US"}}, []),
        # What is no country says nothing, wherever it stands.
        *(
            (record, [])
            for code in ("ZZ", "EU", "AP", "UK", "XX", "A1", "ß", "ﬁ", "D")
            for record in ({"country": {"iso_code": code}}, {"country_code": code}, {"country": code})
        ),
        # The next field counts then.
        ({"country_code": "", "country": {"iso_code": "DE"}}, ["DE"]),
        ({"country_code": "EU", "country": "DE"}, ["DE"]),
        ({"country_code": None, "country": {"iso_code": None}}, []),
        ({"autonomous_system_number": 0, "asn": "AS5"}, ["AS5"]),
        ({"asn": "none", "traits": {"autonomous_system_number": None, "asn": 5}}, ["AS5"]),
        ({"country": "Canada"}, []),
        ({"country_code": ""}, []),
        ({"country": None, "asn": None, "traits": None}, []),
        ({"asn": ""}, []),
        (system(0), []),
        (system(2**32 - 1), []),
        ({"autonomous_system_number": True}, []),
        ({}, []),
        (None, []),
        ("DE", []),
        (["DE"], []),
    ],
    ids=str,
)
def test_records_are_read_as_providers_write_them(record: Any, places: list[str]) -> None:
    assert [*places_in(record)] == places


def test_places_are_taken_in_any_case() -> None:
    assert places_of("X", "allow", ["de", "GB", "as64496", "AS174", "XK"]) == {"DE", "GB", "AS64496", "AS174", "XK"}
    assert (kind_of_place("AS"), kind_of_place("AS1")) == (COUNTRY, SYSTEM)


@pytest.mark.parametrize(
    "wrong",
    [
        "UK",
        "EU",
        "ZZ",
        "Germany",
        "DEU",
        "",
        "AS",
        "AS0",
        "AS4294967295",
        "64496",
        "AS-1",
        "ＡＳ1",
        "AS²",
        "ß",
        "ﬁ",
        "ﬀ",
        "ａｔ",
    ],
)
def test_what_is_no_place_is_a_configuration_error(wrong: str) -> None:
    if wrong == "AS":
        # American Samoa.
        assert places_of("X", "deny", [wrong]) == {"AS"}
        return
    with pytest.raises(ConfigurationError, match=r"X: deny contains '.*', expected a country of ISO 3166-1 such as"):
        places_of("X", "deny", [wrong])
