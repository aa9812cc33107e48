"""An issuer of tokens, with a real server for its keys."""

import json
import time
import warnings
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import anyio
from joserfc import jws, jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tests.support.servers import serve

ISSUER = "https://id.example/"
Key = RSAKey | ECKey | OKPKey

EC = ECKey.generate_key("P-256", {"kid": "ec"})
OTHER_EC = ECKey.generate_key("P-256", {"kid": "other-ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})


@cache
def rsa() -> RSAKey:
    """Made when it is needed first: that takes as long as hundreds of signatures."""
    return RSAKey.generate_key(2048, {"kid": "rsa"})


class Issuer:
    """An ASGI app that answers with the keys, and says how often it was asked.

    :ivar answer: what it answers instead, if anything.
    :ivar wait: a function that returns once it may answer.
    """

    def __init__(self, *keys: Key) -> None:
        self.keys = list(keys)
        self.others: list[dict[str, Any]] = []
        self.answer: Response | None = None
        self.asked = 0
        self.wait: Callable[[], object] | None = None
        self.url = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        if self.wait is not None:
            await anyio.to_thread.run_sync(self.wait)
        assert Request(scope).url.path == "/jwks.json"
        keys = [*self.others, *(key.as_dict(private=False) for key in self.keys)]
        response = self.answer or JSONResponse({"keys": keys})
        await response(scope, receive, send)

    @contextmanager
    def serving(self, **options: Any) -> Iterator["Issuer"]:
        with serve(self, lifespan="off", **options) as url:
            self.url = f"{url}jwks.json"
            yield self


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a valid token; None leaves one out, and a time difference is counted from now on."""
    now = int(time.time())
    given = {"iss": ISSUER, "aud": "shop", "sub": "alice", "iat": now, "exp": now + 600, "scope": "read write"}
    return {
        name: now + int(value.total_seconds()) if isinstance(value, timedelta) else value
        for name, value in (given | changes).items()
        if value is not None
    }


def token(key: Key = EC, *, algorithm: str = "ES256", header: Mapping[str, Any] = {}, **changes: Any) -> str:
    """A signed token; ``changes`` are those of its claims."""
    fields = {"alg": algorithm, "kid": key.kid, **header}
    fields = {name: value for name, value in fields.items() if value is not None}
    # Fields that the library does not know may be in it.
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    with warnings.catch_warnings():
        # Of EdDSA, which got another name.
        warnings.simplefilter("ignore", SecurityWarning)
        return jwt.encode(fields, claims(**changes), key, registry=registry)


def encoded(value: object) -> str:
    """A part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).decode().rstrip("=")
