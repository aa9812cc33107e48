"""Ready-made agents. Each is a thin adapter of a well-kept library, or of the standard library.

::

    from asgi_agents.agents import ApiKey

Importing a name imports its module and no more. An agent that needs an extra says so when it is made.
"""

from typing import TYPE_CHECKING

from ..imports.lazy import lazy_names

if TYPE_CHECKING:
    from .api_key import ApiKey, hash_key
    from .basic_auth import BasicAuth
    from .geo_filter import GeoFilter
    from .ip_ban import IpBan
    from .ip_filter import IpFilter
    from .jwt_auth import JwtAuth
    from .modsecurity import ModSecurity
    from .opa import Opa
    from .openapi.validation import OpenApiValidation
    from .passwords import hash_password
    from .presidio import Presidio
    from .rate_limit import RateLimit
    from .secrets import Secrets
    from .security_headers import SecurityHeaders
    from .size_limit import SizeLimit
else:
    # An agent is a line here, one above and one below.
    _LAZY = {
        "ApiKey": "api_key",
        "BasicAuth": "basic_auth",
        "GeoFilter": "geo_filter",
        "IpBan": "ip_ban",
        "IpFilter": "ip_filter",
        "JwtAuth": "jwt_auth",
        "ModSecurity": "modsecurity",
        "Opa": "opa",
        "OpenApiValidation": "openapi.validation",
        "Presidio": "presidio",
        "RateLimit": "rate_limit",
        "Secrets": "secrets",
        "SecurityHeaders": "security_headers",
        "SizeLimit": "size_limit",
        "hash_key": "api_key",
        "hash_password": "passwords",
    }

    __getattr__, __dir__ = lazy_names(globals(), _LAZY, beside=("asgi_agents", "asgi_agents.guardrails"))


__all__ = [
    "ApiKey",
    "BasicAuth",
    "GeoFilter",
    "IpBan",
    "IpFilter",
    "JwtAuth",
    "ModSecurity",
    "Opa",
    "OpenApiValidation",
    "Presidio",
    "RateLimit",
    "Secrets",
    "SecurityHeaders",
    "SizeLimit",
    "hash_key",
    "hash_password",
]
