"""An agent as an external authorizer for Envoy, over gRPC."""

import logging
from typing import Any

import anyio
import pytest

pytest.importorskip("envoy.service.auth.v3", reason="xds-protos is not installed: pip install '.[grpc]'")

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from google.protobuf.json_format import MessageToDict, ParseDict
from msgspec.structs import replace

from asgi_agents import AgentResponse, EventType, HeaderOp, Headers
from asgi_agents.errors import AgentError, AgentProtocolError, ConfigurationError
from asgi_agents.exchange.reply import Reply
from asgi_agents.protocol import Block, Redirect, RequestBodyChunkEvent
from asgi_agents.serve.authorization import Permission, ShownBody
from asgi_agents.serve.grpc.ext_authz import ExtAuthzService, decode_question, encode_permission
from asgi_agents.transports.grpc.ext_authz import decode_check, encode_check
from tests.support.asgi import Held, Probe, SlowProbe
from tests.transports.grpc.test_ext_authz import BOTH, bound, served
from tests.transports.test_forward_auth import head

# As Envoy 1.40 sends it.
HTTP = {
    "id": "4711",
    "method": "POST",
    "path": "/orders?page=2",
    "host": "app.example",
    "scheme": "https",
    "protocol": "HTTP/2",
    "headers": {":authority": "app.example", ":path": "/orders?page=2", "x-request-id": "r-1", "x-name": "Jürgen"},
}


def question(http: dict[str, Any], **attributes: Any) -> bytes:
    fields = {
        "source": {"address": {"socketAddress": {"address": "192.0.2.7", "portValue": 40000}}},
        "request": {"time": "2026-01-01T00:00:00Z", "http": http},
    } | attributes
    message: bytes = ParseDict({"attributes": fields}, CheckRequest()).SerializeToString()
    return message


def answer(permission: Permission, headers: Headers | None = None) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(CheckResponse.FromString(encode_permission(permission, headers or Headers())))
    return found


def test_a_question_is_the_head_of_a_request() -> None:
    event, body = decode_question(question(HTTP))
    assert body is None
    assert (event.method, event.uri) == ("POST", "/orders?page=2")
    assert event.headers == {"host": ["app.example"], "x-request-id": ["r-1"], "x-name": ["J\xc3\xbcrgen"]}
    metadata = event.metadata
    assert (metadata.client_ip, metadata.client_port, metadata.request_id) == ("192.0.2.7", 40000, "r-1")
    assert (metadata.protocol, metadata.server_name) == ("HTTP/2", "app.example")
    assert metadata.timestamp == "2026-01-01T00:00:00Z"
    # Agents keep state under it: no client chooses it, and each question has another.
    assert metadata.correlation_id != decode_question(question(HTTP))[0].metadata.correlation_id
    without = {name: value for name, value in HTTP.items() if name != "headers"}
    assert decode_question(question(without))[0].metadata.request_id == "4711"


def test_metadata_that_can_not_be_said_makes_no_error_of_a_refusal() -> None:
    metadata = {"a": "\ud800"}
    said = answer(Permission(reply=Reply(403, [], b"no"), routing_metadata=metadata))
    assert (said["deniedResponse"]["status"]["code"], "dynamicMetadata" in said) == ("Forbidden", False)
    with pytest.raises(AgentProtocolError, match="routing_metadata"):
        answer(Permission(routing_metadata=metadata))


def test_raw_headers_are_read_with_all_their_values() -> None:
    fields = [("x-a", "MQ=="), ("x-a", "/w=="), (":path", "Lw=="), ("host", "b3RoZXI=")]
    raw = {"headers": [{"key": name, "rawValue": value} for name, value in fields]}
    http = {name: value for name, value in HTTP.items() if name != "headers"} | {"headerMap": raw}
    event, _ = decode_question(question(http))
    assert event.headers == {"x-a": ["1", "\xff"], "host": ["app.example"]}


def test_a_field_that_is_there_as_text_and_as_it_is_is_one() -> None:
    raw = {"headers": [{"key": "x-odd", "rawValue": "Y2Fm6Q=="}]}
    event, _ = decode_question(question(HTTP | {"headers": {"x-odd": "café", "x-a": "1"}, "headerMap": raw}))
    assert (event.headers["x-odd"], event.headers["x-a"]) == (("caf\xe9",), ("1",))


@pytest.mark.parametrize("op", [HeaderOp.set("x-odd", "caf\xe9"), HeaderOp.add("x-odd", "caf\xe9")])
def test_a_header_that_is_no_utf8_can_not_be_said(op: HeaderOp) -> None:
    with pytest.raises(AgentProtocolError, match="request_headers: the value of 'x-odd' is no UTF-8"):
        answer(Permission(request_headers=[op]))
    with pytest.raises(AgentProtocolError, match="response_headers: the value of 'x-odd' is no UTF-8"):
        answer(Permission(response_headers=[op]))


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({"body": "é"}, ShownBody("é".encode(), False)),
        ({"rawBody": "/wA="}, ShownBody(b"\xff\x00", False)),
        ({"body": "{", "headers": {"x-envoy-auth-partial-body": "true"}}, ShownBody(b"{", True)),
        ({"body": "{}", "headers": {"x-envoy-auth-partial-body": "false"}}, ShownBody(b"{}", False)),
        ({"headers": {"x-envoy-auth-partial-body": "false"}}, ShownBody(b"", False)),
        # Whatever a client makes of it.
        ({"body": "{}", "headers": {"x-envoy-auth-partial-body": "false,true"}}, ShownBody(b"{}", True)),
    ],
)
def test_a_question_may_have_a_body(fields: dict[str, Any], body: ShownBody) -> None:
    assert decode_question(question(HTTP | fields))[1] == body


@pytest.mark.parametrize("message", [b"\xff", b"", question({}), question({"method": "GET"}), question({"path": "/"})])
def test_what_is_no_question_about_a_request_is_refused(message: bytes) -> None:
    with pytest.raises(AgentProtocolError, match="expected"):
        decode_question(message)


def test_a_question_of_no_time_is_refused() -> None:
    message = CheckRequest.FromString(question(HTTP))
    message.attributes.request.time.seconds = 2**63 - 1
    with pytest.raises(AgentProtocolError, match=r"request\.time: expected"):
        decode_question(message.SerializeToString())


def test_an_allow_tells_envoy_what_to_change() -> None:
    permission = Permission(
        request_headers=[
            HeaderOp.set("x-user", "J\xc3\xbcrgen"),
            HeaderOp.remove("authorization"),
            HeaderOp.add("x-new", "1"),
            HeaderOp.add("x-new", "2"),
            HeaderOp.add("x-there", "1"),
        ],
        response_headers=[HeaderOp.add("set-cookie", "a"), HeaderOp.set("x-a", "1"), HeaderOp.add("x-a", "2")],
        routing_metadata={"user": "alice"},
    )

    def option(name: str, value: str, **fields: Any) -> dict[str, Any]:
        return {"header": {"key": name, "value": value}} | fields

    over = {"appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}
    assert answer(permission, Headers({"x-there": ["0"]})) == {
        "status": {},
        "dynamicMetadata": {"user": "alice"},
        "okResponse": {
            "headers": [
                option("x-user", "Jürgen", **over),
                # Envoy appends only to what is there.
                option("x-new", "1", **over),
                option("x-new", "2", append=True),
                option("x-there", "1", append=True),
            ],
            "headersToRemove": ["authorization"],
            "responseHeadersToAdd": [option("set-cookie", "a"), option("x-a", "1", **over), option("x-a", "2")],
        },
    }
    assert answer(Permission()) == {"status": {}, "okResponse": {}}


def test_a_denial_is_a_reply() -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"content-length", b"2"),
    ]
    found = answer(Permission(reply=Reply(401, headers, "é".encode()), routing_metadata={"a": "b"}))
    assert found == {
        "status": {"code": 16},
        "dynamicMetadata": {"a": "b"},
        "deniedResponse": {
            "status": {"code": "Unauthorized"},
            "body": "é",
            "headers": [
                {"header": {"key": "content-type", "value": "text/plain"}},
                {"header": {"key": "set-cookie", "value": "a"}},
                {"header": {"key": "set-cookie", "value": "b"}},
            ],
        },
    }
    # Also one that is no error: the status of the check says that it is a denial.
    assert answer(Permission(reply=Reply(200, [], b"")))["status"] == {"code": 7}


def test_headers_that_a_response_is_to_lose_can_not_be_told() -> None:
    with pytest.raises(AgentProtocolError, match="response_headers: 'server' removed"):
        answer(Permission(response_headers=[HeaderOp.remove("server")]))


ROUND_TRIPS = [
    None,
    AgentResponse.block(429, "slow down", headers={"retry-after": "7"}),
    AgentResponse.redirect("https://login.example/?rd=/", 303),
    AgentResponse.allow(
        request_headers=[HeaderOp.set("x-user", "alice"), HeaderOp.remove("cookie")],
        response_headers=[HeaderOp.add("set-cookie", "a"), HeaderOp.add("set-cookie", "b"), HeaderOp.set("x-a", "1")],
        routing_metadata={"shard": "7"},
    ),
]


@pytest.mark.parametrize("given", ROUND_TRIPS)
async def test_a_client_of_ours_gets_what_the_agent_has_answered(given: AgentResponse | None) -> None:
    agent = Probe(request_headers=given)
    async with served(ExtAuthzService(agent)) as url:
        client = bound(url)
        found = await client.call(head(headers={"x-name": ["J\xc3\xbcrgen"], "cookie": ["a=b"]}))
        await client.aclose()
    [event] = agent.of("request_headers")
    assert event.headers == {"x-name": ["J\xc3\xbcrgen"], "cookie": ["a=b"], "host": ["app.example"]}
    assert (event.uri, event.metadata.client_ip) == ("/orders?page=2", "192.0.2.7")
    match given:
        case AgentResponse(decision=Block(status, body)):
            assert found.decision == Block(status, body)
            assert ("retry-after", "7") in [(op.name, op.value) for op in found.response_headers]
        case AgentResponse(decision=Redirect()):
            assert found.decision == given.decision
        case _:
            expected = given or AgentResponse()
            assert found == replace(expected, version=found.version)


async def test_bodies_are_shown_and_judged() -> None:
    agent = Probe(
        request_headers=None, request_body=lambda event: AgentResponse.block(422) if event.data == b"no" else None
    )
    async with served(ExtAuthzService(agent)) as url:
        client = bound(url, events=BOTH)
        for data, allowed in ((b"no", False), (b"yes", True)):
            # Of a POST it would want to see the body at once.
            await client.call(head("DELETE", headers={"content-type": ["text/plain"]}))
            chunk = RequestBodyChunkEvent(correlation_id="c-1", data=data, is_last=True)
            assert (await client.call(chunk)).is_allow is allowed
        await client.aclose()


@pytest.mark.parametrize(
    "given",
    [
        AgentResponse.allow(response_headers=[HeaderOp.remove("server")]),
        AgentResponse(version=5),
        "allow",
        LookupError("s3cret"),
    ],
)
async def test_what_envoy_can_not_be_told_fails_the_call(given: Any, caplog: pytest.LogCaptureFixture) -> None:
    def react(event: Any) -> Any:
        if isinstance(given, Exception):
            raise given
        return given

    with caplog.at_level(logging.ERROR):
        async with served(ExtAuthzService(Probe(request_headers=react))) as url:
            client = bound(url)
            with pytest.raises(AgentError, match="INTERNAL"):
                await client.call(head())
            await client.aclose()
    assert caplog.records


async def test_what_is_no_question_fails_the_call() -> None:
    async with served(ExtAuthzService(Probe(request_headers=None))) as url:
        client = bound(url)
        channel = await client._asked._channels.get()
        with pytest.raises(AgentError, match="INVALID_ARGUMENT"):
            await channel.unary("/envoy.service.auth.v3.Authorization/Check", b"\xff")
        await client.aclose()


def test_an_agent_without_hooks_for_requests_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ext_authz: Probe receives neither"):
        ExtAuthzService(Probe(response_headers=None))


def test_the_two_ends_agree_on_every_field() -> None:
    event = head("PUT", headers={"content-length": ["2"], "x-a": ["1"], "cookie": ["a=b"]}, tls_version="TLSv1.3")
    found, body = decode_question(encode_check(event, b"{}", scheme=None, context_extensions={}))
    assert body == ShownBody(b"{}", False)
    assert {
        name: values for name, values in found.headers.items() if name != "x-envoy-auth-partial-body"
    } == event.headers
    assert (found.method, found.uri, found.metadata.client_port) == ("PUT", event.uri, 40000)
    permission = Permission(request_headers=[HeaderOp.set("x-a", "2"), HeaderOp.add("x-a", "3")])
    decoded = decode_check(encode_permission(permission, event.headers), event)
    assert list(decoded.request_headers) == permission.request_headers
    assert EventType.REQUEST_HEADERS in BOTH


async def test_questions_hold_so_many_bytes_and_no_more() -> None:
    waits = Held()
    service = ExtAuthzService(SlowProbe(request_headers=waits), max_held_bytes=1000)
    async with served(service) as url, anyio.create_task_group() as tasks:
        client = bound(url)
        tasks.start_soon(client.call, head())
        await waits.reached.wait()
        with pytest.raises(AgentError, match="RESOURCE_EXHAUSTED"):
            await client.call(head(headers={"x": ["y" * 900]}))
        waits.gate.set()
    async with served(service) as url:
        # All was given back.
        client = bound(url)
        assert (await client.call(head(headers={"x": ["y" * 500]}))).is_allow
        await client.aclose()
