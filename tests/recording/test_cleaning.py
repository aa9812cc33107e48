"""No secret, and no body that was not asked for, goes into a recording."""

import base64
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, Struct
from msgspec.structs import fields, replace

from asgi_agents import (
    Acknowledgement,
    AgentResponse,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    ConfigureEvent,
    Detection,
    Encoding,
    Event,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    Headers,
    Opcode,
    Redirect,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketClose,
    WebSocketFrameEvent,
)
from asgi_agents.guardrails.text_guardrail import Decisions, WindowEvent
from asgi_agents.observability.redaction import REDACTED
from asgi_agents.protocol import ALLOW, Answer, encode_event
from asgi_agents.recording.cleaning import Cleaner, applied_parts
from asgi_agents.recording.format import ExchangeLine, compact_answer, encode_line, encode_plain
from tests.protocol.test_codec import steady
from tests.support.sample_events import COMPLETE, METADATA
from tests.test_redaction import MARK, secrets

#: The names of headers whose values are credentials by their name alone.
NAMES = st.sampled_from(
    [
        "authorization",
        "Cookie",
        "set-cookie",
        "X-API-Key",
        "proxy-authorization",
        "x-amz-security-token",
        "x-csrf-token",
    ]
)


def events_with(name: str, credential: str, secret: str) -> dict[str, Event]:
    """A secret at each place of an event where a text of a client or an app can be."""
    headers = Headers({name: [credential], "referer": [f"https://x/?{secret}"]})
    data = f"before {secret}".encode()
    return {
        "head": RequestHeadersEvent(metadata=METADATA, method="GET", uri=f"/x?a=1&{secret}", headers=headers),
        "request body": RequestBodyChunkEvent(correlation_id="c", data=data, is_last=True),
        "response head": ResponseHeadersEvent(correlation_id="c", status=200, headers=headers),
        "response body": ResponseBodyChunkEvent(correlation_id="c", data=data, is_last=True),
        "message": WebSocketFrameEvent(
            correlation_id="c", opcode=Opcode.TEXT, data=data, client_to_server=True, frame_index=0, client_ip=""
        ),
        "question": GuardrailInspectEvent(
            correlation_id="c",
            inspection_type="x",
            content=secret,
            metadata={"said": secret, "session_token": credential},
        ),
        "end": RequestCompleteEvent(
            correlation_id="c",
            status=500,
            duration_ms=0,
            request_body_size=0,
            response_body_size=0,
            upstream_attempts=1,
            error=secret,
        ),
    }


def answers_with(name: str, credential: str, secret: str) -> dict[str, Answer]:
    """A secret at each place of an answer where an agent can put a text."""
    fields = {"x-why": secret, name: credential}
    audit = AuditMetadata(
        tags=(secret,), rule_ids=(secret,), reason_codes=(secret,), custom={"a": [{name: credential}, secret]}
    )
    ops = [HeaderOp.set(name, credential), HeaderOp.add("x-why", secret)]
    detection = Detection(category=secret, description=secret, replacement=secret)
    return {
        "block": AgentResponse(decision=Block(403, secret, fields)),
        "redirect": AgentResponse(decision=Redirect(f"/login?{secret}")),
        "challenge": AgentResponse(decision=Challenge("bearer", fields)),
        "close": AgentResponse(websocket_decision=WebSocketClose(1008, secret)),
        "operations": AgentResponse(request_headers=ops, response_headers=ops),
        "routing": AgentResponse(routing_metadata=fields),
        "audit": AgentResponse(audit=audit),
        "request mutation": AgentResponse(request_body_mutation=BodyMutation(secret.encode())),
        "response mutation": AgentResponse(response_body_mutation=BodyMutation(secret.encode())),
        "inspection": GuardrailResponse(detected=True, detections=(detection,), redacted_content=secret),
    }


def written(event: Event, answer: Answer, cleaner: Cleaner) -> str:
    """All that is written of an exchange, with payloads decoded."""
    cleaned, said = cleaner.event(event), cleaner.answer(answer)
    line = ExchangeLine(
        n=1,
        agent="waf",
        at=0,
        seconds=0,
        event=Raw(encode_event(cleaned.value, Encoding.JSON)),
        answer=encode_plain(compact_answer(said.value)),
        left_out=cleaned.left_out,
        answer_left_out=said.left_out,
        redacted=cleaned.redacted,
        answer_redacted=said.redacted,
    )
    return json.dumps(_decoded(json.loads(encode_line(line))), ensure_ascii=False)


def _decoded(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _decoded(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item, name) for item in value]
    return base64.b64decode(value).decode("utf-8", "replace") if name == "data" and isinstance(value, str) else value


CASES = [("event", name) for name in events_with("n", "c", "s")] + [
    ("answer", name) for name in answers_with("n", "", "")
]


@pytest.mark.parametrize(("kind", "place"), CASES, ids=lambda part: part.replace(" ", "-"))
@pytest.mark.parametrize("bodies", [False, True])
@steady
@given(name=NAMES, secret=secrets)
def test_no_secret_is_written(kind: str, place: str, bodies: bool, name: str, secret: str) -> None:
    # A header of that name holds a credential that looks like nothing.
    event = events_with(name, MARK, secret)[place] if kind == "event" else COMPLETE
    answer = answers_with(name, MARK, secret)[place] if kind == "answer" else ALLOW
    assert MARK.lower() not in written(event, answer, Cleaner(bodies=bodies)).lower()


@pytest.mark.parametrize(("kind", "place"), CASES, ids=lambda part: part.replace(" ", "-"))
def test_that_a_secret_was_replaced_is_said(kind: str, place: str) -> None:
    cleaner = Cleaner(bodies=True)
    if kind == "event":
        assert cleaner.event(events_with("cookie", "a=b", "password=hunter2")[place]).redacted
        assert not cleaner.event(events_with("x-a", "b", "nothing")[place]).redacted or place == "question"
    else:
        assert cleaner.answer(answers_with("cookie", "a=b", "password=hunter2")[place]).redacted
        assert not cleaner.answer(answers_with("x-a", "b", "nothing")[place]).redacted


@pytest.mark.parametrize(("kind", "place"), CASES, ids=lambda part: part.replace(" ", "-"))
def test_without_redaction_all_is_written_as_it_was(kind: str, place: str) -> None:
    cleaner = Cleaner(bodies=True, redact=None)
    if kind == "event":
        event = events_with("cookie", "a=b", "password=hunter2")[place]
        assert cleaner.event(event).value == event
    else:
        answer = answers_with("cookie", "a=b", "password=hunter2")[place]
        assert compact_answer(cleaner.answer(answer).value) == compact_answer(answer)


@pytest.mark.parametrize(
    ("place", "left_out"),
    [
        ("request body", {"data": 12}),
        ("response body", {"data": 12}),
        ("message", {"data": 12}),
        ("question", {"content": 5, "metadata": 6}),
        ("head", {}),
        ("response head", {}),
        ("end", {}),
    ],
)
@pytest.mark.parametrize("redact", [str, None])
def test_of_bodies_only_the_length_is_written(
    place: str, left_out: dict[str, int], redact: Callable[[str], str] | None
) -> None:
    cleaned = Cleaner(bodies=False, redact=redact).event(events_with("x-a", "b", "inner")[place])
    assert cleaned.left_out == left_out
    if left_out:
        assert b"inner" not in encode_event(cleaned.value, Encoding.JSON)
        assert base64.b64encode(b"before inner") not in encode_event(cleaned.value, Encoding.JSON)


@pytest.mark.parametrize(
    ("place", "left_out", "applied"),
    [
        ("request mutation", {"request_body_mutation": 5}, ["request_body_mutation"]),
        ("response mutation", {"response_body_mutation": 5}, ["response_body_mutation"]),
        (
            "inspection",
            {"detections.description": 5, "detections.replacement": 5, "redacted_content": 5},
            ["detections.replacement", "redacted_content"],
        ),
        ("audit", {}, []),
        ("block", {}, []),
    ],
)
def test_of_what_agents_put_in_place_of_bodies_only_the_length_is_written(
    place: str, left_out: dict[str, int], applied: list[str]
) -> None:
    cleaned = Cleaner(bodies=False).answer(answers_with("x-a", "b", "inner")[place])
    assert cleaned.left_out == left_out
    assert list(applied_parts(cleaned.left_out)) == applied
    assert ("inner" in json.dumps(compact_answer(cleaned.value))) is (place in ("audit", "block", "inspection"))


def test_what_empties_or_leaves_a_body_is_not_left_out() -> None:
    for data in (b"", None):
        answer = AgentResponse(request_body_mutation=BodyMutation(data, 3))
        cleaned = Cleaner(bodies=False).answer(answer)
        assert (cleaned.value, cleaned.left_out) == (answer, {})


@given(st.binary(max_size=60))
def test_bytes_without_secrets_are_written_as_they_are(data: bytes) -> None:
    event = RequestBodyChunkEvent(correlation_id="c", data=data, is_last=True)
    cleaned = Cleaner(bodies=True, redact=lambda text: text).event(event)
    assert cleaned.value == event


def test_a_secret_is_found_among_bytes_that_are_no_text() -> None:
    event = RequestBodyChunkEvent(
        correlation_id="c", data=b"\xff\xfepassword=p\xc3\xa0ss\xc3\xa9&a=1\x80", is_last=True
    )
    cleaned = Cleaner(bodies=True).event(event)
    assert cleaned.value.data == b"\xff\xfepassword=[redacted]&a=1\x80"


@pytest.mark.parametrize("redact", [lambda text: 1 / 0, lambda text: None, lambda text: b""])
def test_a_redact_that_fails_lets_nothing_through(redact: Any, caplog: pytest.LogCaptureFixture) -> None:
    cleaner = Cleaner(bodies=True, redact=redact)
    with caplog.at_level(logging.ERROR, "asgi_agents"):
        cleaned = cleaner.event(events_with("x-a", "b", "inner")["head"])
    assert cleaned.value.uri == REDACTED
    assert cleaned.value.headers == {"x-a": [REDACTED], "referer": [REDACTED]}
    assert len(caplog.records) == 1
    assert "inner" not in caplog.records[0].getMessage()


def test_an_acknowledgement_and_a_plain_allow_stay_as_they_are() -> None:
    cleaner = Cleaner(bodies=False)
    acknowledgement = Acknowledgement(success=True)
    assert cleaner.answer(acknowledgement).value == acknowledgement
    assert cleaner.answer(ALLOW).value is ALLOW


# Every text there is

#: It can stand wherever a token is expected, too.
SECRET = "ghp_" + "s3cret" * 4
#: The texts that stay: what events belong together by, who asks for what, and what the protocol has words for.
STAY = frozenset(
    {
        *("metadata.correlation_id", "metadata.request_id", "metadata.client_ip", "metadata.protocol"),
        *("metadata.tls_version", "metadata.tls_cipher", "metadata.route_id", "metadata.upstream_id"),
        *("metadata.timestamp", "metadata.traceparent", "method"),
        *("correlation_id", "client_ip", "route_id", "inspection_type"),
        *("decision.challenge_type", "request_headers.name", "response_headers.name", "headers.name"),
        *("decision.headers.name", "decision.params.name", "routing_metadata.name", "audit.custom.name"),
    }
)


def filled(kind: Any) -> Any:
    """A value of that type with the secret at each place where there can be a text."""
    if kind is str:
        return SECRET
    if kind is bytes:
        return SECRET.encode()
    if kind is Any:
        return {SECRET: [{"a": SECRET}]}
    if isinstance(kind, type) and issubclass(kind, Struct):
        hints = get_type_hints(kind)
        return kind(**{field.name: filled(hints[field.name]) for field in fields(kind)})
    if kind is Headers:
        return Headers({SECRET: [SECRET]})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    if kind in (int, float, bool):
        return kind(1)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return arguments[0]
    if origin in (Union, UnionType):
        return filled(arguments[0])
    if issubclass(origin, Mapping):
        return {filled(arguments[0]): filled(arguments[1])}
    assert issubclass(origin, Sequence | tuple), kind
    return [filled(arguments[0])]


def texts_in(value: Any, place: str = "") -> Iterator[str]:
    """The places at which the secret is."""
    if isinstance(value, Struct):
        for field in fields(value):
            yield from texts_in(getattr(value, field.name), f"{place}.{field.name}".removeprefix("."))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from texts_in(name, f"{place}.name")
            yield from texts_in(item, place)
    elif isinstance(value, str | bytes):
        if SECRET in (value if isinstance(value, str) else value.decode()):
            yield place
    elif isinstance(value, Iterable):
        for item in value:
            yield from texts_in(item, place)


def kinds(base: Any) -> Iterator[Any]:
    """A type and all that derive from it, as an agent in the process may be shown or may answer."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__.startswith(("asgi_agents", __name__)):
            yield from kinds(kind)


class Quoting(GuardrailResponse, frozen=True, kw_only=True):
    """Somebody's own answer, with a part that no encoding of the protocol has."""

    quote: str


class Noted(HeaderOp, frozen=True):
    note: str = ""


EVENTS = [kind for kind in get_args(Event) if kind is not ConfigureEvent]
UNKNOWN = sorted(
    {one for base in (*get_args(Event), *get_args(Answer)) for one in kinds(base)} - {*EVENTS, *get_args(Answer)},
    key=lambda one: str(one.__name__),
)
DECISIONS = [filled(kind) for kind in (Block, Redirect, Challenge)]
ANSWERS = [
    *(replace(filled(AgentResponse), decision=decision) for decision in DECISIONS),
    replace(filled(AgentResponse), websocket_decision=WebSocketClose(1008, SECRET)),
    filled(GuardrailResponse),
    filled(Acknowledgement),
]


@pytest.mark.parametrize("bodies", [False, True])
@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_no_text_of_an_event_is_forgotten(kind: Any, bodies: bool) -> None:
    event = filled(kind)
    assert set(texts_in(event)) - STAY
    cleaned = Cleaner(bodies=bodies).event(event)
    assert cleaned.redacted or not bodies
    assert set(texts_in(cleaned.value)) <= STAY


@pytest.mark.parametrize("bodies", [False, True])
@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(getattr(answer, "decision", answer)).__name__)
def test_no_text_of_an_answer_is_forgotten(answer: Any, bodies: bool) -> None:
    assert set(texts_in(answer)) - STAY
    cleaned = Cleaner(bodies=bodies).answer(answer)
    assert cleaned.redacted
    assert set(texts_in(cleaned.value)) <= STAY


def test_the_types_of_which_nothing_is_known_are_among_those() -> None:
    assert {ConfigureEvent, Decisions, Quoting, WindowEvent} <= set(UNKNOWN)


@pytest.mark.parametrize("kind", UNKNOWN, ids=lambda kind: kind.__name__)
def test_what_is_not_of_the_protocol_is_not_written(kind: Any) -> None:
    given = filled(kind)
    cleaner = Cleaner(bodies=True)
    with pytest.raises(TypeError, match=f"{kind.__name__} can't be recorded"):
        cleaner.event(given) if hasattr(kind, "event_type") else cleaner.answer(given)


def test_parts_of_an_answer_that_are_not_of_the_protocol_are_not_written() -> None:
    cleaner = Cleaner(bodies=True)
    with pytest.raises(TypeError, match="Noted can't be recorded"):
        cleaner.answer(AgentResponse(request_headers=[Noted("set", "x-a", "b", note=SECRET)]))


# The query

SECRET_NAMES = [
    *("session", "sessionid", "JSESSIONID", "sid", "sig", "X-Amz-Signature", "X-Amz-Credential", "otp", "jwt", "auth"),
    *("oauth_verifier_token", "api_key", "csrf-token", "passw%6Frd", "pass%77ord", "se%73sion", "user%5Bpassword%5D"),
    *("X-Goog-Signature", "hmac", "authorization", "client_secret", "S%49G"),
]
OTHER_NAMES = ["q", "author", "Authors", "coauthor", "page", "design", "side", "sort", "optional", "a%26b"]


@pytest.mark.parametrize("name", SECRET_NAMES + OTHER_NAMES)
@pytest.mark.parametrize(
    "query",
    [
        "?{}=hunter2",
        "?a=1&{}=hunter2&b=2",
        "?{}=hunter2=&=",
        "?{}=hunter2#x",
        "?b&{}=hunter2?c=1",
        "?{}=a,hunter2;hunter2",
        "?{}=a'\"<> hunter2",
    ],
)
def test_what_has_the_name_of_a_secret_in_a_query_is_not_written(name: str, query: str) -> None:
    uri = "/orders" + query.format(name)
    event = RequestHeadersEvent(metadata=METADATA, method="GET", uri=uri, headers=Headers())
    cleaned = Cleaner(bodies=False).event(event)
    answer = Cleaner(bodies=False).answer(AgentResponse(decision=Redirect(f"https://shop.example{uri}")))
    secret = name in SECRET_NAMES
    assert ("hunter2" in cleaned.value.uri, cleaned.redacted) == (not secret, secret)
    assert ("hunter2" in answer.value.decision.url, answer.redacted) == (not secret, secret)
    assert Cleaner(bodies=False, redact=None).event(event).value.uri == uri
    # Once more, it stays as it is.
    assert Cleaner(bodies=False).event(cleaned.value).value == cleaned.value


@given(st.text())
def test_a_target_without_secrets_stays_as_it_is(text: str) -> None:
    event = RequestHeadersEvent(metadata=METADATA, method="GET", uri=f"/{text}", headers=Headers())
    cleaned = Cleaner(bodies=False, redact=lambda given: given).event(event)
    assert cleaned.redacted or cleaned.value == event
