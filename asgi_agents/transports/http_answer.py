"""The answer to an HTTP request, read whole."""

from collections.abc import Sequence

from msgspec import Struct

from ..errors import AgentProtocolError


class HttpAnswer(Struct, frozen=True):
    """``headers`` are in the order received, with names in lower case; empty where nobody has asked for them."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    content: bytes


class AnswerTooLongError(AgentProtocolError):
    """An answer has more content than is read.

    :ivar status: what its head says, which has come.
    """

    def __init__(self, limit: int, status: int) -> None:
        super().__init__(f"the answer is longer than {limit} bytes")
        self.status = status
