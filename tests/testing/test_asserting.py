"""Who has stopped a request, and what an assertion says where it was somebody else."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from asgi_agents import (
    AgentResponse,
    AgentRoute,
    AuditMetadata,
    AuditRecord,
    BadInput,
    EventType,
    FailureMode,
    GuardrailResponse,
    RequestHeadersEvent,
    protect,
)
from asgi_agents.guardrails import Guardrail
from asgi_agents.testing import (
    FakeAgent,
    Recorded,
    agent_down,
    assert_blocked_by,
    assert_failed_closed,
    assert_failed_open,
    breaker_open,
    override_agents,
)

from .apps import HEADS, get, protected, remote, shop

BLOCK: Final = AgentResponse.block(403, "no")
ALL: Final = (assert_blocked_by, assert_failed_open, assert_failed_closed)


def waf_and_auth(waf: FakeAgent, auth: FakeAgent | None = None, **options: Any) -> Any:
    """The response where these are asked one after the other."""
    app = protected(remote("waf", **options), remote("auth", after=["waf"]))
    with override_agents(app, waf=waf, auth=auth or FakeAgent()):
        return get(app)


@pytest.mark.parametrize(
    "waf",
    [
        FakeAgent(BLOCK),
        FakeAgent(AgentResponse.redirect("/login")),
        FakeAgent(AgentResponse.challenge("bearer", {})),
        FakeAgent(BadInput("no")),
        FakeAgent(response_headers=BLOCK),
        FakeAgent(response_body_chunk=BLOCK),
    ],
)
def test_every_denial_of_the_agent_is_a_block(waf: FakeAgent) -> None:
    events = HEADS | {EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK}
    record = assert_blocked_by(waf_and_auth(waf, events=events), "waf")
    assert isinstance(record, AuditRecord)
    assert record.decided_by == "waf"


#: By what has happened: the assertion that holds for `waf`, and the response, or what else says it.
HAPPENED: Final[Mapping[str, tuple[Callable[..., Any] | None, Callable[[], Recorded]]]] = {
    "blocked": (assert_blocked_by, lambda: waf_and_auth(FakeAgent(BLOCK))),
    "failed closed": (assert_failed_closed, lambda: waf_and_auth(FakeAgent(ValueError))),
    "failed open": (assert_failed_open, lambda: waf_and_auth(FakeAgent(ValueError), failure_mode="open")),
    "allowed": (None, lambda: waf_and_auth(FakeAgent())),
    "blocked by another": (None, lambda: waf_and_auth(FakeAgent(), FakeAgent(BLOCK))),
    "failed open, and blocked by another": (
        assert_failed_open,
        lambda: waf_and_auth(FakeAgent(ValueError), FakeAgent(BLOCK), failure_mode="open"),
    ),
    "a shadow agent": (None, lambda: waf_and_auth(FakeAgent(BLOCK), enforce=False)),
}


@pytest.mark.parametrize("case", HAPPENED.values(), ids=HAPPENED)
def test_of_three_assertions_the_one_holds_that_is_true(
    case: tuple[Callable[..., Any] | None, Callable[[], Recorded]],
) -> None:
    true, happen = case
    response = happen()
    for each in ALL:
        if each is true:
            assert each(response, "waf").agents
        else:
            with pytest.raises(AssertionError):
                each(response, "waf")


def down(failure_mode: FailureMode) -> Recorded:
    app = protected(remote(failure_mode=failure_mode))
    with agent_down(app, "waf"):
        return get(app)  # type: ignore[no-any-return]


def opened(failure_mode: FailureMode) -> Recorded:
    app = protected(remote(failure_mode=failure_mode))
    with breaker_open(app, "waf"):
        return get(app)  # type: ignore[no-any-return]


@pytest.mark.parametrize("fail", [down, opened])
def test_an_agent_that_is_down_or_not_called_has_failed(fail: Callable[[FailureMode], Recorded]) -> None:
    assert_failed_closed(fail(FailureMode.CLOSED), "waf")
    assert_failed_open(fail(FailureMode.OPEN), "waf")


def of_the_app() -> Recorded:
    """The app itself answers as an agent would."""
    app = shop()
    app.routes.append(Route("/secret", lambda request: PlainTextResponse("no", 403)))
    protect(app, agents=[remote()])
    with override_agents(app, waf=FakeAgent()):
        return get(app, "/secret")  # type: ignore[no-any-return]


def of_another_route() -> Recorded:
    app = protected(remote("waf"), remote("auth"), routes=[AgentRoute("/orders", ["auth"])])
    with override_agents(app, auth=FakeAgent(BLOCK)):
        return get(app)  # type: ignore[no-any-return]


def for_its_reasons() -> Recorded:
    app = protected(remote("ban"), remote("waf", after=["ban"]))
    said = AuditMetadata(reason_codes=("address_unknown", "status:404"), rule_ids=("942100",))
    with override_agents(app, ban=FakeAgent(AgentResponse.block(403, audit=said)), waf=FakeAgent()):
        return get(app)  # type: ignore[no-any-return]


def of_a_session(*texts: str, **waf: Any) -> Recorded:
    """A session in which one text comes back."""
    app = protected(remote(events={EventType.WEBSOCKET_FRAME}))
    override = override_agents(app, waf=FakeAgent(**waf))
    with override as recorded, TestClient(app) as client, client.websocket_connect("/echo") as session:
        for text in texts:
            session.send_text(text)
        session.receive_text()
    [record] = recorded.records
    return record


def of_a_guardrail() -> Recorded:
    app = shop()
    questions = remote(events={EventType.GUARDRAIL_INSPECT})
    protect(app, agents=[questions], guardrails=[Guardrail("waf", on={"input"}, hold=10)])
    fake = FakeAgent(guardrail_inspect=GuardrailResponse(detected=True))
    with override_agents(app, waf=fake), TestClient(app) as client:
        return client.post("/orders", json={"text": "my mail"})


def unrecorded() -> Recorded:
    return get(protected())  # type: ignore[no-any-return]


def without_agents() -> Recorded:
    app = protected(remote(), routes=[AgentRoute("/orders", [])])
    with override_agents(app):
        return get(app)  # type: ignore[no-any-return]


def of_a_name_that_is_none() -> Recorded:
    app = protected(remote("wfa"), remote("auth"))
    with override_agents(app, wfa=FakeAgent(BLOCK), auth=FakeAgent()):
        return get(app)  # type: ignore[no-any-return]


NO_RECORD: Final = (
    "there is no record of this response: expected one that a guarded app has given within"
    " `with override_agents(app):`, to a request that has agents"
)
MESSAGES: Final[Mapping[Callable[[], Recorded], str]] = {
    HAPPENED["allowed"][1]: """\
GET /orders was not blocked by 'waf': no agent has stopped it (status 200)
  waf: request_headers: allow
  auth: request_headers: allow""",
    HAPPENED["blocked by another"][1]: """\
GET /orders was not blocked by 'waf': 'auth' has stopped it: block (status 403)
  waf: request_headers: allow
  auth: request_headers: block""",
    HAPPENED["failed closed"][1]: """\
GET /orders was not blocked by 'waf': 'waf' has stopped it by failing: error (status 503)
  waf: request_headers: failed (error), fail-closed""",
    HAPPENED["failed open"][1]: """\
GET /orders was not blocked by 'waf': no agent has stopped it (status 200)
  waf: request_headers: failed (error), fail-open
  auth: request_headers: allow""",
    HAPPENED["a shadow agent"][1]: """\
GET /orders was not blocked by 'waf': no agent has stopped it (status 200)
  waf: request_headers: block, as a shadow agent (enforce=False)
  auth: request_headers: allow""",
    lambda: opened(FailureMode.CLOSED): """\
GET /orders was not blocked by 'waf': 'waf' has stopped it by failing: breaker_open (status 503)
  waf: request_headers: failed (breaker_open), fail-closed""",
    of_the_app: """\
GET /secret was not blocked by 'waf': no agent has stopped it (status 403)
  waf: request_headers: allow""",
    for_its_reasons: """\
GET /orders was not blocked by 'waf': 'ban' has stopped it: block (status 403)
  ban: request_headers: block (reason address_unknown, reason status:404, rule 942100)
  waf: no answer; it was not asked, or another has stopped the request before""",
    of_another_route: """\
GET /orders was not blocked by 'waf': 'auth' has stopped it: block (status 403)
  auth: request_headers: block
  waf: no answer; it was not asked, or another has stopped the request before""",
    lambda: of_a_session("a"): """\
the websocket /echo was not blocked by 'waf': no agent has stopped it (status 101)
  waf: allow, 2 times""",
    lambda: of_a_session("a", "b", websocket_frame=[AgentResponse.websocket_drop(), None]): """\
the websocket /echo was not blocked by 'waf': no agent has stopped it (status 101)
  waf: websocket_frame: drop""",
    of_a_guardrail: """\
POST /orders was not blocked by 'waf': no agent has stopped it (status 200)
  waf: as a guardrail: redact 1""",
    unrecorded: NO_RECORD,
    without_agents: NO_RECORD,
    of_a_name_that_is_none: "no agent has the id 'waf'; there are: wfa, auth",
}


@pytest.mark.parametrize(("happen", "message"), MESSAGES.items())
def test_a_message_says_what_happened_instead(happen: Callable[[], Recorded], message: str) -> None:
    response = happen()
    with pytest.raises(AssertionError) as caught:
        assert_blocked_by(response, "waf")
    assert str(caught.value) == message


def test_the_other_assertions_say_the_same_in_their_own_words() -> None:
    response = waf_and_auth(FakeAgent())
    others = {assert_failed_open: "did not pass a failure of", assert_failed_closed: "was not stopped by a failure of"}
    for each, said in others.items():
        with pytest.raises(AssertionError, match=f"^GET /orders {said} 'waf': no agent has stopped it"):
            each(response, "waf")


@pytest.mark.parametrize("given", [None, 403, "response", object()])
def test_what_is_no_response_is_an_error_of_the_test(given: Any) -> None:
    with pytest.raises(TypeError, match="expected a response or an AuditRecord"):
        assert_blocked_by(given, "waf")


# Websockets


def test_a_refused_handshake_is_a_response_with_a_record() -> None:
    app = protected()
    refused = pytest.raises(WebSocketDenialResponse)
    with override_agents(app, waf=FakeAgent(BLOCK)), TestClient(app) as client:  # noqa: SIM117 - TestClient goes on
        with refused as caught, client.websocket_connect("/echo"):
            pass
    assert_blocked_by(caught.value, "waf")


@pytest.mark.parametrize("reaction", [AgentResponse.websocket_close(1008, "no"), BLOCK])
def test_who_has_stopped_a_session_is_in_its_record(reaction: AgentResponse) -> None:
    app = protected(remote(events={EventType.WEBSOCKET_FRAME}))
    override = override_agents(app, waf=FakeAgent(reaction))
    with override as recorded, TestClient(app) as client, client.websocket_connect("/echo") as session:
        session.send_text("text")
        with pytest.raises(WebSocketDisconnect):
            session.receive_text()
    assert_blocked_by(recorded.records[-1], "waf")


# Which response it is


def test_responses_that_are_the_same_are_told_apart_in_any_order() -> None:
    app = protected(remote("waf"), remote("auth", after=["waf"]))
    waf = FakeAgent(request_headers=[BLOCK, None, BLOCK, None])
    with override_agents(app, waf=waf, auth=FakeAgent(BLOCK)), TestClient(app) as client:
        responses = [client.get("/orders") for _ in range(4)]
    assert {(response.status_code, response.text) for response in responses} == {(403, "no")}
    for response, agent_id in reversed([*zip(responses, ["waf", "auth"] * 2, strict=True)]):
        assert_blocked_by(response, agent_id)


def test_a_fake_may_decide_by_the_request() -> None:
    def judge(event: RequestHeadersEvent) -> AgentResponse | None:
        return BLOCK if "union" in event.uri else None

    app = protected()
    with override_agents(app, waf=FakeAgent(judge)), TestClient(app) as client:
        assert client.get("/orders").status_code == 200
        assert_blocked_by(client.get("/orders?q=union"), "waf")
