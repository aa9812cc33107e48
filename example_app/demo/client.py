"""The client that the script plays."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from opentelemetry import propagate, trace
from websockets.sync.client import ClientConnection, connect

_tracer = trace.get_tracer("example_app.demo")


class Client:
    """Sends requests to ``url``, each with an id to recognise it by, and each in a span.

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
        with _request(f"{method} {_path(target)}", request_id, headers) as sent:
            return self._http.request(method, target, headers=sent, **body)

    @contextmanager
    def stream(
        self, request_id: str, method: str, target: str, headers: dict[str, str], **body: Any
    ) -> Iterator[httpx.Response]:
        """Send a request; within, the response comes."""
        with (
            _request(f"{method} {_path(target)}", request_id, headers) as sent,
            self._http.stream(method, target, headers=sent, **body) as response,
        ):
            yield response

    @contextmanager
    def websocket(self, request_id: str, path: str, headers: dict[str, str]) -> Iterator[ClientConnection]:
        """Within, a websocket is open."""
        with (
            _request(f"WS {path}", request_id, headers) as sent,
            connect(f"{self._websocket_url}{path}", additional_headers=sent, proxy=None) as websocket,
        ):
            yield websocket


@contextmanager
def _request(name: str, request_id: str, headers: dict[str, str]) -> Iterator[dict[str, str]]:
    """Within a span, where anybody traces: the headers, with those that name the request and its trace."""
    sent = {**headers, "x-request-id": request_id}
    # Denied is what many of these are meant to be.
    with _tracer.start_as_current_span(
        name, kind=trace.SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
    ):
        propagate.inject(sent)
        yield sent


def _path(target: str) -> str:
    return target.partition("?")[0]
