"""How long to wait before what has failed is tried again."""

import random
from typing import Final

# Seconds before the second attempt, and the most.
_FIRST_BACKOFF: Final = 0.1
_MAX_BACKOFF: Final = 5.0


def backoff(attempts: int) -> float:
    """Seconds to wait after so many attempts and one more have failed: twice as long each time, up to 5.

    Half of the wait is random, so that not all clients come at once when what they want is back.
    """
    longest: float = min(_MAX_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(attempts, 16))
    return longest * (0.5 + random.random() / 2)  # noqa: S311 - no secret
