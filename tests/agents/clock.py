"""The clock of rate limits, which tests set."""


class Clock:
    """Seconds since the epoch: the beginning of a minute."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now
