"""A text guardrail that is served to LiteLLM and agentgateway."""

import json
import logging
from collections.abc import Sequence
from typing import Any, Final

import anyio
import httpx
import pytest
from starlette.types import ASGIApp, Message

from asgi_agents import Agent, BadInput, ConfigurationError, GuardrailInspectEvent, GuardrailResponse
from asgi_agents.guardrails import Block, Decision, Flag, Redact, TextGuardrail, Window
from asgi_agents.serve import agent_app
from asgi_agents.serve.gateways import AT_ONCE, MAX_TEXTS
from tests.guardrails.detectors import EMAIL, HOLD, detector, settled
from tests.guardrails.served_agents import BLOCKED, REASON, Everything

pytestmark = pytest.mark.anyio

LITELLM: Final = "/beta/litellm_basic_guardrail_api"
ADDRESS: Final = "alice@example.com"
_EMAILS: Final = detector(EMAIL)


class Emails(TextGuardrail):
    """Never suspends."""

    hold = HOLD

    def __init__(self) -> None:
        self.windows: list[Window] = []

    async def check(self, window: Window) -> Sequence[Decision]:
        self.windows.append(window)
        if BLOCKED in window.text:
            return [Block(REASON)]
        return _EMAILS(window)


class Settling(Emails):
    def settled(self, text: str) -> int:
        return settled(text)


async def post(app: ASGIApp, path: str, question: Any, **headers: str) -> httpx.Response:
    content = question if isinstance(question, bytes) else json.dumps(question).encode()
    headers = {"content-type": "application/json"} | headers
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://guardrail") as client:
        return await client.post(path, content=content, headers=headers)


def served(agent: TextGuardrail | None = None, **options: Any) -> ASGIApp:
    return agent_app(agent or Emails(), api="litellm", **options)


def asked(*texts: str, input_type: str = "request", **more: Any) -> dict[str, Any]:
    """A question as LiteLLM 1.108 asks it."""
    return {
        "input_type": input_type,
        "litellm_call_id": "8b2c1a52-0b1c-4c1e-9d0e-0a4c7d0e4f11",
        "litellm_trace_id": None,
        "structured_messages": [{"role": "user", "content": text} for text in texts],
        "images": None,
        "tools": None,
        "texts": list(texts),
        "request_data": {"user_api_key_hash": None},
        "request_headers": {"host": "litellm", "authorization": "[present]"},
        "litellm_version": "1.108.7",
        "additional_provider_specific_params": {},
        "tool_calls": None,
        "model": "gpt-5",
        **more,
    }


# --- LiteLLM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [Emails, Everything])
async def test_texts_pass_are_masked_and_blocked(agent: type[TextGuardrail]) -> None:
    app = served(agent())
    assert (await post(app, LITELLM, asked("hello", "there"))).json() == {"action": "NONE"}
    answer = await post(app, f"/any{LITELLM}/", asked("hello", f"I am {ADDRESS}.", ""))
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"action": "GUARDRAIL_INTERVENED", "texts": ["hello", "I am [0].", ""]}
    answer = await post(app, LITELLM, asked("hello", f"{BLOCKED} {ADDRESS}"))
    assert answer.json() == {"action": "BLOCKED", "blocked_reason": REASON}


@pytest.mark.parametrize("question", [asked(), asked(texts=None), {"input_type": "request"}, asked("")])
async def test_a_question_without_texts_is_answered(question: dict[str, Any]) -> None:
    agent = Emails()
    assert (await post(served(agent), LITELLM, question)).json() == {"action": "NONE"}
    assert agent.windows == []


async def test_a_flag_changes_nothing() -> None:
    class Flagging(TextGuardrail):
        async def check(self, window: Window) -> Sequence[Decision]:
            return [Flag(0, 2, "greeting")]

    assert (await post(served(Flagging()), LITELLM, asked("hello"))).json() == {"action": "NONE"}


async def test_input_that_is_at_fault_is_blocked() -> None:
    class Strict(TextGuardrail):
        async def check(self, window: Window) -> Sequence[Decision]:
            raise BadInput("no text")

    answer = await post(served(Strict()), LITELLM, asked("hello"))
    assert answer.json() == {"action": "BLOCKED", "blocked_reason": "bad_input"}


def call(arguments: str | None) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "send", "arguments": arguments}, "index": 0}


@pytest.mark.parametrize("input_type", ["request", "response"])
@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ('{"to": "bob", "n": 1}', "NONE"),
        (None, "NONE"),
        ("", "NONE"),
        ('{"to": ["alice\\u0040example.com"]}', "BLOCKED"),
        # Not whole yet, or no JSON at all.
        ('{"to": "alice@example.com', "BLOCKED"),
        ("alice@example.com", "BLOCKED"),
        # Escapes are read there, too, and so are those in strings that hold JSON.
        ('{"to": "alice\\u0040example.com', "BLOCKED"),
        ('{"body": "{\\"to\\": \\"alice\\\\u0040example.com\\"}"}', "BLOCKED"),
        ("[" * 300 + '"alice\\u0040example.com"' + "]" * 300, "BLOCKED"),
        ('{"to": "x", "to": "alice@example.com", "to": "y"}', "BLOCKED"),
    ],
)
async def test_what_would_be_redacted_in_a_tool_call_blocks_because_the_format_cannot_change_it(
    arguments: str | None, action: str, input_type: str
) -> None:
    answer = await post(served(), LITELLM, asked("hello", input_type=input_type, tool_calls=[call(arguments)]))
    assert answer.json()["action"] == action
    if action == "BLOCKED":
        assert answer.json()["blocked_reason"] == "The text was blocked by a guardrail"


async def test_texts_beside_a_tool_call_are_masked() -> None:
    answer = await post(served(), LITELLM, asked(ADDRESS, tool_calls=[call('{"a": "b"}')]))
    assert answer.json() == {"action": "GUARDRAIL_INTERVENED", "texts": ["[0]"]}


async def test_the_hook_sees_the_question() -> None:
    seen: list[GuardrailInspectEvent] = []

    class Looking(TextGuardrail):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse | None:
            seen.append(event)
            return await super().on_guardrail_inspect(event)

        async def check(self, window: Window) -> Sequence[Decision]:
            return []

    question = asked("hello", input_type="response")
    await post(served(Looking()), LITELLM, question)
    [event] = seen
    assert (event.correlation_id, event.model, event.content) == (question["litellm_call_id"], "gpt-5", "hello")
    assert event.metadata["slot.kind"] == "output"
    # What is no sane id becomes none.
    await post(served(Looking()), LITELLM, question | {"litellm_call_id": "a\nb"})
    assert seen[1].correlation_id not in ("", "a\nb")


# Streams


def held(answer: httpx.Response) -> int:
    [count] = answer.json()["stream_holdback_chars"]
    assert isinstance(count, int)
    return count


async def test_litellm_is_told_what_may_still_change() -> None:
    app = served(Settling())
    # Nothing but the last word is part of anything.
    assert held(await post(app, LITELLM, asked("Hello, this: ali", input_type="response"))) == len(" ali")
    answer = await post(app, LITELLM, asked(f"Hello, {ADDRESS}; so", input_type="response"))
    assert answer.json()["texts"] == ["Hello, [0]; so"]
    assert held(answer) == len(" so")
    # An address that ends where the text ends may go on.
    answer = await post(app, LITELLM, asked(f"Hello: {ADDRESS}", input_type="response"))
    assert (answer.json()["texts"], held(answer)) == (["Hello: [0]"], len(" [0]"))


async def test_without_settled_the_hold_is_kept_back() -> None:
    assert held(await post(served(), LITELLM, asked("x" * 500, input_type="response"))) == HOLD
    assert held(await post(served(), LITELLM, asked("hello", input_type="response"))) == 5
    # What begins before that and reaches into it is kept back whole.
    text = "word " * 50 + ADDRESS + " " + "w" * (HOLD - 8)
    answer = await post(served(), LITELLM, asked(text, input_type="response"))
    assert held(answer) == len("[0] ") + HOLD - 8


async def test_of_requests_nothing_is_kept_back() -> None:
    assert "stream_holdback_chars" not in (await post(served(), LITELLM, asked("hello"))).json()


@pytest.mark.parametrize("agent", [Emails, Settling])
async def test_what_leaves_a_stream_early_is_never_taken_back(agent: type[TextGuardrail]) -> None:
    """As LiteLLM does it in `incremental_diff`: it asks about all text so far, and sends what is not held back."""
    text = f"Write to {ADDRESS} or bob@mail.example.org today, {ADDRESS}; that is all there is. " * 4
    app = served(agent())
    sent = ""
    for end in [*range(1, len(text), 7), len(text)]:
        answer = (await post(app, LITELLM, asked(text[:end], input_type="response"))).json()
        [after] = answer.get("texts", [text[:end]])
        [count] = answer["stream_holdback_chars"]
        assert after.startswith(sent)
        sent = max(sent, after[: len(after) - count], key=len)
    assert after == EMAIL.sub("[0]", text)
    assert ADDRESS not in sent
    assert len(sent) >= len(after) - HOLD - len(ADDRESS)


@pytest.mark.parametrize("wrong", [lambda text: 1 / 0, lambda text: len(text) + 1, lambda text: "all", lambda text: -1])
async def test_a_settled_that_is_wrong_releases_nothing(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Emails):
        def settled(self, text: str) -> int:
            count: int = wrong(text)
            return count

    assert held(await post(served(Wrong()), LITELLM, asked("hello", input_type="response"))) == 5
    assert all("settled raised ZeroDivisionError" in record.message for record in caplog.records)


async def test_where_gateways_drop_masks_answers_are_blocked_instead() -> None:
    app = served(mask_responses=False)
    answer = await post(app, LITELLM, asked(ADDRESS, input_type="response"))
    assert answer.json() == {"action": "BLOCKED", "blocked_reason": "The text was blocked by a guardrail"}
    assert (await post(app, LITELLM, asked(ADDRESS))).json()["action"] == "GUARDRAIL_INTERVENED"
    assert (await post(app, LITELLM, asked("hello", input_type="response"))).json()["action"] == "NONE"


# --- agentgateway -------------------------------------------------------------------------------------------------


def messages(*texts: str) -> list[dict[str, str]]:
    roles = ["system", "user", "assistant", "tool"]
    return [{"role": roles[index % 4], "content": text} for index, text in enumerate(texts)]


def choices(*texts: str) -> list[dict[str, Any]]:
    return [{"message": {"role": "assistant", "content": text}} for text in texts]


@pytest.mark.parametrize("agent", [Emails, Everything])
async def test_prompts_pass_are_masked_and_rejected(agent: type[TextGuardrail]) -> None:
    app = served(agent())
    answer = await post(app, "/request", {"body": {"messages": messages("be kind", "hello")}})
    assert answer.json() == {"action": {"reason": "passed"}}
    answer = await post(app, "/request", {"body": {"messages": messages("be kind", f"I am {ADDRESS}", "", ADDRESS)}})
    assert answer.json() == {
        "action": {"body": {"messages": messages("be kind", "I am [0]", "", "[0]")}, "reason": "masked"}
    }
    answer = await post(app, "/v3/x/request", {"body": {"messages": messages("be kind", BLOCKED)}})
    assert answer.json() == {"action": {"body": REASON, "status_code": 400, "reason": "blocked"}}


async def test_answers_pass_are_masked_and_rejected() -> None:
    app = served()
    assert (await post(app, "/response", {"body": {"choices": choices("hi")}})).json() == {
        "action": {"reason": "passed"}
    }
    answer = await post(app, "/response", {"body": {"choices": choices("hi", ADDRESS)}})
    assert answer.json() == {"action": {"body": {"choices": choices("hi", "[0]")}, "reason": "masked"}}
    answer = await post(app, "/response", {"body": {"choices": choices(BLOCKED)}})
    assert answer.json()["action"]["body"] == REASON
    answer = await post(served(mask_responses=False), "/response", {"body": {"choices": choices(ADDRESS)}})
    assert answer.json()["action"]["status_code"] == 400


def _escaped(times: int) -> str:
    text = "\\u0040"
    for _ in range(times):
        text = json.dumps(text)
    return text


# --- Bad questions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "question", "fault"),
    [
        (LITELLM, b"", "not json"),
        (LITELLM, [], "Expected `object`"),
        (LITELLM, {}, "missing required field `input_type`"),
        (LITELLM, {"input_type": "logging"}, "input_type"),
        (LITELLM, asked(texts="hello"), "texts"),
        (LITELLM, asked(texts=[None]), "texts"),
        (
            LITELLM,
            asked(tool_calls=[{"type": "custom", "custom": {"input": "x"}}]),
            "missing required field `function`",
        ),
        (LITELLM, asked(tool_calls=[{"function": {"arguments": {}}}]), "arguments"),
        (LITELLM, asked(tool_calls=[{"function": {"arguments": _escaped(10)}}]), "escaped more than 8 times"),
        ("/request", {"body": {"choices": []}}, "body.messages: expected the messages of a prompt, got none"),
        ("/request", {"body": {"messages": [{"role": "user", "content": ["parts"]}]}}, "content"),
        ("/request", {"messages": []}, "missing required field `body`"),
        ("/response", {"body": {"messages": []}}, "body.choices: expected the choices of an answer, got none"),
    ],
)
async def test_a_malformed_question_is_400_and_names_the_field(path: str, question: Any, fault: str) -> None:
    answer = await post(served(), path, question)
    assert answer.status_code == 400
    assert fault in answer.json()["error"]


async def test_other_paths_types_and_methods_are_refused() -> None:
    app = served()
    assert (await post(app, "/", asked("hi"))).status_code == 404
    assert (await post(app, LITELLM, asked("hi"), **{"content-type": "application/msgpack"})).status_code == 415
    assert (await post(app, LITELLM, asked("hi"), **{"content-encoding": "gzip"})).status_code == 415
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://guardrail") as client:
        assert (await client.put(LITELLM)).status_code == 405
        assert (await client.get("/")).json() == {
            "agent": "Emails",
            "api": "litellm",
            "paths": [LITELLM, "/request", "/response"],
        }


async def test_a_question_over_the_limits_is_413() -> None:
    assert (await post(served(max_event_bytes=100), LITELLM, asked("x" * 200))).status_code == 413
    answer = await post(served(), LITELLM, {"input_type": "request", "texts": ["x"] * (MAX_TEXTS + 1)})
    assert (answer.status_code, answer.json()) == (413, {"error": "10001 texts, expected at most 10000"})
    # So are those within the arguments of a tool call.
    arguments = json.dumps(["x"] * (MAX_TEXTS + 1))
    answer = await post(served(), LITELLM, {"input_type": "request", "tool_calls": [call(arguments)]})
    assert answer.status_code == 413


# --- Bad agents ---------------------------------------------------------------------------------------------------


class Failing(TextGuardrail):
    def __init__(self, *, late: bool) -> None:
        self.late = late

    async def check(self, window: Window) -> Sequence[Decision]:
        if self.late:
            await anyio.lowlevel.checkpoint()
        if "fail" in window.text:
            raise ValueError(f"it choked on {window.text}")
        return []


class Quick(TextGuardrail):
    async def check(self, window: Window) -> Sequence[Decision]:
        raise ValueError(f"it choked on {window.text}")


@pytest.mark.parametrize(
    ("path", "question"),
    [
        (LITELLM, asked("hi", "fail", "hi")),
        ("/request", {"body": {"messages": messages("hi", "fail", "hi")}}),
        ("/response", {"body": {"choices": choices("fail")}}),
    ],
)
@pytest.mark.parametrize("agent", [Failing(late=True), Quick()], ids=["late", "at once"])
async def test_an_agent_that_fails_is_a_500_without_details(
    agent: TextGuardrail, path: str, question: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await post(served(agent), path, question)
    assert (answer.status_code, answer.json()) == (500, {"error": "agent raised ValueError"})
    assert caplog.records[0].levelno == logging.ERROR
    assert "choked" not in caplog.records[0].getMessage()


async def test_a_decision_that_cannot_be_is_a_500() -> None:
    class Wrong(TextGuardrail):
        async def check(self, window: Window) -> Sequence[Decision]:
            return [Redact(0, 1000, "")]

    assert (await post(served(Wrong()), LITELLM, asked("hi"))).status_code == 500


def test_only_text_guardrails_say_what_to_do() -> None:
    class Detecting(Agent):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
            return GuardrailResponse(detected=True)

    with pytest.raises(ConfigurationError, match="api='litellm' with a Detecting, expected a TextGuardrail"):
        agent_app(Detecting(), api="litellm")
    with pytest.raises(ConfigurationError, match="api='openai', expected 'agent' or 'litellm'"):
        agent_app(Emails(), api="openai")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="mask_responses=False is for gateways"):
        agent_app(Emails(), mask_responses=False)
    with pytest.raises(ConfigurationError, match="mask_responses=0, expected True or False"):
        agent_app(Emails(), api="litellm", mask_responses=0)  # type: ignore[arg-type]


# --- Hooks that take their time -----------------------------------------------------------------------------------


class Pausing(TextGuardrail):
    """Counts how many are at work, which all wait for ``proceed``."""

    def __init__(self) -> None:
        self.entered, self.proceed = anyio.Event(), anyio.Event()
        self.running = self.most = self.asked = 0
        self.cancelled = 0
        self.enough = 0

    async def check(self, window: Window) -> Sequence[Decision]:
        self.asked += 1
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running >= self.enough:
            self.entered.set()
        try:
            await self.proceed.wait()
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return [Block(window.text)] if window.text == "block" else []


@pytest.mark.parametrize(("concurrency", "most"), [(None, AT_ONCE), (3, 3)])
async def test_so_many_texts_of_a_question_are_judged_at_a_time(concurrency: int | None, most: int) -> None:
    agent = Pausing()
    agent.enough = most
    app = served(agent, max_concurrency=concurrency)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(post, app, LITELLM, asked(*["hello"] * 20))
        await agent.entered.wait()
        agent.proceed.set()
    assert (agent.most, agent.asked) == (most, 20)


async def test_a_block_ends_the_judging_of_the_rest() -> None:
    agent = Pausing()
    agent.proceed.set()
    answer = await post(served(agent), LITELLM, asked("block", *["hello"] * 500))
    assert answer.json() == {"action": "BLOCKED", "blocked_reason": "block"}
    assert agent.asked < 100


async def test_hooks_whose_caller_goes_away_are_cancelled() -> None:
    agent = Pausing()
    agent.enough = 2
    body = [json.dumps(asked("a", "b")).encode()]

    async def receive() -> Message:
        if body:
            return {"type": "http.request", "body": body.pop()}
        await agent.entered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": LITELLM,
        "headers": [(b"content-type", b"application/json")],
    }
    with anyio.fail_after(30):
        await served(agent)(scope, receive, send)
    assert (agent.running, agent.cancelled) == (0, 2)


async def test_a_question_of_many_texts_lets_others_have_their_turn() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        await post(served(), LITELLM, asked(*["hello"] * 800))
        tasks.cancel_scope.cancel()
    assert turns >= 50
