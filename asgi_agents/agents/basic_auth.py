"""An agent that knows users by name and password (RFC 7617)."""

import logging
import time
from base64 import b64decode
from binascii import Error
from collections.abc import Mapping
from hashlib import blake2b
from hmac import compare_digest
from secrets import token_bytes
from typing import Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..messages.naming import kind_of, named
from ..policy import require_int, require_seconds
from ..protocol import AgentResponse, AuditMetadata, HeaderOp, RequestHeadersEvent
from ..protocol.validation import is_sendable
from .password_checks import PasswordChecks
from .passwords import PasswordHash
from .settings import own_headers, require_header, require_user

logger: Final = logging.getLogger("asgi_agents")

_BUSY: Final = AgentResponse.block(
    503, headers={"retry-after": "1"}, audit=AuditMetadata(reason_codes=("too_many_password_checks",))
)
_MIXED: Final = (
    "BasicAuth: the passwords are hashed at different costs: how long a guess takes says whose name there is, expected"
    " hashes that are all made anew by hash_password"
)
# Whatever is longer is no credential that anybody types, and need not be hashed.
_MAX_LENGTH: Final = 4096


class BasicAuth(Agent):
    """Asks for name and password, and answers 401 with ``www-authenticate`` to whoever has no right ones.

    The app finds the name in ``user_header``, and never sees the password::

        AgentConfig("basic", BasicAuth({"alice": "$scrypt$ln=14,r=8,p=5$..."}), sets={"x-user"})

    A password is hashed in a thread, which takes some tenths of a second, also for a name that nobody has. A right one
    is then remembered for ``remember`` seconds, as a hash with a secret of this process. Wrong ones are hashed each
    time, ``max_checks`` at once at most. While so many are under way, and where a check is not done in time, whoever is
    not remembered gets a 503: put a :class:`RateLimit` beside this agent.

    :param users: the name of a user to what :func:`hash_password` returns for the password.
    :param realm: what browsers show when they ask for the password.
    :param user_header: what the app reads.
    :param remember: seconds.
    :raises ConfigurationError: for no users, a password that is not hashed, and a name that Basic can't carry.
    """

    def __init__(
        self,
        users: Mapping[str, str],
        *,
        realm: str = "app",
        user_header: str = "x-user",
        remember: float = 300.0,
        max_checks: int = 2,
    ) -> None:
        if not isinstance(users, Mapping) or not users:
            what = kind_of(users) if not isinstance(users, Mapping) else "empty"
            raise ConfigurationError(f"BasicAuth: users is {what}, expected a dict of names to hashed passwords")
        if not isinstance(realm, str) or not is_sendable("x", realm):
            raise ConfigurationError(f"BasicAuth: realm={named(realm)}, expected latin-1 text on one line")
        user_header = require_header("BasicAuth", "user_header", user_header)
        self.own_headers, self.replaced_headers = own_headers({user_header}, {"authorization"})
        require_seconds("BasicAuth", "remember", remember)
        require_int("BasicAuth", "max_checks", max_checks, at_least=1)
        self._hashes = {_checked_name(user): _parsed(user, given) for user, given in users.items()}
        by_cost = sorted(self._hashes.values(), key=lambda known: known.costs)
        self._of_nobody = by_cost[-1].of_nobody()
        if by_cost[0].costs != by_cost[-1].costs:
            logger.warning("%s", _MIXED)
        self._answers = {
            user: AgentResponse.allow(
                request_headers=[HeaderOp.remove("authorization"), HeaderOp.set(user_header, user)]
            )
            for user in users
        }
        params = {"realm": realm, "charset": "UTF-8"}
        self._missing, self._wrong = (
            AgentResponse.challenge("basic", params, audit=AuditMetadata(reason_codes=(reason,)))
            for reason in ("missing_credentials", "wrong_credentials")
        )
        self._remember = remember
        self._secret = token_bytes(32)
        # The latest right password of each user, hashed, and until when it is remembered.
        self._remembered: dict[str, tuple[bytes, float]] = {}
        self._checks = PasswordChecks(max_checks)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        given = event.header("authorization")
        if given is None:
            return self._missing
        user, password = _credentials(given)
        if password is None:
            return self._wrong
        proof = blake2b(password.encode("utf-8", "surrogatepass"), key=self._secret).digest()
        known, until = self._remembered.get(user, (b"", 0.0))
        if time.monotonic() < until and compare_digest(proof, known):
            return self._answers[user]
        right = await self._checks.is_right(self._hashes.get(user, self._of_nobody), password)
        if right is None:
            return _BUSY
        if not right or user not in self._hashes:
            return self._wrong
        self._remembered[user] = proof, time.monotonic() + self._remember
        return self._answers[user]


def _credentials(field: str) -> tuple[str, str | None]:
    """Name and password; None for a password where they can't be read."""
    scheme, _, encoded = field.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > _MAX_LENGTH:
        return "", None
    try:
        text = b64decode(encoded.strip(" \t").encode("ascii"), validate=True).decode()
    except (Error, UnicodeError):
        return "", None
    user, colon, password = text.partition(":")
    return (user, password) if colon else ("", None)


def _checked_name(user: object) -> str:
    name = require_user("BasicAuth", user)
    if ":" in name:
        raise ConfigurationError(f"BasicAuth: the user {named(name)}, expected a name without a colon")
    return name


def _parsed(user: str, given: object) -> PasswordHash:
    parsed = PasswordHash.parse(given) if isinstance(given, str) else None
    if parsed is None:
        # The message does not have the value: it is most likely the password.
        raise ConfigurationError(
            f"BasicAuth: the password of {user!r} is not hashed, expected what hash_password returns"
        )
    return parsed
