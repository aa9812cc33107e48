"""The REST API of Open Policy Agent."""

import json
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx

from ..concurrency.per_event_loop import PerEventLoop
from ..errors import AgentConnectionError, AgentProtocolError, ConfigurationError
from ..messages.naming import named
from ..observability.redaction import redact_secrets
from ..transports.http_origin import abandon, read_at_most
from .reasons import place_of, reason_of

#: What a decision is that no rule has made.
UNDEFINED: Final = object()
#: The largest answer that is read, in bytes.
MAX_ANSWER_BYTES: Final = 64 * 1024


class OpaClient:
    """Asks one document for its decision. Connections are kept, of each event loop its own."""

    def __init__(self, url: object, token: str | None) -> None:
        if not isinstance(url, str) or not _is_document(url):
            shown = named(redact_secrets(url) if isinstance(url, str) else url)
            raise ConfigurationError(f"Opa: url={shown}, expected such as 'http://127.0.0.1:8181/v1/data/app/allow'")
        self._url = url
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        # Made once: it takes longer than a call.
        tls = httpx.create_ssl_context() if url.startswith("https") else False
        # How long a call may take is for its deadline. No proxy: what the environment names is not for this.
        self._clients = PerEventLoop(lambda: httpx.AsyncClient(verify=tls, timeout=None, trust_env=False))  # noqa: S113

    async def ask(self, shown: Mapping[str, Any]) -> object:
        """The decision about this input, or :data:`UNDEFINED`.

        :raises AgentConnectionError: where OPA does not answer.
        :raises AgentProtocolError: where it answers with anything but a decision.
        """
        client = await self._clients.get()
        content = json.dumps({"input": shown}, separators=(",", ":"), default=list).encode("ascii")
        try:
            async with client.stream("POST", self._url, content=content, headers=self._headers) as response:
                if response.status_code != 200:
                    await abandon(aiter(cast(httpx.AsyncByteStream, response.stream)))
                    raise AgentProtocolError(f"OPA has answered {response.status_code}")
                body = await read_at_most(response, MAX_ANSWER_BYTES)
        except (httpx.HTTPError, OSError) as exc:
            raise AgentConnectionError(f"OPA at {place_of(self._url)} does not answer: {reason_of(exc)}") from exc
        if body is None:
            raise AgentProtocolError(f"the answer of OPA has more than {MAX_ANSWER_BYTES} bytes")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise AgentProtocolError("OPA has answered with no JSON") from None
        if not isinstance(answer, dict):
            raise AgentProtocolError("OPA has answered with no object")
        return answer.get("result", UNDEFINED)


def _is_document(url: str) -> bool:
    """Whether it is a URL of a document: ``/v1/data`` alone would have all that OPA knows for an answer."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
            and parts.path.startswith("/v1/data/")
            and len(parts.path) > len("/v1/data/")
            and not parts.fragment
        )
    except ValueError:
        return False
