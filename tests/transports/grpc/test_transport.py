"""How an agent behind gRPC is configured."""

from pathlib import Path
from typing import Any

import pytest
import trustme

from asgi_agents import AgentConfig, ConfigurationError, EventType, GrpcTransport
from asgi_agents.protocol.grpc.events import CARRIED
from asgi_agents.transports.grpc.settings import target_of
from asgi_agents.transports.resolve import transport_of_url


def test_a_url_is_a_transport() -> None:
    for url in ("grpc://waf:9000", "grpc+unix:///run/waf.sock", ["grpc://a:1", "grpc://b:1"]):
        transport: Any = AgentConfig("waf", url).resolved_transport
        assert isinstance(transport, GrpcTransport)
        assert (transport.kind, transport.remote, transport.carries) == ("grpc", True, CARRIED | {EventType.CONFIGURE})
    assert repr(transport) == "<GrpcTransport grpc://a:1 grpc://b:1>"


def test_the_command_line_makes_one_with_its_settings() -> None:
    transport: Any = transport_of_url(
        "call", "grpc://waf:9000", framing="v2", encoding="json", connect_timeout=3.0, connections=2
    )
    assert (transport._settings.connect_timeout, transport._settings.connections) == (3.0, 2)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("grpc://waf:9000", "dns:///waf:9000"),
        ("grpc://[::1]:9000", "dns:///[::1]:9000"),
        ("grpc+unix:///run/waf.sock", "unix:/run/waf.sock"),
    ],
)
def test_addresses_are_written_as_grpc_has_them(url: str, target: str) -> None:
    [address] = GrpcTransport(url)._settings.addresses
    assert target_of(address) == target


@pytest.mark.parametrize(
    ("target", "settings", "told"),
    [
        ("http://waf:9000", {}, "expected grpc://host:port, grpcs://host:port or grpc+unix:///path"),
        ("waf:9000", {}, "expected grpc://host:port"),
        (["grpc://a:1", 5], {}, "expected grpc://host:port"),
        ([], {}, "expected grpc://host:port"),
        ("grpc://waf", {}, "'grpc://waf', expected a host and a port"),
        ("grpc+unix://waf", {}, "expected the absolute path of a socket"),
        ("grpc://waf:0", {}, "expected a port above 0"),
        ("grpc://user:hunter2@waf:9000", {}, "there are credentials in the target"),
        (["grpc://a:1", "grpc://a:1"], {}, "expected each to be there once"),
        (["grpc://a:1", "grpcs://b:1"], {}, "expected all of them to be grpcs://, or none"),
        (
            "grpc://waf:1",
            {"protocol": "soap"},
            "protocol='soap', expected 'agent' or 'ext_proc' or 'ext_authz' or 'ray'",
        ),
        ("grpc://waf:1", {"protocol": 5}, "protocol=5"),
        ("grpc://waf:1", {"verify": "/ca.pem"}, "expected grpcs://"),
        ("grpc://waf:1", {"cert": "/c.pem"}, "expected grpcs://"),
        ("grpcs://waf:1", {"verify": False}, "verify=False, expected True or a path"),
        ("grpcs://waf:1", {"verify": "/no/such.pem"}, "expected a PEM file"),
        ("grpcs://waf:1", {"cert": "/no/such.pem"}, "expected a certificate and its key in PEM"),
        ("grpc://waf:1", {"load_balancing": "best"}, "load_balancing='best', expected 'round_robin' or"),
        ("grpc://waf:1", {"connections": 0}, "connections=0, expected a whole number of at least 1"),
        ("grpc://waf:1", {"max_event_bytes": 0}, "max_event_bytes=0"),
        ("grpc://waf:1", {"max_answer_bytes": "x"}, "max_answer_bytes='x'"),
        ("grpc://waf:1", {"max_calls_per_connection": 0}, "max_calls_per_connection=0"),
        ("grpc://waf:1", {"connect_timeout": 0}, "connect_timeout=0"),
        ("grpc://waf:1", {"keepalive": -1}, "keepalive=-1"),
        ("grpc://waf:1", {"metadata": ""}, "metadata is a str, expected names mapped to values"),
        ("grpc://waf:1", {"metadata": ["application"]}, "metadata is a list, expected names mapped to values"),
        ("grpc://waf:1", {"metadata": {"Key": "hunter2"}}, "metadata='Key', expected names of lower-case letters"),
        ("grpc://waf:1", {"metadata": {"key-bin": "hunter2"}}, "metadata='key-bin', expected names of"),
        ("grpc://waf:1", {"metadata": {"": "hunter2"}}, "metadata='', expected names of"),
        ("grpc://waf:1", {"metadata": {"grpc-timeout": "hunter2"}}, "none of those that gRPC or the transport sets"),
        ("grpc://waf:1", {"metadata": {"traceparent": "hunter2"}}, "none of those that gRPC or the transport sets"),
        ("grpc://waf:1", {"metadata": {"key": "hunter2\n"}}, "metadata['key'], expected visible ASCII characters"),
        ("grpc://waf:1", {"metadata": {"key": 5}}, "metadata['key'], expected visible ASCII characters"),
    ],
)
def test_what_cant_work_is_refused(target: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        GrpcTransport(target, **settings)
    assert told in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_metadata_does_not_show_in_settings() -> None:
    settings = GrpcTransport("grpc://waf:1", metadata={"key": "hunter2"})._settings
    assert settings.metadata.pairs == (("key", "hunter2"),)
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in repr(settings.metadata)


def test_an_agents_url_that_cant_work_is_refused_with_its_id() -> None:
    with pytest.raises(ConfigurationError, match=r"AgentConfig\('waf'\): GrpcTransport: target: 'grpc://waf'"):
        AgentConfig("waf", "grpc://waf")


def test_a_key_with_a_password_is_refused(tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    path = tmp_path / "leaf.pem"
    leaf.private_key_and_cert_chain_pem.write_to_path(str(path))
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    secret = tmp_path / "key.pem"
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2")))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigurationError, match="the key has a password, expected one without") as raised:
        GrpcTransport("grpcs://waf:1", verify=str(tmp_path / "ca.pem"), cert=(str(path), str(secret), "hunter2"))
    assert "hunter2" not in str(raised.value)


def test_authorities_may_be_those_of_httpx_or_a_directory(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "a.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "b.pem"))
    (tmp_path / "README").write_text("no certificate")
    for verify, fewest in ((True, 100), (str(tmp_path), 2), (str(tmp_path / "a.pem"), 1)):
        tls = GrpcTransport("grpcs://waf:1", verify=verify)._settings.tls
        assert tls is not None
        assert tls.authorities.count(b"BEGIN CERTIFICATE") >= fewest
        assert (tls.certificate, tls.key) == (None, None)


def test_the_events_that_are_carried_are_those_that_can_be_answered() -> None:
    assert (
        frozenset(EventType)
        - {
            EventType.CONFIGURE,
            EventType.GUARDRAIL_INSPECT,
            EventType.WEBSOCKET_FRAME,
        }
        == CARRIED
    )
