"""A handler has a text judged by a guardrail: as text that passes by itself."""

from typing import Any, Final

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentManager,
    AgentMiddleware,
    AgentRoute,
    AuditRecord,
    CircuitBreakerConfig,
    Detection,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailResponse,
    GuardrailUnavailableError,
    InspectedText,
    Severity,
    TextSpan,
    UnknownAgentError,
    UnknownGuardrailError,
)
from asgi_agents.exchange import handler_text
from asgi_agents.guardrails import Found, Guardrail, Kind, Window
from tests.guardrails.detectors import CARD, detector
from tests.guardrails.wired.exchanging import (
    CHAT,
    ENTITY,
    Detecting,
    Finder,
    Rewriting,
    SlowFinder,
    asking,
    blocking,
    failing,
    flagging,
)
from tests.support.asgi import Client, assert_nothing_left, settle

pytestmark = pytest.mark.anyio

_OUT: Final[set[Kind]] = {"output"}
_TEXT: Final = f"I am {ENTITY}, hello."


class Handler:
    """An app whose handler asks about texts."""

    def __init__(self, *texts: str, guardrail: str = "g", **options: Any) -> None:
        self.texts = texts or (_TEXT,)
        self.options = {"guardrail": guardrail, **options}
        self.results: list[InspectedText] = []
        self.raised: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        agents: AgentContext = scope["state"]["asgi_agents"]
        try:
            for text in self.texts:
                self.results.append(await agents.inspect(text, **self.options))
        except Exception as exc:
            self.raised = exc
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def result(self) -> InspectedText:
        if self.raised is not None:
            raise self.raised
        (result,) = self.results
        return result


class Asked:
    """A handler behind one agent, which judges nothing by itself unless ``routes`` say so."""

    def __init__(self, handler: Handler, agent: Agent, *, routes: Any = "none", **options: Any) -> None:
        of_agent = ("failure_mode", "timeout", "enforce", "circuit_breaker", "max_concurrent")
        given = {name: options.pop(name) for name in of_agent if name in options}
        self.records: list[AuditRecord] = []
        self.handler = handler
        self.middleware = AgentMiddleware(
            handler,
            agents=[AgentConfig("g", agent, **given)],
            guardrails=[Guardrail("g", **{"on": _OUT, **options})],
            routes=[AgentRoute("/{rest:path}", agents=["g"], guardrails=[])] if routes == "none" else routes,
            on_audit=self.records.append,
        )

    async def ask(self, client: Client | None = None) -> InspectedText:
        await self.call(client)
        return self.handler.result

    async def call(self, client: Client | None = None) -> None:
        await (client or Client("GET", "/x")).call(self.middleware)


class Answering(Agent):
    """Answers with the same detections whatever it is asked."""

    def __init__(self, *detections: Detection, redacted: str | None = None) -> None:
        self.answer = GuardrailResponse(detected=True, detections=detections, redacted_content=redacted)
        self.events_heard: list[GuardrailInspectEvent] = []

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        self.events_heard.append(event)
        return self.answer


def detection(start: int, end: int, **options: Any) -> Detection:
    return Detection(**{"category": "c", "description": "", "span": TextSpan(start, end), **options})


# What it says


@pytest.mark.parametrize("agent", [Finder(), SlowFinder(seconds=lambda: 0), Detecting(), Rewriting()])
async def test_the_text_has_what_was_redacted_redacted(agent: Agent) -> None:
    result = await Asked(Handler(), agent).ask()
    assert result.text == "I am [0], hello."
    assert not result.blocked
    assert result.reason is None
    whole = isinstance(agent, Rewriting)
    assert result.found == ((Found(0, len(_TEXT)),) if whole else (Found(5, 5 + len(ENTITY)),))


async def test_a_text_in_which_nothing_is_found_is_as_it_was() -> None:
    handler = Handler("nothing here", "", "\ud800 \U0001f600")
    await Asked(handler, Finder()).call()
    assert handler.results == [InspectedText(text=text) for text in handler.texts]


async def test_an_empty_text_is_not_judged() -> None:
    finder = Finder()
    await Asked(Handler(""), finder).ask()
    assert finder.windows == []


async def test_a_block_says_why_and_gives_no_text() -> None:
    result = await Asked(Handler(), Finder(blocking("hello"))).ask()
    assert result.blocked
    assert result.reason == "the policy says no"
    assert result.text == ""


async def test_a_flag_changes_nothing_and_is_found() -> None:
    result = await Asked(Handler(), Finder(flagging)).ask()
    assert result == InspectedText(text=_TEXT, found=(Found(5, 5 + len(ENTITY), "email"),))


async def test_finds_are_in_order() -> None:
    agent = Answering(detection(9, 12, action="flag"), detection(0, 2), detection(1, 4))
    result = await Asked(Handler("abcdefghijklmn"), agent).ask()
    assert result.text == "[c]efghijklmn"
    assert result.found == (Found(0, 4), Found(9, 12, "c"))


@pytest.mark.parametrize(
    ("configured", "given", "text"),
    [
        ({}, {}, "[c]cdef"),
        ({"threshold": 0.9}, {"confidence": 0.8}, "abcdef"),
        ({"threshold": 0.8}, {"confidence": 0.8}, "[c]cdef"),
        ({"categories": {"d"}}, {}, "abcdef"),
        ({"categories": {"c"}}, {}, "[c]cdef"),
        ({"min_severity": "high"}, {}, "abcdef"),
        ({"min_severity": Severity.HIGH}, {"severity": "critical"}, "[c]cdef"),
        ({"min_severity": "high"}, {"severity": "low", "action": "redact"}, "[c]cdef"),
        ({"action": "block"}, {}, ""),
        ({"action": "flag"}, {}, "abcdef"),
        ({}, {"replacement": "*"}, "*cdef"),
    ],
)
async def test_what_its_guardrail_says_of_detections_holds(
    configured: dict[str, Any], given: dict[str, Any], text: str
) -> None:
    result = await Asked(Handler("abcdef"), Answering(detection(0, 2, **given)), **configured).ask()
    assert result.text == text
    assert result.blocked == (configured.get("action") == "block")


async def test_an_agent_is_told_what_is_asked() -> None:
    agent = Detecting()
    await Asked(Handler(kind="tool_result", model="m"), agent, categories={"email"}, inspection_type="pii").ask()
    (event,) = agent.events_heard
    assert (event.content, event.model, event.inspection_type) == (_TEXT, "m", "pii")
    assert event.categories == ("email",)
    assert event.metadata["slot.kind"] == "tool_result"
    assert event.route_id == "/{rest:path}"


@pytest.mark.parametrize("length", [1_000, 1_000_000])
async def test_a_long_text_is_judged_whole(length: int) -> None:
    finder = Finder()
    text = f"{'x ' * length}{ENTITY}{' y' * length}"
    result = await Asked(Handler(text), finder).ask()
    assert [window.text for window in finder.windows] == [text]
    assert finder.windows[0] == Window(text)
    assert result.text == text.replace(ENTITY, "[0]")


async def test_an_agent_that_needs_no_waiting_adds_no_suspension_point() -> None:
    texts: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        question = scope["state"]["asgi_agents"].inspect(_TEXT, guardrail="g")
        with pytest.raises(StopIteration) as done:
            question.send(None)
        texts.append(done.value.value.text)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    guardrails = [Guardrail("g", on={"input"})]
    middleware = AgentMiddleware(app, agents=[AgentConfig("g", Finder())], guardrails=guardrails)
    await Client("GET", "/x").call(middleware)
    assert texts == ["I am [0], hello."]


# Which guardrail


async def test_one_of_the_route_comes_before_the_middlewares_and_both_can_be_asked() -> None:
    agents = [AgentConfig("g", Detecting()), AgentConfig("cards", Detecting(CARD))]
    for path, name, text in (
        ("/own", "g", ""),
        ("/own", "cards", "I am alice.smith@example.com, 4111 1111 1111 1111."),
        ("/none", "g", "I am [0], 4111 1111 1111 1111."),
        ("/inherited", "g", "I am [0], 4111 1111 1111 1111."),
    ):
        handler = Handler(f"I am {ENTITY}, 4111 1111 1111 1111.", guardrail=name)
        middleware = AgentMiddleware(
            handler,
            agents=agents,
            guardrails=[Guardrail("g", on=_OUT), Guardrail("cards", on=_OUT, action="flag")],
            routes=[
                AgentRoute("/own", agents=["g"], guardrails=[Guardrail("g", on=_OUT, action="block")]),
                AgentRoute("/none", agents=["g"], guardrails=[]),
                AgentRoute("/inherited", agents=["g"]),
            ],
        )
        await Client("GET", path).call(middleware)
        assert handler.result.text == text, (path, name)


async def test_of_several_with_one_agent_it_is_the_one_for_that_kind_of_text() -> None:
    for kind, text in (("output", ""), ("input", "[0]"), ("reasoning", "[0]")):
        handler = Handler(ENTITY, kind=kind)
        guardrails = [Guardrail("g", on={"input"}), Guardrail("g", on={"output", "tool_call"}, action="block")]
        middleware = AgentMiddleware(handler, agents=[AgentConfig("g", Detecting())], guardrails=guardrails)
        await Client("GET", "/x").call(middleware)
        assert handler.result.text == text, kind


async def test_on_and_when_are_for_text_that_passes_by_itself() -> None:
    result = await Asked(Handler(kind="reasoning"), Finder(), on={"input"}, when=lambda call: False, routes=None).ask()
    assert result.text == "I am [0], hello."


@pytest.mark.parametrize("name", ["nothing", "cards", None, 7, b"g"])
async def test_a_name_that_no_guardrail_has_is_refused_and_the_others_are_listed(name: Any) -> None:
    handler = Handler(guardrail=name)
    middleware = AgentMiddleware(
        handler,
        agents=[AgentConfig("g", Finder()), AgentConfig("h", Finder()), AgentConfig("cards", Detecting(CARD))],
        guardrails=[Guardrail("h", on=_OUT), Guardrail("h", on={"input"})],
        routes=[
            AgentRoute("/x", agents=[], guardrails=[Guardrail("g", on=_OUT)]),
            AgentRoute("/y", agents=[], guardrails=[Guardrail("cards", on=_OUT)]),
        ],
    )
    await Client("GET", "/x").call(middleware)
    with pytest.raises(UnknownGuardrailError) as raised:
        _ = handler.result
    if isinstance(name, str):
        assert str(raised.value) == f"inspect: no Guardrail has the agent {name!r} here; there are: g, h"
    else:
        assert "expected the id of an agent that a Guardrail names" in str(raised.value)


async def test_where_there_is_no_guardrail_the_message_says_so() -> None:
    handler = Handler()
    await Client("GET", "/x").call(AgentMiddleware(handler, agents=[AgentConfig("g", Detecting())]))
    with pytest.raises(UnknownGuardrailError, match="'g' here; there are none"):
        _ = handler.result


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [(b"bytes", {}, TypeError), (None, {}, TypeError), ("a", {"kind": "outptu"}, ValueError)],
)
async def test_what_is_no_text_or_no_kind_of_text_is_refused(
    text: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"inspect: .*expected"):
        await Asked(Handler(text, **options), Finder()).ask()


@pytest.mark.slow
async def test_an_agent_that_is_replaced_or_removed_meanwhile() -> None:
    manager = AgentManager([AgentConfig("g", Finder())])
    results: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        agents: AgentContext = scope["state"]["asgi_agents"]
        results.append((await agents.inspect(_TEXT, guardrail="g")).text)
        await manager.replace_agent(AgentConfig("g", Finder(detector(CARD))))
        results.append((await agents.inspect(_TEXT, guardrail="g")).text)
        await manager.remove_agent("g")
        with pytest.raises(UnknownAgentError):
            await agents.inspect(_TEXT, guardrail="g")
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    records: list[AuditRecord] = []
    guardrails = [Guardrail("g", on={"input"})]
    middleware = AgentMiddleware(app, manager=manager, guardrails=guardrails, on_audit=records.append)
    await Client("GET", "/x").call(middleware)
    assert results == ["I am [0], hello.", _TEXT]
    assert [entry.counts for entry in records[0].guardrails if entry.dialect == "handler"] == [{"redact": 1}]


# When it fails


@pytest.mark.parametrize("enforce", [True, False])
@pytest.mark.parametrize("mode", FailureMode)
async def test_an_agent_that_fails(mode: FailureMode, enforce: bool) -> None:
    handler = Handler()
    asked = Asked(handler, Finder(failing), failure_mode=mode, enforce=enforce)
    await asked.call()
    if mode is FailureMode.OPEN or not enforce:
        assert handler.result == InspectedText(text=_TEXT)
    else:
        with pytest.raises(GuardrailUnavailableError) as raised:
            _ = handler.result
        assert raised.value.status_code == 503
        assert ENTITY not in str(raised.value) + str(raised.value.detail)
    (entry,) = asked.records[0].guardrails
    assert entry.counts == {"failure": 1}


async def test_an_agent_that_is_late_answers_504() -> None:
    agent = SlowFinder(seconds=lambda: 3600)
    with pytest.raises(GuardrailUnavailableError) as raised:
        await Asked(Handler(), agent, timeout=0.01).ask()
    assert raised.value.status_code == 504
    assert agent.at_once == 0


async def test_its_failures_open_the_breaker_of_the_agent() -> None:
    handler = Handler(*[_TEXT] * 3)
    breaker = CircuitBreakerConfig(failure_threshold=2)
    agent = Finder(failing)
    asked = Asked(handler, agent, failure_mode=FailureMode.OPEN, circuit_breaker=breaker)
    await asked.call()
    assert len(agent.windows) == 2
    assert [result.text for result in handler.results] == [_TEXT] * 3


async def test_the_failure_mode_is_the_routes_for_the_agent() -> None:
    for path, raises in (("/open", False), ("/closed", True), ("/own", True)):
        handler = Handler()
        middleware = AgentMiddleware(
            handler,
            agents=[AgentConfig("g", Finder(failing)), AgentConfig("h", Finder())],
            guardrails=[Guardrail("g", on=_OUT), Guardrail("h", on=_OUT)],
            routes=[
                AgentRoute("/open", agents=[("g", "open")]),
                AgentRoute("/closed", agents=[("g", "closed")]),
                AgentRoute("/own", agents=["h"]),
            ],
        )
        await Client("GET", path).call(middleware)
        assert isinstance(handler.raised, GuardrailUnavailableError) == raises, path


@pytest.mark.parametrize("mode", FailureMode)
async def test_a_text_that_is_too_long_is_a_failure_and_is_not_judged(
    mode: FailureMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler_text, "MAX_TEXT", 10)
    finder = Finder()
    handler = Handler("x" * 10, _TEXT)
    asked = Asked(handler, finder, failure_mode=mode)
    await asked.call()
    assert len(finder.windows) == 1
    assert asked.records[0].guardrails[0].counts == {"unreadable": 1}
    if mode is FailureMode.OPEN:
        assert [result.text for result in handler.results] == ["x" * 10, _TEXT]
    else:
        assert isinstance(handler.raised, GuardrailUnavailableError)
        assert handler.raised.status_code == 413


@pytest.mark.parametrize(
    ("find", "would"), [(detector(CARD), "would redact"), (blocking("hello"), "would block"), (failing, None)]
)
async def test_a_shadow_agent_changes_nothing_and_says_what_it_would_have_done(find: Any, would: str | None) -> None:
    result = await Asked(Handler("hello 4111 1111 1111 1111."), Finder(find), enforce=False).ask()
    assert result.text == "hello 4111 1111 1111 1111."
    assert not result.blocked
    assert [found.category for found in result.found] == ([] if would is None else [would])


async def test_a_question_that_is_cancelled_leaves_nothing_behind() -> None:
    agent = SlowFinder(seconds=lambda: 3600)
    done = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        agents: AgentContext = scope["state"]["asgi_agents"]
        with anyio.move_on_after(0):
            await agents.inspect(_TEXT, guardrail="g")
        done.set()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    manager = AgentManager([AgentConfig("g", agent)])
    await Client("GET", "/x").call(AgentMiddleware(app, manager=manager, guardrails=[Guardrail("g", on={"input"})]))
    assert done.is_set()
    assert agent.at_once == 0
    assert_nothing_left(manager)


# What is noted


async def test_all_questions_to_a_guardrail_are_one_entry_of_the_audit_record() -> None:
    handler = Handler(*[_TEXT] * 30, "fine")
    asked = Asked(handler, Finder())
    await asked.call()
    (entry,) = asked.records[0].guardrails
    assert (entry.agent, entry.dialect, entry.counts) == ("g", "handler", {"redact": 30})
    assert entry.spans[0] == ("input", 5, 5 + len(ENTITY), "")
    assert len(entry.spans) <= 20
    assert ENTITY not in repr(asked.records[0])


async def test_it_is_an_entry_of_its_own_beside_what_passes_by_itself() -> None:
    handler = Handler()
    asked = Asked(handler, Finder(), on={"input", "output"}, routes=None)
    await asked.call(asking(CHAT, b'{"messages": [{"role": "user", "content": "a@example.com"}]}'))
    assert [(entry.dialect, entry.counts) for entry in asked.records[0].guardrails] == [
        ("openai.chat", {"redact": 1}),
        ("handler", {"redact": 1}),
    ]


async def test_windows_and_finds_are_counted_for_the_agent() -> None:
    asked = Asked(Handler(), Finder())
    await asked.ask()
    metrics = asked.middleware.manager.metrics["g"]
    assert (metrics.calls, metrics.finds, metrics.windows) == (1, {"redact": 1}, 0)


async def test_neither_texts_nor_reasons_are_in_a_repr() -> None:
    assert repr(InspectedText(text=_TEXT, reason="because")) == (
        f"InspectedText(text=<{len(_TEXT)} characters>, reason=<7 characters>, found=())"
    )


# Other connections, and tasks


async def test_a_websocket_handler_asks_as_well() -> None:
    texts: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        agents: AgentContext = scope["state"]["asgi_agents"]
        await receive()
        texts.extend([(await agents.inspect(_TEXT, guardrail="g")).text for _ in range(3)])
        await send({"type": "websocket.close", "code": 1000})

    records: list[AuditRecord] = []
    middleware = AgentMiddleware(
        app, agents=[AgentConfig("g", Finder())], guardrails=[Guardrail("g", on=_OUT)], on_audit=records.append
    )
    scope = {**Client("GET", "/x").scope, "type": "websocket", "subprotocols": []}
    messages = [{"type": "websocket.connect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Any) -> None:
        sent.append(message)

    await middleware(scope, receive, send)
    assert texts == ["I am [0], hello."] * 3


async def test_a_task_that_outlives_its_connection_asks_as_well() -> None:
    results: list[InspectedText] = []
    go, asked = anyio.Event(), anyio.Event()

    async def later(agents: AgentContext) -> None:
        await go.wait()
        results.append(await agents.inspect(_TEXT, guardrail="g"))
        asked.set()

    async with anyio.create_task_group() as tasks:

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            tasks.start_soon(later, scope["state"]["asgi_agents"])
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        middleware = AgentMiddleware(app, agents=[AgentConfig("g", Finder())], guardrails=[Guardrail("g", on=_OUT)])
        await Client("GET", "/x").call(middleware)
        await settle()
        go.set()
        await asked.wait()
    assert results[0].text == "I am [0], hello."


async def test_several_texts_are_judged_at_the_same_time() -> None:
    agent = SlowFinder(seconds=lambda: 0.01)
    texts: dict[int, str] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        agents: AgentContext = scope["state"]["asgi_agents"]

        async def ask(number: int) -> None:
            texts[number] = (await agents.inspect(f"{number} {ENTITY}", guardrail="g")).text

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(ask, number)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    records: list[AuditRecord] = []
    middleware = AgentMiddleware(
        app, agents=[AgentConfig("g", agent)], guardrails=[Guardrail("g", on=_OUT)], on_audit=records.append
    )
    await Client("GET", "/x").call(middleware)
    assert texts == {number: f"{number} [0]" for number in range(5)}
    assert agent.most_at_once == 5
    assert sum(entry.counts.get("redact", 0) for entry in records[0].guardrails) == 5
