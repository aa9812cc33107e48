import itertools
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from asgi_agents.decision import AgentDecision, Verdict, is_denied, merge
from asgi_agents.failures import Failure, FailureKind
from asgi_agents.protocol import (
    ALLOW,
    AgentResponse,
    Allow,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    EventType,
    HeaderOp,
    Redirect,
    WebSocketClose,
    WebSocketDrop,
)

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

BLOCK = AgentResponse.block(418)
AUDIT = AuditMetadata(tags=("t",))


def said(response: AgentResponse, agent_id: str = "a", *, enforced: bool = True) -> Verdict:
    return Verdict(agent_id, EventType.REQUEST_HEADERS, response, None, True, enforced, 0.0)


def failed(
    kind: FailureKind = FailureKind.ERROR,
    agent_id: str = "a",
    *,
    closed: bool = True,
    enforced: bool = True,
    retry_after: float | None = None,
) -> Verdict:
    failure = Failure(kind, f"agent {agent_id!r}: …", retry_after)
    return Verdict(agent_id, EventType.REQUEST_HEADERS, None, failure, closed, enforced, 0.0)


# One verdict


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (said(ALLOW), "allow"),
        (said(BLOCK), "block"),
        (said(AgentResponse.redirect("/")), "redirect"),
        (said(AgentResponse.challenge("captcha")), "challenge"),
        (said(AgentResponse.websocket_drop()), "drop"),
        (said(AgentResponse.websocket_close()), "close"),
        *((failed(kind), kind.value) for kind in FailureKind),
    ],
)
def test_a_verdict_has_an_outcome_in_one_word(verdict: Verdict, outcome: str) -> None:
    assert verdict.outcome == outcome


@pytest.mark.parametrize("response", [BLOCK, AgentResponse.websocket_drop(), AgentResponse.websocket_close()])
def test_a_denial_denies_provisional_or_not_unless_it_is_a_shadow_agents(response: AgentResponse) -> None:
    assert said(response).denies
    assert said(replace(response, needs_more=True)).denies
    assert said(replace(response, needs_more=True)).provisional
    assert not said(response, enforced=False).denies
    assert not said(response).provisional
    assert not said(ALLOW).denies


def test_only_the_failure_of_an_enforced_fail_closed_agent_stops_anything() -> None:
    assert failed().fails_closed
    assert not failed(closed=False).fails_closed
    assert not failed(enforced=False).fails_closed
    assert not said(BLOCK).fails_closed
    assert not failed().denies
    assert not failed().provisional


# What they come to


def test_nobody_asked_is_allow() -> None:
    assert merge([]) == AgentDecision()
    assert AgentDecision().is_allow


def test_allow_all_round_is_allow() -> None:
    verdicts = (said(ALLOW, "a"), said(AgentResponse(), "b"), said(ALLOW, "c"))

    decision = merge(verdicts)

    assert decision == AgentDecision(verdicts=verdicts)
    assert decision.is_allow
    assert decision.decided_by is None


DENIALS = [
    AgentResponse.block(451, "no", headers={"x": "1"}),
    AgentResponse.redirect("/login", 303),
    AgentResponse.challenge("bearer", {"realm": "api"}),
    AgentResponse.websocket_drop(),
    AgentResponse.websocket_close(4001, "bye"),
]


@pytest.mark.parametrize("response", DENIALS)
def test_a_denial_decides(response: AgentResponse) -> None:
    decision = merge([said(ALLOW, "a"), said(response, "b"), said(ALLOW, "c")])

    assert not decision.is_allow
    assert (decision.decision, decision.websocket_decision) == (response.decision, response.websocket_decision)
    assert decision.decided_by == "b"
    assert decision.failure is None
    assert len(decision.verdicts) == 3


@pytest.mark.parametrize("kind", FailureKind)
def test_a_fail_closed_failure_decides(kind: FailureKind) -> None:
    verdict = failed(kind, "b", retry_after=2.0)

    decision = merge([said(ALLOW, "a"), verdict, said(ALLOW, "c")])

    assert not decision.is_allow
    assert decision.decided_by == "b"
    assert decision.failure is verdict.failure
    assert verdict.failure is not None
    assert decision.decision == verdict.failure.block


@pytest.mark.parametrize("verdict", [failed(closed=False), failed(enforced=False), said(BLOCK, enforced=False)])
def test_a_failure_of_a_fail_open_agent_and_anything_of_a_shadow_agent_lets_pass(verdict: Verdict) -> None:
    decision = merge([verdict])

    assert decision.is_allow
    assert decision.decided_by is None
    assert decision.failure is None
    assert decision.verdicts == (verdict,)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_denial_beats_a_failure_and_a_failure_beats_allow_in_any_order(order: Sequence[int]) -> None:
    verdicts = [said(ALLOW, "ok"), failed(agent_id="down"), said(BLOCK, "no"), failed(agent_id="open", closed=False)]
    in_order = [verdicts[index] for index in order]

    assert merge(in_order).decided_by == "no"
    assert merge([verdict for verdict in in_order if verdict.agent_id != "no"]).decided_by == "down"


def test_the_first_denial_in_route_order_decides() -> None:
    decision = merge([failed(agent_id="a"), said(DENIALS[1], "b"), said(DENIALS[0], "c"), said(BLOCK, "d")])

    assert (decision.decided_by, decision.decision) == ("b", Redirect("/login", 303))


def test_the_first_failure_in_route_order_decides() -> None:
    decision = merge([said(ALLOW, "a"), failed(FailureKind.TIMEOUT, "b"), failed(FailureKind.ERROR, "c")])

    assert decision.decided_by == "b"
    assert decision.failure is not None
    assert decision.failure.kind is FailureKind.TIMEOUT


def test_only_the_response_headers_of_the_one_that_decides_are_kept() -> None:
    ops = (HeaderOp.set("x-why", "waf"),)
    decision = merge(
        [
            said(AgentResponse.allow(request_headers=ops, response_headers=[HeaderOp.set("x", "1")]), "a"),
            said(AgentResponse.block(response_headers=ops), "b"),
        ]
    )

    assert tuple(decision.response_headers) == ops
    assert tuple(decision.request_headers) == ()


@pytest.mark.parametrize("stopped", [said(BLOCK, "z"), failed(agent_id="z")])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_what_others_want_done_to_every_response_is_kept_in_route_order(stopped: Verdict, place: int) -> None:
    ops = [HeaderOp.set("x", "1", always=True), HeaderOp.add("x", "2", always=True), HeaderOp.remove("y", always=True)]
    others = [
        said(AgentResponse.allow(response_headers=[ops[0], HeaderOp.set("z", "1")]), "a"),
        said(AgentResponse.allow(response_headers=[ops[1]], needs_more=True), "b"),
        said(
            AgentResponse.allow(response_headers=[ops[2]], request_headers=[HeaderOp.set("q", "1", always=True)]), "c"
        ),
    ]
    shadow = said(AgentResponse.allow(response_headers=[HeaderOp.set("s", "1", always=True)]), "s", enforced=False)
    passing = failed(agent_id="p", closed=False)

    decision = merge([shadow, *others[:place], stopped, *others[place:], passing])

    assert decision.decided_by == "z"
    assert list(decision.always_headers) == ops
    assert tuple(decision.response_headers) == tuple(decision.request_headers) == ()


def test_the_deciders_own_headers_are_not_among_those_of_others() -> None:
    own = (HeaderOp.set("x", "1", always=True), HeaderOp.set("y", "1"))
    other = HeaderOp.set("x", "2", always=True)
    decision = merge(
        [said(AgentResponse.block(response_headers=own), "a"), said(AgentResponse.block(response_headers=[other]), "b")]
    )

    assert (tuple(decision.response_headers), tuple(decision.always_headers)) == (own, (other,))


def test_where_nothing_is_stopped_always_makes_no_difference() -> None:
    op = HeaderOp.set("x", "1", always=True)
    decision = merge([said(AgentResponse.allow(response_headers=[op])), said(ALLOW)])

    assert (tuple(decision.response_headers), tuple(decision.always_headers)) == ((op,), ())


def test_a_failure_changes_no_headers() -> None:
    ops = (HeaderOp.set("x", "1"),)

    decision = merge([said(AgentResponse.allow(request_headers=ops, response_headers=ops), "a"), failed(agent_id="b")])

    assert (tuple(decision.request_headers), tuple(decision.response_headers)) == ((), ())


def test_header_operations_of_all_that_allow_are_in_route_order() -> None:
    one, two, three = HeaderOp.set("x", "1"), HeaderOp.add("x", "2"), HeaderOp.remove("y")
    decision = merge(
        [
            said(AgentResponse.allow(request_headers=[one, three], response_headers=[two]), "a"),
            failed(agent_id="b", closed=False),
            said(ALLOW, "c"),
            said(AgentResponse.allow(request_headers=[two], response_headers=[one]), "d"),
        ]
    )

    assert decision.is_allow
    assert list(decision.request_headers) == [one, three, two]
    assert list(decision.response_headers) == [two, one]


def test_routing_metadata_is_that_of_all_later_agents_winning() -> None:
    decision = merge(
        [
            said(AgentResponse.allow(routing_metadata={"pool": "blue", "a": "1"}), "a"),
            said(AgentResponse.allow(routing_metadata={"pool": "green"}), "b"),
        ]
    )

    assert decision.routing_metadata == {"pool": "green", "a": "1"}


def test_nothing_that_a_shadow_agent_says_is_applied() -> None:
    shadow = AgentResponse.allow(
        request_headers=[HeaderOp.set("x", "1")],
        response_headers=[HeaderOp.set("x", "1")],
        routing_metadata={"pool": "blue"},
        needs_more=True,
        request_body_mutation=BodyMutation(b"x"),
        response_body_mutation=BodyMutation(b"x"),
        audit=AUDIT,
    )

    decision = merge([said(shadow, "shadow", enforced=False)])

    assert replace(decision, verdicts=()) == AgentDecision(
        request_headers=decision.request_headers, response_headers=decision.response_headers
    )
    assert (list(decision.request_headers), list(decision.response_headers)) == ([], [])
    assert list(decision.audit) == [("shadow", AUDIT)]


@pytest.mark.parametrize("direction", ["request_body_mutation", "response_body_mutation"])
def test_the_last_mutation_is_the_whole_change(direction: str) -> None:
    def writer(mutation: BodyMutation | None) -> Verdict:
        return said(AgentResponse(**{direction: mutation}))  # type: ignore[arg-type]

    first, last, drop, passes = BodyMutation(b"1"), BodyMutation(b"2"), BodyMutation(b""), BodyMutation(None)

    assert getattr(merge([writer(first), writer(last)]), direction) == last
    assert getattr(merge([writer(first), writer(passes), writer(None)]), direction) == first
    assert getattr(merge([writer(first), writer(drop)]), direction) == drop
    assert getattr(merge([writer(passes)]), direction) is None


def test_the_audit_of_everyone_is_kept_also_when_another_blocks() -> None:
    other = AuditMetadata(rule_ids=("942100",))
    decision = merge(
        [
            said(AgentResponse.allow(audit=AUDIT), "a"),
            said(ALLOW, "b"),
            failed(agent_id="c"),
            said(AgentResponse.block(audit=other), "d"),
            said(AgentResponse.block(audit=AUDIT), "e", enforced=False),
        ]
    )

    assert list(decision.audit) == [("a", AUDIT), ("d", other), ("e", AUDIT)]
    assert [verdict.agent_id for verdict in decision.verdicts] == ["a", "b", "c", "d", "e"]


def test_verdicts_from_an_iterator_are_not_lost() -> None:
    verdicts = [said(ALLOW, "a"), said(BLOCK, "b")]

    assert merge(iter(verdicts)).verdicts == tuple(verdicts)


# While more is to come


PROVISIONAL = AgentResponse.block(418, needs_more=True)


def test_a_provisional_denial_decides_nothing_while_more_is_to_come() -> None:
    decision = merge([said(PROVISIONAL)], final=False)

    assert decision.is_allow
    assert decision.needs_more


def test_a_provisional_denial_decides_when_nothing_more_comes() -> None:
    assert merge([said(PROVISIONAL)], final=True).decision == Block(418)


def test_needs_more_makes_nobody_elses_answer_provisional() -> None:
    decision = merge([said(PROVISIONAL, "a"), said(AgentResponse.block(451), "b")], final=False)

    assert (decision.decided_by, decision.decision) == ("b", Block(451))


def test_a_failure_is_never_provisional() -> None:
    assert merge([said(PROVISIONAL, "a"), failed(agent_id="b")], final=False).decided_by == "b"


def test_an_allowing_agent_that_needs_more_is_told_of() -> None:
    assert merge([said(AgentResponse.allow(needs_more=True)), said(ALLOW)], final=False).needs_more
    assert not merge([said(ALLOW)], final=False).needs_more


# Who can still change what is decided


def test_a_denial_settles_once_everyone_before_it_has_answered() -> None:
    assert is_denied([said(ALLOW), said(BLOCK), None], final=True)
    assert is_denied([failed(), said(BLOCK), None], final=True)
    assert not is_denied([None, said(BLOCK)], final=True)
    assert not is_denied([said(ALLOW), None, said(BLOCK)], final=True)


def test_a_failure_does_not_settle_because_a_denial_beats_it() -> None:
    assert not is_denied([failed(), None], final=True)


def test_a_provisional_denial_settles_only_where_nothing_more_comes() -> None:
    assert is_denied([said(PROVISIONAL), None], final=True)
    assert not is_denied([said(PROVISIONAL), None], final=False)


def test_a_shadow_agents_denial_does_not_settle() -> None:
    assert not is_denied([said(BLOCK, enforced=False), None], final=True)


def test_what_nobody_denied_is_not_denied() -> None:
    assert not is_denied([], final=True)
    assert not is_denied([said(ALLOW), failed()], final=False)


ANSWERS = [
    lambda agent_id: said(ALLOW, agent_id),
    lambda agent_id: said(AgentResponse.allow(request_headers=[HeaderOp.set("x", agent_id)]), agent_id),
    lambda agent_id: said(AgentResponse.block(451), agent_id),
    lambda agent_id: said(AgentResponse.redirect("/"), agent_id),
    lambda agent_id: said(PROVISIONAL, agent_id),
    lambda agent_id: said(AgentResponse.websocket_drop(), agent_id),
    lambda agent_id: said(BLOCK, agent_id, enforced=False),
    lambda agent_id: failed(agent_id=agent_id),
    lambda agent_id: failed(agent_id=agent_id, closed=False),
    lambda agent_id: failed(agent_id=agent_id, enforced=False),
]


@steady
@given(
    st.lists(st.tuples(st.sampled_from(ANSWERS), st.booleans()), max_size=5),
    st.booleans(),
)
def test_once_it_is_denied_no_late_answer_changes_the_decision(drawn: list[tuple[object, bool]], final: bool) -> None:
    verdicts = [make(f"agent-{index}") for index, (make, _) in enumerate(drawn)]  # type: ignore[operator]
    so_far = [verdict if answered else None for verdict, (_, answered) in zip(verdicts, drawn, strict=True)]

    now = merge([verdict for verdict in so_far if verdict is not None], final=final)
    later = merge(verdicts, final=final)

    if is_denied(so_far, final=final):
        assert replace(now, verdicts=()) == replace(later, verdicts=())


# As replies


@pytest.mark.parametrize(
    ("kind", "status", "text", "reason"),
    [
        (FailureKind.BREAKER_OPEN, 503, "Service unavailable", "Service unavailable"),
        (FailureKind.QUEUE_TIMEOUT, 503, "Service unavailable", "Service unavailable"),
        (FailureKind.ERROR, 503, "Agent unavailable", "Agent error"),
        (FailureKind.TIMEOUT, 504, "Gateway timeout", "Gateway timeout"),
        (
            FailureKind.REQUEST_TOO_LARGE,
            413,
            "Payload too large for security inspection",
            "Payload too large for security inspection",
        ),
        (
            FailureKind.REQUEST_UNREADABLE,
            415,
            "Payload unreadable for security inspection",
            "Payload unreadable for security inspection",
        ),
        (
            FailureKind.RESPONSE_UNREADABLE,
            500,
            "Response unreadable for security inspection",
            "Response unreadable for security inspection",
        ),
        (
            FailureKind.RESPONSE_TOO_LARGE,
            500,
            "Response too large for security inspection",
            "Response too large for security inspection",
        ),
    ],
)
def test_a_fail_closed_failure_answers_as_documented(kind: FailureKind, status: int, text: str, reason: str) -> None:
    decision = merge([failed(kind)])

    assert decision.decision == Block(status, text, None)
    assert decision.close == WebSocketClose(1011, reason)


@pytest.mark.parametrize(
    ("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.001, "2"), (29.5, "30"), (30.0, "30")]
)
def test_an_open_breaker_says_when_to_come_again_in_whole_seconds_and_never_too_early(
    seconds: float, header: str
) -> None:
    block = Failure(FailureKind.BREAKER_OPEN, "…", seconds).block

    assert block == Block(503, "Service unavailable", {"retry-after": header})


def test_the_client_is_not_told_what_was_wrong_with_the_agent() -> None:
    block = Failure(FailureKind.ERROR, "agent 'waf', request_headers: connection to 10.0.0.1 refused").block

    assert "10.0.0.1" not in str(block)
    assert "waf" not in str(block)


@pytest.mark.parametrize(
    ("response", "close"),
    [
        (AgentResponse.websocket_close(4001, "bye"), WebSocketClose(4001, "bye")),
        (AgentResponse.block(403, "not you"), WebSocketClose(1008, "not you")),
        (AgentResponse.block(403), WebSocketClose(1008, "Blocked")),
        (AgentResponse.block(403, ""), WebSocketClose(1008, "Blocked")),
        (AgentResponse.redirect("/secret?token=x"), WebSocketClose(1008, "Redirected")),
        (AgentResponse.challenge("bearer"), WebSocketClose(1008, "Blocked")),
        (AgentResponse.websocket_drop(), WebSocketClose(1008, "Blocked")),
    ],
)
def test_a_denial_closes_a_websocket_for_a_policy_violation(response: AgentResponse, close: WebSocketClose) -> None:
    assert merge([said(response)]).close == close


def test_decisions_are_frozen() -> None:
    decision = merge([said(BLOCK)])

    for field in decision.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(decision, field, None)


def test_decisions_are_told_apart_by_their_types() -> None:
    assert AgentDecision().decision == Allow()
    assert merge([said(AgentResponse.challenge("a"))]).decision == Challenge("a", {})
    assert merge([said(AgentResponse.websocket_drop())]).websocket_decision == WebSocketDrop()
