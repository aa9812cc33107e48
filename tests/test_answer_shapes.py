"""No shape of an answer that is wrong raises anywhere, loses an audit record or passes as a verdict.

A table of every field of every answer, times values of every type. Each agent that answers so has failed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from anyio.lowlevel import checkpoint

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentResponse,
    Allow,
    AuditMetadata,
    AuditRecord,
    Block,
    BodyMutation,
    Challenge,
    Detection,
    EventType,
    FailureKind,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailResponse,
    GuardrailUnavailableError,
    HeaderOp,
    Redirect,
    TextSpan,
    Verdict,
    WebSocketClose,
)
from asgi_agents.guard import Guard
from asgi_agents.protocol import Acknowledgement, ConfigureEvent, Event
from asgi_agents.serve.hooks import Hooks, NoAnswer
from tests.support.asgi import App, Client, Probe, SlowProbe, guarded
from tests.support.sample_events import CHUNK, COMPLETE, HEAD, QUESTION

CLOSED, OPEN = FailureMode.CLOSED, FailureMode.OPEN


class Hostile:
    """Raises, whatever is done to it."""

    def _raise(self, *args: object) -> Any:
        raise RuntimeError("touched")

    __bool__ = __eq__ = __hash__ = __int__ = __float__ = __repr__ = __str__ = __len__ = _raise


class LooksLikeAllow(Allow, frozen=True):
    """Would be taken for a denial without a name, or for an allow, by who asks for its type or for its base."""


# Values of every type, by name.
VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "int": 2,
    "minus": -1,
    "huge": 10**400,
    "half": 0.5,
    "nan": float("nan"),
    "infinite": float("inf"),
    "str": "x",
    "surrogate": "\ud800",
    "bytes": b"x",
    "bytearray": bytearray(b"x"),
    "empty": (),
    "list": [1],
    "strings": {"a": "b"},
    "mixed": {"a": 1},
    "numbers": {1: "a"},
    "object": object(),
    "hostile": Hostile(),
    "class": Block,
    "verdict": GuardrailResponse(detected=True),
    "acknowledgement": Acknowledgement(success=True),
    "subclass": LooksLikeAllow(),
}

CONFIGURE = ConfigureEvent(agent_id="a", config={})


class Field(NamedTuple):
    """One field of an answer to ``event``, and the names of the values that are right there."""

    name: str
    event: Event
    build: Callable[[Any], Any]
    right: frozenset[str]

    def wrong_answers(self) -> list[tuple[str, Any]]:
        """The names of all wrong values, with an answer that has each; those that can't even be built are left out."""
        answers = []
        for name, value in VALUES.items():
            if name not in self.right:
                try:
                    answers.append((name, self.build(value)))
                except (TypeError, ValueError):
                    continue  # the agent would have raised in its hook
        assert answers
        return answers


def field(name: str, event: Event, build: Callable[[Any], Any], *right: str) -> Field:
    return Field(name, event, build, frozenset(right))


def fields_of(kind: Callable[..., Any], event: Event, prefix: str = "", **beside: Any) -> Callable[..., Field]:
    """Makes the :class:`Field` of one field of ``kind``."""
    return lambda name, *right: field(prefix + name, event, lambda v: kind(**{**beside, name: v}), *right)


NUMBERS = ("int", "minus", "half")


def detecting(**fields: Any) -> GuardrailResponse:
    right: dict[str, Any] = {"category": "c", "description": "d"}
    return GuardrailResponse(detected=True, detections=[Detection(**right | fields)])


def deciding(decision: Callable[..., Any], **beside: Any) -> Callable[..., Any]:
    return lambda **fields: AgentResponse(decision=decision(**beside | fields))


response = fields_of(AgentResponse, HEAD)
verdict = fields_of(GuardrailResponse, QUESTION, detected=True)
detection = fields_of(detecting, QUESTION, "detections[0].")
audit = fields_of(lambda **f: AgentResponse(audit=AuditMetadata(**f)), HEAD, "audit.")
block = fields_of(deciding(Block), HEAD, "decision.block.")
redirect = fields_of(deciding(Redirect, url="/"), HEAD, "decision.redirect.")
challenge = fields_of(deciding(Challenge, challenge_type="bearer"), HEAD, "decision.challenge.")
close = fields_of(lambda **f: AgentResponse(websocket_decision=WebSocketClose(**f)), HEAD, "websocket_decision.close.")


def op(name: str, *right: str) -> Field:
    def build(value: Any) -> AgentResponse:
        fields: dict[str, Any] = {"kind": "set", "name": "x", "value": "y", name: value}
        return AgentResponse(request_headers=[HeaderOp(**fields)])

    return field("request_headers[0]", HEAD, build, *right)


def span(name: str, *right: str) -> Field:
    # Start and end are wrong together.
    return field(
        "detections[0].span", QUESTION, lambda v: detecting(span=TextSpan(**{"start": 0, "end": 5, name: v})), *right
    )


mutation = fields_of(
    lambda **f: AgentResponse(request_body_mutation=BodyMutation(**f)), CHUNK, "request_body_mutation."
)

FIELDS: Sequence[Field] = [
    # Whole answers.
    *(
        field("", event, lambda value: value, "none", *also)
        for event, also in (
            (HEAD, ()),
            (CHUNK, ()),
            (QUESTION, ("verdict",)),
            (COMPLETE, ("acknowledgement",)),
            (CONFIGURE, ("acknowledgement",)),
        )
    ),
    response("version", "int"),
    response("decision"),
    response("request_headers", "empty"),
    response("response_headers", "empty"),
    response("routing_metadata", "strings"),
    response("audit"),
    response("needs_more", "true"),
    response("skip_body", "true"),
    response("request_body_mutation", "none"),
    response("response_body_mutation", "none"),
    response("websocket_decision", "none"),
    block("status"),
    block("body", "none", "str"),
    block("headers", "none", "strings"),
    redirect("url", "str"),
    redirect("status"),
    challenge("challenge_type", "str"),
    challenge("params", "strings"),
    close("code"),
    close("reason", "str"),
    op("kind"),
    op("name", "str"),
    op("value", "str"),
    op("always", "true"),
    mutation("data", "none", "bytes"),
    mutation("chunk_index", "int", "minus", "huge"),
    # Of a mapping the keys are taken, of a bytearray the numbers.
    audit("tags", "empty", "strings", "mixed"),
    audit("rule_ids", "empty", "strings", "mixed"),
    audit("reason_codes", "empty", "strings", "mixed"),
    audit("confidence", "none", *NUMBERS, "nan", "infinite"),
    audit("custom", "strings", "mixed"),
    verdict("detected", "true"),
    verdict("confidence", *NUMBERS),
    verdict("detections", "empty"),
    verdict("redacted_content", "none", "str"),
    detection("category", "str"),
    detection("description", "str"),
    detection("severity"),
    detection("confidence", "none", *NUMBERS),
    detection("span", "none"),
    span("start", "int"),
    span("end", "int"),
    *(
        fields_of(Acknowledgement, event, success=True)(name, *right)
        for event in (COMPLETE, CONFIGURE)
        for name, right in (("success", ("true",)), ("error", ("none", "str")))
    ),
]
every_field = pytest.mark.parametrize("case", FIELDS, ids=lambda f: f"{f.event.event_type.value}:{f.name}")


class Answers(Agent):
    """Answers each event with what it is told to; at once, or after a pause."""

    def __init__(self, *, pause: bool = False) -> None:
        self.answer: Any = None
        for event_type in EventType:
            setattr(self, f"on_{event_type.value}", self._later if pause else self._now)

    @property
    def events(self) -> frozenset[EventType]:
        return frozenset(EventType) - {EventType.CONFIGURE}

    async def _now(self, event: Event) -> Any:
        return self.answer

    async def _later(self, event: Event) -> Any:
        await checkpoint()
        return self.answer


def assert_failed(found: Verdict, mode: FailureMode, case: Field, value: str) -> None:
    """That of an agent in error, whose message names field and type."""
    assert found.response is None, value
    assert found.failure is not None
    assert found.failure.kind is FailureKind.ERROR, value
    assert found.fails_closed is (mode is CLOSED)
    message = found.failure.message
    assert f"{case.event.event_type.value}: {case.name}" in message, message
    if value not in ("int", "minus", "huge", "surrogate", "str"):
        # Of an int or a text that is out of bounds the message says what is right, of a field's parts which part.
        parts = {"list": "int", "strings": "str", "numbers": "int", "bytearray": "int"}
        kinds = {type(VALUES[value]).__name__, *(("int", "str") if value == "mixed" else (parts.get(value, "-"),))}
        assert any(f"{word} {kind}" in message for kind in kinds for word in ("got", "with", "of type")), message
    assert message.isprintable()


async def ask(guard: Guard, event: Event, mode: FailureMode) -> Verdict:
    if isinstance(event, GuardrailInspectEvent):
        found, answer = await guard.inspect(event, mode)
        assert not answer.detected or found.failure is None
        return found
    return await guard.call(event, mode)


@every_field
@pytest.mark.parametrize("pause", [False, True], ids=["at once", "later"])
async def test_an_answer_of_a_wrong_shape_is_an_agent_error_that_names_the_field(case: Field, pause: bool) -> None:
    agent = Answers(pause=pause)
    guard = Guard(AgentConfig("a", agent, timeout=60, circuit_breaker=None, body_access="write"))
    for value, answer in case.wrong_answers():
        agent.answer = answer
        for mode in FailureMode:
            assert_failed(await ask(guard, case.event, mode), mode, case, value)


@every_field
async def test_an_answer_of_a_right_shape_is_a_verdict(case: Field) -> None:
    agent = Answers()
    guard = Guard(AgentConfig("a", agent, timeout=60, circuit_breaker=None, body_access="write"))
    for value in case.right:
        agent.answer = case.build(VALUES[value])
        found = await ask(guard, case.event, OPEN)
        assert found.failure is None, f"{value}: {found.failure}"


@every_field
async def test_a_served_agent_does_not_send_an_answer_of_a_wrong_shape(case: Field) -> None:
    agent = Answers()
    hooks = Hooks(agent)
    for _, answer in case.wrong_answers():
        agent.answer = answer
        with pytest.raises(NoAnswer):
            await hooks.answer(case.event, lambda spelt: b"", {})


# Through the middleware: what the app, the client and the record have of it


class Asks(App):
    """Asks an agent about some content, and remembers what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        try:
            found = await scope["state"]["agents"].inspect_guardrail("a", "three", inspection_type="pii_detection")
        except Exception as exc:
            found = exc
        self.found.append(found)
        return await super().__call__(scope, receive, send)


GUARDRAIL_FIELDS = [case for case in FIELDS if case.event is QUESTION]


@pytest.mark.parametrize("case", GUARDRAIL_FIELDS, ids=lambda f: f.name)
@pytest.mark.parametrize("mode", FailureMode)
async def test_a_handler_and_the_record_have_a_failure_of_what_a_guardrail_answers_wrongly(
    case: Field, mode: FailureMode
) -> None:
    agent, app, records = Answers(), Asks(), list[AuditRecord]()
    config = AgentConfig(
        "a", agent, events={EventType.GUARDRAIL_INSPECT}, failure_mode=mode, timeout=60, circuit_breaker=None
    )
    middleware = guarded(app, config, on_audit=records.append)
    answers = case.wrong_answers()

    for _, answer in answers:
        agent.answer = answer
        await Client().call(middleware)

    if mode is OPEN:
        assert app.found == [GuardrailResponse(detected=False)] * len(answers)
    else:
        assert [type(found) for found in app.found] == [GuardrailUnavailableError] * len(answers)
    assert [[(a.decision, a.failure) for a in record.answers] for record in records] == [[(None, "error")]] * len(
        answers
    )


_REACTIONS = {
    EventType.REQUEST_HEADERS: "request_headers",
    EventType.REQUEST_BODY_CHUNK: "request_body",
    EventType.REQUEST_COMPLETE: "complete",
}


@pytest.mark.parametrize(
    "case",
    [case for case in FIELDS if case.event.event_type in _REACTIONS],
    ids=lambda f: f"{f.event.event_type.value}:{f.name}",
)
@pytest.mark.parametrize("kind", [Probe, SlowProbe])
async def test_a_request_goes_by_the_failure_mode_and_leaves_its_record(case: Field, kind: type[Probe]) -> None:
    given: list[Any] = [None]
    reactions: Any = {_REACTIONS[case.event.event_type]: lambda event: given[0]}
    records: list[AuditRecord] = []
    middlewares = {
        mode: guarded(
            App(),
            AgentConfig(
                "a", kind(**reactions), failure_mode=mode, timeout=60, circuit_breaker=None, body_access="write"
            ),
            on_audit=records.append,
        )
        for mode in FailureMode
    }
    for value, answer in case.wrong_answers():
        given[0] = answer
        for mode, middleware in middlewares.items():
            client = Client("POST", body=b"x")
            await client.call(middleware)
            stopped = mode is CLOSED and case.event.event_type is not EventType.REQUEST_COMPLETE
            assert client.status == (503 if stopped else 200), value
            record = records.pop()
            assert [(a.decision, a.failure) for a in record.answers] == [(None, "error")], value
