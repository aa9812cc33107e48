"""What can be configured of the stream transport, and TLS."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.abc
import pytest
import trustme
from anyio.streams.tls import TLSListener

from asgi_agents import (
    AgentConfig,
    AgentConnectionError,
    AgentError,
    AgentManager,
    AgentProtocolError,
    ConfigurationError,
    EventType,
    LoadBalancing,
    StreamTransport,
    Transport,
)
from asgi_agents.manager import registry_of
from asgi_agents.transports.stream import StreamClient
from asgi_agents.transports.stream.settings import Settings

from .peer import Peer
from .pools import allow, head, open_files, port_of, until

EVENTS = frozenset({EventType.REQUEST_HEADERS})
UNIX, TCP = "unix:///run/waf.sock", "tcp://127.0.0.1:9000"


# Configuration


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"endpoints": []}, r"endpoints=\[\], expected unix:///path or tcp://host:port, or a list"),
        ({"endpoints": ()}, r"endpoints=\(\), expected"),
        ({"endpoints": None}, "endpoints=None, expected"),
        ({"endpoints": 7}, "endpoints=7, expected"),
        ({"endpoints": {UNIX}}, "endpoints={.*}, expected"),
        ({"endpoints": [UNIX, 7]}, "endpoints: 7, expected"),
        ({"endpoints": [UNIX, UNIX]}, "expected each to be there once"),
        ({"endpoints": ""}, "endpoints: '', expected"),
        ({"endpoints": "/run/waf.sock"}, "expected unix:///run/waf.sock"),
        ({"endpoints": "http://127.0.0.1:9000"}, "expected unix:///path or tcp://host:port"),
        ({"endpoints": "UNIX:///run/waf.sock"}, "expected unix:///path or tcp://host:port"),
        ({"endpoints": "unix:run/waf.sock"}, "expected unix:///path or tcp://host:port"),
        ({"endpoints": "unix://run/waf.sock"}, "expected the absolute path of a socket"),
        ({"endpoints": "unix:///run/"}, "expected the absolute path of a socket"),
        ({"endpoints": "unix://"}, "expected the absolute path of a socket"),
        ({"endpoints": "unix:///run/\0waf"}, "expected the absolute path of a socket"),
        ({"endpoints": "unix:///run/\ud800"}, "expected the absolute path of a socket"),
        ({"endpoints": "tcp://\ud800:9000"}, "expected a host and a port"),
        ({"endpoints": "tcp://"}, "expected a host and a port"),
        ({"endpoints": "tcp://127.0.0.1"}, "expected a host and a port"),
        ({"endpoints": "tcp://:9000"}, "expected a host and a port"),
        ({"endpoints": "tcp://waf:"}, "expected a host and a port"),
        ({"endpoints": "tcp://waf:http"}, "expected a host and a port"),
        ({"endpoints": "tcp://waf:-1"}, "expected a host and a port"),
        ({"endpoints": "tcp://waf:65536"}, "expected a host and a port"),
        ({"endpoints": "tcp://waf:²"}, "expected a host and a port"),
        ({"endpoints": "tcp://waf:9000/path"}, "expected a host and a port"),
        ({"framing": "v3"}, "framing='v3', expected 'v2' or 'envelope'"),
        ({"framing": None}, "framing=None, expected"),
        ({"encoding": "xml"}, "encoding='xml', expected 'json' or 'msgpack'"),
        ({"load_balancing": "fastest"}, "load_balancing='fastest', expected 'round_robin' or"),
        ({"connections": 0}, "connections=0, expected a whole number of at least 1"),
        ({"connections": -1}, "connections=-1, expected"),
        ({"connections": 1.5}, r"connections=1\.5, expected"),
        ({"connections": True}, "connections=True, expected"),
        (
            {"framing": "envelope", "max_calls_per_connection": 2},
            "max_calls_per_connection=2, expected 1 with framing='envelope'",
        ),
        ({"max_calls_per_connection": 0}, "max_calls_per_connection=0, expected"),
        ({"max_calls_per_connection": "100"}, "max_calls_per_connection='100', expected"),
        ({"connect_timeout": 0}, "connect_timeout=0, expected a number of seconds above 0"),
        ({"connect_timeout": -1.0}, r"connect_timeout=-1\.0, expected"),
        ({"connect_timeout": float("nan")}, "connect_timeout=nan, expected"),
        ({"connect_timeout": float("inf")}, "connect_timeout=inf, expected"),
        ({"connect_timeout": "5"}, "connect_timeout='5', expected"),
        ({"connect_timeout": True}, "connect_timeout=True, expected"),
        ({"connect_timeout": None}, "connect_timeout=None, expected"),
        ({"drain_timeout": 0}, "drain_timeout=0, expected"),
        ({"ping_interval": 0}, "ping_interval=0, expected"),
        ({"stall_timeout": -5}, "stall_timeout=-5, expected"),
        ({"tls": True}, "tls=True, expected False for Unix sockets"),
        ({"endpoints": [TCP, UNIX], "tls": True}, "tls=True, expected False for Unix sockets"),
        ({"endpoints": TCP, "tls": 1}, "tls=1, expected True or False"),
        ({"endpoints": TCP, "verify": False}, "tls=False, expected True, for that is what verify and cert are about"),
        ({"endpoints": TCP, "cert": "cert.pem"}, "tls=False, expected True"),
        ({"endpoints": TCP, "tls": True, "verify": "/nowhere.pem"}, "verify='/nowhere.pem', expected a PEM file"),
        ({"endpoints": TCP, "tls": True, "verify": 7}, "verify=7, expected True, False, a path"),
        ({"endpoints": TCP, "tls": True, "cert": "/nowhere.pem"}, "cert='/nowhere.pem', expected a certificate"),
        ({"endpoints": TCP, "tls": True, "cert": 7}, "cert, expected a path"),
    ],
)
def test_what_cant_work_is_told_where_it_is_written(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        StreamTransport(**{"endpoints": UNIX} | arguments)

    assert str(caught.value).startswith("StreamTransport: ")


@pytest.mark.parametrize("arguments", [{"endpoints": "tcp://waf:0"}, {"endpoints": "unix:///" + "x" * 200}])
def test_addresses_that_nobody_can_ever_connect_to_are_told_where_they_are_written(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        StreamTransport(**arguments)


@pytest.mark.parametrize(
    "endpoints",
    [UNIX, TCP, "tcp://[::1]:9000", "tcp://waf.internal:1", "tcp://waf:9000/", [UNIX, TCP], (TCP, "tcp://b:1")],
)
def test_an_agent_may_be_given_by_its_address(endpoints: Any) -> None:
    config = AgentConfig("waf", endpoints)

    assert isinstance(config.resolved_transport, StreamTransport)
    assert isinstance(config.resolved_transport, Transport)
    assert config.hears is None
    addresses = [endpoints] if isinstance(endpoints, str) else endpoints
    assert repr(config.resolved_transport) == f"<StreamTransport {' '.join(addresses)}>"


@pytest.mark.parametrize(
    ("transport", "told"),
    [
        ([], r"transport=\[\]|endpoints=\[\]"),
        ([UNIX, "http://127.0.0.1/"], r"transport=\[.*\], expected several unix:// or tcp:// URLs"),
        (["http://127.0.0.1/"], "expected several unix:// or tcp:// URLs"),
        ([UNIX, None], "expected several unix:// or tcp:// URLs"),
        ([UNIX, UNIX], "expected each to be there once"),
        ("unix://relative", "expected the absolute path of a socket"),
        ("tcp://waf", "expected a host and a port"),
        ("udp://waf:1", "expected an http://, https://, unix://, tcp://, grpc://, grpcs:// or grpc"),
        ({UNIX}, "expected an Agent, a URL or a Transport"),
        (StreamTransport, "transport=the class StreamTransport, expected"),
    ],
)
def test_an_agent_that_cant_be_reached_so_is_told_with_its_id(transport: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        AgentConfig("waf", transport)

    assert str(caught.value).startswith("AgentConfig('waf'): ")


def test_agents_of_the_older_kits_have_to_be_told_what_they_hear() -> None:
    transport = StreamTransport(UNIX, framing="envelope")
    with pytest.raises(ConfigurationError, match="events=None, but a remote agent can't be asked"):
        AgentConfig("waf", transport)

    assert AgentConfig("waf", transport, events=EVENTS).hears == EVENTS


def test_events_that_there_are_not_are_told() -> None:
    with pytest.raises(ConfigurationError, match="events contains 'lunch', expected any of"):
        AgentConfig("waf", UNIX, events={"lunch"})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [*LoadBalancing, "random"])
def test_every_kind_of_balancing_can_be_named(kind: Any) -> None:
    assert StreamTransport(UNIX, load_balancing=kind)._settings.load_balancing is LoadBalancing(kind)


def test_the_defaults_are_those_that_are_documented() -> None:
    settings = StreamTransport(UNIX)._settings

    assert (settings.connections, settings.max_calls_per_connection, settings.on_demand) == (4, 100, False)


@pytest.mark.parametrize(
    ("connections", "calls", "most"), [(None, 100, 32), (None, 32, 32), (None, 5, 5), (50, 5, 50), (1, 100, 1)]
)
async def test_agents_of_the_older_kits_get_as_many_connections_as_they_may_have_calls(
    connections: int | None, calls: int, most: int
) -> None:
    transport = StreamTransport(UNIX, framing="envelope", connections=connections)
    manager = AgentManager([AgentConfig("kit", transport, events={EventType.CONFIGURE}, max_concurrent_calls=calls)])
    client = registry_of(manager).guard("kit").client
    assert isinstance(client, StreamClient)
    async with manager:
        pool = client._pools.peek()
        assert pool is not None
        settings = pool._settings

    assert isinstance(settings, Settings)
    assert (settings.connections, settings.max_calls_per_connection, settings.on_demand) == (most, 1, True)
    assert (settings.connect_timeout, settings.drain_timeout) == (5.0, 30.0)
    assert settings.load_balancing is LoadBalancing.ROUND_ROBIN
    assert settings.encodings == ("json",)


def test_json_is_offered_beside_msgpack_and_not_beside_itself() -> None:
    assert StreamTransport(UNIX, encoding="msgpack")._settings.encodings == ("msgpack", "json")
    assert StreamTransport(UNIX, encoding="msgpack", framing="envelope")._settings.encodings == ("msgpack",)


# TLS


class TcpPeer(Peer):
    """Listens on the loopback interface, with TLS where it is given a context."""

    def __init__(self, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.tls = tls

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        with suppress(AgentProtocolError):
            await super()._serve(stream)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.url = f"tcp://127.0.0.1:{port_of(tcp)}"
        listener: Any = tcp
        if self.tls is not None:
            listener = QuietTLSListener(tcp, self.tls, standard_compatible=False)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._serve)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()


class QuietTLSListener(TLSListener):
    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: anyio.abc.AnyByteStream) -> None:
        await anyio.aclose_forcefully(stream)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def authorities(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


async def ask(peer: TcpPeer, **options: Any) -> bool:
    """Whether the agent allows a request; raises what ``connect`` does."""
    allowed, fault = False, None
    async with peer.listening():
        client = StreamTransport(peer.url, connections=1, drain_timeout=0.01, **options).bind("waf")
        try:
            with anyio.fail_after(10):
                await client.connect()
                allowed = bool(getattr(await client.call(head()), "is_allow", False))
        except AgentError as exc:
            # Raised again outside the task group, which would wrap it.
            fault = exc
        finally:
            await client.aclose()
        await until(lambda: not peer.links)
    if fault is not None:
        raise fault
    return allowed


async def test_an_agent_may_be_reached_over_tcp() -> None:
    assert await ask(TcpPeer(behaviour=allow))


async def test_an_agent_may_be_reached_over_tls(server: ssl.SSLContext, authorities: str) -> None:
    assert await ask(TcpPeer(server, behaviour=allow), tls=True, verify=authorities)


async def test_a_context_may_be_given_instead(server: ssl.SSLContext, ca: trustme.CA) -> None:
    context = ssl.create_default_context()
    ca.configure_trust(context)

    assert await ask(TcpPeer(server, behaviour=allow), tls=True, verify=context)


async def test_tls_may_be_used_without_trust(server: ssl.SSLContext) -> None:
    assert await ask(TcpPeer(server, behaviour=allow), tls=True, verify=False)


async def test_an_agent_of_an_unknown_authority_is_not_spoken_to(server: ssl.SSLContext) -> None:
    peer = TcpPeer(server, behaviour=allow)
    with pytest.raises(AgentConnectionError, match=r"certificate verify failed|CERTIFICATE_VERIFY_FAILED"):
        await ask(peer, tls=True)

    assert peer.handshakes == []


async def test_an_agent_of_another_authority_is_not_spoken_to(server: ssl.SSLContext, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    peer = TcpPeer(server, behaviour=allow)
    with pytest.raises(AgentConnectionError, match=r"(?i)certificate.verify.failed"):
        await ask(peer, tls=True, verify=str(tmp_path / "other.pem"))

    assert peer.handshakes == []


async def test_an_agent_with_a_certificate_of_another_name_is_not_spoken_to(ca: trustme.CA, authorities: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("other.example").configure_cert(context)
    with pytest.raises(AgentConnectionError, match=r"(?i)certificate.verify.failed|mismatch"):
        await ask(TcpPeer(context, behaviour=allow), tls=True, verify=authorities)


@pytest.fixture
def demanding(ca: trustme.CA) -> ssl.SSLContext:
    """A server's context that asks for a client's certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_an_agent_may_ask_for_a_certificate(
    demanding: ssl.SSLContext, ca: trustme.CA, authorities: str, tmp_path: Path
) -> None:
    issued = ca.issue_cert("client.example")
    path = tmp_path / "client.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))

    assert await ask(TcpPeer(demanding, behaviour=allow), tls=True, verify=authorities, cert=str(path))


async def test_a_client_without_the_certificate_that_is_asked_for_is_no_client(
    demanding: ssl.SSLContext, authorities: str
) -> None:
    peer = TcpPeer(demanding, behaviour=allow)
    with pytest.raises(AgentError) as caught:
        await ask(peer, tls=True, verify=authorities)

    assert peer.handshakes == []
    assert "tcp://127.0.0.1" in str(caught.value)


async def test_tls_towards_an_agent_without_it_is_told(authorities: str) -> None:
    with pytest.raises(AgentConnectionError, match="tcp://127"):
        await ask(TcpPeer(behaviour=allow), tls=True, verify=authorities, connect_timeout=2.0)


async def test_plain_tcp_towards_an_agent_with_tls_is_told(server: ssl.SSLContext) -> None:
    with pytest.raises(AgentConnectionError, match="tcp://127"):
        await ask(TcpPeer(server, behaviour=allow), connect_timeout=2.0)


async def test_the_connect_timeout_covers_the_handshake_of_tls(authorities: str) -> None:
    async def nothing(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    before = open_files()
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    url = f"tcp://127.0.0.1:{port_of(tcp)}"
    async with tcp, anyio.create_task_group() as tasks:
        tasks.start_soon(tcp.serve, nothing)
        transport = StreamTransport(url, connections=1, tls=True, verify=authorities, connect_timeout=0.03)
        client = transport.bind("waf")
        with anyio.fail_after(5), pytest.raises(AgentConnectionError, match=r"not connected within 0\.03 s"):
            await client.connect()
        await client.aclose()
        tasks.cancel_scope.cancel()
    await until(lambda: open_files() <= before)


async def test_many_calls_over_tls_all_have_their_answers(server: ssl.SSLContext, authorities: str) -> None:
    peer = TcpPeer(server, behaviour=allow)
    async with peer.listening():
        transport = StreamTransport(peer.url, connections=2, tls=True, verify=authorities, drain_timeout=0.01)
        client = transport.bind("waf")
        answered = 0

        async def call(number: int) -> None:
            nonlocal answered
            await client.call(head(str(number)))
            answered += 1

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(call, number)
        await client.aclose()

        assert answered == 200
