"""Defects in ModSecurity."""

from typing import Final

from .defect import Defect

MODSECURITY: Final = (
    Defect(
        "a-form-may-have-a-preamble",
        "agents/modsecurity_own_rules.py",
        '*("MULTIPART_INVALID_PART", "MULTIPART_DATA_BEFORE"),',
        '*("MULTIPART_INVALID_PART",),',
        "A field behind a boundary that only Starlette finds reaches the app unjudged.",
        (
            "tests/agents/test_modsecurity_bodies.py::test_no_change_of_a_form_hides_from_the_rules_what_starlette_reads",
        ),
    ),
    Defect(
        "names-of-what-is-empty-are-not-judged",
        "agents/modsecurity_json.py",
        'at, sign = end - 1, b"null"',
        "at, sign = end - 1, text[at:end]",
        "An attack in the name of an empty list reaches the app unjudged.",
        ("tests/agents/test_modsecurity_json.py::test_the_name_of_what_is_empty_is_judged",),
    ),
    Defect(
        "fields-of-several-lines-are-judged-once",
        "agents/modsecurity_transaction.py",
        "form = self._check.as_form() if is_last and isinstance(self._check, Multipart) else None",
        "form = None",
        "What rules find only on two lines reaches the app in a multipart form.",
        (
            "tests/agents/test_modsecurity_multipart.py::test_a_value_of_several_lines_has_the_verdict_that_it_has_in_a_form",
        ),
    ),
    Defect(
        "the-engine-loses-line-ends",
        "agents/modsecurity_multipart.py",
        'subn(b"\\r\\r\\n", content)',
        'subn(b"\\r\\n", content)',
        "Words on two lines are one word when rules look at the form with its files.",
        ("tests/agents/test_modsecurity_multipart.py::test_the_first_look_at_a_form_finds_blanks_between_lines",),
    ),
    Defect(
        "what-is-in-lists-is-not-counted",
        "agents/modsecurity_arguments.py",
        "path += within[-1]",
        "path += 0",
        "A few KB of JSON hold up the process for seconds.",
        ("tests/agents/test_modsecurity_arguments.py::test_the_names_of_json_are_those_of_the_engine",),
    ),
)
