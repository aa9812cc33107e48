"""GeoFilter, with real files of the format MMDB."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse
from starlette.testclient import WebSocketDenialResponse

from asgi_agents import (
    AgentConfig,
    AgentMiddleware,
    AuditRecord,
    ConfigurationError,
    protect,
)
from asgi_agents.agents import GeoFilter
from asgi_agents.testing import request_headers_event, request_metadata
from tests.support.asgi import App, Client
from tests.support.servers import serve
from tests.unjudged.asking import ask

from .geo_asking import DENIED, PRIVATE, UNKNOWN, why
from .mmdb import country, system, write

COUNTRIES = {
    "8.8.8.0/24": country("US"),
    "192.0.2.0/24": country("DE"),
    "198.51.100.0/24": country("AT"),
    "2001:db8::/32": country("DE"),
    "203.0.113.0/25": {"registered_country": {"iso_code": "DE"}},
}
SYSTEMS = {"192.0.2.0/25": system(64496), "198.51.100.0/24": system(64497), "2001:db8:1::/48": system(64496)}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("mmdb")
    return [write(place / "countries.mmdb", COUNTRIES), write(place / "systems.mmdb", SYSTEMS)]


@pytest.mark.parametrize(
    ("rules", "ip", "reason"),
    [
        ({"allow": ["DE"]}, "192.0.2.7", ""),
        ({"allow": ["DE"]}, "::ffff:192.0.2.7", ""),
        ({"allow": ["DE"]}, "2001:db8::7", ""),
        ({"allow": ["DE"]}, "198.51.100.7", DENIED),
        ({"allow": ["DE"]}, "8.8.8.8", DENIED),
        ({"allow": ["DE"]}, "9.9.9.9", UNKNOWN),
        ({"allow": ["DE"]}, "2606:4700::1", UNKNOWN),
        # Where it is registered is not where it is.
        ({"allow": ["DE"], "private": "allow"}, "203.0.113.7", UNKNOWN),
        ({"allow": ["DE"], "unknown": "allow"}, "203.0.113.7", ""),
        ({"allow": ["de"]}, "192.0.2.7", ""),
        ({"deny": ["DE"]}, "192.0.2.7", DENIED),
        ({"deny": ["DE"]}, "198.51.100.7", ""),
        ({"deny": ["DE"]}, "9.9.9.9", UNKNOWN),
        ({"deny": ["DE"], "unknown": "allow"}, "9.9.9.9", ""),
        ({"deny": ["DE"], "unknown": "allow"}, "192.0.2.7", DENIED),
        ({"allow": ["DE"], "unknown": "allow"}, "9.9.9.9", ""),
        ({"allow": ["DE"], "unknown": "allow"}, "198.51.100.7", DENIED),
        # By autonomous systems.
        ({"deny": ["AS64496"]}, "192.0.2.7", DENIED),
        ({"deny": ["AS64496"]}, "198.51.100.7", ""),
        ({"deny": ["AS64496"], "unknown": "allow"}, "8.8.8.8", ""),
        ({"deny": ["AS64496"]}, "8.8.8.8", UNKNOWN),
        ({"allow": ["AS64497"]}, "198.51.100.7", ""),
        ({"allow": ["AS64497"]}, "192.0.2.7", DENIED),
        # By both: what is denied is denied also where it is allowed, and what may be is not known to be allowed.
        ({"allow": ["DE"], "deny": ["AS64496"]}, "192.0.2.7", DENIED),
        ({"allow": ["DE"], "deny": ["AS64497"]}, "192.0.2.7", ""),
        ({"allow": ["DE"], "deny": ["AS64496"], "unknown": "allow"}, "192.0.2.200", ""),
        ({"allow": ["US"], "deny": ["AS64496"]}, "8.8.8.8", UNKNOWN),
        ({"allow": ["US"], "deny": ["AS64496"], "unknown": "allow"}, "8.8.8.8", ""),
        ({"allow": ["DE", "AS64497"]}, "198.51.100.7", ""),
        ({"allow": ["US", "AS64497"]}, "8.8.8.8", ""),
        ({"allow": ["DE", "AS64497"]}, "8.8.8.8", UNKNOWN),
        ({"allow": ["DE"], "deny": ["AT"]}, "198.51.100.7", DENIED),
        # Those that are nowhere.
        *(
            case
            for ip in ("10.0.0.1", "127.0.0.1", "::1", "fd00::1", "fe80::1%eth0", "100.64.0.1", "169.254.1.1")
            for case in (
                ({"deny": ["DE"], "unknown": "allow"}, ip, PRIVATE),
                ({"allow": ["DE"], "unknown": "allow"}, ip, PRIVATE),
                ({"deny": ["DE"], "private": "allow"}, ip, ""),
                ({"allow": ["DE"], "private": "allow"}, ip, ""),
            )
        ),
    ],
    ids=str,
)
async def test_who_gets_through(files: list[Path], rules: dict[str, Any], ip: str, reason: str) -> None:
    assert await why(GeoFilter(files, **rules), ip) == reason


async def test_one_file_may_tell_both(tmp_path: Path) -> None:
    path = write(tmp_path / "lite.mmdb", {"192.0.2.0/24": {"country_code": "DE", "country": "Germany", "asn": "AS1"}})
    assert await why(GeoFilter(str(path), allow=["DE"], deny=["AS2"]), "192.0.2.7") == ""
    assert await why(GeoFilter(path, allow=["DE"], deny=["AS1"]), "192.0.2.7") == DENIED


async def test_a_file_for_ipv4_alone_knows_nothing_of_ipv6(tmp_path: Path) -> None:
    path = write(tmp_path / "4.mmdb", {"192.0.2.0/24": country("DE")}, ip_version=4)
    agent = GeoFilter(path, allow=["DE"])
    assert [await why(agent, ip) for ip in ("192.0.2.7", "::ffff:192.0.2.7", "2606:4700::1")] == ["", "", UNKNOWN]


async def test_the_address_is_that_of_the_client_behind_trusted_proxies(files: list[Path]) -> None:
    agent = GeoFilter(files, allow=["DE"], trusted_proxies=["10.0.0.0/8"])
    assert await why(agent, "10.0.0.1", **{"x-forwarded-for": "8.8.8.8, 192.0.2.7"}) == ""
    assert await why(agent, "10.0.0.1", **{"x-forwarded-for": "192.0.2.7, 8.8.8.8"}) == DENIED
    assert await why(agent, "8.8.8.8", **{"x-forwarded-for": "192.0.2.7"}) == DENIED


LOCAL = [
    *("10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"),
    *("100.64.0.0", "100.127.255.255", "127.0.0.0", "127.255.255.255", "169.254.0.0", "169.254.255.255"),
    *("::1", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    *("::ffff:10.0.0.1", "fe80::1%eth0", "0.0.0.0", "0.255.255.255"),
]
# Among them those that `ipaddress` takes for global, or not, by the version of Python.
NOT_LOCAL = [
    *("9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "100.63.255.255"),
    *("100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "::", "::2", "fbff::", "fe00::"),
    *("fe7f::", "fec0::", "1.0.0.0", "192.0.0.9", "192.0.2.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "240.0.0.1"),
    # 6to4, Teredo, NAT64 and SIIT: with 8.8.8.8, and with 10.0.0.1.
    *("2002:808:808::1", "2002:a00:1::1", "2001:0:53aa:64c::f7f7:f7f7", "2001:0:a00:1::f7f7:f7f7", "2001:20::1"),
    *("64:ff9b::808:808", "64:ff9b::a00:1", "64:ff9b:1::808:808", "::ffff:0:808:808", "3fff::1", "5f00::1"),
]


@pytest.mark.parametrize(("ip", "local"), [*((ip, True) for ip in LOCAL), *((ip, False) for ip in NOT_LOCAL)], ids=str)
async def test_private_are_the_addresses_of_the_networks_that_are_listed(tmp_path: Path, ip: str, local: bool) -> None:
    path = write(tmp_path / "geo.mmdb", {"1.1.1.0/24": country("DE")})
    assert await why(GeoFilter(path, allow=["DE"], unknown="allow"), ip) == (PRIVATE if local else "")
    assert await why(GeoFilter(path, deny=["DE"], private="allow"), ip) == ("" if local else UNKNOWN)


async def test_of_teredo_a_file_tells_the_server_and_not_the_client(tmp_path: Path) -> None:
    """As files of MaxMind do, which have the places of IPv4 addresses there as well."""
    path = write(tmp_path / "geo.mmdb", {"2001::/32": country("DE"), "2002:c000:200::/40": country("DE")})
    agent = GeoFilter(path, allow=["DE"])
    assert [await why(agent, ip) for ip in ("2001:0:c000:207::1", "2002:c000:207::1")] == [UNKNOWN, ""]


async def test_codes_that_are_no_country_are_not_known(tmp_path: Path) -> None:
    codes = {"192.0.2.0/24": "EU", "198.51.100.0/24": "XX", "203.0.113.0/24": "UK", "1.1.1.0/24": "AP"}
    good = {"9.9.9.0/24": {"country_code": "", "country": {"iso_code": "DE"}}}
    path = write(tmp_path / "geo.mmdb", {**{net: country(code) for net, code in codes.items()}, **good})
    agent = GeoFilter(path, deny=["DE", "GB"])
    assert [await why(agent, net.removesuffix("0/24") + "7") for net in codes] == [UNKNOWN] * 4
    assert await why(agent, "9.9.9.9") == DENIED


@pytest.mark.parametrize("peer", [None, ("", 1), ("testclient", 1)])
@pytest.mark.parametrize("mode", ["closed", "open"])
@pytest.mark.parametrize("rules", [{"allow": ["DE"]}, {"deny": ["DE"]}])
async def test_a_scope_without_a_client_is_waved_through_in_no_failure_mode(
    files: list[Path], peer: Sequence[object] | None, mode: Any, rules: dict[str, Any]
) -> None:
    agent = GeoFilter(files, **rules, unknown="allow", private="allow")
    client = Client()
    client.scope["client"] = peer
    assert (await ask(App(), AgentConfig("geo", agent, failure_mode=mode), client=client)).status == 403


def test_a_websocket_is_denied_in_the_handshake(files: list[Path]) -> None:
    app = FastAPI()

    @app.websocket("/ws")
    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")

    protect(app, agents=[AgentConfig("geo", GeoFilter(files, allow=["DE"]))])
    with TestClient(app, client=("192.0.2.7", 1)).websocket_connect("/ws") as session:
        assert session.receive_text() == "hello"
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        TestClient(app, client=("8.8.8.8", 1)).websocket_connect("/ws"),
    ):
        pass
    assert denied.value.status_code == 403


def test_the_audit_record_says_why(files: list[Path]) -> None:
    records: list[AuditRecord] = []
    app = FastAPI()
    agent = GeoFilter(files, allow=["DE"], deny=["AS64496"])
    protect(app, agents=[AgentConfig("geo", agent)], on_audit=records.append)
    for ip in ("192.0.2.7", "198.51.100.7", "8.8.8.8", "10.0.0.1", "testclient"):
        TestClient(app, client=(ip, 1)).get("/")
    told = [
        ([*answer.reason_codes], [*answer.rule_ids], [*answer.tags]) for record in records for answer in record.answers
    ]
    assert told == [
        ([DENIED], ["AS64496"], ["AS64496", "DE"]),
        ([DENIED], [], ["AS64497", "AT"]),
        ([UNKNOWN], [], ["US"]),
        ([PRIVATE], [], []),
        (["address_unknown"], [], []),
    ]


def test_behind_a_real_server(files: list[Path]) -> None:
    agent = GeoFilter(files, allow=["DE"], trusted_proxies=["127.0.0.1"])
    app = AgentMiddleware(PlainTextResponse("hello"), agents=[AgentConfig("geo", agent, timeout=30.0)])
    with serve(app, proxy_headers=False) as url, httpx.Client() as client:
        answers = [client.get(url, headers={"x-forwarded-for": ip}) for ip in ("192.0.2.7", "8.8.8.8")]
        assert [answer.status_code for answer in answers] == [200, 403]


class BytesPath:
    """A path of bytes, which `os` takes and `pathlib` does not."""

    def __fspath__(self) -> bytes:
        return b"geo.mmdb"


def test_no_request_waits(files: list[Path]) -> None:
    agent = GeoFilter(files, allow=["DE"])
    with pytest.raises(StopIteration):
        agent.on_request_headers(request_headers_event(metadata=request_metadata(client_ip="192.0.2.7"))).send(None)


@pytest.mark.parametrize(
    ("databases", "options", "message"),
    [
        ("file", {}, r"nothing to allow or to deny, expected allow=\[...\] or deny=\[...\]"),
        ("file", {"allow": "DE"}, "allow='DE', expected a list of strings"),
        ("file", {"allow": ["UK"]}, "allow contains 'UK', expected a country"),
        ("file", {"allow": ["DE", "at"], "deny": ["AT"]}, "'AT' is in allow and in deny, expected it in one of them"),
        ("file", {"allow": ["DE"], "unknown": "pass"}, "unknown='pass', expected 'deny' or 'allow'"),
        ("file", {"allow": ["DE"], "private": True}, "private=True, expected 'deny' or 'allow'"),
        ("file", {"allow": ["DE"], "trusted_proxies": ["::/0"]}, "trusted_proxies contains all addresses"),
        ([], {"allow": ["DE"]}, "databases is .*, expected a path, or a list of paths"),
        ([1], {"allow": ["DE"]}, "databases is .*, expected a path, or a list of paths"),
        (b"file", {"allow": ["DE"]}, "databases is .*, expected a path, or a list of paths"),
        (BytesPath(), {"allow": ["DE"]}, "databases is .*, expected a path, or a list of paths"),
        (None, {"allow": ["DE"]}, "databases is .*, expected a path, or a list of paths"),
    ],
)
def test_what_can_not_work_is_a_configuration_error(
    files: list[Path], databases: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"GeoFilter: {message}"):
        GeoFilter(files if databases == "file" else databases, **options)
