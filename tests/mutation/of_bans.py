"""Defects in whom IpBan bans, and in what it keeps from them."""

from typing import Final

from .defect import Defect

BANS: Final = (
    Defect(
        "a-site-takes-all-of-its-providers-share",
        "agents/crowds.py",
        "            if self._within[each] > SHARES[each.length]:\n",
        "            if False:\n",
        "One customer of a provider has all the others banned.",
        ("tests/agents/test_crowds.py::test_a_site_has_no_more_of_its_provider_than_its_share",),
    ),
    Defect(
        "who-is-banned-gets-the-answers-that-were-under-way",
        "agents/ip_ban.py",
        "        if ban is None or ban.begins:\n",
        "        if True:\n",
        "A thousand guesses at a time are all answered.",
        ("tests/agents/test_ip_ban.py::test_of_guesses_at_a_time_as_many_are_answered_as_lead_to_a_ban",),
    ),
    Defect(
        "every-origin-is-the-apps-own",
        "agents/askers.py",
        "_normal(origin) in self._own)",
        "bool(self._own))",
        "A page elsewhere has its visitors banned from an API that an app of another origin asks.",
        (
            "tests/agents/test_ip_ban.py::"
            "test_a_page_of_others_has_nobody_banned_from_the_api_that_another_origin_of_the_site_asks",
        ),
    ),
)
