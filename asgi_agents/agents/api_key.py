"""An agent that knows users by their API keys."""

import logging
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..messages.naming import kind_of
from ..protocol import AgentResponse, AuditMetadata, HeaderOp, RequestHeadersEvent
from .settings import own_headers, require_header, require_user

_PREFIX: Final = "sha256:"
_HASHED: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
# Also as it is written by who has not heard of the prefix.
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}\Z")

logger: Final = logging.getLogger("asgi_agents")


def hash_key(key: str) -> str:
    """An API key as :class:`ApiKey` can be given it: a hash from which nobody learns the key.

    SHA-256 without a salt, so that one look-up finds the user. That is enough for keys that are random and long, such
    as those of ``secrets.token_urlsafe()``. It is not for passwords: :func:`hash_password` is for those.
    """
    return f"{_PREFIX}{sha256(key.encode()).hexdigest()}"


class ApiKey(Agent):
    """Turns an API key into the name of a user, and answers 401 to whoever has none.

    The app finds the name in ``user_header``, and never sees the key. That header reaches it from this agent alone. Of
    an agent that is served elsewhere the middleware does not know that: name the header in ``sets`` then::

        AgentConfig("api-key", ApiKey({"sha256:5e88...": "alice"}), sets={"x-user"})

    Keys are kept and looked up as hashes. How long that takes says nothing about how much of a guess was right.

    :param keys: a key to the user's name; several keys may be one user's. A key is given as :func:`hash_key` returns
        it, or as it is.
    :param header: where clients send their key. In ``authorization`` it is a bearer token, as those of
        OpenAI do.
    :param user_header: what the app reads.
    :raises ConfigurationError: for no keys, an empty one, a hash that is none, and a name that no header can carry.
    """

    def __init__(self, keys: Mapping[str, str], *, header: str = "x-api-key", user_header: str = "x-user") -> None:
        self._header = require_header("ApiKey", "header", header)
        user_header = require_header("ApiKey", "user_header", user_header)
        self.own_headers, self.replaced_headers = own_headers({user_header}, {self._header})
        if not isinstance(keys, Mapping) or not keys:
            what = kind_of(keys) if not isinstance(keys, Mapping) else "empty"
            raise ConfigurationError(f"ApiKey: keys is {what}, expected a dict of keys to names of users")
        users: dict[str, str] = {}
        for key, user in keys.items():
            first = users.setdefault(_hashed(key), require_user("ApiKey", user))
            if first != user:
                raise ConfigurationError(f"ApiKey: one key is given to {first!r} and to {user!r}, expected one user")
        self._answers = {
            key: AgentResponse.allow(
                request_headers=[HeaderOp.remove(self._header), HeaderOp.set(user_header, user)],
            )
            for key, user in users.items()
        }
        challenge = {"www-authenticate": "Bearer" if self._header == "authorization" else "ApiKey"}
        self._missing = AgentResponse.block(
            401, "API key missing", headers=challenge, audit=AuditMetadata(reason_codes=("missing_credentials",))
        )
        self._unknown = AgentResponse.block(
            401, "API key unknown", headers=challenge, audit=AuditMetadata(reason_codes=("wrong_credentials",))
        )

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        key = event.header(self._header) or ""
        if self._header == "authorization":
            scheme, _, key = key.partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else ""
        if not key:
            return self._missing
        # Decoded latin-1, so that these are the bytes that were sent.
        digest = sha256(key.encode("latin-1", "replace")).hexdigest()
        return self._answers.get(f"{_PREFIX}{digest}", self._unknown)


def _hashed(key: object) -> str:
    if not isinstance(key, str):
        raise ConfigurationError(f"ApiKey: keys contains {kind_of(key)} for a key, expected text")
    if not key:
        raise ConfigurationError("ApiKey: keys contains a key that is empty, expected text that is not empty")
    if not key.lower().startswith(_PREFIX):
        if _DIGEST.match(key):
            # Not the key itself: it may be one.
            logger.warning(
                "ApiKey: keys contains 64 hex digits without 'sha256:' before them, which is taken for a key as it is;"
                " if it is the hash of one, write what hash_key returns"
            )
        return hash_key(key)
    key = key.lower()
    if not _HASHED.match(key):
        raise ConfigurationError("ApiKey: keys contains 'sha256:' and no 64 hex digits, expected what hash_key returns")
    return key
