from collections.abc import Sequence
from typing import Any

import pytest

from asgi_agents.protocol import (
    ALLOW,
    AgentResponse,
    Allow,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    Detection,
    GuardrailResponse,
    HeaderOp,
    Redirect,
    Severity,
    WebSocketClose,
    WebSocketDrop,
)

AUDIT = AuditMetadata(tags=("t",))
OPS = (HeaderOp.set("x", "1"),)


def test_the_defaults_are_those_of_the_protocol() -> None:
    response = AgentResponse()

    assert response == ALLOW
    assert response.version == 2
    assert response.decision == Allow()
    assert (response.request_headers, response.response_headers, response.routing_metadata) == ((), (), {})
    assert response.audit == AuditMetadata()
    assert response.needs_more is False
    assert response.request_body_mutation is None
    assert response.response_body_mutation is None
    assert response.websocket_decision is None


def test_allow_may_change_everything_that_passes() -> None:
    mutation = BodyMutation(b"x")

    response = AgentResponse.allow(
        request_headers=OPS,
        response_headers=OPS,
        routing_metadata={"pool": "blue"},
        audit=AUDIT,
        needs_more=True,
        request_body_mutation=mutation,
        response_body_mutation=mutation,
    )

    assert response == AgentResponse(
        request_headers=OPS,
        response_headers=OPS,
        routing_metadata={"pool": "blue"},
        audit=AUDIT,
        needs_more=True,
        request_body_mutation=mutation,
        response_body_mutation=mutation,
    )
    assert response.is_allow


@pytest.mark.parametrize(
    ("response", "decision"),
    [
        (AgentResponse.block(), Block(403, None, None)),
        (AgentResponse.block(451, "no", headers={"x": "1"}), Block(451, "no", {"x": "1"})),
        (AgentResponse.redirect("/login"), Redirect("/login", 302)),
        (AgentResponse.redirect("/login", 307), Redirect("/login", 307)),
        (AgentResponse.challenge("captcha"), Challenge("captcha", {})),
        (AgentResponse.challenge("bearer", {"realm": "api"}), Challenge("bearer", {"realm": "api"})),
    ],
)
def test_a_denial_has_its_decision_and_nothing_else(response: AgentResponse, decision: Any) -> None:
    assert response == AgentResponse(decision=decision)
    assert not response.is_allow


def test_denials_carry_header_operations_and_audit() -> None:
    for response in (
        AgentResponse.block(response_headers=OPS, audit=AUDIT),
        AgentResponse.redirect("/", response_headers=OPS, audit=AUDIT),
        AgentResponse.challenge("captcha", response_headers=OPS, audit=AUDIT),
    ):
        assert response.response_headers == OPS
        assert response.audit == AUDIT
    assert AgentResponse.block(needs_more=True).needs_more


@pytest.mark.parametrize(
    ("response", "decision"),
    [
        (AgentResponse.websocket_drop(audit=AUDIT), WebSocketDrop()),
        (AgentResponse.websocket_close(audit=AUDIT), WebSocketClose(1008, "")),
        (AgentResponse.websocket_close(4001, "bye", audit=AUDIT), WebSocketClose(4001, "bye")),
    ],
)
def test_a_websocket_denial_is_no_allow_though_its_decision_is(response: AgentResponse, decision: Any) -> None:
    assert response == AgentResponse(websocket_decision=decision, audit=AUDIT)
    assert response.decision == Allow()
    assert not response.is_allow


def test_header_operations_are_made_by_kind() -> None:
    assert HeaderOp.set("a", "1") == HeaderOp("set", "a", "1")
    assert HeaderOp.add("a", "1") == HeaderOp("add", "a", "1")
    assert HeaderOp.remove("a") == HeaderOp("remove", "a", "")
    for made in (HeaderOp.set("a", "1"), HeaderOp.add("a", "1"), HeaderOp.remove("a")):
        assert not made.always
    for made in (
        HeaderOp.set("a", "1", always=True),
        HeaderOp.add("a", "1", always=True),
        HeaderOp.remove("a", always=True),
    ):
        assert made.always


@pytest.mark.parametrize("field", ["tags", "rule_ids", "reason_codes"])
def test_audit_sequences_are_tuples_and_never_a_bare_string(field: str) -> None:
    as_list: dict[str, Any] = {field: ["a", "b"]}
    as_text: dict[str, Any] = {field: "abc"}

    assert getattr(AuditMetadata(**as_list), field) == ("a", "b")
    with pytest.raises(TypeError, match=rf"{field}.*'abc'"):
        AuditMetadata(**as_text)


@pytest.mark.parametrize(
    "value",
    [
        AgentResponse(),
        Block(),
        Redirect("/"),
        Challenge("captcha"),
        HeaderOp.remove("a"),
        BodyMutation(None),
        AuditMetadata(),
        GuardrailResponse(detected=False),
        Detection(category="a", description="b"),
        WebSocketClose(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_answers_are_frozen(value: Any) -> None:
    for field in value.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(value, field, None)


def test_a_detection_is_of_medium_severity_unless_it_says_otherwise() -> None:
    assert Detection(category="a", description="b").severity is Severity.MEDIUM
    assert [severity.value for severity in Severity] == ["low", "medium", "high", "critical"]


def test_later_changes_to_a_list_of_header_operations_do_not_change_the_answer() -> None:
    ops: list[HeaderOp] = [HeaderOp.set("x-user", "alice")]
    response = AgentResponse.allow(request_headers=ops, response_headers=ops)
    ops.append(HeaderOp.set("content-length", "0"))

    expected: Sequence[HeaderOp] = (HeaderOp.set("x-user", "alice"),)
    assert tuple(response.request_headers) == expected
    assert tuple(response.response_headers) == expected
