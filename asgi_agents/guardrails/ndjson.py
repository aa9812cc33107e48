"""Lines that keep their bytes: newline-delimited JSON. A line ends with LF, with or without a CR before it."""

from .framing import MAX_UNIT_BYTES, Unit, too_large


class LineFramer:
    """Cuts a stream into lines. A line of white space alone says nothing."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def held(self) -> int:
        """How many bytes of a line that has not ended yet there are."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Unit]:
        """The lines that end with ``data``.

        :raises UnreadableError: when a line grows over :data:`~asgi_agents.guardrails.framing.MAX_UNIT_BYTES`.
        """
        if self._rest:
            if b"\n" not in data:
                self._rest += data
                self._check()
                return []
            data = self.rest() + data
        lines = data.split(b"\n")
        last = lines.pop()
        if last:
            self._rest += last
            self._check()
        return [_unit(line + b"\n") for line in lines]

    def end(self) -> list[Unit]:
        """What is left at the end of the stream."""
        raw = self.rest()
        return [_unit(raw)] if raw else []

    def rest(self) -> bytes:
        """What is left, as it came. Nothing is left afterwards."""
        raw = bytes(self._rest)
        self._rest.clear()
        return raw

    def between(self, sent: bytes) -> bytes:
        """What has to precede a line behind ``sent``."""
        return b"" if not sent or sent.endswith(b"\n") else b"\n"

    def _check(self) -> None:
        if len(self._rest) > MAX_UNIT_BYTES:
            raise too_large(len(self._rest))


def _unit(raw: bytes) -> Unit:
    text = raw.strip(b" \t\r\n")
    return Unit(raw, text, raw.index(text)) if text else Unit(raw, None, 0)
