"""Guardrail services around an app: what clients receive, whatever the services say or do. Time is virtual."""

import json
import logging
import os
from collections.abc import Callable
from typing import Any, Final

import anyio
import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    AgentConfig,
    AgentContext,
    AgentManager,
    AgentMiddleware,
    CircuitBreakerConfig,
    ConfigurationError,
    FailureMode,
    InspectedText,
    status_app,
)
from asgi_agents.guardrail_services import AgentgatewayWebhook, LiteLLMGuardrail
from asgi_agents.guardrails import Guardrail
from asgi_agents.serve import agent_app
from tests.guardrails.detectors import redacted
from tests.guardrails.driving import EVERYTHING
from tests.guardrails.samples import Cut, events_of
from tests.guardrails.served_agents import Everything
from tests.guardrails.test_dialects import some_text as joined_text
from tests.guardrails.wired.exchanging import CHAT, Guarded, Sending, asking, seeded
from tests.guardrails.wired.test_endings import event
from tests.observability.spans import Spans
from tests.support.asgi import Client

from .speaking import CASES, FORBIDDEN, MASK, SECRET, Case, LiteLLMSpeaking, Speaking, masked

pytestmark = pytest.mark.anyio

ADDRESS: Final = "alice.smith@example.com"
#: How many cuttings of a stream are tried with each service.
CUTTINGS: Final = int(os.environ.get("GUARDRAIL_SERVICE_CUTTINGS", "3"))
MASKING: Final = [case for case in CASES if case.masks]
STREAM: Final = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
DONE: Final = b"data: [DONE]\n\n"


def guarded_by(app: Any, transport: Any, on: set[Any], action: str = "redact", **options: Any) -> Guarded:
    options = {"circuit_breaker": None} | options
    guardrail: Any = Guardrail("judge", on=on, action=action, hold=90)  # type: ignore[arg-type]
    return Guarded(app, [AgentConfig("judge", transport, **options)], [guardrail])


def chosen(case: Case, **choice: Any) -> Guarded | str:
    """An app behind a guardrail that chooses among what the service finds, or why that is refused."""
    app = Sending([b"{}"], "application/json")
    try:
        guardrail = Guardrail("judge", on={"input"}, action="redact" if case.masks else "block", hold=90, **choice)
        return Guarded(app, [AgentConfig("judge", case.within(case.speaking()))], [guardrail])
    except ConfigurationError as exc:
        return str(exc)


def prompt(text: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


def content_of(data: bytes) -> str:
    return "".join(
        choice["delta"].get("content") or "" for each in events_of(data) for choice in each.get("choices", ())
    )


def finishes_of(data: bytes) -> list[str]:
    found = [choice.get("finish_reason") for each in events_of(data) for choice in each.get("choices", ())]
    return [reason for reason in found if reason]


# --- What is chosen among the finds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", [None, "low", "medium", "high", "critical"])
@pytest.mark.parametrize("categories", [None, {"masked"}, {"violence"}, {"email"}, {"email", "masked"}])
@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_nothing_is_ignored_for_what_a_service_does_not_say(
    case: Case, categories: set[str] | None, severity: Any
) -> None:
    """A find passes only where the service says that it is of another category: never because it says none."""
    guarded = chosen(case, categories=categories, min_severity=severity)
    by_category = case.name == "openai"
    if isinstance(guarded, str):
        refused = "min_severity" if severity else "categories"
        if categories is not None and not by_category and "masked" not in categories:
            refused = "categories"
        assert guarded.startswith(f"Guardrail('judge'): {refused}=")
        assert "expected None" in guarded
        assert severity is not None or (not by_category and "masked" not in (categories or {"masked"}))
        return
    for text in (f"a {FORBIDDEN} thing", *([f"write to {ADDRESS}"] if case.masks else [])):
        client = await guarded.call(asking(CHAT, prompt(text)))
        app: Any = guarded.middleware.app
        reached = text in app.body.decode()
        ignored = by_category and categories is not None and "violence" not in categories
        assert reached == ignored
        assert client.status == (200 if ignored or ADDRESS in text else 400)


# --- Prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_a_prompt_that_is_blocked_never_reaches_the_app(case: Case) -> None:
    app = Sending([b"{}"], "application/json")
    guarded = guarded_by(app, case.within(case.speaking()), {"input"}, "block")
    client = await guarded.call(asking(CHAT, prompt(f"a {FORBIDDEN} thing")))
    assert (client.status, app.calls) == (400, 0)
    assert json.loads(client.body)["error"]["message"] == case.reason
    assert (guarded.record.decision, guarded.record.decided_by) == ("block", "judge")


@pytest.mark.parametrize("case", MASKING, ids=repr)
async def test_the_app_sees_a_masked_prompt(case: Case) -> None:
    app = Sending([b"{}"], "application/json")
    await guarded_by(app, case.within(case.speaking()), {"input"}).call(asking(CHAT, prompt(f"I am {ADDRESS}.")))
    assert json.loads(app.body)["messages"] == [{"role": "user", "content": masked(f"I am {ADDRESS}.")}]


@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_a_prompt_in_which_nothing_is_found_stays_as_it_is(case: Case) -> None:
    app = Sending([b"{}"], "application/json")
    await guarded_by(app, case.within(case.speaking()), {"input"}).call(asking(CHAT, prompt("hello")))
    assert app.body == prompt("hello")


# --- Streams ------------------------------------------------------------------------------------------------------


def some_text(seed: object) -> str:
    rng = seeded(seed)
    words = ["the", "answer", "is", "über", "42,", "\n", "ask", ADDRESS, "bob@mail.example.org", "a@b", "the"]
    return " ".join(rng.choice(words) for _ in range(rng.randrange(150)))


@pytest.mark.parametrize("seed", range(CUTTINGS))
@pytest.mark.parametrize("case", MASKING, ids=repr)
async def test_a_stream_leaves_as_masking_all_of_its_text_at_once_gives(case: Case, seed: int) -> None:
    text = some_text(seed)
    pieces = [event(part) for part in Cut(seeded(case, seed), longest=30)(text)]
    service = case.speaking()
    guarded = guarded_by(Sending([*pieces, DONE]), case.within(service), {"output"})
    client = await guarded.call(asking(CHAT, STREAM))
    assert content_of(client.body) == masked(text)
    assert client.body.endswith(DONE)
    assert guarded.record.guardrails[0].counts.get("redact", 0) == text.count("@") - text.count("a@b")


@pytest.mark.parametrize("seed", range(CUTTINGS))
@pytest.mark.parametrize("speak", [LiteLLMGuardrail, AgentgatewayWebhook])
async def test_an_agent_behind_a_gateways_format_redacts_as_it_does_in_the_process(
    speak: type[LiteLLMGuardrail | AgentgatewayWebhook], seed: int
) -> None:
    """Addresses with no space between them, and numbers of cards, which have spaces in them."""
    rng = seeded(speak.__name__, seed)
    text = joined_text(rng, 150)
    transport = speak("http://ours", transport=httpx.ASGITransport(agent_app(Everything(), api="litellm")))
    app = Sending([*(event(part) for part in Cut(rng, longest=30)(text)), DONE])
    client = await guarded_by(app, transport, {"output"}).call(asking(CHAT, STREAM))
    assert content_of(client.body) == redacted(text, EVERYTHING)


async def test_a_stream_goes_on_behind_what_was_masked() -> None:
    """It need not wait for its end: what is masked is known by its words."""
    words = "some words of an answer, "
    app = Sending([event(words) for _ in range(20)] + [event(f"{ADDRESS} ")] + [event(words) for _ in range(40)])
    app.pieces += [60.0, event("the end."), DONE]
    received: list[tuple[float, bytes]] = []
    client = asking(CHAT, STREAM)
    send = client.send

    async def noting(message: Any) -> None:
        received.append((anyio.current_time(), message.get("body", b"")))
        await send(message)

    client.send = noting  # type: ignore[method-assign]
    began = anyio.current_time()
    await guarded_by(app, CASES[0].within(LiteLLMSpeaking()), {"output"}).call(client)
    early = content_of(b"".join(body for at, body in received if at < began + 30))
    assert MASK in early
    assert len(early) > 40 * len(words)
    assert content_of(client.body) == f"{words * 20}{MASK} {words * 40}the end."


@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_a_stream_that_is_blocked_ends_in_the_terms_of_its_client(case: Case) -> None:
    words = "so many good words, "
    app = Sending([event(words) for _ in range(60)] + [event(f"a {FORBIDDEN} word. ")] + [event(words)] * 60 + [DONE])
    client = await guarded_by(app, case.within(case.speaking()), {"output"}, "block").call(asking(CHAT, STREAM))
    said = content_of(client.body)
    assert FORBIDDEN not in said
    assert said
    assert set(said.split()) <= set(words.split())
    assert finishes_of(client.body) == ["content_filter"]
    assert client.body.endswith(DONE)
    assert not app.finished


# --- Handlers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_a_handler_has_a_text_judged_by_a_service(case: Case) -> None:
    found: list[InspectedText] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        agents: AgentContext = scope["state"]["asgi_agents"]
        texts = ("hello", f"I am {ADDRESS}", f"a {FORBIDDEN} thing")
        found.extend([await agents.inspect(text, guardrail="judge") for text in texts])
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    await guarded_by(app, case.within(case.speaking()), {"input"}, "block").call(Client("GET", "/x"))
    passed, addressed, blocked = found
    assert passed == InspectedText(text="hello")
    # With action="block", what a service would mask is blocked, too.
    assert addressed.reason == ("masked" if case.masks else None)
    assert blocked.reason == case.reason
    found.clear()
    await guarded_by(app, case.within(case.speaking()), {"input"}).call(Client("GET", "/x"))
    assert found[1].text == (f"I am {MASK}" if case.masks else f"I am {ADDRESS}")


# --- Failures -----------------------------------------------------------------------------------------------------


def _status(status: int) -> Callable[[Any], Response]:
    return lambda asked: JSONResponse({"error": "no"}, status)


#: What a service does, and what a call then comes to: its kind, the status where it stops a request, and whether the
#: breaker counts it.
FAULTS: Final[dict[str, tuple[Callable[[Any], Response] | None, str, int, bool]]] = {
    "500": (_status(500), "error", 503, True),
    "429": (_status(429), "error", 503, True),
    "401": (_status(401), "error", 503, True),
    "no json": (lambda asked: Response(b"{", media_type="application/json"), "error", 503, True),
    "text": (lambda asked: PlainTextResponse("ok"), "error", 503, True),
    "another format": (lambda asked: JSONResponse({"verdict": "fine"}), "error", 503, True),
    "400": (_status(400), "not_applicable", 503, False),
    "413": (_status(413), "error", 503, False),
    "late": (None, "timeout", 504, True),
}


def faulty(case: Case, fault: str) -> Speaking:
    service = case.speaking()
    service.instead = FAULTS[fault][0]
    if fault == "late":

        async def wait() -> None:
            await anyio.sleep(30)

        service.before = wait
    return service


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_a_prompt_that_a_service_fails_on_goes_by_the_failure_mode(
    case: Case, fault: str, mode: FailureMode
) -> None:
    app = Sending([b"{}"], "application/json")
    guarded = guarded_by(app, case.within(faulty(case, fault)), {"input"}, failure_mode=mode)
    client = await guarded.call(asking(CHAT, prompt("hello")))
    _, kind, status, _ = FAULTS[fault]
    record = guarded.record
    if mode is FailureMode.OPEN:
        assert (client.status, app.body, record.passed_open) == (200, prompt("hello"), ["judge"])
    else:
        assert (client.status, app.calls, record.decision) == (status, 0, kind)
    assert record.guardrails[0].counts == {"failure": 1}


@pytest.mark.parametrize("fault", ["500", "late", "another format"])
@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_a_stream_that_a_service_fails_on_goes_by_the_failure_mode(case: Case, fault: str) -> None:
    words = "so many good words, "
    pieces = [event(words)] * 60
    for mode in FailureMode:
        app = Sending([*pieces, DONE])
        guarded = guarded_by(app, case.within(faulty(case, fault)), {"output"}, failure_mode=mode)
        client = await guarded.call(asking(CHAT, STREAM))
        if mode is FailureMode.OPEN:
            assert content_of(client.body) == words * 60
            assert client.body.endswith(DONE)
        else:
            assert content_of(client.body) == ""
            assert guarded.record.decision == FAULTS[fault][1]


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_breaker_counts_what_is_the_services_fault(fault: str) -> None:
    case = CASES[0]
    service = faulty(case, fault)
    app = Sending([b"{}"], "application/json")
    breaker = CircuitBreakerConfig(failure_threshold=3, reset_timeout=1000)
    guarded = guarded_by(app, case.within(service), {"input"}, circuit_breaker=breaker)
    for _ in range(5):
        await guarded.call(asking(CHAT, prompt("hello")))
    counts = FAULTS[fault][3]
    assert len(service.asked) == (3 if counts else 5)
    assert [record.decision for record in guarded.records][-1] == ("breaker_open" if counts else FAULTS[fault][1])


async def test_a_call_that_is_cancelled_leaves_nothing_behind() -> None:
    case = CASES[0]
    service = faulty(case, "late")
    app = Sending([b"{}"], "application/json")
    guarded = guarded_by(app, case.within(service), {"input"}, timeout=100.0)
    with anyio.move_on_after(1) as scope:
        await guarded.call(asking(CHAT, prompt("hello")))
    assert scope.cancelled_caught
    assert (len(service.asked), app.calls) == (1, 0)
    service.before = None
    client = await guarded.call(asking(CHAT, prompt("hello")))
    assert client.status == 200


# --- Secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["401", "no json", "late"])
@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_neither_the_key_nor_the_text_is_in_a_log(
    case: Case, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    guarded = guarded_by(Sending([b"{}"], "application/json"), case.within(faulty(case, fault)), {"input"})
    client = await guarded.call(asking(CHAT, prompt("the text of a client")))
    shown = caplog.text + str(guarded.record) + client.body.decode() + repr(guarded.middleware)
    assert SECRET not in shown
    assert "the text of a client" not in shown
    assert "agent 'judge', guardrail_inspect" in caplog.text


@pytest.mark.parametrize("fault", [None, "401"])
@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_neither_the_key_nor_the_text_is_in_a_span_in_metrics_or_on_the_status_page(
    case: Case, fault: str | None
) -> None:
    spans = Spans()
    service = case.speaking() if fault is None else faulty(case, fault)
    manager = AgentManager(
        [AgentConfig("judge", case.within(service), failure_mode=FailureMode.OPEN)], tracer_provider=spans.provider
    )
    app = Sending([b"{}"], "application/json")
    middleware = AgentMiddleware(app, manager=manager, guardrails=[Guardrail("judge", on={"input"}, hold=90)])
    await asking(CHAT, prompt("the text of a client")).call(middleware)
    traced = "".join(span.to_json() for span in spans.finished)
    shown = (await asking_for_status(manager)).decode() + manager.export_prometheus() + traced
    assert '"transport":"http"' in shown
    assert "guardrail_inspect" in traced
    assert SECRET not in shown
    assert "the text of a client" not in shown


async def asking_for_status(manager: AgentManager) -> bytes:
    client = Client("GET", "/status.json")
    await client.call(status_app(manager))
    assert client.status == 200
    return client.body


async def test_a_service_that_hangs_up_is_a_failure() -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("the connection was reset", request=request)

    transport = LiteLLMGuardrail("http://guardrail", api_key=SECRET, transport=httpx.MockTransport(broken))
    guarded = guarded_by(Sending([b"{}"], "application/json"), transport, {"input"})
    client = await guarded.call(asking(CHAT, prompt("hello")))
    assert (client.status, guarded.record.decision) == (503, "error")
