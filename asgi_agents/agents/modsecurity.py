"""An agent that asks ModSecurity, with the OWASP Core Rule Set or other rules."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple, Unpack

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from ..agent import Agent
from ..errors import ConfigurationError
from ..imports.extras import from_extra
from ..policy import require_int
from ..protocol import (
    AgentResponse,
    EventType,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
)

if TYPE_CHECKING:
    from .modsecurity_transaction import Transaction

_Given = TypeVarTuple("_Given")
_Result = TypeVar("_Result")

#: How many requests at a time have a transaction, unless it is given.
MAX_TRANSACTIONS: Final = 4096


class ModSecurity(Agent):
    """Judges requests, and responses if asked to, by the rules of ModSecurity 3, such as the OWASP Core Rule Set::

        AgentConfig("waf", ModSecurity(crs="/usr/share/modsecurity-crs"))

    The audit record has the ids and tags of the rules that have matched, also of requests that pass. The engine runs in
    threads, with a transaction for each request, which is freed when that has ended. Needs the ``modsecurity`` extra.

    :param rules: files of rules, or patterns of their names, in their order.
    :param text: rules as text. They come last, so that ``SecRuleRemoveById`` finds what it removes.
    :param crs: the directory of the Core Rule Set, version 3.3 or 4: ``rules/*.conf`` and ``crs-setup.conf``. Rules
        that ask where an address is are left out: the wheel can't tell.
    :param paranoia_level: of the Core Rule Set, 1 to 4. Higher ones find more, also where nothing is wrong.
    :param before: rules as text that stand before those of the Core Rule Set: thresholds and exclusions by request.
    :param responses: whether responses are judged too.
    :param threads: how many threads of an event loop run the engine at a time; further calls wait.
    :param max_transactions: how many requests have one at a time. Beyond it, the oldest loses its own, and fails.
    :raises ConfigurationError: for rules that can't be loaded, and without the extra.
    """

    def __init__(
        self,
        rules: Sequence[str] = (),
        *,
        text: str = "",
        crs: str | None = None,
        paranoia_level: int = 1,
        before: str = "",
        responses: bool = False,
        threads: int = 4,
        max_transactions: int = MAX_TRANSACTIONS,
    ) -> None:
        with from_extra("ModSecurity", "modsecurity", ConfigurationError):
            from .modsecurity_rules import load
            from .modsecurity_transaction import Transaction as Begun
        require_int("ModSecurity", "paranoia_level", paranoia_level, at_least=1)
        require_int("ModSecurity", "threads", threads, at_least=1)
        require_int("ModSecurity", "max_transactions", max_transactions, at_least=1)
        if paranoia_level > 4:
            raise ConfigurationError(f"ModSecurity: paranoia_level={paranoia_level}, expected 1 to 4")
        self._rules = load(rules, text, crs, paranoia_level, before, responses=responses)
        self._begin: Callable[[RequestHeadersEvent], Transaction] = partial(Begun, self._rules)
        self._responses = responses
        self._threads = threads
        self._max_transactions = max_transactions
        self._limiter: RunVar[CapacityLimiter] = RunVar("ModSecurity")
        # An agent that is down is not told that a request has ended: so that the oldest are forgotten at some time.
        self._open: OrderedDict[str, Transaction] = OrderedDict()

    @property
    def events(self) -> frozenset[EventType]:
        events = {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK, EventType.REQUEST_COMPLETE}
        if self._responses:
            events |= {EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK}
        return frozenset(events)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        transaction = self._begin(event)
        self._open[event.correlation_id] = transaction
        while len(self._open) > self._max_transactions:
            self._open.popitem(last=False)
        return await self._run(transaction.request_head)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        return await self._run(self._open[event.correlation_id].request_body, event.data, event.is_last)

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse:
        return await self._run(self._open[event.correlation_id].response_head, event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse:
        return await self._run(self._open[event.correlation_id].response_body, event.data, event.is_last)

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        transaction = self._open.pop(event.correlation_id, None)
        if transaction is not None:
            await self._run(transaction.end)

    async def _run(self, function: Callable[[Unpack[_Given]], _Result], *given: *_Given) -> _Result:
        """In a thread. A call whose deadline has passed is waited for: so one transaction never has two threads."""
        limiter = self._limiter.get(None)
        if limiter is None:
            limiter = CapacityLimiter(self._threads)
            self._limiter.set(limiter)
        return await to_thread.run_sync(function, *given, limiter=limiter)
