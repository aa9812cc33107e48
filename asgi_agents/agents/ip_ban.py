"""An agent that refuses addresses for a time whose requests have gone wrong too often."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..messages.naming import named
from ..protocol import (
    AgentResponse,
    ConfigureEvent,
    EventType,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseHeadersEvent,
)
from .addresses import ADDRESS_UNKNOWN, FORWARDED_FOR, ClientAddress, address_of
from .askers import Askers
from .ban_answers import BanAnswers
from .ban_rules import ProxyAdvice, bans_in, statuses_of, terms_of
from .bans import Requester
from .decoys import Decoys
from .networks import Networks
from .under_way import UnderWay

#: How many bans memory keeps, and strikes of how many addresses, unless it is given. As many requests are known.
MAX_ADDRESSES: Final = 65_536


class IpBan(Agent):
    """Answers 403 for a time to addresses whose requests have gone wrong too often, or that ask for a decoy once::

        AgentConfig("ban", IpBan(after=20, within=60, duration=600, decoys=["/wp-login.php", "/.env"]))

    It goes by the status that the client was sent, whether by the app or by another agent. Name it before those that
    deny: what they deny before it is asked does not count. What it refuses itself does not count either.

    A client whose address nobody tells is denied, as :class:`IpFilter` does.

    :param after: so many requests with one of ``statuses`` within ``within`` seconds lead to a ban.
    :param duration: of a ban, in seconds.
    :param statuses: of responses, and of handshakes that are denied.
    :param decoys: patterns of paths, as routes have them, for which a client is banned at once. They are matched
        against the whole path, a root path included.
    :param allow: addresses and networks that are never banned.
    :param origins: of pages that belong to the app, besides its own origin, such as ``https://app.shop.example``.
    :param trusted_proxies: as for :class:`IpFilter`, and ``forwarded_header``. A ban hits everybody behind a proxy that
        is not named.
    :param storage: ``"memory"`` of each process by itself, or the URL of a Redis for all of them, as for
        :class:`RateLimit`; that needs the ``ratelimit`` extra, and asyncio.
    :param max_addresses: how many bans memory keeps, and strikes of how many addresses. Of IPv6 a /64 is one. Once half
        of it is taken, what has many of them, such as a /48, gets no more of its own, and the rest of it is one.
    :param namespace: whoever has the same in one Redis bans together. None: the agent's id, if it is told that.
    :raises ConfigurationError: for what can't work, and for Redis without the extra.
    """

    def __init__(
        self,
        *,
        after: int = 20,
        within: float = 60.0,
        duration: float = 600.0,
        statuses: Iterable[int] = (401, 403, 404, 429),
        decoys: Iterable[str] = (),
        allow: Iterable[str] = (),
        origins: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
        forwarded_header: str = FORWARDED_FOR,
        storage: str = "memory",
        max_addresses: int = MAX_ADDRESSES,
        namespace: str | None = None,
    ) -> None:
        terms = terms_of(after, within, duration)
        self._statuses = statuses_of(statuses)
        self._decoys = Decoys(decoys)
        if not self._statuses and not self._decoys:
            raise ConfigurationError("IpBan: nothing to ban for, expected statuses=[...] or decoys=[...]")
        self._allowed = Networks("IpBan", "allow", allow)
        self._askers = Askers(origins)
        self._client = ClientAddress("IpBan", trusted_proxies, forwarded_header)
        self._advice = ProxyAdvice(forwarded_header)
        self._bans = bans_in(storage, terms, max_addresses, namespace)
        self._judge, self._strike = self._bans.judge, self._bans.strike
        self._answers = BanAnswers(terms.duration)
        self._under_way = UnderWay(max_addresses)

    @property
    def events(self) -> frozenset[EventType]:
        heads = {EventType.CONFIGURE, EventType.REQUEST_HEADERS}
        # Where no status counts, no request has to be followed.
        return frozenset(heads | {EventType.RESPONSE_HEADERS, EventType.REQUEST_COMPLETE} if self._statuses else heads)

    async def on_configure(self, event: ConfigureEvent) -> None:
        """Redis answers before the first request, or the agent counts as down."""
        await self._bans.start(event.agent_id)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        address = self._client.of(event)
        if address is None:
            return ADDRESS_UNKNOWN
        if address in self._allowed:
            return None
        self._advice.look(event, address)
        client = Requester(address, self._askers.of(event))
        decoy = self._decoys.find(event)
        ban = await self._judge(client, None if decoy is None else f"decoy:{decoy}")
        if ban is not None:
            return self._answers.refusal(client, ban)
        if self._statuses:
            self._under_way.begin(event.correlation_id, client)
        return None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        """Who is banned by now gets no answer, however many requests were under way."""
        client = self._under_way.of(event.correlation_id)
        if client is None:
            return None
        counts = event.status in self._statuses
        if counts:
            self._under_way.counted(event.correlation_id)
        ban = await self._strike(client, f"status:{event.status}" if counts else None)
        if ban is None or ban.begins:
            return self._answers.counted(client, ban)
        self._under_way.counted(event.correlation_id)
        return self._answers.refusal(client, ban)

    async def on_request_complete(self, event: RequestCompleteEvent) -> AgentResponse | None:
        """What had no head of the app's: answers of other agents, handshakes that are closed, and apps that raise."""
        client = self._under_way.end(event.correlation_id)
        if client is None or event.status not in self._statuses:
            return None
        return self._answers.counted(client, await self._strike(client, f"status:{event.status}"))

    # Each has one `await`, and suspends where that does: in memory never.
    on_request_headers.awaits = "_judge"  # type: ignore[attr-defined]
    on_response_headers.awaits = "_strike"  # type: ignore[attr-defined]
    on_request_complete.awaits = "_strike"  # type: ignore[attr-defined]

    async def lift(self, address: str | IPv4Address | IPv6Address) -> None:
        """End the bans of an address, and forget its strikes, and what it has under way here.

        In memory, those of this process alone. Raises ValueError for what is no address, and
        :class:`ConfigurationError` where Redis is asked and the namespace is neither given nor told yet.
        """
        found = address_of(str(address)) if isinstance(address, str | IPv4Address | IPv6Address) else None
        if found is None:
            raise ValueError(f"IpBan: {named(address)} is no address")
        self._under_way.forget(found)
        await self._bans.lift(found)
