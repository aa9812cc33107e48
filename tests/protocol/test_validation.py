from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_agents.errors import AgentProtocolError
from asgi_agents.protocol import (
    ALLOW,
    TOKEN,
    Acknowledgement,
    AgentResponse,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    GuardrailResponse,
    HeaderOp,
    Redirect,
    WebSocketClose,
    WebSocketDrop,
    check_response,
)

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SECRET = "hunter2"


def check(response: object, *, may_mutate: bool = False, may_set_host: bool = False) -> AgentResponse:
    return check_response(response, may_mutate=may_mutate, may_set_host=may_set_host)


def unchecked(**fields: Any) -> AgentResponse:
    """A response as an in-process agent without a type checker may make it."""
    return AgentResponse(**fields)


def refusal(response: object, **allowed: bool) -> str:
    with pytest.raises(AgentProtocolError) as caught:
        check(response, **allowed)
    return str(caught.value)


def test_nothing_to_say_is_allow() -> None:
    assert check(None) is ALLOW
    assert check(ALLOW) is ALLOW


def test_a_response_that_can_be_applied_is_returned_as_it_is() -> None:
    response = AgentResponse.allow(
        request_headers=[HeaderOp.set("x-user", "alice"), HeaderOp.remove("cookie")],
        response_headers=[HeaderOp.add("set-cookie", "a=1")],
        routing_metadata={"pool": "blue"},
        audit=AuditMetadata(tags=("t",), custom={"any": [1]}),
        request_body_mutation=BodyMutation(b"x"),
        response_body_mutation=BodyMutation(b""),
    )

    assert check(response, may_mutate=True) is response


@pytest.mark.parametrize(
    "answer",
    [
        True,
        "allow",
        {"decision": "allow"},
        Block(403),
        AgentResponse,
        GuardrailResponse(detected=False),
        Acknowledgement(success=True),
    ],
    ids=repr,
)
def test_anything_else_than_a_response_is_refused(answer: object) -> None:
    assert "expected an AgentResponse or None" in refusal(answer)


@pytest.mark.parametrize("version", [1, 3, "2", None, 2.0, True])
def test_any_other_version_is_refused(version: Any) -> None:
    assert refusal(unchecked(version=version)).startswith("version: expected 2")


@pytest.mark.parametrize("decision", [None, "block", Block, WebSocketDrop(), {"block": {}}], ids=repr)
def test_anything_else_than_a_decision_is_refused(decision: Any) -> None:
    assert refusal(unchecked(decision=decision)).startswith("decision: expected Allow, Block, Redirect or Challenge")


# Block


@pytest.mark.parametrize("status", [200, 204, 299, 304, 403, 418, 499, 503, 599])
def test_a_block_may_have_any_final_status(status: int) -> None:
    assert check(AgentResponse.block(status)).decision == Block(status)


@pytest.mark.parametrize("status", [-1, 0, 99, 100, 101, 199, 600, 1000, True, 403.0, "403", None, [403]], ids=repr)
def test_a_block_with_any_other_status_is_refused(status: Any) -> None:
    assert refusal(AgentResponse.block(status)).startswith("decision.block.status: expected 200 to 599")


@pytest.mark.parametrize("body", [b"no", 1, ["no"], "\ud800", "a\udfff"], ids=repr)
def test_a_block_body_is_text_that_utf_8_can_carry(body: Any) -> None:
    assert refusal(AgentResponse.block(403, body)).startswith("decision.block.body: ")


@pytest.mark.parametrize("body", ["", "no", "\x00\r\n", "caf\xe9 \U0001f600"], ids=repr)
def test_a_block_body_may_be_any_such_text(body: str) -> None:
    assert check(AgentResponse.block(403, body)).decision == Block(403, body)


@pytest.mark.parametrize(
    "headers",
    [
        [("a", "b")],
        "a: b",
        {"a": 1},
        {1: "a"},
        {b"a": b"b"},
        {"a": None},
        {"a": ["1", "2"]},
        {"content-length": "0"},
        {"Transfer-Encoding": "chunked"},
        {"host": "evil"},
        {"a b": "c"},
        {"": "c"},
        {":status": "200"},
        {"a": "b\r\nset-cookie: c"},
        {"a": "\u20ac"},
    ],
    ids=repr,
)
def test_block_headers_are_under_the_same_rules(headers: Any) -> None:
    message = refusal(AgentResponse.block(403, headers=headers), may_set_host=True)

    assert message.startswith("decision.block.headers: ")


# Redirect


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_may_have_any_redirecting_status(status: int) -> None:
    assert check(AgentResponse.redirect("/login", status)).decision == Redirect("/login", status)


@pytest.mark.parametrize("status", [200, 300, 304, 305, 306, 309, 400, None, "302", 302.0, [302]], ids=repr)
def test_a_redirect_with_any_other_status_is_refused(status: Any) -> None:
    assert refusal(AgentResponse.redirect("/", status)).startswith("decision.redirect.status: expected one of [301, ")


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "/ ",
        "/a b",
        "/\r\nset-cookie: a=b",
        "/\n",
        "\t/",
        "/\x00",
        "/\x7f",
        "/\ud800",
        None,
        b"/",
        1,
    ],
    ids=repr,
)
def test_a_redirect_to_what_is_no_url_is_refused(url: Any) -> None:
    assert refusal(AgentResponse.redirect(url)).startswith("decision.redirect.url: ")


@pytest.mark.parametrize("url", ["/", "?a=b", "https://login.example/?next=%2F", "/caf\xe9", "/\U0001f600"])
def test_a_redirect_may_go_anywhere(url: str) -> None:
    assert check(AgentResponse.redirect(url)).decision == Redirect(url)


# Challenge


@pytest.mark.parametrize("challenge_type", ["", "a b", "a\r\nb", "a,b", "caf\xe9", None, 1, b"basic"], ids=repr)
def test_a_challenge_type_is_a_token(challenge_type: Any) -> None:
    assert refusal(AgentResponse.challenge(challenge_type)).startswith("decision.challenge.challenge_type: ")


@pytest.mark.parametrize(
    "params",
    [
        [("realm", "api")],
        {"realm": 1},
        {1: "api"},
        {"re alm": "api"},
        {"": "api"},
        {"realm": "a\r\nset-cookie: b"},
        {"realm": "\x00"},
        {"realm": "\u20ac"},
        {"realm": "\ud800"},
        {'realm="x", evil': "y"},
    ],
    ids=repr,
)
def test_challenge_params_fit_into_a_header(params: Any) -> None:
    message = refusal(unchecked(decision=Challenge("bearer", params)))

    assert message.startswith("decision.challenge.params: ")


@pytest.mark.parametrize("params", [{}, {"realm": 'a "quoted" \\ one'}, {"error": "", "x-y": "caf\xe9"}], ids=repr)
def test_challenge_params_may_be_any_text_that_does(params: Mapping[str, str]) -> None:
    assert check(AgentResponse.challenge("bearer", params)).decision == Challenge("bearer", params)


# Header operations

UNTOUCHABLE = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
]


@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("name", UNTOUCHABLE)
@pytest.mark.parametrize("field", ["request_headers", "response_headers"])
def test_framing_and_hop_by_hop_headers_are_untouchable(field: str, name: str, spelling: Any) -> None:
    for op in (HeaderOp.set(spelling(name), "x"), HeaderOp.add(spelling(name), "x"), HeaderOp.remove(spelling(name))):
        message = refusal(unchecked(**{field: (HeaderOp.set("ok", "1"), op)}), may_mutate=True, may_set_host=True)

        assert message == f"{field}[1]: {name!r} belongs to the server, no agent may change it"


@pytest.mark.parametrize("name", ["content-lengths", "te-st", "x-connection", "sec-websocket", "proxy", "hostname"])
def test_headers_that_only_look_like_those_may_be_changed(name: str) -> None:
    response = AgentResponse.allow(request_headers=[HeaderOp.set(name, "x")])

    assert check(response) is response


@pytest.mark.parametrize("name", ["host", "Host", "HOST"])
def test_host_may_be_changed_where_the_agent_may_and_only_on_requests(name: str) -> None:
    on_request = AgentResponse.allow(request_headers=[HeaderOp.set(name, "a.example")])
    on_response = AgentResponse.allow(response_headers=[HeaderOp.set(name, "a.example")])

    assert refusal(on_request).startswith("request_headers[0]: 'host'")
    assert check(on_request, may_set_host=True) is on_request
    assert refusal(on_response, may_set_host=True).startswith("response_headers[0]: 'host'")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a:",
        ":path",
        ":status",
        ":authority",
        "a\r\nb",
        "a\n",
        "a\x00",
        "(a)",
        "caf\xe9",
        "\u212a",
        None,
        b"a",
        1,
    ],
    ids=repr,
)
@pytest.mark.parametrize("make", [lambda name: HeaderOp.set(name, "x"), HeaderOp.remove], ids=["set", "remove"])
def test_a_header_name_is_a_token(make: Any, name: Any) -> None:
    assert refusal(AgentResponse.allow(request_headers=[make(name)])).startswith("request_headers[0]: ")


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nb: c",
        "a\rb",
        "a\n",
        "\x00",
        "a\x0bb",
        "a\x0cb",
        "a\x1b[31m",
        "a\x7f",
        "\u0100",
        "\u20ac",
        "\ud800",
        None,
        b"a",
        1,
    ],
    ids=repr,
)
def test_a_header_value_is_free_of_what_can_not_be_sent(value: Any) -> None:
    for op in (HeaderOp.set("x", value), HeaderOp.add("x", value)):
        assert refusal(AgentResponse.allow(response_headers=[op])).startswith("response_headers[0]: ")


@pytest.mark.parametrize("value", ["", "a b", "a\tb", "\xff\xfe", '"quoted"', "a=b; c"], ids=repr)
def test_a_header_value_may_be_any_latin_1(value: str) -> None:
    response = AgentResponse.allow(response_headers=[HeaderOp.set("x", value)])

    assert check(response) is response


@steady
@given(st.text(max_size=3), st.text(max_size=3))
def test_what_is_accepted_can_always_be_sent(name: str, value: str) -> None:
    response = AgentResponse.allow(response_headers=[HeaderOp.set(name, value)])
    try:
        check(response)
    except AgentProtocolError:
        return

    assert TOKEN.match(name)
    raw = value.encode("latin-1")
    assert not {b"\r", b"\n", b"\x00"} & {bytes([byte]) for byte in raw}


@pytest.mark.parametrize(
    "ops",
    [
        None,
        1,
        "x",
        [None],
        ["x"],
        [("set", "a", "b")],
        [{"set": {"name": "a", "value": "b"}}],
        [HeaderOp("append", "a", "b")],  # type: ignore[arg-type]
        [HeaderOp(["set"], "a", "b")],  # type: ignore[arg-type]
        {"a": "b"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("field", ["request_headers", "response_headers"])
def test_header_operations_are_a_sequence_of_header_operations(field: str, ops: Any) -> None:
    assert refusal(unchecked(**{field: ops})).startswith(field)


@pytest.mark.parametrize("always", ["no", 1, None], ids=repr)
@pytest.mark.parametrize("field", ["request_headers", "response_headers"])
def test_always_is_a_bool(field: str, always: Any) -> None:
    ops = [HeaderOp.remove("a"), HeaderOp("set", "a", "b", always)]
    assert refusal(unchecked(**{field: ops})).startswith(f"{field}[1].always: expected a bool")


@pytest.mark.parametrize("op", [HeaderOp.set("connection", "x", always=True), HeaderOp.set("a", "\n", always=True)])
def test_what_is_done_always_may_do_no_more_than_the_rest(op: HeaderOp) -> None:
    assert refusal(unchecked(response_headers=[op])).startswith("response_headers[0]: ")


def test_header_operations_from_an_iterator_are_not_lost_by_checking_them() -> None:
    ops: Any = iter([HeaderOp.remove("authorization")])
    response = AgentResponse.allow(request_headers=ops)

    try:
        checked = check(response)
    except AgentProtocolError as exc:
        assert str(exc).startswith("request_headers: ")  # noqa: PT017 - to refuse them is as good
    else:
        assert list(checked.request_headers) == [HeaderOp.remove("authorization")]


def test_no_message_quotes_a_header_value() -> None:
    for response in (
        AgentResponse.allow(request_headers=[HeaderOp.set("authorization", f"{SECRET}\r\n")]),
        AgentResponse.allow(request_headers=[HeaderOp.set("content-length", SECRET)]),
        AgentResponse.allow(request_headers=[HeaderOp.set("a b", SECRET)]),
        AgentResponse.block(403, headers={"authorization": f"{SECRET}\x00"}),
        AgentResponse.challenge("bearer", {"realm": f"{SECRET}\n"}),
        AgentResponse.redirect(f"/?token={SECRET}\n"),
        AgentResponse.block(403, f"{SECRET}\ud800"),
        unchecked(request_body_mutation=BodyMutation(SECRET)),  # type: ignore[arg-type]
        unchecked(routing_metadata={"key": SECRET.encode()}),
    ):
        assert SECRET not in refusal(response)


# Mutations

MUTATION_FIELDS = ["request_body_mutation", "response_body_mutation"]


@pytest.mark.parametrize("field", MUTATION_FIELDS)
@pytest.mark.parametrize("data", [b"", b"x"])
def test_an_agent_that_may_only_read_may_not_mutate(field: str, data: bytes) -> None:
    response = unchecked(**{field: BodyMutation(data)})

    assert refusal(response).startswith(f"{field}: ")
    assert check(response, may_mutate=True) is response


@pytest.mark.parametrize("field", MUTATION_FIELDS)
def test_passing_a_chunk_is_no_mutation(field: str) -> None:
    response = unchecked(**{field: BodyMutation(None)})

    assert check(response) is response


@pytest.mark.parametrize("field", MUTATION_FIELDS)
@pytest.mark.parametrize(
    "mutation",
    [
        b"x",
        "x",
        {"data": b"x"},
        BodyMutation("x"),  # type: ignore[arg-type]
        BodyMutation(bytearray(b"x")),  # type: ignore[arg-type]
        BodyMutation(memoryview(b"x")),  # type: ignore[arg-type]
        BodyMutation(1),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_a_mutation_has_bytes_or_none(field: str, mutation: Any) -> None:
    at_fault = f"{field}.data" if isinstance(mutation, BodyMutation) else field
    assert refusal(unchecked(**{field: mutation}), may_mutate=True).startswith(f"{at_fault}: ")


# Websocket decisions


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_a_close_code_may_be_any_that_a_close_frame_can_carry(code: int) -> None:
    response = AgentResponse.websocket_close(code, "bye")

    assert check(response) is response


@pytest.mark.parametrize(
    "code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65536, None, "1000", 1000.0, [1000]], ids=repr
)
def test_any_other_close_code_is_refused(code: Any) -> None:
    assert refusal(AgentResponse.websocket_close(code)).startswith("websocket_decision.close.code: ")


@pytest.mark.parametrize("reason", [None, 1, b"bye", "\ud800"], ids=repr)
def test_a_close_reason_is_text_that_utf_8_can_carry(reason: Any) -> None:
    assert refusal(AgentResponse.websocket_close(1008, reason)).startswith("websocket_decision.close.reason: ")


def test_a_close_reason_may_be_of_any_length() -> None:
    response = AgentResponse.websocket_close(1008, "\xe9" * 1000)

    assert check(response) is response


@pytest.mark.parametrize("decision", ["drop", WebSocketClose, Block(403), 1, {"close": {}}], ids=repr)
def test_anything_else_than_a_websocket_decision_is_refused(decision: Any) -> None:
    assert refusal(unchecked(websocket_decision=decision)).startswith("websocket_decision: expected WebSocketDrop")


def test_a_frame_may_be_dropped() -> None:
    response = AgentResponse.websocket_drop()

    assert check(response) is response


# The rest


@pytest.mark.parametrize("audit", [None, {}, {"tags": []}, "tag"], ids=repr)
def test_anything_else_than_audit_metadata_is_refused(audit: Any) -> None:
    assert refusal(unchecked(audit=audit)).startswith("audit: ")


@pytest.mark.parametrize(
    "fields",
    [
        {"tags": [1]},
        {"rule_ids": [None]},
        {"reason_codes": [b"x"]},
        {"confidence": "high"},
        {"custom": None},
        {"custom": [1]},
        {"custom": {1: 2}},
    ],
    ids=repr,
)
def test_audit_metadata_of_wrong_types_is_refused(fields: dict[str, Any]) -> None:
    assert refusal(unchecked(audit=AuditMetadata(**fields))).startswith(f"audit.{next(iter(fields))}")


@pytest.mark.parametrize("metadata", [None, [("a", "b")], {"a": 1}, {1: "a"}, {"a": None}, "a"], ids=repr)
def test_routing_metadata_maps_strings_to_strings(metadata: Any) -> None:
    assert refusal(unchecked(routing_metadata=metadata)).startswith("routing_metadata: ")


@pytest.mark.parametrize("skip_body", ["no", 1, None], ids=repr)
def test_skip_body_is_a_bool(skip_body: Any) -> None:
    assert refusal(unchecked(skip_body=skip_body)).startswith("skip_body: ")


def test_an_agent_can_not_both_skip_a_body_and_want_more_of_it() -> None:
    assert refusal(unchecked(skip_body=True, needs_more=True)).startswith("skip_body: ")


@pytest.mark.parametrize("needs_more", ["no", 1, None], ids=repr)
def test_needs_more_is_a_bool(needs_more: Any) -> None:
    assert refusal(unchecked(needs_more=needs_more)).startswith("needs_more: ")


anything: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
    st.just(Block(403)),
    st.just(WebSocketDrop()),
    st.builds(Block, st.integers(), st.text(max_size=2), st.none()),
    st.builds(WebSocketClose, st.integers(), st.text(max_size=2)),
    st.lists(st.builds(HeaderOp.set, st.text(max_size=3), st.text(max_size=3)), max_size=2),
    st.builds(BodyMutation, st.binary(max_size=2)),
)


@steady
@given(st.dictionaries(st.sampled_from(AgentResponse.__struct_fields__), anything, max_size=3))
def test_whatever_is_wrong_with_a_response_is_a_protocol_error(fields: dict[str, Any]) -> None:
    response = unchecked(**fields)
    try:
        assert check(response, may_mutate=True) is response or response == ALLOW
    except AgentProtocolError as exc:
        assert any(str(exc).startswith(field) for field in fields)  # noqa: PT017


def test_tokens_are_those_of_rfc_9110() -> None:
    tchar: Sequence[str] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

    assert {chr(code) for code in range(0x250) if TOKEN.match(chr(code))} == set(tchar)
    assert not TOKEN.match("")
    assert not TOKEN.match("a\n")
