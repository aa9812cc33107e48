"""A JSON document."""

import json

from .patterns import redact

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


class JsonRedactor:
    """Redacts the strings of a document, which it needs as a whole: the text ``"\\nbob@…"`` has no ``n`` in it.

    A document with nothing to redact stays as it is, to the byte.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes, last: bool) -> bytes:
        """See :class:`example_app.redaction.Redactor`."""
        self._pieces.append(data)
        if not last:
            return b""
        body = b"".join(self._pieces)
        try:
            document: Json = json.loads(body)
        except ValueError:
            # Not what it says it is, which is no reason to let it through.
            return redact(body.decode("latin-1")).encode("latin-1")
        redacted = _redacted(document)
        return body if redacted == document else json.dumps(redacted, separators=(",", ":")).encode()


def _redacted(value: Json) -> Json:
    match value:
        case str():
            return redact(value)
        case list():
            return [_redacted(item) for item in value]
        case dict():
            return {redact(key): _redacted(item) for key, item in value.items()}
        case _:
            return value
