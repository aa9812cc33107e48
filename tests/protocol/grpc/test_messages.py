"""The messages of the agent protocol over gRPC: their description, and what they can hold."""

import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asgi_agents
from asgi_agents import (
    AgentError,
    AgentProtocolError,
    AgentResponse,
    AuditMetadata,
    Block,
    BodyMutation,
    Event,
    EventType,
    GuardrailResponse,
    HeaderOp,
    RequestCompleteEvent,
)
from asgi_agents.protocol import ALLOW, Headers, RequestHeadersEvent, RequestMetadata
from asgi_agents.protocol.grpc.answers import decode_answer, encode_answer, encode_no_verdict
from asgi_agents.protocol.grpc.control import decode_config, encode_handshake
from asgi_agents.protocol.grpc.events import CARRIED, decode_event, encode_event
from asgi_agents.protocol.grpc.messages import AgentToProxy, ProxyToAgent, parse
from tests.support.sample_events import CHUNK, COMPLETE, HEAD, QUESTION, RESPONSE_HEAD

HERE = Path(asgi_agents.__file__).parent / "protocol" / "grpc"


@pytest.mark.skipif(find_spec("grpc_tools") is None, reason="needs grpcio-tools")
def test_the_description_is_that_of_the_file(tmp_path: Path) -> None:
    made = tmp_path / "agent.binpb"
    command = ["-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={made}", "agent.proto"]
    subprocess.run([sys.executable, *command], cwd=HERE, check=True)
    assert made.read_bytes() == (HERE / "agent.binpb").read_bytes()


def through(event: Event) -> Event:
    message = parse(ProxyToAgent, encode_event(event))
    return decode_event(message, message.WhichOneof("message"))


@pytest.mark.parametrize("event", [CHUNK, RESPONSE_HEAD, COMPLETE])
def test_an_event_is_the_same_at_the_other_end(event: Event) -> None:
    assert through(event) == event


def test_what_can_be_carried_can_be_encoded_and_nothing_else() -> None:
    events: list[Any] = [HEAD, CHUNK, RESPONSE_HEAD, COMPLETE, QUESTION]
    for event in events:
        if event.event_type in CARRIED:
            encode_event(event)
        else:
            with pytest.raises(AgentProtocolError, match=f"gRPC carries no {event.event_type.value}"):
                encode_event(event)


_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
_NAMES = st.text("abcdefgh-", min_size=1, max_size=6)
_VALUES = st.text(st.characters(max_codepoint=255), max_size=8)


@given(
    st.dictionaries(_NAMES, st.lists(_VALUES, min_size=1, max_size=3), max_size=4),
    _TEXT,
    st.none() | _TEXT,
    st.integers(0, 65535),
    st.integers(0, 2**40),
)
def test_a_head_is_the_same_at_the_other_end(
    headers: dict[str, list[str]], text: str, maybe: str | None, port: int, milliseconds: int
) -> None:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    event = RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id=text,
            request_id=text,
            client_ip=text,
            client_port=port,
            server_name=maybe,
            protocol="HTTP/1.1",
            tls_version=maybe,
            route_id=maybe,
            upstream_id=maybe,
            timestamp=at,
            traceparent=maybe,
        ),
        method="GET",
        uri=text,
        headers=Headers(headers),
    )
    assert through(event) == event


def test_what_has_no_field_is_left_out() -> None:
    metadata = RequestMetadata(
        correlation_id="c",
        request_id="r",
        client_ip="",
        client_port=1,
        protocol="",
        tls_cipher="TLS_AES_128_GCM_SHA256",
        timestamp="yesterday",
    )
    found = through(RequestHeadersEvent(metadata=metadata, method="GET", uri="/", headers=Headers()))
    assert isinstance(found, RequestHeadersEvent)
    assert (found.metadata.tls_cipher, found.metadata.timestamp) == (None, "1970-01-01T00:00:00.000+00:00")


@pytest.mark.parametrize("changes", [{"status": -1}, {"error": "\ud800"}, {"duration_ms": 2**64}])
def test_what_cant_be_encoded_is_an_error_that_quotes_nothing(changes: dict[str, Any]) -> None:
    fields = {
        "correlation_id": "c",
        "status": 200,
        "duration_ms": 0,
        "request_body_size": 0,
        "response_body_size": 0,
        "upstream_attempts": 1,
    }
    with pytest.raises(AgentProtocolError, match="can't be encoded for gRPC"):
        encode_event(RequestCompleteEvent(**{**fields, **changes}))


@given(st.binary(max_size=64))
def test_no_bytes_are_anything_but_a_message_or_an_error(data: bytes) -> None:
    for kind in (ProxyToAgent, AgentToProxy):
        try:
            message = parse(kind, data)
        except AgentProtocolError:
            continue
        found = message.WhichOneof("message")
        if kind is AgentToProxy and found == "response":
            with suppress(AgentError):
                decode_answer(message.response)


def test_a_port_or_a_time_that_is_none_is_an_error() -> None:
    for field, value in (("client_port", 70000), ("timestamp_ms", 2**63)):
        message = ProxyToAgent()
        setattr(message.request_headers.metadata, field, value)
        with pytest.raises(AgentProtocolError, match=field):
            decode_event(message, "request_headers")


def answered(response: AgentResponse) -> AgentResponse:
    return decode_answer(parse(AgentToProxy, encode_answer(response, "c")).response)


def test_an_answer_is_the_same_at_the_other_end() -> None:
    assert answered(ALLOW) is ALLOW
    for response in (
        AgentResponse.block(403, "", headers={"a": "b"}),
        AgentResponse.block(403),
        AgentResponse.redirect("https://a.example/", 308),
        AgentResponse.challenge("bearer", {"realm": "a"}),
        AgentResponse.allow(needs_more=True),
        AgentResponse.allow(request_headers=[HeaderOp.set("a", "\xe9"), HeaderOp.remove("b")]),
    ):
        assert answered(response) == response


def test_a_failure_is_a_block_to_who_does_not_know_it() -> None:
    response = parse(AgentToProxy, encode_no_verdict("agent raised KeyError", "c")).response
    assert (response.WhichOneof("decision"), response.block.status) == ("block", 503)
    with pytest.raises(AgentError, match=r"^agent raised KeyError$"):
        decode_answer(response)


def test_what_has_no_message_is_no_answer() -> None:
    with pytest.raises(AgentProtocolError, match="gRPC has no message for a GuardrailResponse"):
        encode_answer(GuardrailResponse(detected=False), "c")
    with pytest.raises(AgentProtocolError, match="can't be encoded for gRPC"):
        encode_answer(AgentResponse(decision=Block(403, "\ud800")), "c")


@pytest.mark.parametrize(
    "beside",
    [
        {"routing_metadata": {"pool": "b"}},
        {"request_body_mutation": BodyMutation(b"x")},
        {"audit": AuditMetadata(custom={"a": object()})},
        {"audit": AuditMetadata(tags=("a", "\ud800"))},
    ],
)
def test_a_refusal_is_said_without_what_has_no_message(beside: dict[str, Any]) -> None:
    refusal = AgentResponse(decision=Block(403))
    assert answered(msgspec.structs.replace(refusal, **beside)) == refusal
    with pytest.raises(AgentProtocolError):
        encode_answer(AgentResponse.allow(**beside), "c")


@pytest.mark.parametrize(("text", "config"), [("", None), ("{}", None), ("null", None), ("[1]", [1]), ("false", False)])
def test_a_configuration_is_json_and_an_empty_one_is_none(text: str, config: object) -> None:
    assert decode_config(text) == config


def test_a_handshake_says_no_configuration_as_the_published_client_does() -> None:
    assert parse(ProxyToAgent, encode_handshake("p", "1", None)).handshake.config_json == "{}"
    assert EventType.CONFIGURE not in CARRIED
