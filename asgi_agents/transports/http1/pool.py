"""Keep-alive connections to one agent, on one of asyncio's event loops."""

import asyncio
import math
from collections import deque

from ...concurrency.background import Timer
from .. import connections
from ..base import NotConnectedError
from ..http_answer import HttpAnswer
from .answer import AnswerParser, CheckHead
from .connecting import Http1Connector
from .connection import Http1Connection
from .request import HttpRequest


class Http1Pool:
    """As many connections as there are calls under way. The one used last is used first, so that the rest can expire.

    An idle connection is closed after :data:`~asgi_agents.transports.connections.KEEPALIVE_EXPIRY`.

    :param check_head: see :class:`AnswerParser`; ``keep_headers`` likewise.
    :param max_answer_bytes: of the content of an answer.
    """

    def __init__(
        self, connector: Http1Connector, check_head: CheckHead, max_answer_bytes: int, *, keep_headers: bool = False
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._check_head = check_head
        self._max_answer_bytes = max_answer_bytes
        self._keep_headers = keep_headers
        # With the moments since which they are idle, the latest last.
        self._idle: deque[tuple[float, Http1Connection]] = deque()
        self._timer = Timer(self._close_expired)
        self._armed = False
        self._closed = False

    @property
    def idle(self) -> int:
        """Connections that no call uses."""
        return len(self._idle)

    async def send(self, request: HttpRequest, deadline: float = math.inf) -> HttpAnswer:
        """Send a request and return its answer.

        It must be safe to cancel: its connection is closed then. It is never repeated.

        :param deadline: kept by whoever calls it, who cancels it then.
        :raises NotConnectedError: the agent could not be reached.
        :raises AgentError: for an answer that can't be one.
        :raises Exception: the connection broke.
        """
        head, content = request.head, request.content
        encoded = head.encode(None if content is None else len(content), request.trace_context)
        connection = self._take() or await self._connect()
        received = await connection.send(encoded, content or b"", head_only=head.method == b"HEAD")
        answer = HttpAnswer(connection.status, connection.headers, received)
        if connection.reusable:
            self._keep(connection)
        return answer

    async def aclose(self) -> None:
        """Close the idle connections now, and each of the others when its call ends."""
        self._closed = True
        self._timer.disarm()
        closing = [connection for _, connection in self._idle]
        self._idle.clear()
        for connection in closing:
            connection.abort()
        for connection in closing:
            await connection.wait_closed()

    async def _connect(self) -> Http1Connection:
        try:
            return await self._connector.connect(self._make)
        except Exception as exc:
            raise NotConnectedError(connections.describe(exc)) from exc

    def _make(self) -> Http1Connection:
        answers = AnswerParser(self._check_head, self._max_answer_bytes, keep_headers=self._keep_headers)
        return Http1Connection(self._loop, answers)

    def _take(self) -> Http1Connection | None:
        """An idle connection on which nothing has come; the others that are looked at are closed."""
        while self._idle:
            since, connection = self._idle.pop()
            if self._loop.time() - since <= connections.KEEPALIVE_EXPIRY and connection.is_quiet():
                return connection
            connection.abort()
        return None

    def _keep(self, connection: Http1Connection) -> None:
        if self._closed:
            connection.abort()
            return
        self._idle.append((self._loop.time(), connection))
        if not self._armed:
            self._arm(connections.KEEPALIVE_EXPIRY)

    def _arm(self, delay: float) -> None:
        self._armed = True
        self._timer.arm(delay)

    def _close_expired(self) -> None:
        self._armed = False
        oldest = self._loop.time() - connections.KEEPALIVE_EXPIRY
        while self._idle and (self._idle[0][0] <= oldest or self._idle[0][1].closed):
            self._idle.popleft()[1].abort()
        if self._idle:
            self._arm(self._idle[0][0] - oldest)
