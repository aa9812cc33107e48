"""From the status that ends a gRPC call to our errors."""

import re
from typing import Final

import grpc

from ...errors import AgentConnectionError, AgentError, AgentProtocolError, AgentTimeoutError, EventTooLargeError

# What a status says in words comes from the peer in part, and may hold anything. These are words of gRPC's own
# library and of the system, and of nobody else.
_KNOWN_WORDS: Final = re.compile(
    r"Connection (?:refused|reset|reset by peer|timed out)|No such file or directory|Permission denied|Broken pipe"
    r"|No route to host|Network is unreachable|Name or service not known|DNS resolution failed|Socket closed"
    r"|keepalive watchdog timeout|ping timeout|too_many_pings|Handshake read failed|Failed parsing HTTP/2"
    r"|CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|Hostname Verification Check failed|Ssl handshake failed"
    r"|TLSV1_ALERT_[A-Z_]+|SSLV3_ALERT_[A-Z_]+|Deadline Exceeded|GOAWAY|Trying to connect an http1\.x server"
)
_TOO_LARGE: Final = re.compile(r"larger than max|length too large")
_BY_US: Final = re.compile(r"CLIENT: Received")


class EndedWithStatusError(AgentError):
    """The call has ended with a status that has no error of its own here.

    :ivar code: that status.
    """

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code


def error_of(exc: grpc.aio.AioRpcError) -> AgentError:
    """The error of ours for a call that has ended with another status than OK."""
    return error_of_status(exc.code(), exc.details() or "")


def error_of_status(code: grpc.StatusCode, details: str) -> AgentError:
    """The same, from a status' code and its words."""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return AgentConnectionError(_with_known_words("it can't be reached", details))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return AgentTimeoutError("no answer")
        case grpc.StatusCode.RESOURCE_EXHAUSTED | grpc.StatusCode.OUT_OF_RANGE if _TOO_LARGE.search(details):
            if _BY_US.search(details):
                return AgentProtocolError("the answer is longer than max_answer_bytes")
            return EventTooLargeError("it does not take a message of that length")
        case grpc.StatusCode.UNIMPLEMENTED:
            return AgentProtocolError("it does not know the method: it is an agent of another protocol, or none")
        case grpc.StatusCode.CANCELLED:
            return AgentConnectionError("the call was cancelled")
        case _ if is_provisional(code, details):
            return AgentConnectionError("the call broke while a message was sent")
        case _:
            message = _with_known_words(f"it ended the call with the status {code.name}", details)
            return EndedWithStatusError(message, code)


def is_provisional(code: grpc.StatusCode, details: str | None) -> bool:
    """Whether it is what grpc.aio says of a message that could not be sent, and no status of a server's."""
    return code is grpc.StatusCode.INTERNAL and (details or "").startswith("Internal error from Core")


def _with_known_words(fault: str, details: str) -> str:
    words = ", ".join(dict.fromkeys(_KNOWN_WORDS.findall(details)))
    return f"{fault}: {words}" if words else fault
