"""The patterns of detect-secrets for secrets that have a form of their own, by kind."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector

from .long_tokens import FINDERS
from .parsed_patterns import bounded

# What is no secret in a text that people read.
_NO_SECRETS: Final = frozenset({"public_ip_ipv4"})
# Some tokens count with what stands around them, so that the next one could not begin there. That is only looked at.
_BEFORE: Final = (r'(?:\s|=|:|"|^)', r'(?:(?<=[\s=:"])|^)')
_BEHIND: Final = (r'(?:\s|"|$)', r'(?=\s|"|$)')
# The address of a registry may begin anywhere in the line, and is no secret: the token is found without it.
_REGISTRY: Final = r"\/\/.+\/:_auth"

# What follows "npm_" in the line may be parted in two, and in three where the line may go on.
_NPM: Final = (r"((npm_.+)|([A-Fa-f0-9-]{36})).*", r"(?:npm_.|[A-Fa-f0-9-]{36}).*")

# Blanks may be parted in three, in as many ways as the cube of their number: a minute for a thousand of them.
_ASSIGNED: Final = (r"(?: *)(?:=|:|:=|=>| +|::)(?: *)", r"(?: *(?:=>?|:=?|::) *| +)")


#: Code points: no pattern matches more, with what it looks at before and behind.
LONGEST: Final = 4000


@cache
def patterns() -> Mapping[str, Sequence[re.Pattern[str]]]:
    """Those of all its detectors that search by a pattern. The others judge by how random a string is, or by a word.

    Those in :data:`.long_tokens.FINDERS` are left out: what they match is found there.
    """
    kinds: Mapping[str, type[Any]] = get_mapping_from_secret_type_to_class()
    detectors = {
        re.sub(r"\W+", "_", kind).strip("_").lower(): detector()
        for kind, detector in kinds.items()
        if issubclass(detector, RegexBasedDetector)
    }
    return {
        kind: [_rewritten(each) for each in detector.denylist if each.pattern not in FINDERS]
        for kind, detector in detectors.items()
        if kind not in _NO_SECRETS
    }


def _rewritten(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Finds what ``pattern`` does, and more where finds would touch one another, but nothing very long.

    Where a stream is cut into windows, what is longer than a window could not be found.
    """
    text = pattern.pattern
    if text.startswith(_BEFORE[0]):
        text = text.replace(*_BEFORE, 1)
    if text.endswith(_BEHIND[0]):
        text = text.removesuffix(_BEHIND[0]) + _BEHIND[1]
    text = text.replace(_REGISTRY, r"\/:_auth").replace(*_NPM).replace(*_ASSIGNED)
    return bounded(re.compile(text, pattern.flags), LONGEST - 2)
