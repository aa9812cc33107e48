"""Who is asking: an agent that turns a credential into a header, and what handlers know of both."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Annotated

from fastapi import Header, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from asgi_agents import Agent, AgentResponse, HeaderOp, RequestHeadersEvent

# The user, for handlers on routes that have the agent: no client can set this header.
User = Annotated[str, Header(alias="x-user", include_in_schema=False)]

# These only tell /docs what to ask its reader for. It is the agent that looks at the credential, and takes it away.
TAKES_KEY = Security(APIKeyHeader(name="x-api-key", auto_error=False))
TAKES_TOKEN = Security(HTTPBearer(auto_error=False))


class ApiKey(Agent):
    """Turns a credential into the ``x-user`` header, and turns away whoever has none.

    A key comes in ``x-api-key``, or as a bearer token; on ``bearer_routes`` it has to be one of ``tokens`` instead.
    Whatever ``x-user`` the client sends is replaced, and the app never sees the credential.

    :param keys: API key to user. ``tokens``: bearer token to user.
    :param bearer_routes: patterns of the routes, as the middleware has them, that take a bearer token only.
    """

    def __init__(
        self, keys: Mapping[str, str], tokens: Mapping[str, str], *, bearer_routes: Collection[str] = ()
    ) -> None:
        # Looked up by digest: how long that takes says nothing about how much of a guess was right.
        self._keys = {_digest(key): user for key, user in keys.items()}
        self._tokens = {_digest(token): user for token, user in tokens.items()}
        self._bearer_routes = frozenset(bearer_routes)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        scheme, _, credential = (event.header("authorization") or "").partition(" ")
        token = credential.strip() if scheme.lower() == "bearer" else ""
        # The route that matched, not the URI: "/%61dmin/" is the same path in another spelling.
        if event.metadata.route_id in self._bearer_routes:
            user = self._tokens.get(_digest(token))
            if user is None:
                return AgentResponse.challenge("bearer", {"realm": "admin"})
        else:
            # Clients of OpenAI send their key as a token.
            user = self._keys.get(_digest(event.header("x-api-key") or token))
            if user is None:
                return AgentResponse.block(401, "Missing or unknown API key", headers={"www-authenticate": "ApiKey"})
        return AgentResponse.allow(
            request_headers=[
                HeaderOp.set("x-user", user),
                HeaderOp.remove("x-api-key"),
                HeaderOp.remove("authorization"),
            ]
        )


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("latin-1", "replace")).digest()
