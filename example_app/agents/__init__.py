"""The agents. Each is written to be read on its own."""

from .api_key import ApiKey
from .flaky import Flaky
from .moderator import Moderator
from .pii_redactor import PiiRedactor
from .recommender import Recommender
from .waf import Waf

__all__ = ["ApiKey", "Flaky", "Moderator", "PiiRedactor", "Recommender", "Waf"]
