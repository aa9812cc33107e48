"""An agent that asks ModSecurity, with the OWASP Core Rule Set or other rules."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ..agent import Agent
from ..concurrency.own_threads import OwnThreads
from ..errors import ConfigurationError
from ..imports.extras import from_extra
from ..policy import require_int
from ..protocol import (
    AgentResponse,
    AuditMetadata,
    EventType,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
)
from .modsecurity_arguments import MAX_ARGUMENTS

if TYPE_CHECKING:
    from .modsecurity_transaction import Transaction

#: How many requests at a time have a transaction, unless it is given.
MAX_TRANSACTIONS: Final = 4096
# No failure: whoever opens many requests would choose how it ends, and open the breaker for everybody.
_FORGOTTEN: Final = AgentResponse.block(503, audit=AuditMetadata(reason_codes=["waf", "too-many-requests"]))


class ModSecurity(Agent):
    """Judges requests, and responses if asked to, by the rules of ModSecurity 3, such as the OWASP Core Rule Set::

        AgentConfig("waf", ModSecurity(crs="/usr/share/modsecurity-crs"))

    The audit record has the ids and tags of the rules that have matched, also of requests that pass. The engine runs in
    threads, with a transaction for each request, which is freed when that has ended. It holds Python's lock meanwhile:
    serve the agent in a process of its own where attackers reach it. Needs the ``modsecurity`` extra.

    :param rules: files of rules, or patterns of their names, in their order.
    :param text: rules as text. They come last, so that ``SecRuleRemoveById`` finds what it removes.
    :param crs: the directory of the Core Rule Set, version 3.3 or 4: ``rules/*.conf`` and ``crs-setup.conf``. Rules
        that ask where an address is are left out: the wheel can't tell.
    :param paranoia_level: of the Core Rule Set, 1 to 4. Higher ones find more, also where nothing is wrong.
    :param before: rules as text that stand before those of the Core Rule Set: thresholds and exclusions by request.
    :param responses: whether responses are judged too.
    :param threads: how many threads of an event loop run the engine at a time; further calls wait.
    :param max_transactions: how many requests have one at a time. Beyond it, the oldest loses its own, and is
        refused with 503.
    :param max_arguments: how many names with values a request may have for the engine, in query, header fields, cookies
        and body together, with 50 bytes of names for each. One with more is refused with 400.
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
        max_arguments: int = MAX_ARGUMENTS,
    ) -> None:
        with from_extra("ModSecurity", "modsecurity", ConfigurationError):
            from .modsecurity_rules import load
            from .modsecurity_transaction import Transaction as Begun
        require_int("ModSecurity", "paranoia_level", paranoia_level, at_least=1)
        require_int("ModSecurity", "threads", threads, at_least=1)
        require_int("ModSecurity", "max_transactions", max_transactions, at_least=1)
        require_int("ModSecurity", "max_arguments", max_arguments, at_least=1)
        if paranoia_level > 4:
            raise ConfigurationError(f"ModSecurity: paranoia_level={paranoia_level}, expected 1 to 4")
        self._rules = load(rules, text, crs, paranoia_level, before, responses=responses)
        self._begin: Callable[[RequestHeadersEvent], Transaction] = lambda event: Begun(
            self._rules, event, max_arguments
        )
        self._responses = responses
        # A call whose deadline has passed is waited for, so that the threads stay few.
        self._threads = OwnThreads(threads)
        self._max_transactions = max_transactions
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
        return await self._threads.run(transaction.request_head)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        transaction = self._open.get(event.correlation_id)
        return (
            _FORGOTTEN
            if transaction is None
            else await self._threads.run(transaction.request_body, event.data, event.is_last)
        )

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse:
        transaction = self._open.get(event.correlation_id)
        return _FORGOTTEN if transaction is None else await self._threads.run(transaction.response_head, event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse:
        transaction = self._open.get(event.correlation_id)
        return (
            _FORGOTTEN
            if transaction is None
            else await self._threads.run(transaction.response_body, event.data, event.is_last)
        )

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        transaction = self._open.pop(event.correlation_id, None)
        if transaction is not None:
            await self._threads.run(transaction.end)
