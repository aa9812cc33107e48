"""What the firewall in :mod:`example_app.waf` recognises, and in which text."""

from .rules import CANDIDATE_RULES, RULES, Rule
from .text import readings

__all__ = ["CANDIDATE_RULES", "RULES", "Rule", "readings"]
