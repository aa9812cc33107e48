"""One HTTP/1.1 connection to an agent, on asyncio's transports."""

import asyncio
import select
from collections.abc import Sequence
from typing import Any, Final

from ...errors import AgentConnectionError, AgentError
from .answer import AnswerParser

# Bytes of a content that is copied behind its head, so that both are sent with one system call.
_SENT_TOGETHER: Final = 64 * 1024


class Http1Connection(asyncio.Protocol):
    """Carries one request at a time.

    It is closed, and not used again, as soon as anything is out of order: a call is cancelled or fails, the agent sends
    something that nobody has asked for, or it answers a request before all of that is sent.

    :param answers: parses the answers.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answers: AnswerParser) -> None:
        self._loop = loop
        self._answers = answers
        self._transport: Any = None
        # What waits for the answer, while a request is under way.
        self._answer: asyncio.Future[bytes] | None = None
        self._poll: Any = None
        #: Whether no request can be sent any more.
        self.closed = False
        self._fault: Exception | None = None
        self._all_over: asyncio.Future[None] | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self.closed:
            self._transport.abort()
            return
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self._fail(AgentConnectionError("the agent has sent something before it was asked"))
            return
        try:
            complete = self._answers.feed(data)
        except AgentError as exc:
            self._fail(exc)
            return
        if complete:
            self._complete(answer)

    def eof_received(self) -> None:
        # Without a word asyncio would first send what it has, to an agent that perhaps does not read it.
        if self._answer is not None and self._answers.feed_eof():
            self._complete(self._answer)
        else:
            self._fail(self._ended_early())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(exc or self._ended_early())
        self._answers.close()
        if self._all_over is not None and not self._all_over.done():
            self._all_over.set_result(None)

    # What we call

    async def send(self, head: bytes, content: bytes, *, head_only: bool = False) -> bytes:
        """Send a request and return the content of its answer.

        :param head_only: the method is HEAD.
        :raises AgentError: for an answer that the parser refuses.
        :raises Exception: the connection broke.
        """
        if self.closed:
            raise self._fault or self._ended_early()
        self._answers.begin(head_only=head_only)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._answer = answer
        if len(content) <= _SENT_TOGETHER:
            self._transport.write(head + content)
        else:
            self._transport.write(head)
            self._transport.write(content)
        try:
            return await answer
        except BaseException:
            self._answer = None
            self.abort()
            raise

    @property
    def status(self) -> int:
        """The status of the latest answer."""
        return self._answers.status

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The headers of the latest answer, if its parser keeps them."""
        return self._answers.headers

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent, as far as is known without a look at the socket."""
        return not self.closed and self._answers.reusable

    def is_quiet(self) -> bool:
        """Whether the agent has neither sent anything nor closed the connection since its answer.

        The event loop has perhaps not read it yet: it would be taken for the beginning of the next answer.
        """
        return not self.closed and not self._poll.poll(0)

    def abort(self) -> None:
        """Close at once."""
        self.closed = True
        if self._transport is not None:
            # With TLS, close() would wait for the agent.
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until nothing is left of a connection that was closed."""
        if self._transport is not None:
            if self._all_over is None:
                self._all_over = self._loop.create_future()
            await self._all_over

    def _ended_early(self) -> AgentConnectionError:
        if self._answer is None:
            when = "it was asked"
        else:
            when = "its answer was complete" if self._answers.started else "it answered"
        return AgentConnectionError(f"the agent closed the connection before {when}")

    def _complete(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = None
        if not self._answers.reusable or self._transport.get_write_buffer_size():
            self.abort()
        # It is cancelled with the call.
        if not answer.done():
            answer.set_result(self._answers.take())

    def _fail(self, fault: Exception) -> None:
        self._fault = self._fault or fault
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(fault)
        self.abort()
