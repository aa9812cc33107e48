"""The handshake, at the end that calls: what is offered to the agent, and what is made of its answer. No I/O.

::

    version 2:  request() -> bytes to send
                receive() -> the wire format of the connection, or AgentProtocolError   -> done
    envelope:   nothing is said                                                     -> done from the start
"""

from typing import Final

from ..._version import __version__
from ...errors import AgentProtocolError
from ...protocol import PROTOCOL_VERSION, Encoding, SpanUnit
from ...protocol.codec import decode_value
from ...protocol.stream import (
    MAX_HANDSHAKE_REQUEST_BYTES,
    Framing,
    HandshakeRequest,
    HandshakeResponse,
    MessageType,
    encode_message,
)
from .wire_format import WireFormat

#: For users who have configured the wrong one of the two framings.
ENVELOPE_HINT: Final = "an agent of the older kits needs framing='envelope'"


class Handshake:
    """How a connection begins.

    :param encodings: what to offer, best first. In the older framing the first is used.
    :param span_unit: what the agent counts in the spans of its detections.
    """

    def __init__(self, framing: Framing, encodings: tuple[Encoding, ...], span_unit: SpanUnit) -> None:
        #: Whether events may be sent.
        self.done = framing is Framing.ENVELOPE
        #: Whether the configuration was too long for the request, so that it has to go in a configure event.
        self.needs_configure = False
        self._framing = framing
        self._encodings = encodings
        self._span_unit = span_unit

    def request(self, proxy_id: str, config: object) -> bytes:
        """The frame that begins a connection in version 2."""
        request = HandshakeRequest(
            supported_versions=[PROTOCOL_VERSION],
            proxy_id=proxy_id,
            proxy_version=__version__,
            config=config,
            supported_encodings=self._encodings,
        )
        message = encode_message(MessageType.HANDSHAKE_REQUEST, request)
        if len(message) > MAX_HANDSHAKE_REQUEST_BYTES:
            self.needs_configure = True
            request.config = None
            message = encode_message(MessageType.HANDSHAKE_REQUEST, request)
        return message

    @property
    def provisional(self) -> WireFormat:
        """The wire format before the agent has answered; in the older framing also the final one."""
        return WireFormat(self._framing, self._encodings[0], self._span_unit)

    def receive(self, message_type: int, payload: bytes) -> WireFormat:
        """Read the agent's first message.

        :raises AgentProtocolError: it is no answer to a handshake, it refuses, or it has chosen what was not offered.
        """
        if message_type != MessageType.HANDSHAKE_RESPONSE:
            fault = f"answered the handshake with a message of type {message_type:#04x}"
            # An envelope begins with a brace.
            raise AgentProtocolError(f"{fault}; {ENVELOPE_HINT}" if message_type == ord("{") else fault)
        response: HandshakeResponse = decode_value(HandshakeResponse, payload, Encoding.JSON, at="handshake")
        if not response.success:
            raise AgentProtocolError(f"refused the handshake: {response.error or 'no reason given'}")
        if response.protocol_version != PROTOCOL_VERSION:
            raise AgentProtocolError(
                f"speaks version {response.protocol_version} of the protocol, expected {PROTOCOL_VERSION}"
            )
        if response.encoding not in self._encodings:
            offered = " or ".join(self._encodings)
            raise AgentProtocolError(f"chose the encoding {response.encoding!r:.40}, expected {offered}")
        if response.capabilities is None:
            raise AgentProtocolError("says nothing of its capabilities in the handshake")
        self.done = True
        return WireFormat(self._framing, Encoding(response.encoding), self._span_unit, response.capabilities)
