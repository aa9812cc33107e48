"""One half of an exchange that Envoy shows to a served agent: its head, its body in any mode, and its trailers.

Nothing here reads or writes: what is to be sent is returned.
"""

from collections.abc import Iterator
from typing import Any, Final

from ...transports.grpc.ext_proc_messages import ProcessingMode, RawHeaders, Side, messages
from .ext_proc_answers import header_mutation

# What Envoy recommends for one message of a FULL_DUPLEX_STREAMED body (processing_mode.proto).
_MOST_IN_A_MESSAGE: Final = 64 * 1024
# The whole body is in one message, whether or not trailers follow it.
_WHOLE: Final = frozenset({ProcessingMode.BUFFERED})
# The head waits in Envoy until there is an answer to the body, and may be changed by that.
_HOLDING_HEADS: Final = frozenset({ProcessingMode.BUFFERED, ProcessingMode.BUFFERED_PARTIAL})


class CantApplyError(Exception):
    """The answer comes too late for Envoy, or has no place in what it can be told."""


class Half:
    """The request, or the response.

    :param mode: how Envoy sends the body; ``raw``: it writes the values of headers as bytes.
    :ivar head_answered: Envoy has the answer to the head.
    :ivar ended: all of the body has come.
    :ivar over: Envoy has all of the body that it is to pass on.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self.mode: int = ProcessingMode.NONE
        self.raw = True
        self.head: RawHeaders = []
        self.has_body = False
        self.head_answered = False
        self.ended = False
        self.over = False
        self._parts = 0
        self._shown: bytes | None = None
        self._out: list[bytes] = []
        self._late: Any = None
        self._trailers = False

    @property
    def duplex(self) -> bool:
        """Whether bodies go both ways, without one answer for each message."""
        return bool(self.mode == ProcessingMode.FULL_DUPLEX_STREAMED)

    @property
    def shows_body(self) -> bool:
        """Whether there is a body, and Envoy shows it."""
        return self.has_body and self.mode != ProcessingMode.NONE

    @property
    def unanswered(self) -> bool:
        """Whether Envoy waits for the answer to a message with a part of the body."""
        return self._shown is not None

    # What comes

    def take_body(self, body: Any) -> tuple[bytes, bool]:
        """A message with a part of the body: its data, and whether it is the last."""
        self.ended = body.end_of_stream or self.mode in _WHOLE
        self._parts += 1
        if not self.duplex:
            self._shown = body.body
        return body.body, self.ended

    def take_trailers(self) -> None:
        """The body, if it has not ended, ends here."""
        self.ended = self._trailers = True

    # What is answered

    def answer_head(self, after: RawHeaders | None, **beside: Any) -> Iterator[Any]:
        """The head may go on with these headers; None: as it came. Nothing where Envoy has been told so.

        :raises CantApplyError: they differ from those that it was told.
        """
        if self.head_answered:
            if after is not None:
                late = header_mutation(self.head, after, raw=self.raw, length=self.mode in _HOLDING_HEADS)
                if late is not None and not (self.mode in _HOLDING_HEADS and self.shows_body and not self.over):
                    raise CantApplyError(f"the {self.side.value}'s head is gone: its headers can't be changed any more")
                self._late = late
            return
        self.head_answered = True
        mutation = None
        if after is not None:
            mutation = header_mutation(self.head, after, raw=self.raw, length=False)
        common = messages.CommonResponse(header_mutation=mutation)
        yield self._response("headers", messages.HeadersResponse(response=common), **beside)

    def pass_on(self, data: bytes, last: bool) -> Iterator[Any]:
        """Have Envoy pass ``data`` on, behind what it was told before."""
        if self.over or not self.shows_body:
            return
        self.over = last
        if not self.duplex:
            self._out.append(data)
            if last:
                yield from self.answer_shown()
                if any(self._out):
                    raise CantApplyError(f"the {self.side.value}'s body is gone: nothing can be added to its trailers")
                yield from self._answer_trailers()
            return
        view = memoryview(data)
        for start in range(0, len(data), _MOST_IN_A_MESSAGE):
            piece = view[start : start + _MOST_IN_A_MESSAGE]
            ends = last and not self._trailers and start + len(piece) == len(data)
            yield self._streamed(bytes(piece), ends)
        if last and not data and not self._trailers:
            yield self._streamed(b"", True)
        if last:
            yield from self._answer_trailers()

    def answer_shown(self) -> Iterator[Any]:
        """Answer the message with a part of the body that is not answered, if there is one, with what there is."""
        if self._shown is None:
            return
        data, self._out = b"".join(self._out), []
        late = self._late
        if data != self._shown and self.ended and self._parts == 1 and late is None:
            # All of it in one message is what a buffered body is, also where Envoy does not say so. It refuses a
            # changed body that has another length than the head says, and takes no notice in other modes.
            after = [(name, b"%d" % len(data) if name == b"content-length" else value) for name, value in self.head]
            late = header_mutation(self.head, after, raw=self.raw, length=True)
        common = messages.CommonResponse(header_mutation=late)
        if data != self._shown:
            common.body_mutation.CopyFrom(
                messages.BodyMutation(body=data) if data else messages.BodyMutation(clear_body=True)
            )
        self._shown = self._late = None
        yield self._response("body", messages.BodyResponse(response=common))

    def neutral(self, request: Any) -> Iterator[Any]:
        """The answer to a message that nobody is asked about: it passes, unless the body was ended before."""
        kind = request.WhichOneof("request")
        if kind.endswith("_headers"):
            yield from self.answer_head(None)
        elif kind.endswith("_trailers"):
            yield self._response("trailers", messages.TrailersResponse())
        else:
            body = getattr(request, kind)
            if not self.duplex:
                self._shown, self._out = body.body, [] if self.over else [body.body]
                yield from self.answer_shown()
            elif not self.over:
                # Envoy may send the last message twice (from 1.35 on, https://github.com/envoyproxy/envoy/issues/46237).
                self.over = body.end_of_stream
                yield self._streamed(body.body, body.end_of_stream)

    def _answer_trailers(self) -> Iterator[Any]:
        if self._trailers:
            self._trailers = False
            yield self._response("trailers", messages.TrailersResponse())

    def _streamed(self, data: bytes, last: bool) -> Any:
        streamed = messages.StreamedBodyResponse(body=data, end_of_stream=last)
        common = messages.CommonResponse(body_mutation=messages.BodyMutation(streamed_response=streamed))
        return self._response("body", messages.BodyResponse(response=common))

    def _response(self, part: str, response: Any, **beside: Any) -> Any:
        return messages.ProcessingResponse(**{f"{self.side.value}_{part}": response}, **beside)
