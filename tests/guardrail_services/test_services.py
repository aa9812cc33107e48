"""What the transports for guardrail services ask, and what they make of the answers."""

import json
from collections.abc import Callable
from typing import Any, Final

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis.strategies import booleans, dictionaries, floats, integers, lists, none, recursive, sampled_from, text
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from asgi_agents import (
    AgentConfig,
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    ConfigurationError,
    Detection,
    EventTooLargeError,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    NotApplicableError,
    RequestCompleteEvent,
    TextSpan,
    Transport,
)
from asgi_agents.guardrail_services import (
    AgentgatewayWebhook,
    GuardrailService,
    LiteLLMGuardrail,
    NeMoGuardrails,
    OpenAIModeration,
)
from asgi_agents.guardrails import Window
from asgi_agents.guardrails.slots import Kind, Slot
from asgi_agents.guardrails.text_guardrail import metadata_of
from asgi_agents.protocol import check_inspection

from .speaking import (
    CASES,
    FORBIDDEN,
    MASK,
    REASON,
    SECRET,
    Case,
    LiteLLMSpeaking,
    OpenAISpeaking,
    Speaking,
    moderation,
)

pytestmark = pytest.mark.anyio

ADDRESS: Final = "alice@example.com"
URL: Final = "http://guardrail.internal:8000"
# Fields of the formats, and values that they have.
_WORDS: Final = (
    *("action", "texts", "blocked_reason", "body", "messages", "choices", "message", "role", "content", "status_code"),
    *("results", "flagged", "categories", "category_scores", "guardrails", "log", "activated_rails", "name", "stop"),
    *("status", "rail", "rails_status", "NONE", "BLOCKED", "GUARDRAIL_INTERVENED", "passed", "modified", "blocked"),
)


def question(content: str, kind: Kind | None = "input", role: str | None = None) -> GuardrailInspectEvent:
    """An inspection, as the middleware makes them; without a kind, as handlers do."""
    metadata = {} if kind is None else metadata_of(Window(content), Slot(("a",), kind, role))
    return GuardrailInspectEvent(
        correlation_id="c-1", inspection_type="pii_detection", content=content, model="gpt-5", metadata=metadata
    )


async def ask(service: GuardrailService, event: GuardrailInspectEvent) -> GuardrailResponse:
    answer = await service.call(event)
    assert isinstance(answer, GuardrailResponse)
    await service.aclose()
    return answer


# --- Answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["input", "output", "tool_call", "tool_result", "reasoning", None])
@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_a_text_in_which_nothing_is_found_passes(case: Case, kind: Kind | None) -> None:
    service = case.speaking()
    assert await ask(case.within(service), question("good morning", kind)) == GuardrailResponse(detected=False)
    assert len(service.asked) == 1


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_what_is_blocked_is_a_detection_without_a_span(case: Case, kind: Kind) -> None:
    answer = await ask(case.within(case.speaking()), question(f"a {FORBIDDEN} word", kind))
    [found] = answer.detections
    assert (answer.detected, found.category, found.span) == (True, case.reason, None)
    # What OpenAI finds is for the Guardrail to act on; the others have decided.
    assert found.action == (None if case.name == "openai" else "block")


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("case", [case for case in CASES if case.masks], ids=repr)
async def test_what_is_masked_is_a_span_with_its_replacement(case: Case, kind: Kind) -> None:
    answer = await ask(case.within(case.speaking()), question(f"write to {ADDRESS} today", kind))
    assert answer.redacted_content == f"write to {MASK} today"
    assert list(answer.detections) == [
        Detection(category="masked", description="", span=TextSpan(9, 9 + len(ADDRESS)), replacement=MASK)
    ]


@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_an_empty_text_is_not_sent(case: Case) -> None:
    service = case.speaking()
    assert await ask(case.within(service), question("")) == GuardrailResponse(detected=False)
    assert service.asked == []


# --- Questions ----------------------------------------------------------------------------------------------------


async def asked_of(
    case_name: str, event: GuardrailInspectEvent, **options: Any
) -> tuple[str, dict[str, Any], "Speaking"]:
    case = next(case for case in CASES if case.name == case_name)
    service = case.speaking()
    await ask(case.within(service, **options), event)
    [(path, asked)] = service.asked
    return path, asked, service


@pytest.mark.parametrize(
    ("kind", "input_type"), [("input", "request"), ("tool_result", "request"), ("output", "response")]
)
async def test_litellm_is_asked_in_its_format(kind: Kind, input_type: str) -> None:
    path, asked, service = await asked_of("litellm", question("hi", kind), parameters={"level": 3})
    assert path == "/beta/litellm_basic_guardrail_api"
    assert asked == {
        "input_type": input_type,
        "texts": ["hi"],
        "tool_calls": None,
        "model": "gpt-5",
        "litellm_call_id": "c-1",
        "request_data": {},
        "additional_provider_specific_params": {"level": 3},
    }
    assert service.headers[0]["x-api-key"] == SECRET


async def test_agentgateway_is_asked_about_prompts_and_choices_at_two_paths() -> None:
    path, asked, service = await asked_of("agentgateway", question("hi", "input", "system"))
    assert (path, asked) == ("/request", {"body": {"messages": [{"role": "system", "content": "hi"}]}})
    assert service.headers[0]["authorization"] == f"Bearer {SECRET}"
    path, asked, _ = await asked_of("agentgateway", question("hi", "output"))
    assert (path, asked) == ("/response", {"body": {"choices": [{"message": {"role": "assistant", "content": "hi"}}]}})
    path, asked, _ = await asked_of("agentgateway", question("hi", None))
    assert (path, asked) == ("/request", {"body": {"messages": [{"role": "user", "content": "hi"}]}})


async def test_openai_is_asked_in_its_format() -> None:
    path, asked, service = await asked_of("openai", question("hi"), model="omni-moderation-2024-09-26")
    assert (path, asked) == ("/v1/moderations", {"model": "omni-moderation-2024-09-26", "input": "hi"})
    assert service.headers[0]["authorization"] == f"Bearer {SECRET}"


async def test_nemo_is_asked_to_run_rails_and_nothing_else() -> None:
    options = {"rails": ["input"], "log": {"activated_rails": True}}
    _, asked, service = await asked_of("nemo chat", question("hi"))
    assert asked == {
        "model": "m",
        "stream": False,
        "messages": [{"role": "user", "content": "hi"}],
        "config_id": "safety",
        "options": options,
        "guardrails": {"config_id": "safety", "options": options},
    }
    assert service.headers[0]["authorization"] == f"Bearer {SECRET}"
    _, asked, _ = await asked_of("nemo chat", question("hi", "output"))
    assert asked["messages"] == [{"role": "user", "content": ""}, {"role": "assistant", "content": "hi"}]
    assert asked["options"]["rails"] == asked["guardrails"]["options"]["rails"] == ["output"]


async def test_nemo_is_asked_to_check() -> None:
    path, asked, _ = await asked_of("nemo checks", question("hi", "output"))
    assert (path, asked) == (
        "/v1/checks",
        {
            "model": "m",
            "messages": [{"role": "assistant", "content": "hi"}],
            "guardrails": {"config_id": "safety", "rail_types": ["output"]},
        },
    )
    path, asked, _ = await asked_of("nemo microservice", question("hi"))
    assert (path, asked) == (
        "/v1/guardrail/checks",
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "guardrails": {"config_id": "safety"}},
    )


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: LiteLLMGuardrail(f"{URL}/"), f"{URL}/beta/litellm_basic_guardrail_api"),
        (
            lambda: LiteLLMGuardrail(f"{URL}/beta/litellm_basic_guardrail_api"),
            f"{URL}/beta/litellm_basic_guardrail_api",
        ),
        (lambda: LiteLLMGuardrail(f"{URL}/a?key=1"), f"{URL}/a/beta/litellm_basic_guardrail_api"),
        (lambda: AgentgatewayWebhook(URL), f"{URL}/request"),
        (lambda: OpenAIModeration(SECRET), "https://api.openai.com/v1/moderations"),
        (lambda: NeMoGuardrails(URL), f"{URL}/v1/chat/completions"),
        (lambda: NeMoGuardrails(URL, endpoint="checks"), f"{URL}/v1/checks"),
        (lambda: NeMoGuardrails(URL, endpoint="guardrail/checks"), f"{URL}/v1/guardrail/checks"),
        (
            lambda: NeMoGuardrails(f"{URL}/apis/v2/workspaces/default/checks", endpoint="guardrail/checks"),
            f"{URL}/apis/v2/workspaces/default/checks",
        ),
    ],
)
def test_the_path_of_the_service_is_put_behind_the_url(make: Callable[[], GuardrailService], shown: str) -> None:
    service = make()
    assert repr(service) == f"<{type(service).__name__} {shown!r}>"


# --- Failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, NotApplicableError),
        (401, AgentProtocolError),
        (404, AgentProtocolError),
        (413, EventTooLargeError),
        (422, NotApplicableError),
        (429, AgentProtocolError),
        (500, AgentProtocolError),
        (503, AgentProtocolError),
    ],
)
@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_another_status_than_200_is_a_failure(case: Case, status: int, error: type[Exception]) -> None:
    service = case.speaking()
    # Not what is in the body: it may quote the text, or the key.
    service.instead = lambda asked: JSONResponse({"error": f"{asked} {SECRET}"}, status)
    with pytest.raises(error, match=str(status)) as failed:
        await ask(case.within(service), question("hi there"))
    assert type(failed.value) is error
    assert SECRET not in str(failed.value)
    assert "hi there" not in str(failed.value)


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (PlainTextResponse("fine"), "content-type: expected application/json"),
        (Response(b"{}", headers={"content-type": "application/json", "content-encoding": "gzip"}), "content-encoding"),
        (Response(b"", media_type="application/json"), "not json"),
        (Response(b"{", media_type="application/json"), "not json"),
        (JSONResponse([]), "Expected `object`"),
        (JSONResponse(None), "Expected `object`"),
        (JSONResponse({}), "missing required field|log.activated_rails"),
        (Response(b'{"a": "' + b"x" * 2000 + b'"}', media_type="application/json"), "longer than 1500 bytes"),
        (RedirectResponse("http://elsewhere/"), "expected status 200, got 307"),
    ],
)
@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_what_is_no_answer_is_a_failure(case: Case, response: Response, fault: str) -> None:
    service = case.speaking()
    service.instead = lambda asked: response
    with pytest.raises(AgentProtocolError, match=fault):
        await ask(case.within(service, max_answer_bytes=1500), question("hi"))


LITELLM, AGENTGATEWAY, OPENAI, NEMO, _, CHECKS, MICROSERVICE = CASES


def completion(content: object, rails: object) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}}], "guardrails": {"log": rails}}


@pytest.mark.parametrize(
    ("case", "answer", "fault"),
    [
        (LITELLM, {"action": "PASS"}, "action"),
        (LITELLM, {"action": None}, "action"),
        (LITELLM, {"action": "GUARDRAIL_INTERVENED"}, "texts: expected the text as it was changed, got none"),
        (LITELLM, {"action": "GUARDRAIL_INTERVENED", "texts": []}, "texts: expected the text as it was changed"),
        (LITELLM, {"action": "GUARDRAIL_INTERVENED", "texts": ["a", "b"]}, "texts: expected 1, .* got 2"),
        (LITELLM, {"action": "GUARDRAIL_INTERVENED", "texts": "a"}, "texts"),
        (LITELLM, {"action": "GUARDRAIL_INTERVENED", "texts": [1]}, r"texts\[\.*0*\.*\]"),
        (LITELLM, {"action": "BLOCKED", "blocked_reason": 1}, "blocked_reason"),
        (AGENTGATEWAY, {"action": "pass"}, "action"),
        (AGENTGATEWAY, {"action": {"body": "no"}}, "action.status_code: expected an int"),
        (AGENTGATEWAY, {"action": {"status_code": 403}}, "action.body: expected a text"),
        (AGENTGATEWAY, {"action": {"body": "no", "status_code": "403"}}, "status_code"),
        (AGENTGATEWAY, {"action": {"body": 3}}, "action.body"),
        (AGENTGATEWAY, {"action": {"body": {}}}, "action.body.messages: expected 1, .* got none"),
        (AGENTGATEWAY, {"action": {"body": {"messages": []}}}, "action.body.messages: expected 1, .* got 0"),
        (AGENTGATEWAY, {"action": {"body": {"choices": [{"message": {"role": "a", "content": ""}}]}}}, "messages"),
        (AGENTGATEWAY, {"action": {"body": {"messages": [{"role": "user", "content": 1}]}}}, "content"),
        (OPENAI, {"results": []}, "results: expected 1, as many as texts, got 0"),
        (OPENAI, {"results": moderation("m", set())["results"] * 2}, "results: expected 1"),
        (OPENAI, {"results": [{"flagged": "no", "categories": {}, "category_scores": {}}]}, "flagged"),
        (OPENAI, {"results": [{"flagged": False, "categories": [], "category_scores": {}}]}, "categories"),
        (OPENAI, {"results": [{"flagged": False, "categories": {"a": 1}, "category_scores": {}}]}, "categories"),
        (OPENAI, moderation("m", set(), {"hate": 1.5}), "category_scores: expected 0 to 1 for 'hate'"),
        # Older servers answer so where they have failed.
        (NEMO, {"messages": [{"role": "assistant", "content": "Internal server error."}]}, "log.activated_rails"),
        (NEMO, completion("fine", None), "log.activated_rails"),
        (NEMO, completion("fine", {}), "activated_rails"),
        (NEMO, completion(None, {"activated_rails": []}), "content: expected str, got NoneType"),
        (NEMO, {"guardrails": {"log": {"activated_rails": []}}}, "content: expected str, got NoneType"),
        (NEMO, completion(["fine"], {"activated_rails": []}), "content"),
        (NEMO, completion("fine", {"activated_rails": [{"name": "a", "stop": "yes"}]}), "stop"),
        (CHECKS, {"status": "unknown"}, "status"),
        (CHECKS, {"status": "success"}, "status"),
        (CHECKS, {"status": "modified"}, "content: expected str, got NoneType"),
        (MICROSERVICE, {"status": "passed"}, "status"),
        (MICROSERVICE, {"status": "blocked", "rails_status": []}, "rails_status"),
    ],
)
async def test_an_answer_of_another_format_is_a_failure(case: Case, answer: Any, fault: str) -> None:
    service = case.speaking()
    service.instead = lambda asked: JSONResponse(answer)
    with pytest.raises(AgentProtocolError, match=fault):
        await ask(case.within(service), question("hi there"))


async def test_a_text_that_utf8_cannot_carry_is_no_answer() -> None:
    service = LiteLLMSpeaking()
    service.instead = lambda asked: Response(
        rb'{"action": "GUARDRAIL_INTERVENED", "texts": ["\ud800"]}', media_type="application/json"
    )
    with pytest.raises(AgentProtocolError):
        await ask(LITELLM.within(service), question("hi"))


async def test_nobody_there_is_a_connection_error(free_tcp_port: int) -> None:
    for case in CASES:
        service = case.make(f"http://127.0.0.1:{free_tcp_port}")
        with pytest.raises(AgentConnectionError):
            await ask(service, question("hi"))
        with pytest.raises(AgentConnectionError):
            await service.connect()
        await service.retire()


async def test_other_events_are_refused() -> None:
    event = RequestCompleteEvent(
        correlation_id="c", status=200, duration_ms=1, request_body_size=0, response_body_size=0, upstream_attempts=1
    )
    with pytest.raises(AgentProtocolError, match="LiteLLMGuardrail is asked about texts, and not request_complete"):
        await LITELLM.within(LiteLLMSpeaking()).call(event)


_JSON: Final = recursive(
    none()
    | booleans()
    | integers()
    | floats(allow_nan=False, allow_infinity=False)
    | text(max_size=5)
    | sampled_from(_WORDS),
    lambda inner: lists(inner, max_size=3) | dictionaries(sampled_from(_WORDS), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("case", CASES, ids=repr)
@given(answer=_JSON, right=booleans())
def test_whatever_is_answered_is_an_answer_or_a_failure(case: Case, answer: Any, right: bool) -> None:
    service = case.speaking()
    event = question("hi there")

    def answering(asked: Any) -> Response:
        whole = service.answer(service.asked[-1][0], asked)
        # What is right, with something else in one place.
        return JSONResponse({**whole, **answer} if right and isinstance(answer, dict) else answer)

    service.instead = answering

    async def call() -> GuardrailResponse | None:
        try:
            return await ask(case.within(service), event)
        except AgentError:
            return None

    found = anyio.run(call)
    if found is not None:
        assert check_inspection(found, event.content) is found


# --- Particulars --------------------------------------------------------------------------------------------------


async def test_litellm_masks_also_where_the_service_says_that_it_did_nothing() -> None:
    service = LiteLLMSpeaking()
    service.instead = lambda asked: JSONResponse({"action": "NONE", "texts": ["hi [0]"]})
    answer = await ask(LITELLM.within(service), question("hi bob@x.org"))
    assert answer.redacted_content == "hi [0]"
    service.instead = lambda asked: JSONResponse({"action": "NONE", "texts": asked["texts"]})
    assert not (await ask(LITELLM.within(service), question("hi bob@x.org"))).detected


async def test_a_block_without_a_reason_has_ours() -> None:
    service = LiteLLMSpeaking()
    service.instead = lambda asked: JSONResponse({"action": "BLOCKED"})
    [found] = (await ask(LITELLM.within(service), question("hi"))).detections
    assert found.category == "The text was blocked by a guardrail"


async def test_openai_has_a_threshold_of_its_own_for_each_category() -> None:
    service = OpenAISpeaking()
    service.instead = lambda asked: JSONResponse(
        moderation("m", {"sexual/minors", "hate"}, {"sexual/minors": 0.12, "hate": 0.6, "violence": 0.4})
    )
    answer = await ask(OPENAI.within(service), question("hi"))
    assert [found.category for found in answer.detections] == ["hate", "sexual/minors"]
    # Not a confidence that Guardrail.threshold could compare with.
    assert [found.confidence for found in answer.detections] == [None, None]
    assert answer.confidence == 0.6


async def test_thresholds_replace_those_of_openai() -> None:
    service = OpenAISpeaking()
    scores = {"hate": 0.6, "violence": 0.4}
    service.instead = lambda asked: JSONResponse(moderation("m", {"hate"}, scores))
    answer = await ask(OPENAI.within(service, thresholds={"hate": 0.7, "violence": 0.4}), question("hi"))
    assert [found.category for found in answer.detections] == ["violence"]
    with pytest.raises(AgentProtocolError, match="category_scores: expected one for 'coffee', which has a threshold"):
        await ask(OPENAI.within(service, thresholds={"coffee": 0.1}), question("hi"))


async def test_what_openai_flags_without_a_category_is_found() -> None:
    service = OpenAISpeaking()
    service.instead = lambda asked: JSONResponse(
        {"results": [{"flagged": True, "categories": {"illicit": None}, "category_scores": {"illicit": None}}]}
    )
    [found] = (await ask(OPENAI.within(service), question("hi"))).detections
    assert found.category == "flagged"


async def test_what_the_microservice_blocks_names_the_rail_to_handlers_alone() -> None:
    [found] = (await ask(MICROSERVICE.within(MICROSERVICE.speaking()), question(FORBIDDEN))).detections
    assert (found.description, found.category) == ("self check input", "The text was blocked by a guardrail")


# --- Configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: LiteLLMGuardrail("ftp://x"), "LiteLLMGuardrail: url='ftp://x/beta/.*expected an http:// or https://"),
        (lambda: LiteLLMGuardrail(None), "LiteLLMGuardrail: url=None, expected"),  # type: ignore[arg-type]
        (lambda: LiteLLMGuardrail(URL, parameters=[1]), "parameters is a list, expected a mapping"),  # type: ignore[arg-type]
        (lambda: LiteLLMGuardrail(URL, api_key=""), "LiteLLMGuardrail: api_key is an empty str"),
        (lambda: LiteLLMGuardrail(URL, api_key=f"{SECRET}\n"), "api_key, expected visible ASCII"),
        (lambda: LiteLLMGuardrail(URL, headers={"content-type": "x"}), "LiteLLMGuardrail: headers='content-type'"),
        (lambda: LiteLLMGuardrail(URL, api_key="a", headers={"X-Api-Key": "b"}), "'x-api-key' beside api_key"),
        (lambda: AgentgatewayWebhook(URL, api_key=3), "AgentgatewayWebhook: api_key is an int"),  # type: ignore[arg-type]
        (lambda: AgentgatewayWebhook(URL, max_answer_bytes=0), "AgentgatewayWebhook: max_answer_bytes=0"),
        (lambda: AgentgatewayWebhook("http://u:p@h"), "AgentgatewayWebhook: url has credentials in it"),
        (lambda: OpenAIModeration(SECRET, model=""), "OpenAIModeration: model='', expected the name of a model"),
        (lambda: OpenAIModeration(SECRET, thresholds={"hate": 2}), r"thresholds\['hate'\]=2, expected a number from 0"),
        (lambda: OpenAIModeration(SECRET, thresholds=[]), "thresholds is a list"),  # type: ignore[arg-type]
        (lambda: OpenAIModeration(SECRET, thresholds={1: 0.5}), "thresholds contains 1"),  # type: ignore[dict-item]
        (lambda: NeMoGuardrails(URL, endpoint="chat"), "endpoint='chat', expected one of 'chat/completions'"),  # type: ignore[arg-type]
        (lambda: NeMoGuardrails(URL, config_id=""), "config_id='', expected the id of a configuration"),
        (lambda: NeMoGuardrails(URL, model=None), "model=None, expected the name of a model"),  # type: ignore[arg-type]
        (lambda: AgentConfig("a", LiteLLMGuardrail(URL), events={EventType.REQUEST_HEADERS}), "can't carry"),
        (
            lambda: AgentConfig("a", LiteLLMGuardrail(URL), config={}),
            "config is given, which its",
        ),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault) as refused:
        make()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_service_is_a_transport_for_inspections(case: Case) -> None:
    service = case.make("http://h:9000/", headers={"x-tenant": SECRET})
    assert isinstance(service, Transport)
    config = AgentConfig("judge", service)
    assert config.hears == frozenset({EventType.GUARDRAIL_INSPECT})
    assert service.address == "h:9000"
    assert SECRET not in repr(config)
    assert SECRET not in repr(service)


async def test_a_service_may_be_on_a_unix_socket_or_behind_tls() -> None:
    assert LiteLLMGuardrail("http://x", uds="/run/guardrail.sock").address == "unix:///run/guardrail.sock"
    assert OpenAIModeration(SECRET, verify=False).address == "api.openai.com:443"
    with pytest.raises(ConfigurationError, match="OpenAIModeration: uds beside transport"):
        OpenAIModeration(SECRET, transport=httpx.MockTransport(lambda request: httpx.Response(200)), uds="/a")


async def test_headers_of_the_user_are_sent() -> None:
    service = LiteLLMSpeaking()
    await ask(LITELLM.within(service, headers={"X-Tenant": "acme"}), question("hi"))
    assert service.headers[0]["x-tenant"] == "acme"
    assert json.dumps(service.asked).count(REASON) == 0
