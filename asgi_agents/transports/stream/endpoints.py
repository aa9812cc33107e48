"""The endpoints of a pool: those that are configured, and those that names lead to now."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from ..discovery import Member, Watch, has_to_be_looked_up
from ..wire import Address
from .balancing import LoadBalancing
from .connector import Connector
from .endpoint import Endpoint
from .settings import PoolSettings

if TYPE_CHECKING:
    from .client import StreamClient
    from .pool import AgentPool


class _Key(Struct, frozen=True):
    """What an endpoint is the same by: two names may lead to one instance."""

    path: str | None
    host: str
    port: int
    addresses: Sequence[str]
    server_name: str


class _Target(Struct, frozen=True):
    """Where there is to be an endpoint. ``member`` is None for what is configured."""

    address: Address
    member: Member | None = None

    def key(self, *, tls: bool) -> _Key:
        address, member = self.address, self.member
        addresses = (address.host,) if member is None else member.addresses
        # Without TLS it is all the same by which name it was found.
        server_name = (address.server_name or address.host) if tls else ""
        return _Key(address.path, address.host, address.port, addresses, server_name)


class _Name:
    """A configured address whose host is a name.

    :ivar placeholder: stands in the list of endpoints until the name has led to anything.
    """

    def __init__(self, address: Address, watch: Watch) -> None:
        self.address = address
        self.watch = watch
        self.placeholder = Endpoint(address)

    def targets(self) -> Iterator[_Target]:
        address, members = self.address, self.watch.members
        for member in members:
            # What is alone goes by its name, as it is configured.
            text = address.text if len(members) == 1 else _text_of(member, address)
            yield _Target(Address(text, host=member.host, port=member.port, server_name=address.host), member)


def _text_of(member: Member, address: Address) -> str:
    """A member's own address, in the scheme of ``address``."""
    return f"{address.text.partition('://')[0]}://{member}"


class Endpoints:
    """Keeps an endpoint, and a connector that connects to it, for each address: configured ones, and members of names.

    An endpoint whose address has left its name gets no new requests. Those that it has end, for as long as the settings
    allow, and then its connections are closed.

    :ivar current: the endpoints that take requests, in the order of the configuration. It is changed in place.
    :ivar leaving: those whose addresses have left their names, and that still have connections.
    """

    def __init__(self, settings: PoolSettings, client: "StreamClient", pool: "AgentPool") -> None:
        self.current: list[Endpoint] = []
        self.leaving: list[Endpoint] = []
        self._settings = settings
        self._client = client
        self._pool = pool
        self._by_key: dict[_Key, Endpoint] = {}
        self._members: dict[Endpoint, Member] = {}
        self._connectors: dict[Endpoint, Connector] = {}
        self._sources = [self._source(address) for address in settings.addresses]
        self._names = [source for source in self._sources if isinstance(source, _Name)]
        self._arrange()

    def _source(self, address: Address) -> "_Target | _Name":
        interval = self._settings.resolve_interval
        if address.path is not None or interval is None or not has_to_be_looked_up(address.host):
            return _Target(address)
        watch = Watch(
            address.host,
            address.port,
            where=f"agent {self._client.agent_id!r} at {address}",
            changed=self._names_changed,
            interval=interval,
        )
        return _Name(address, watch)

    # Connecting

    def connector(self, endpoint: Endpoint) -> Connector:
        """Of an endpoint that has, or has had, a connection."""
        return self._connectors[endpoint]

    def wanted(self) -> None:
        """There are more requests than connections."""
        for endpoint in self.current:
            connector = self._connectors.get(endpoint)
            if connector is not None:
                connector.wanted()

    def reached(self, endpoint: Endpoint) -> None:
        """A connection to it was made."""
        for name, member in self._names_of(endpoint):
            name.watch.reached(member)

    def failed(self, endpoint: Endpoint, *, reached: bool) -> None:
        """A connection to it could not be made, or was lost after it was ``reached``: look where the name leads."""
        for name, member in self._names_of(endpoint):
            name.watch.failed(None if reached else member)

    def _names_of(self, endpoint: Endpoint) -> Iterator[tuple[_Name, Member]]:
        member = self._members.get(endpoint)
        if member is not None:
            for name in self._names:
                if member in name.watch.members:
                    yield name, member

    # What names lead to

    def _names_changed(self) -> None:
        for name in self._names:
            if not name.watch.members and name.watch.fault:
                name.placeholder.not_connected(f"{name.address}: {name.watch.fault}")
        pool = self._pool
        gone = self._arrange()
        if self._settings.load_balancing is None:
            several = any(len(name.watch.members) > 1 for name in self._names)
            pool.rotation.balance(LoadBalancing.POWER_OF_TWO if several else LoadBalancing.ROUND_ROBIN)
        for endpoint in gone:
            pool.rotation.inherit(endpoint)
            for connection in endpoint.connections:
                connection.health.retire("its address has left its name")
        pool.note()
        for endpoint in gone:
            for connection in tuple(endpoint.connections):
                pool.close_if_done(connection)
            self.drop_if_done(endpoint)
        pool.settle()

    def _arrange(self) -> Sequence[Endpoint]:
        """Have an endpoint for each address, and no others; returns those that have gone."""
        tls = self._settings.encrypted
        wanted: dict[_Key, _Target] = {}
        placeholders = []
        for source in self._sources:
            if isinstance(source, _Target):
                wanted.setdefault(source.key(tls=tls), source)
            elif source.watch.members:
                for target in source.targets():
                    wanted.setdefault(target.key(tls=tls), target)
            else:
                placeholders.append(source.placeholder)
        gone = [self._by_key.pop(key) for key in tuple(self._by_key) if key not in wanted]
        for key, target in wanted.items():
            endpoint = self._by_key.get(key)
            if endpoint is None:
                self._by_key[key] = self._add(target)
            else:
                endpoint.rename(target.address.text)
        self.current[:] = [*(self._by_key[key] for key in wanted), *placeholders]
        for endpoint in gone:
            # Its name leads elsewhere.
            endpoint.rename(_text_of(self._members.pop(endpoint), endpoint.address))
            self._connectors[endpoint].retire()
            self.leaving.append(endpoint)
        return gone

    def _add(self, target: _Target) -> Endpoint:
        endpoint = Endpoint(target.address)
        if target.member is not None:
            self._members[endpoint] = target.member
        self._connectors[endpoint] = Connector(endpoint, self._settings, self._client, self._pool)
        return endpoint

    def let_go(self, endpoint: Endpoint) -> None:
        """The requests of an endpoint that is leaving have had their time: their other events go elsewhere."""
        for connection in tuple(endpoint.connections):
            for correlation_id in tuple(connection.requests):
                self._pool.rotation.affinities.forget(correlation_id)
            self._pool.close_if_done(connection)

    def drop_if_done(self, endpoint: Endpoint) -> None:
        """Forget an endpoint that is leaving and has no connections left."""
        if not endpoint.connections and endpoint in self.leaving:
            self.leaving.remove(endpoint)
            self._connectors.pop(endpoint).cancel()
            self._pool.dropped(endpoint)

    # The end

    def cancel(self) -> None:
        """Follow no names, and make no more connections."""
        for each in self._running():
            each.cancel()

    async def wait(self) -> None:
        """Wait until that has ended."""
        for each in self._running():
            await each.wait()

    def _running(self) -> Sequence[Watch | Connector]:
        return [*(name.watch for name in self._names), *self._connectors.values()]
