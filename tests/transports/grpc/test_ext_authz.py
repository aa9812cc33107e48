"""External authorizers for Envoy, over gRPC: what they are asked, and what becomes of their answers."""

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

pytest.importorskip("envoy.service.auth.v3", reason="xds-protos is not installed: pip install '.[grpc]'")

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from google.protobuf.json_format import MessageToDict, ParseDict
from opentelemetry.sdk.trace import TracerProvider

from asgi_agents import AgentConfig, AgentResponse, EventType, GrpcTransport, HeaderOp
from asgi_agents.errors import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    AgentTimeoutError,
    ConfigurationError,
    EventTooLargeError,
)
from asgi_agents.protocol import Block, Redirect, RequestBodyChunkEvent, check_response
from asgi_agents.serve import serve_grpc
from asgi_agents.serve.grpc.service import GrpcService, StatusError
from asgi_agents.transports.authorization import HEADS
from asgi_agents.transports.grpc.ext_authz import decode_check, encode_check
from tests.transports.test_forward_auth import NO_PATHS, TOLD, head

BOTH = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})
DENIED = {"code": 7}


def asked(event: Any = None, body: bytes | None = None, **options: Any) -> dict[str, Any]:
    """A question as JSON, without the defaults."""
    options = {"scheme": None, "context_extensions": {}} | options
    found: dict[str, Any] = MessageToDict(
        CheckRequest.FromString(encode_check(event or head(), body, **options)), preserving_proto_field_name=True
    )["attributes"]
    return found


def answered(answer: Mapping[str, Any], event: Any = None) -> AgentResponse:
    """What becomes of an answer, which is given as JSON."""
    message = ParseDict(dict(answer), CheckResponse()).SerializeToString()
    return check_response(decode_check(message, event or head()), may_mutate=False, may_set_host=False)


def option(name: str, value: str, **fields: Any) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}} | fields


# --- The question -------------------------------------------------------------------------------------------------


def test_what_is_no_utf8_is_there_as_it_is_too() -> None:
    http = asked(head(headers={"x-odd": ["caf\xe9", "1"], "x-name": ["J\xc3\xbcrgen"]}))["request"]["http"]
    assert (http["headers"]["x-odd"], http["headers"]["x-name"]) == ("café, 1", "Jürgen")
    assert http["header_map"] == {"headers": [{"key": "x-odd", "raw_value": each} for each in ("Y2Fm6Q==", "MQ==")]}


@pytest.mark.parametrize(("more", "said"), [(False, None), (True, "true")])
def test_a_question_says_that_there_is_a_body_to_come(more: bool, said: str | None) -> None:
    assert asked(more=more)["request"]["http"]["headers"].get("x-envoy-auth-partial-body") == said


def test_a_question_has_what_envoys_has() -> None:
    event = head(
        "POST",
        headers={"content-length": ["17"], "accept": ["a", "b"], "cookie": ["a=1; b=2"], "x-name": ["J\xc3\xbcrgen"]},
        tls_version="TLSv1.3",
    )
    assert asked(event, context_extensions={"host": "local"}) == {
        "source": {"address": {"socket_address": {"address": "192.0.2.7", "port_value": 40000}}},
        "request": {
            "time": "2026-01-01T00:00:00Z",
            "http": {
                "id": "r-1",
                "method": "POST",
                "path": "/orders?page=2",
                "host": "app.example",
                "scheme": "https",
                "protocol": "HTTP/1.1",
                "size": "17",
                "headers": {
                    ":authority": "app.example",
                    ":method": "POST",
                    ":path": "/orders?page=2",
                    ":scheme": "https",
                    "host": "app.example",
                    "content-length": "17",
                    "accept": "a, b",
                    "cookie": "a=1; b=2",
                    "x-name": "Jürgen",
                },
            },
        },
        "context_extensions": {"host": "local"},
    }


@pytest.mark.parametrize(
    ("headers", "protocol", "size"),
    [
        ({}, "HTTP/1.1", None),
        ({"transfer-encoding": ["chunked"]}, "HTTP/1.1", "-1"),
        ({"content-length": ["9" * 30]}, "HTTP/1.1", None),
        ({"content-length": ["-1"]}, "HTTP/1.1", None),
        ({}, "HTTP/2", "-1"),
    ],
)
def test_a_size_that_is_not_known_is_minus_one(headers: dict[str, list[str]], protocol: str, size: str | None) -> None:
    from msgspec.structs import replace

    event = head(headers=headers)
    event = replace(event, metadata=replace(event.metadata, protocol=protocol))
    assert asked(event)["request"]["http"].get("size") == size


def test_a_body_comes_whole_as_text_or_as_bytes() -> None:
    http = asked(body='{"a":"é"}'.encode())["request"]["http"]
    assert (http["body"], http["size"], http["headers"]["x-envoy-auth-partial-body"]) == ('{"a":"é"}', "10", "false")
    http = asked(body=b"\xff\x00")["request"]["http"]
    assert (http["raw_body"], "body" in http) == ("/wA=", False)


def test_a_client_can_say_nothing_about_the_body_or_the_pseudo_headers() -> None:
    event = head(headers={"x-envoy-auth-partial-body": ["false"], ":path": ["/public"]})
    headers = asked(event)["request"]["http"]["headers"]
    assert "x-envoy-auth-partial-body" not in headers
    assert headers[":path"] == "/orders?page=2"


@pytest.mark.parametrize("name", [*TOLD, "x-forwarded-client-cert", "x-envoy-internal", "x-envoy-auth-partial-body"])
def test_a_client_can_not_speak_for_a_proxy(name: str) -> None:
    for spelling in {name, name.replace("-", "_"), name.replace("-", "_", 1)}:
        question = asked(head(headers={spelling: ["evil"]}))
        assert "evil" not in question["request"]["http"]["headers"].values()
        assert question["source"]["address"]["socket_address"]["address"] == "192.0.2.7"


def test_bytes_that_are_no_text_and_events_made_by_hand_can_be_asked_about() -> None:
    from msgspec.structs import replace

    event = head(uri="/\xff", headers={"x-raw": ["\xff"]}, client_ip="")
    event = replace(event, metadata=replace(event.metadata, timestamp="", server_name=None))
    found = asked(event, scheme="http")
    assert "source" not in found
    assert found["request"]["http"]["headers"]["x-raw"] == "ÿ"


# --- The answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [{}, {"status": {}}, {"ok_response": {}}, {"status": {"message": "fine"}}])
def test_status_ok_allows(answer: dict[str, Any]) -> None:
    assert answered(answer) == AgentResponse()


def test_an_allow_changes_headers_as_envoy_does() -> None:
    ok = {
        "headers": [
            option("X-User", "alice"),
            option("x-group", "a"),
            option("x-group", "b"),
            option("x-also", "1", append=True),
            option("x-over", "1", append=False),
            option("x-set", "1", append_action="OVERWRITE_IF_EXISTS_OR_ADD"),
            option("x-there", "1", append_action="ADD_IF_ABSENT"),
            option("x-absent", "1", append_action="ADD_IF_ABSENT"),
            option("x-there", "2", append_action="OVERWRITE_IF_EXISTS"),
            option("x-gone", "2", append_action="OVERWRITE_IF_EXISTS"),
            option("x-name", "Jürgen"),
            {"header": {"key": "x-raw", "raw_value": "/w=="}},
        ],
        "headers_to_remove": ["authorization", "Host", ":path"],
        "response_headers_to_add": [
            option("set-cookie", "a"),
            option("set-cookie", "b"),
            option("x-a", "1", append=False),
        ],
    }
    found = answered({"ok_response": ok}, head(headers={"x-there": ["0"]}))
    assert list(found.request_headers) == [
        HeaderOp.set("x-user", "alice"),
        HeaderOp.set("x-group", "a"),
        HeaderOp.add("x-group", "b"),
        HeaderOp.add("x-also", "1"),
        HeaderOp.set("x-over", "1"),
        HeaderOp.set("x-set", "1"),
        HeaderOp.set("x-absent", "1"),
        HeaderOp.set("x-there", "2"),
        HeaderOp.set("x-name", "J\xc3\xbcrgen"),
        HeaderOp.set("x-raw", "\xff"),
        HeaderOp.remove("authorization"),
    ]
    assert list(found.response_headers) == [
        HeaderOp.add("set-cookie", "a"),
        HeaderOp.add("set-cookie", "b"),
        HeaderOp.set("x-a", "1"),
    ]


def test_dynamic_metadata_is_routing_metadata() -> None:
    metadata = {"user": "alice", "level": 3, "tags": ["a"], "ok": True, "none": None}
    expected = {"user": "alice", "level": "3.0", "tags": '["a"]', "ok": "true", "none": "null"}
    assert answered({"dynamic_metadata": metadata}).routing_metadata == expected
    both = {"dynamic_metadata": metadata, "ok_response": {"dynamic_metadata": {"user": "bob"}}}
    assert answered(both).routing_metadata == {"user": "bob"}
    assert answered({"status": DENIED, "dynamic_metadata": metadata}).routing_metadata == expected


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (
            {"ok_response": {"query_parameters_to_set": [{"key": "a", "value": "b"}]}},
            "query_parameters_to_set: no agent",
        ),
        ({"ok_response": {"query_parameters_to_remove": ["a"]}}, "query_parameters_to_remove: no agent"),
        ({"ok_response": {"headers": [option(":path", "/x")]}}, "may change the pseudo-header ':path'"),
        ({"ok_response": {"headers": [option("Host", "x")]}}, "'host' may only be changed"),
        ({"ok_response": {"headers": [option("content-length", "1")]}}, "'content-length' belongs to the server"),
        ({"ok_response": {"headers": [option("x", "a\r\nb: c")]}}, "contains control"),
        ({"ok_response": {"headers": [option("a b", "c")]}}, "not a token"),
        ({"ok_response": {"headers": [option("x", "y", append_action=7)]}}, "append_action 7 is not known"),
        (
            {"ok_response": {"response_headers_to_add": [option("x", "y", append_action="ADD_IF_ABSENT")]}},
            "ADD_IF_ABSENT, of headers that are not known yet",
        ),
        ({"denied_response": {"status": {"code": 403}}}, "denied_response: beside status OK"),
        ({"error_response": {"status": {"code": 500}}}, "error_response: beside status OK"),
    ],
)
def test_an_allow_with_what_no_agent_may_do_is_a_failure(answer: dict[str, Any], fault: str) -> None:
    with pytest.raises(AgentProtocolError, match=fault) as caught:
        answered(answer)
    assert "a\r\nb" not in str(caught.value)


def test_what_is_no_answer_is_a_failure() -> None:
    with pytest.raises(AgentProtocolError, match=r"no envoy\.service\.auth\.v3\.CheckResponse"):
        decode_check(b"\xff\xff", head())
    with pytest.raises(AgentError, match="has failed: status 14"):
        answered({"status": {"code": 14}, "error_response": {"status": {"code": 503}}})


def test_a_denial_is_what_the_client_gets() -> None:
    denied = {
        "status": {"code": 401},
        "headers": [
            option("www-authenticate", "Basic"),
            option("set-cookie", "a=1"),
            option("set-cookie", "b=2"),
            option("x-one", "1"),
            option("x-one", "2", append=False),
            option("content-type", "application/json"),
            # What no reply may have is left out: it is a denial all the same.
            option("content-length", "7"),
            option(":status", "200"),
            option("x\r\ny", "z"),
            option("x-bad", "a\r\nb"),
        ],
        "body": '{"a":1}',
    }
    found = answered({"status": {"code": 16}, "denied_response": denied})
    assert found.decision == Block(401, '{"a":1}')
    assert [(op.kind, op.name, op.value) for op in found.response_headers] == [
        ("set", "www-authenticate", "Basic"),
        ("set", "set-cookie", "a=1"),
        ("add", "set-cookie", "b=2"),
        ("set", "x-one", "2"),
        ("set", "content-type", "application/json"),
    ]


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        ({"status": DENIED}, Block(403, None)),
        ({"status": {"code": 99}}, Block(403, None)),
        ({"status": DENIED, "ok_response": {}}, Block(403, None)),
        ({"status": DENIED, "denied_response": {}}, Block(403, "")),
        ({"status": DENIED, "denied_response": {"status": {"code": 599}}}, Block(403, "")),
        ({"status": DENIED, "denied_response": {"status": {"code": 429}, "body": "slow"}}, Block(429, "slow")),
        ({"status": DENIED, "denied_response": {"status": {"code": 503}}}, Block(503, "")),
        ({"status": DENIED, "denied_response": {"status": {"code": 302}}}, Block(403, None)),
        (
            {"status": DENIED, "denied_response": {"status": {"code": 302}, "headers": [option("Location", "/é")]}},
            Redirect("/é", 302),
        ),
    ],
)
def test_the_status_of_a_denial(answer: dict[str, Any], decision: Any) -> None:
    if decision == Block(403, "") and answer["denied_response"]:
        # Not one of the codes that protobuf's JSON knows by number.
        decision = Block(599, "")
    assert answered(answer).decision == decision


def test_metadata_that_json_does_not_have_makes_no_failure_of_a_denial() -> None:
    answer = CheckResponse(status={"code": 7}, denied_response={})
    answer.dynamic_metadata.update({"a": math.nan})
    assert decode_check(answer.SerializeToString(), head()).decision == Block(403, "")
    answer = CheckResponse()
    answer.dynamic_metadata.update({"a": math.nan})
    with pytest.raises(AgentProtocolError, match="dynamic_metadata"):
        decode_check(answer.SerializeToString(), head())


# --- Over the wire ------------------------------------------------------------------------------------------------


class Authorizer(GrpcService):
    """Answers as it is told, and remembers what it was asked."""

    name = "envoy.service.auth.v3.Authorization"

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.unary = {"Check": self.check}
        self.answer = answer
        self.asked: list[Any] = []
        self.metadata: list[dict[str, Any]] = []

    async def check(self, message: bytes, rpc: Any) -> bytes:
        request = CheckRequest.FromString(message)
        self.asked.append(request.attributes)
        self.metadata.append(dict(rpc.metadata))
        found = self.answer(request.attributes.request.http)
        if not isinstance(found, dict):
            found = await found
        encoded: bytes = ParseDict(found, CheckResponse()).SerializeToString()
        return encoded


@asynccontextmanager
async def served(authorizer: GrpcService, bind: str = "127.0.0.1:0", **options: Any) -> AsyncIterator[str]:
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(partial(serve_grpc, [authorizer], bind, **options))
        try:
            yield address.replace("unix:", "grpc+unix:")
        finally:
            tasks.cancel_scope.cancel()


def bound(url: str, *, config: Any = None, events: Any = None, **options: Any) -> Any:
    transport = GrpcTransport(url, protocol="ext_authz", **options)
    return transport.bind("opa", events=events, config=config, max_concurrent_calls=10)


def test_it_needs_no_events() -> None:
    config = AgentConfig("opa", GrpcTransport("grpc://127.0.0.1:9191", protocol="ext_authz"))
    assert config.hears == HEADS


async def test_an_authorizer_is_asked_and_its_answer_comes_back(tmp_path: Any) -> None:
    authorizer = Authorizer(
        lambda http: (
            {"status": DENIED} if http.path == "/no" else {"ok_response": {"headers": [option("x-user", "alice")]}}
        )
    )
    for bind in ("127.0.0.1:0", f"unix://{tmp_path}/s"):
        async with served(authorizer, bind) as url:
            client = bound(url, config={"tenant": "a"})
            await client.connect()
            assert (await client.call(head(uri="/no"))).decision == Block(403, None)
            assert list((await client.call(head())).request_headers) == [HeaderOp.set("x-user", "alice")]
            assert dict(authorizer.asked[-1].context_extensions) == {"tenant": "a"}
            await client.push_config({"tenant": "b"})
            await client.call(head())
            assert dict(authorizer.asked[-1].context_extensions) == {"tenant": "b"}
            with pytest.raises(AgentError, match="expected strings by name"):
                await client.push_config({"tenant": 5})
            await client.aclose()


@pytest.mark.parametrize("uri", NO_PATHS)
async def test_a_target_that_is_no_path_is_refused_before_anybody_is_asked(uri: str) -> None:
    authorizer = Authorizer(lambda http: {})
    async with served(authorizer) as url:
        client = bound(url)
        answer = await client.call(head(uri=uri))
        await client.aclose()
    assert isinstance(answer.decision, Block)
    assert (answer.decision.status, authorizer.asked) == (400, [])


async def test_the_current_span_travels_with_the_question() -> None:
    authorizer = Authorizer(lambda http: {})
    async with served(authorizer) as url:
        client = bound(url)
        with TracerProvider().get_tracer(__name__).start_as_current_span("request") as span:
            await client.call(head())
        assert f"{span.get_span_context().trace_id:032x}" in authorizer.metadata[0]["traceparent"]
        await client.aclose()


async def test_with_bodies_it_is_asked_about_the_head_and_then_about_both() -> None:
    authorizer = Authorizer(lambda http: {} if http.body == "please" else {"status": DENIED})
    async with served(authorizer) as url:
        client = bound(url, events=BOTH)
        first = await client.call(head("POST"))
        assert (first.decision, first.needs_more) == (Block(403, None), True)
        chunk = RequestBodyChunkEvent(correlation_id="c-1", data=b"please", is_last=True)
        assert await client.call(chunk) == AgentResponse()
        client.forget("c-1")
        with pytest.raises(AgentError, match="was not shown"):
            await client.call(chunk)
        await client.aclose()


async def test_what_goes_wrong_on_the_way_is_an_agent_error() -> None:
    async def never(http: Any) -> Any:
        await anyio.sleep_forever()

    async def fail(http: Any) -> Any:
        raise StatusError("PERMISSION_DENIED", "s3cret")

    import time

    async with served(Authorizer(never)) as url:
        client = bound(url, max_event_bytes=100)
        with pytest.raises(EventTooLargeError, match="max_event_bytes"):
            await client.call(head(headers={"x": ["y" * 100]}))
        await client.aclose()
        client = bound(url)
        with pytest.raises(AgentTimeoutError):
            await client.call(head(), time.monotonic() + 0.05)
        await client.aclose()
    async with served(Authorizer(fail)) as url:
        client = bound(url)
        # A status of the call is no answer of the service: Envoy takes it for a failure, too.
        with pytest.raises(AgentError, match="PERMISSION_DENIED") as caught:
            await client.call(head())
        assert "s3cret" not in str(caught.value)
        await client.aclose()
    client = bound(url, connect_timeout=0.5)
    with pytest.raises(AgentConnectionError):
        await client.call(head())
    with pytest.raises(AgentConnectionError):
        await client.connect()
    await client.retire()


def test_what_can_not_work_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="strings by name"):
        bound("grpc://127.0.0.1:1", config={"a": 1})
    with pytest.raises(ConfigurationError, match="events lack request_headers"):
        bound("grpc://127.0.0.1:1", events=frozenset({EventType.REQUEST_BODY_CHUNK}))
    with pytest.raises(ConfigurationError, match="scheme='ftp', expected 'http', 'https' or None"):
        bound("grpc://127.0.0.1:1", scheme="ftp")
    with pytest.raises(ConfigurationError, match="response_headers, which its transport can't carry"):
        AgentConfig(
            "opa", GrpcTransport("grpc://127.0.0.1:9191", protocol="ext_authz"), events={EventType.RESPONSE_HEADERS}
        )
