"""Names that lead to several addresses, over gRPC. In real time: gRPC's library has threads of its own."""

import time
from collections import Counter
from collections.abc import Callable

import anyio
import grpc
import pytest
import trustme

from asgi_agents import EventType, GrpcTransport
from asgi_agents.transports import AgentClient
from tests.support.names import LOOPBACK, free_port, resolving
from tests.support.sample_events import head
from tests.transports.stream.pools import until

from .peer import Heard, Peer, allow

pytestmark = pytest.mark.anyio


def up(client: AgentClient) -> set[str]:
    """The addresses of the endpoints that are up."""
    return {each.address for each in client.statistics()[0] if each.state == "up"}


@pytest.mark.parametrize("encrypted", [False, True])
async def test_instances_come_and_go(encrypted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    names = resolving(monkeypatch, waf=LOOPBACK[:2])
    port = free_port()
    calls = Counter[str]()
    authority = trustme.CA()
    issued = authority.issue_cert("waf.test")
    pem = f"{tmp_path}/ca.pem"
    authority.cert_pem.write_to_path(pem)
    credentials = grpc.ssl_server_credentials(
        [(issued.private_key_pem.bytes(), b"".join(each.bytes() for each in issued.cert_chain_pems))]
    )

    def counting(host: str) -> Callable[[Heard], bytes]:
        def behave(heard: Heard) -> bytes:
            calls[host] += 1
            return allow(heard)

        return behave

    peers = {host: Peer(counting(host)) for host in LOOPBACK[:3]}
    for host, peer in peers.items():
        peer.start(f"{host}:{port}", credentials=credentials if encrypted else None)
    transport = GrpcTransport(
        f"grpc{'s' if encrypted else ''}://waf.test:{port}",
        connections=1,
        resolve_interval=0.2,
        verify=pem if encrypted else True,
    )
    client = transport.bind("waf", events=frozenset({EventType.REQUEST_HEADERS}))
    try:
        await client.connect()

        async def ask(times: int) -> None:
            for number in range(times):
                await client.call(head(f"{number}"), time.monotonic() + 30)
                client.forget(f"{number}")

        await until(lambda: len(up(client)) == 2)
        await ask(40)
        assert set(calls) == set(LOOPBACK[:2])
        names.answers["waf.test"] = LOOPBACK[1:3]
        await until(
            lambda: (
                {e.address.rpartition(":")[0].rpartition("/")[2] for e in client.statistics()[0] if e.state == "up"}
                == set(LOOPBACK[1:3])
            )
        )
        calls.clear()
        await ask(40)
        assert set(calls) == set(LOOPBACK[1:3])
        names.answers["waf.test"] = LOOPBACK[2:3]
        await until(lambda: [e.address for e in client.statistics()[0]] == [transport.address])
        await ask(3)
    finally:
        await client.aclose()
        for peer in peers.values():
            await anyio.to_thread.run_sync(peer.stop)
