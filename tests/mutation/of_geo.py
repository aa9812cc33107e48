"""Defects in GeoFilter."""

from typing import Final

from .defect import Defect

GEO: Final = (
    Defect(
        "a-file-that-tells-less-is-taken",
        "agents/geo_file.py",
        "        for kind in sorted(self.kinds - database.kinds):\n",
        "        for kind in sorted(self.kinds - self.kinds):\n",
        "A file without countries takes the place of one with them, and nobody is denied any more.",
        ("tests/agents/test_geo_files.py::test_a_file_that_tells_less_than_before_is_not_taken",),
    ),
    Defect(
        "what-a-replaced-file-said-is-remembered",
        "agents/geo_databases.py",
        "            if file.reload():\n                self._forget()\n",
        "            file.reload()\n",
        "An address that has come before is where the file of last month has it.",
        ("tests/agents/test_geo_files.py::test_an_address_is_looked_up_once_for_each_file_that_is_read",),
    ),
    Defect(
        "codes-of-no-country-are-known",
        "agents/places.py",
        "or not _COUNTRY.match(given) or given.upper() not in _COUNTRIES:",
        "or not _COUNTRY.match(given):",
        "An address of which a file only says that it is in Europe passes where those that are unknown are denied.",
        ("tests/agents/test_geo_filter.py::test_codes_that_are_no_country_are_not_known",),
    ),
)
