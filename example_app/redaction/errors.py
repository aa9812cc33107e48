"""What can't be redacted."""


class UnreadableError(ValueError):
    """A body that can't be read. It has to be refused, because nothing is known of its content."""
