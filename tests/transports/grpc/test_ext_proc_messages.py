"""Events and answers as Envoy's messages, in both directions, without a stream."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.errors import AgentProtocolError, NotApplicableError
from asgi_agents.exchange.headers import apply_header_ops
from asgi_agents.exchange.reply import Reply
from asgi_agents.protocol import (
    AgentResponse,
    AuditMetadata,
    Block,
    BodyMutation,
    EventType,
    HeaderOp,
    Headers,
    Redirect,
    RequestBodyChunkEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    check_response,
)
from asgi_agents.serve.grpc.ext_proc_answers import header_mutation, immediate_response, mode_override
from asgi_agents.serve.grpc.ext_proc_head import is_upgrade, scope_of
from asgi_agents.testing.events import request_headers_event, request_metadata
from asgi_agents.transports.grpc.ext_proc_answers import (
    CARRIES,
    Heads,
    attributes_of,
    common_answer,
    expects_body,
    metadata_of,
    mutation_of,
    refusal_of,
    replaces_message,
    request_of,
    streamed_of,
)
from asgi_agents.transports.grpc.ext_proc_exchange import expected
from asgi_agents.transports.grpc.ext_proc_messages import (
    AUDIT,
    ROUTING,
    HeaderValueOption,
    ProcessingMode,
    Side,
    audit_of_metadata,
    decode,
    header_map,
    make_streamed_reply,
    messages,
    metadata_of_audit,
    pairs_of,
    plain,
    streamed_reply,
    struct,
)
from asgi_agents.transports.grpc.ext_proc_sides import Held, TwoSides

METADATA = request_metadata(correlation_id="c", client_ip="192.0.2.1", client_port=7, protocol="HTTP/2")
NAMES = st.sampled_from(["x-a", "x-b", "set-cookie", "etag", "host", "cookie"])
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=8).map(
    lambda value: value.strip(" \t")
)
PAIRS = st.lists(st.tuples(NAMES.map(str.encode), VALUES.map(lambda value: value.encode("latin-1"))), max_size=8)


def option(name: str, value: str, action: Any = 0, *, append: bool | None = None) -> Any:
    made = HeaderValueOption(header={"key": name, "raw_value": value.encode("latin-1")}, append_action=action)
    if append is not None:
        made.append.value = append
    return made


def ops(*options: Any, remove: tuple[str, ...] = (), there: tuple[str, ...] = ()) -> list[HeaderOp]:
    heads = Heads()
    heads.note(request_headers_event(headers=dict.fromkeys(there, "1")))
    return [*heads.ops(messages.HeaderMutation(set_headers=options, remove_headers=remove), Side.REQUEST)]


# Events, there and back


def test_the_head_of_a_request_is_the_same_on_the_other_side() -> None:
    event = request_headers_event(
        "POST",
        "/a%20b/c?d=%C3%A9&e",
        {"host": "shop.example", "x-two": ["1", "2"], "x-latin": "caf\xe9", "content-length": "3"},
        metadata=METADATA,
    )
    request = request_of(event, begins=CARRIES)
    for name, values in attributes_of(event).items():
        request.attributes[name].CopyFrom(values)
    scope = scope_of(decode(messages.ProcessingRequest, request.SerializeToString()))
    assert (scope["method"], scope["path"], scope["raw_path"], scope["query_string"]) == (
        "POST",
        "/a b/c",
        b"/a%20b/c",
        b"d=%C3%A9&e",
    )
    assert (scope["scheme"], scope["http_version"], scope["client"]) == ("http", "2", ("192.0.2.1", 7))
    assert Headers.from_raw(scope["headers"]) == event.headers


@given(PAIRS, st.sampled_from(["GET", "PROPFIND"]), st.sampled_from(["/", "/x?y", "//", "/%2F;a=1"]))
def test_any_head_comes_through(pairs: list[tuple[bytes, bytes]], method: str, uri: str) -> None:
    headers = Headers.from_raw([(name, value) for name, value in pairs if name != b"host"])
    event = request_headers_event(method, uri, headers, metadata=METADATA)
    scope = scope_of(request_of(event))
    path, _, query = uri.encode().partition(b"?")
    assert (scope["method"], scope["raw_path"], scope["query_string"]) == (method, path, query)
    there = [(name, value) for name, value in scope["headers"] if name not in (b"host", b"transfer-encoding")]
    assert Headers.from_raw(there) == headers


@pytest.mark.parametrize(
    ("headers", "protocol", "ends"),
    [
        ({}, "HTTP/1.1", True),
        ({"content-length": "0"}, "HTTP/1.1", True),
        ({"content-length": "3"}, "HTTP/1.1", False),
        ({"transfer-encoding": "chunked"}, "HTTP/1.1", False),
        ({}, "HTTP/2", False),
        ({"content-length": "0"}, "HTTP/2", True),
    ],
)
def test_a_request_says_whether_a_body_follows(headers: dict[str, str], protocol: str, ends: bool) -> None:
    event = request_headers_event(headers=headers, metadata=request_metadata(protocol=protocol))
    assert request_of(event).request_headers.end_of_stream is ends


@pytest.mark.parametrize(("status", "length", "ends"), [(200, None, False), (200, "0", True), (304, None, True)])
def test_a_response_says_whether_a_body_follows(status: int, length: str | None, ends: bool) -> None:
    headers = Headers({} if length is None else {"content-length": [length]})
    request = request_of(ResponseHeadersEvent(correlation_id="c", status=status, headers=headers))
    assert request.response_headers.end_of_stream is ends
    assert pairs_of(request.response_headers.headers)[0] == (b":status", str(status).encode())


def test_the_first_message_says_how_bodies_are_sent() -> None:
    body = RequestBodyChunkEvent(correlation_id="c", data=b"a", is_last=True)
    heard = frozenset({EventType.REQUEST_BODY_CHUNK})
    assert request_of(body, begins=heard).protocol_config.request_body_mode == ProcessingMode.STREAMED
    duplex = request_of(body, begins=heard, mode="full_duplex_streamed").protocol_config
    assert (duplex.request_body_mode, duplex.response_body_mode) == (ProcessingMode.FULL_DUPLEX_STREAMED, 0)
    assert not request_of(body).HasField("protocol_config")
    assert (request_of(body).request_body.body, request_of(body).request_body.end_of_stream) == (b"a", True)
    chunk = ResponseBodyChunkEvent(correlation_id="c", data=b"b", is_last=False)
    assert (request_of(chunk).response_body.body, request_of(chunk).response_body.end_of_stream) == (b"b", False)


@pytest.mark.parametrize(
    ("attributes", "client"),
    [
        ({"source.address": "192.0.2.1:80"}, ("192.0.2.1", 80)),
        ({"source.address": "[2001:db8::1]:80"}, ("2001:db8::1", 80)),
        ({"source.address": "2001:db8::1", "source.port": 7}, ("2001:db8::1", 7)),
        ({"source.address": "192.0.2.1", "source.port": 7}, ("192.0.2.1", 7)),
        ({"source.address": "/run/envoy.sock"}, None),
        ({"source.address": "192.0.2.1:99999999"}, ("192.0.2.1", 0)),
        ({}, None),
    ],
)
def test_the_client_is_who_envoy_says_and_nobody_whom_a_header_names(
    attributes: dict[str, Any], client: tuple[str, int] | None
) -> None:
    request = request_of(request_headers_event(headers={"x-forwarded-for": "1.2.3.4", "x-envoy-external-address": "5"}))
    request.attributes["any.filter"].CopyFrom(struct(attributes))
    assert scope_of(request)["client"] == client


def test_a_request_whose_head_is_unknown_has_a_scope_all_the_same() -> None:
    scope = scope_of(None)
    assert (scope["method"], scope["path"], scope["headers"], scope["client"]) == ("GET", "/", [], None)


def test_headers_written_as_text_are_read_too() -> None:
    head = messages.HttpHeaders(headers={"headers": [{"key": ":path", "value": "/x"}, {"key": "X-A", "value": "é"}]})
    scope = scope_of(messages.ProcessingRequest(request_headers=head))
    assert scope["raw_path"] == b"/x"
    assert (b"x-a", "é".encode()) in scope["headers"]


def test_a_host_beside_the_authority_is_not_shown() -> None:
    pairs = [(":method", b"GET"), (":path", b"/"), (":authority", b"shop.example"), ("host", b"admin.example")]
    scope = scope_of(messages.ProcessingRequest(request_headers={"headers": header_map(pairs), "end_of_stream": True}))
    assert [value for name, value in scope["headers"] if name == b"host"] == [b"shop.example"]


def test_messages_of_no_bytes_are_held_within_a_bound() -> None:
    paused: list[None] = []
    held = Held(10**9)
    sides: TwoSides[int] = TwoSides(lambda: paused.append(None), lambda: paused.clear(), held)
    taken = 0
    while not paused:
        sides.put(taken, Side.REQUEST, 2)
        taken += 1
        assert taken < 1000
    for _ in range(taken):
        sides.take(Side.REQUEST)
    assert (paused, held.total) == ([], 0)


def test_what_comes_when_nobody_takes_any_more_is_not_held() -> None:
    held = Held(10**9)
    sides: TwoSides[int] = TwoSides(lambda: None, lambda: None, held)
    sides.put(1, Side.REQUEST, 5)
    sides.discard()
    # A call is over a moment after the exchange, and the peer may send until then.
    sides.put(2, Side.REQUEST, 5)
    sides.put(3, Side.RESPONSE, 5)
    assert (held.total, sides.waits(Side.REQUEST)) == (0, False)


def test_tls_and_upgrades_are_recognised() -> None:
    request = request_of(request_headers_event(headers={"upgrade": "websocket"}))
    request.attributes["x"].CopyFrom(struct({"connection.tls_version": "TLSv1.3", "request.protocol": "nonsense"}))
    scope = scope_of(request)
    assert scope["extensions"]["tls"]["tls_version"] == 0x0304
    assert scope["http_version"] == "1.1"
    assert is_upgrade(scope)
    assert is_upgrade(scope_of(request_of(request_headers_event("CONNECT"))))
    assert not is_upgrade(scope_of(request_of(request_headers_event())))


# What a served agent changes, as a client of ours understands it


@given(PAIRS, PAIRS, st.booleans())
def test_a_mutation_makes_of_any_headers_any_others(
    before: list[tuple[bytes, bytes]], after: list[tuple[bytes, bytes]], raw: bool
) -> None:
    before = [pair for pair in before if pair[0] != b"host"]
    after = [pair for pair in after if pair[0] != b"host"]
    if not raw:
        # Text can't carry anything else.
        before = [(name, value.decode("latin-1").encode()) for name, value in before]
        after = [(name, value.decode("latin-1").encode()) for name, value in after]
    mutation = header_mutation(before, after, raw=raw, length=False)
    heads = Heads()
    heads.note(request_headers_event(headers=Headers.from_raw(before)))
    changed = apply_header_ops(before, () if mutation is None else heads.ops(mutation, Side.REQUEST))
    assert _by_name(changed) == _by_name(after)
    assert (mutation is None) == (_by_name(before) == _by_name(after))


def _by_name(headers: list[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return found


def test_a_mutation_is_written_so_that_any_envoy_reads_it() -> None:
    before = [(b"x-a", b"1"), (b"x-old", b"1"), (b"host", b"a")]
    after = [(b"x-a", b"1"), (b"x-a", b"2"), (b"x-new", b"3"), (b"x-empty", b""), (b"host", b"b")]
    mutation = header_mutation(before, after, raw=True, length=False)
    assert mutation is not None
    assert list(mutation.remove_headers) == ["x-old"]
    added, new, empty, host = mutation.set_headers
    # Old ones know the flag alone, and take none for "no".
    assert (added.append.value, added.append_action) == (True, HeaderValueOption.APPEND_IF_EXISTS_OR_ADD)
    assert (new.HasField("append"), new.append_action) == (False, HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD)
    assert empty.keep_empty_value
    assert host.header.key == ":authority"
    for each in mutation.set_headers:
        assert not each.header.value
    text = header_mutation(before, after, raw=False, length=False)
    assert text is not None
    assert [each.header.value for each in text.set_headers] == ["2", "3", "", "b"]
    assert not any(each.header.raw_value for each in text.set_headers)


def test_framing_stays_the_proxys_and_the_length_changes_where_it_can() -> None:
    before = [(b"content-length", b"3"), (b"transfer-encoding", b"chunked"), (b"connection", b"close")]
    after = [(b"content-length", b"5"), (b"upgrade", b"x")]
    assert header_mutation(before, after, raw=True, length=False) is None
    mutation = header_mutation(before, after, raw=True, length=True)
    assert mutation is not None
    assert [each.header.key for each in mutation.set_headers] == ["content-length"]
    assert not mutation.remove_headers


def test_a_reply_comes_through_as_a_block() -> None:
    reply = Reply(
        429, [(b"retry-after", b"1"), (b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"content-length", b"4")], b"slow"
    )
    immediate = immediate_response(reply, raw=True, details="asgi_agents_limit")
    assert "content-length" not in [each.header.key for each in immediate.headers.set_headers]
    answer = refusal_of(messages.ProcessingResponse(immediate_response=immediate))
    assert answer.decision == Block(429, "slow", {"retry-after": "1", "set-cookie": "a", "content-type": "text/plain"})
    assert answer.response_headers == (HeaderOp.add("set-cookie", "b"),)
    assert answer.audit.reason_codes == ("asgi_agents_limit",)


def test_a_reply_with_a_location_comes_through_as_a_redirect() -> None:
    reply = Reply(302, [(b"location", b"https://x.example/"), (b"x-a", b"1")], b"")
    answer = refusal_of(
        messages.ProcessingResponse(immediate_response=immediate_response(reply, raw=False, details=""))
    )
    assert answer.decision == Redirect("https://x.example/", 302)
    assert answer.response_headers == (HeaderOp.set("x-a", "1"),)


# What other processors say


@pytest.mark.parametrize(
    ("options", "remove", "there", "expected_ops"),
    [
        ([option("X-A", "1")], (), (), [HeaderOp.set("x-a", "1")]),
        ([option("x-a", "1", append=True)], (), ("x-a",), [HeaderOp.add("x-a", "1")]),
        ([option("x-a", "1", append=False)], (), ("x-a",), [HeaderOp.set("x-a", "1")]),
        ([option("x-a", "1", HeaderValueOption.ADD_IF_ABSENT)], (), ("x-a",), []),
        ([option("x-a", "1", HeaderValueOption.ADD_IF_ABSENT)], (), (), [HeaderOp.set("x-a", "1")]),
        ([option("x-a", "1", HeaderValueOption.OVERWRITE_IF_EXISTS)], (), (), []),
        ([option("x-a", "1", HeaderValueOption.OVERWRITE_IF_EXISTS)], (), ("x-a",), [HeaderOp.set("x-a", "1")]),
        (
            [option("x-a", "1", HeaderValueOption.ADD_IF_ABSENT)],
            ("x-a",),
            ("x-a",),
            [HeaderOp.remove("x-a"), HeaderOp.set("x-a", "1")],
        ),
        (
            [option("x-a", "1"), option("x-a", "2", HeaderValueOption.ADD_IF_ABSENT)],
            (),
            (),
            [HeaderOp.set("x-a", "1")],
        ),
        ([option("x-a", "\xe9")], (), (), [HeaderOp.set("x-a", "\xe9")]),
        # What Envoy ignores unless its rules say otherwise, and the length, which is the middleware's.
        (
            [option("host", "a"), option(":authority", "a"), option(":method", "PUT"), option(":scheme", "x")],
            (),
            (),
            [],
        ),
        ([option("x-envoy-attempt-count", "1"), option("Content-Length", "5")], ("content-length", "host"), (), []),
    ],
)
def test_header_mutations_mean_what_their_definition_says(
    options: list[Any], remove: tuple[str, ...], there: tuple[str, ...], expected_ops: list[HeaderOp]
) -> None:
    assert ops(*options, remove=remove, there=there) == expected_ops


@pytest.mark.parametrize("name", [":path", ":status", ":anything"])
def test_what_only_a_proxy_can_change_is_an_error(name: str) -> None:
    with pytest.raises(AgentProtocolError, match="only a proxy"):
        ops(option(name, "x"))
    with pytest.raises(AgentProtocolError, match="only a proxy"):
        ops(remove=(name,))


@pytest.mark.parametrize(
    ("mutation", "expected_mutation"),
    [
        ({}, None),
        ({"body": b"new"}, BodyMutation(b"new")),
        ({"body": b""}, BodyMutation(b"")),
        ({"clear_body": True}, BodyMutation(b"")),
        ({"clear_body": False}, None),
    ],
)
def test_body_mutations(mutation: dict[str, Any], expected_mutation: BodyMutation | None) -> None:
    assert mutation_of(messages.CommonResponse(body_mutation=mutation)) == expected_mutation


def test_a_mutation_of_the_other_mode_is_an_error() -> None:
    streamed = messages.CommonResponse(body_mutation={"streamed_response": {"body": b"x", "end_of_stream": True}})
    assert streamed_of(streamed) == (b"x", True)
    with pytest.raises(AgentProtocolError, match="the mode is STREAMED"):
        mutation_of(streamed)
    with pytest.raises(AgentProtocolError, match="the mode is FULL_DUPLEX_STREAMED"):
        streamed_of(messages.CommonResponse(body_mutation={"body": b"x"}))


def test_continue_and_replace_ends_the_body_and_can_not_replace_it() -> None:
    replace = messages.CommonResponse.CONTINUE_AND_REPLACE
    assert not replaces_message(messages.CommonResponse())
    assert replaces_message(messages.CommonResponse(status=replace))
    with pytest.raises(NotApplicableError, match="only be replaced in answer to the body"):
        replaces_message(messages.CommonResponse(status=replace, body_mutation={"body": b"x"}))


@pytest.mark.parametrize(
    ("immediate", "decision"),
    [
        ({"status": {"code": 403}}, Block(403, "", {})),
        ({}, Block(200, "", {})),
        ({"status": {"code": 307}, "body": b"x"}, Block(307, "x", {"content-type": "text/plain"})),
        (
            {"status": {"code": 403}, "headers": {"set_headers": [option("Content-Type", "a/b")]}, "body": b"x"},
            Block(403, "x", {"content-type": "a/b"}),
        ),
    ],
)
def test_immediate_responses(immediate: dict[str, Any], decision: Block) -> None:
    answer = refusal_of(messages.ProcessingResponse(immediate_response=immediate))
    assert check_response(answer, may_mutate=False, may_set_host=False).decision == decision


@pytest.mark.parametrize(
    ("immediate", "decision"),
    [
        (
            {
                "status": {"code": 403},
                "headers": {"set_headers": [option("Content-Type", "image/png"), option("x-a", "1")]},
                "body": b"\xff",
            },
            Block(403, None, {"x-a": "1"}),
        ),
        (
            {
                "status": {"code": 429},
                "headers": {
                    "set_headers": [
                        option("connection", "close"),
                        option("transfer-encoding", "chunked"),
                        option("host", "x"),
                        option("x y", "1"),
                        option("x-a", "1\r\nx-b: 2"),
                    ]
                },
            },
            Block(429, "", {}),
        ),
        (
            {"status": {"code": 302}, "headers": {"set_headers": [option("location", "/a b"), option("x-a", "1")]}},
            Block(403, None, {"x-a": "1"}),
        ),
        ({"status": {"code": 799}, "body": b"no"}, Block(403, "no", {"content-type": "text/plain"})),
    ],
)
def test_a_reply_that_can_not_be_sent_as_it_is_is_a_denial_all_the_same(
    immediate: dict[str, Any], decision: Block
) -> None:
    answer = refusal_of(messages.ProcessingResponse(immediate_response=immediate))
    assert check_response(answer, may_mutate=False, may_set_host=False).decision == decision


def test_numbers_that_no_int_of_json_holds_stay_floats() -> None:
    said = struct({AUDIT: {"custom": {"a": 1e300, "b": 2.0**53}}, "pool": {"weight": 1e300}})
    routing, audit = metadata_of(messages.ProcessingResponse(dynamic_metadata=said))
    assert (audit.custom, routing) == ({"a": 1e300, "b": 2**53}, {"pool.weight": "1e300"})


def test_a_reply_in_pieces_that_is_none_is_an_error() -> None:
    whole = messages.ProcessingResponse.FromString(b"\x5a\x02\x0a\x7f")
    with pytest.raises(AgentProtocolError, match="no Empty"):
        streamed_reply(whole)


def test_a_response_to_something_else_is_an_error() -> None:
    with pytest.raises(AgentProtocolError, match="expected a response to request_body, got response_headers"):
        expected(messages.ProcessingResponse(response_headers={}), Side.REQUEST, "body")


def test_dynamic_metadata_is_routing_metadata() -> None:
    said = {
        ROUTING: {"tier": "gold"},
        "envoy.lb": {"canary": True, "weight": 3, "list": [1, "a"], "none": None},
        "flat": "x",
        AUDIT: {"rule_ids": ["r1"], "tags": "no list", "confidence": 0.5, "custom": {"a": {"b": 1}}},
    }
    routing, audit = metadata_of(messages.ProcessingResponse(dynamic_metadata=struct(said)))
    assert routing == {
        "tier": "gold",
        "envoy.lb.canary": "true",
        "envoy.lb.weight": "3",
        "envoy.lb.list": '[1,"a"]',
        "envoy.lb.none": "null",
        "flat": "x",
    }
    assert audit == AuditMetadata(rule_ids=["r1"], confidence=0.5, custom={"a": {"b": 1}})
    assert metadata_of(messages.ProcessingResponse()) == ({}, AuditMetadata())


TEXTS = st.lists(st.text(max_size=5), max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(TEXTS, TEXTS, TEXTS, st.none() | st.floats(0, 1), st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_what_an_agent_wants_recorded_comes_through(
    tags: list[str], rules: list[str], reasons: list[str], confidence: float | None, custom: dict[str, Any]
) -> None:
    audit = AuditMetadata(tags=tags, rule_ids=rules, reason_codes=reasons, confidence=confidence, custom=custom)
    assert audit_of_metadata(plain(struct({AUDIT: metadata_of_audit(audit)})).get(AUDIT)) == audit


@pytest.mark.parametrize("said", [None, "text", 3, [], {"tags": [1], "confidence": "high", "custom": []}])
def test_audit_of_another_shape_is_left_out(said: Any) -> None:
    assert audit_of_metadata(said) == AuditMetadata()


def test_metadata_that_no_struct_can_carry_is_an_error() -> None:
    with pytest.raises(AgentProtocolError, match="expected values as JSON has them"):
        struct({"a": object()})
    with pytest.raises(AgentProtocolError, match="expected values as JSON has them"):
        struct({"a": "\ud800"})


@pytest.mark.parametrize("size", [0, 5, 0x7F, 0x80, 70_000])
def test_replies_in_pieces_are_read_though_the_stubs_do_not_know_them(size: int) -> None:
    part = messages.StreamedBodyResponse(body=b"x" * size, end_of_stream=True)
    whole = make_streamed_reply(part).SerializeToString()
    found = streamed_reply(decode(messages.ProcessingResponse, whole))
    assert found == part
    assert streamed_reply(messages.ProcessingResponse(request_headers={})) is None


def test_a_common_answer_has_the_operations_of_its_side() -> None:
    common = messages.CommonResponse(header_mutation={"set_headers": [option("x-a", "1")]})
    response = messages.ProcessingResponse()
    heads = Heads()
    assert common_answer(response, common, Side.REQUEST, heads) == AgentResponse.allow(
        request_headers=[HeaderOp.set("x-a", "1")]
    )
    assert common_answer(response, common, Side.RESPONSE, heads) == AgentResponse.allow(
        response_headers=[HeaderOp.set("x-a", "1")]
    )
    assert common_answer(response, common, Side.RESPONSE, heads, with_headers=False) == AgentResponse.allow()


# What need not be sent

BOTH = {"request_body_mode": ProcessingMode.BUFFERED, "response_body_mode": ProcessingMode.STREAMED}


@pytest.mark.parametrize(
    ("known", "wanted", "override"),
    [
        # The agent wants all that there is.
        (BOTH, (True, True, True), None),
        ({}, (True, False, False), None),
        (BOTH, (True, True, False), {"request_body_mode": ProcessingMode.BUFFERED}),
        (BOTH, (False, False, False), {"response_header_mode": ProcessingMode.SKIP}),
        ({}, (False, True, True), {"response_header_mode": ProcessingMode.SKIP}),
        ({"request_body_mode": ProcessingMode.FULL_DUPLEX_STREAMED}, (False, False, False), None),
        # What is not known can't be kept.
        (None, (True, True, False), None),
        (None, (False, False, False), {"response_header_mode": ProcessingMode.SKIP}),
        (None, (True, False, False), {}),
    ],
)
def test_envoy_is_told_what_the_agent_does_not_want(
    known: dict[str, Any] | None, wanted: tuple[bool, bool, bool], override: dict[str, Any] | None
) -> None:
    config = None if known is None else messages.ProtocolConfiguration(**known)
    headers, request, response = wanted
    said = mode_override(config, response_headers=headers, request_body=request, response_body=response)
    assert said == (None if override is None else ProcessingMode(**override))


def test_what_is_no_message_is_an_error() -> None:
    with pytest.raises(AgentProtocolError, match="is no ProcessingResponse"):
        decode(messages.ProcessingResponse, b"\xff\xff\xff")


@pytest.mark.parametrize(
    ("method", "headers", "protocol", "expects"),
    [
        ("POST", {"content-length": "3"}, "HTTP/1.1", True),
        ("GET", {"content-length": "3"}, "HTTP/1.1", True),
        ("POST", {}, "HTTP/1.1", False),
        ("POST", {}, "HTTP/2", True),
        ("GET", {}, "HTTP/2", False),
        ("POST", {"content-length": "0"}, "HTTP/2", False),
    ],
)
def test_a_head_waits_for_a_body_that_most_likely_comes(
    method: str, headers: dict[str, str], protocol: str, expects: bool
) -> None:
    event = request_headers_event(method, headers=headers, metadata=request_metadata(protocol=protocol))
    assert expects_body(event, method) is expects


def test_no_head_waits_for_the_body_of_an_answer_to_head() -> None:
    event = ResponseHeadersEvent(correlation_id="c", status=200, headers=Headers({"content-length": ["3"]}))
    assert expects_body(event, "GET")
    assert not expects_body(event, "HEAD")
