"""A response, as the engine is shown it."""

from typing import Any, Final

from ..protocol import ResponseHeadersEvent
from .modsecurity_fields import fields_of
from .modsecurity_types import TEXT, is_known_text, is_text

#: Bytes of a response that are kept for as long as a body of the request may come. The engine looks at these many.
MAX_SHOWN: Final = 512 * 1024


class ShownResponse:
    """What came of it, which another transaction of the engine is shown again: an app may answer a request in parts."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._shown: ResponseHeadersEvent | None = None
        self._kept: bytearray | None = bytearray()
        self._is_text = False
        #: Whether something came that is not kept, so that no other transaction can judge the response.
        self.is_lost = False

    def head(self, engine: Any, event: ResponseHeadersEvent) -> None:
        self._is_text = is_text(event.headers.get("content-type", ()))
        self._shown, self.is_lost = event, self._kept is None
        self._head(event, engine)

    def body(self, engine: Any, data: bytes, is_last: bool) -> None:
        self._body(data, is_last, engine)
        if is_last:
            self.forget()
        # The engine does not look into what is no text.
        elif self._is_text and data:
            if self._kept is not None and len(self._kept) + len(data) <= MAX_SHOWN:
                self._kept += data
            else:
                self.is_lost = True
                self.forget()

    def again(self, engine: Any) -> None:
        if self._kept is not None and self._shown is not None:
            self._head(self._shown, engine)
            if self._kept:
                self._body(bytes(self._kept), False, engine)

    def forget(self) -> None:
        """There will be no other transaction."""
        self._kept = None

    def _head(self, event: ResponseHeadersEvent, engine: Any) -> None:
        for name, value in fields_of(event.headers):
            done(engine.add_response_header(name, value))
        types = event.headers.get("content-type", ())
        if is_text(types) and not is_known_text(types):
            # Of several, the engine takes the last.
            done(engine.add_response_header(b"content-type", TEXT))
        done(engine.process_response_headers(event.status, self._protocol))

    def _body(self, data: bytes, is_last: bool, engine: Any) -> None:
        done(engine.append_response_body(data))
        if is_last:
            done(engine.process_response_body())


def done(result: int) -> None:
    """:raises RuntimeError: where the engine says that it has failed."""
    if not result:
        raise RuntimeError("ModSecurity has failed")
