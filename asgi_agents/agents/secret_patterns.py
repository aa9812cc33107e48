"""The patterns of detect-secrets for secrets that have a form of their own, by kind."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector

# What is no secret in a text that people read.
_NO_SECRETS = frozenset({"public_ip_ipv4"})


@cache
def patterns() -> Mapping[str, Sequence[re.Pattern[str]]]:
    """Those of all its detectors that search by a pattern. The others judge by how random a string is, or by a word."""
    kinds: Mapping[str, type[Any]] = get_mapping_from_secret_type_to_class()
    detectors = {
        re.sub(r"\W+", "_", kind).strip("_").lower(): detector()
        for kind, detector in kinds.items()
        if issubclass(detector, RegexBasedDetector)
    }
    found = {kind: list(detector.denylist) for kind, detector in detectors.items() if kind not in _NO_SECRETS}
    # Without what it looks back at, it would try again at each "eyJ" of a long token.
    found["json_web_token"] = [re.compile(rf"(?<![\w-])(?:{each.pattern})") for each in found["json_web_token"]]
    return found
