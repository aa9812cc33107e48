"""The client that the script plays."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect


class Client:
    """Sends requests to ``url``, each with an id to recognise it by.

    The environment's proxies are left out of it: everything is on this machine.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10.0, trust_env=False)
        self._websocket_url = url.replace("http", "ws", 1)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self, request_id: str, method: str, target: str, headers: dict[str, str], **body: Any
    ) -> httpx.Response:
        """Send a request and read the response."""
        return self._http.request(method, target, headers={**headers, "x-request-id": request_id}, **body)

    @contextmanager
    def stream(self, request_id: str, target: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Send a GET request; within, the response comes."""
        with self._http.stream("GET", target, headers={**headers, "x-request-id": request_id}) as response:
            yield response

    @contextmanager
    def websocket(self, request_id: str, path: str, headers: dict[str, str]) -> Iterator[ClientConnection]:
        """Within, a websocket is open."""
        with connect(
            f"{self._websocket_url}{path}",
            additional_headers={**headers, "x-request-id": request_id},
            proxy=None,
        ) as websocket:
            yield websocket
