"""An agent that sets the headers by which browsers protect a site."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..messages.naming import kind_of
from ..protocol import AgentResponse, HeaderOp, RequestHeadersEvent
from ..protocol.validation import is_sendable
from .settings import require_header

#: What is set unless it is given otherwise. The policy leaves scripts and styles alone, which only the app knows.
DEFAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "content-security-policy": "base-uri 'self'; frame-ancestors 'none'; object-src 'none'",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "referrer-policy": "strict-origin-when-cross-origin",
        # A year. Browsers ignore it in answers over plain HTTP (RFC 6797, section 8.1).
        "strict-transport-security": "max-age=31536000",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
)


class SecurityHeaders(Agent):
    """Sets security headers in every response: also in denials of other agents, in failures, and in errors of the app.

    ::

        agents=[AgentConfig("headers", SecurityHeaders({"content-security-policy": "default-src 'self'"})), ...]

    Let it be the first agent: one behind an agent that denies at once is not asked, and sets nothing.

    :param headers: values that replace the defaults or stand beside them; None leaves a header to the app. What is set
        replaces what the app sends.
    :raises ConfigurationError: for a name or a value that can't be sent.
    """

    never_stops = True

    def __init__(self, headers: Mapping[str, str | None] = MappingProxyType({})) -> None:
        if not isinstance(headers, Mapping):
            raise ConfigurationError(f"SecurityHeaders: headers is {kind_of(headers)}, expected a dict of strings")
        chosen: dict[str, str | None] = dict(DEFAULTS)
        for name, value in headers.items():
            lower = require_header("SecurityHeaders", "a name", name)
            if value is not None and (not isinstance(value, str) or not value or not is_sendable(lower, value)):
                raise ConfigurationError(
                    f"SecurityHeaders: the value of {lower!r}, expected latin-1 text on one line, or None to leave it"
                )
            chosen[lower] = value
        operations = [HeaderOp.set(name, value, always=True) for name, value in chosen.items() if value is not None]
        self._answer = AgentResponse.allow(response_headers=operations)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return self._answer
