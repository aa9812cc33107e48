"""What can't be redacted."""


class UnreadableError(ValueError):
    """A body of which nobody can say what is in it. It has to be refused: to let it pass would be a guess."""
