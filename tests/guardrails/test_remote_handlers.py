"""A handler has texts judged by guardrails whose agents run in processes of their own."""

from collections.abc import Iterator
from typing import Any, Final

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentMiddleware,
    AuditRecord,
    EventType,
    GuardrailUnavailableError,
    InspectedText,
)
from asgi_agents.guardrails import Found, Guardrail
from tests.guardrails.detectors import redacted
from tests.guardrails.served_agents import BLOCKED, DETECTORS, REASON, WRONG
from tests.guardrails.test_remote import ADDRESSES, Process, in_process, served
from tests.support.asgi import Client

# They start processes.
pytestmark = [pytest.mark.anyio, pytest.mark.slow]

# A busy machine makes no failures.
_PATIENCE: Final = 60.0
_ENTITY: Final = "alice.smith@example.com"
_TEXT: Final = f"I am \U0001f600 {_ENTITY}, hello."


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, Process]]:
    with served("everything", "plain") as processes:
        yield processes


class Asking:
    """An app whose handler asks one guardrail about a text."""

    def __init__(self, name: str, address: str, processes: dict[str, Process], **guardrail: Any) -> None:
        local = address == "in the process"
        agent: Agent | str = in_process(name) if local else processes[name].address(address)
        events: dict[str, Any] = {} if local else {"events": [EventType.GUARDRAIL_INSPECT]}
        self.records: list[AuditRecord] = []
        self._text = ""
        self._result: InspectedText | Exception | None = None
        self._middleware = AgentMiddleware(
            self._app,
            agents=[AgentConfig("judge", agent, timeout=_PATIENCE, circuit_breaker=None, **events)],
            guardrails=[Guardrail("judge", **{"on": {"input"}, "hold": 90, **guardrail})],
            on_audit=self.records.append,
        )

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        agents: AgentContext = scope["state"]["asgi_agents"]
        try:
            self._result = await agents.inspect(self._text, guardrail="judge")
        except GuardrailUnavailableError as exc:
            self._result = exc
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def ask(self, text: str) -> InspectedText:
        self._text = text
        with anyio.fail_after(_PATIENCE):
            await Client("GET", "/x").call(self._middleware)
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    ("name", "inspection_type"),
    [
        ("everything", "pii_detection"),
        ("plain", "spans"),
        ("plain", "categories"),
        ("plain", "found"),
        ("plain", "redacted_content"),
    ],
)
async def test_an_agent_says_the_same_wherever_it_runs(
    processes: dict[str, Process], name: str, inspection_type: str, address: str
) -> None:
    asking = Asking(name, address, processes, inspection_type=inspection_type)
    for text in (_TEXT, "nothing here", f"{'x ' * 20_000}{_TEXT}"):
        result = await asking.ask(text)
        assert result.text == redacted(text, DETECTORS[name])
        assert not result.blocked
        if inspection_type in ("pii_detection", "spans", "categories"):
            start = text.find(_ENTITY)
            assert result.found == (() if start < 0 else (Found(start, start + len(_ENTITY)),))


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_block_says_why_wherever_the_agent_runs(processes: dict[str, Process], address: str) -> None:
    asking = Asking("everything", address, processes)
    assert (await asking.ask(f"hello {BLOCKED}")).reason == REASON
    counts = [entry.counts for entry in asking.records[0].guardrails if entry.dialect == "handler"]
    assert counts == [{"block": 1}]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_an_agent_that_fails_is_the_same_error_wherever_it_runs(
    processes: dict[str, Process], address: str
) -> None:
    with pytest.raises(GuardrailUnavailableError) as raised:
        await Asking("everything", address, processes).ask(f"{WRONG} {_ENTITY}")
    assert raised.value.status_code == 503
    assert _ENTITY not in str(raised.value)


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_detection_blocks_where_its_guardrail_says_so(processes: dict[str, Process], address: str) -> None:
    asking = Asking("plain", address, processes, inspection_type="categories", action="block")
    assert (await asking.ask(_TEXT)).reason == "0"
    less = Asking("plain", address, processes, inspection_type="categories", action="block", min_severity="high")
    assert (await less.ask(_TEXT)).text == _TEXT
