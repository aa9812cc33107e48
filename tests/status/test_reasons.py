"""Why something was denied, and where: how much of it is remembered, and what of it is shown."""

from typing import Any

import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    Headers,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseHeadersEvent,
)
from asgi_agents.guardrails import Guardrail
from asgi_agents.manager import registry_of
from asgi_agents.observability.metrics import Incident
from asgi_agents.status.cleaning import IncidentCleaner
from asgi_agents.status.snapshot import take_snapshot
from tests.support.asgi import App, Client

from .world import Greetings, head_event, scripted

AUDIT = AuditMetadata(rule_ids=("942100",), tags=("sqli", "paranoia-1"), reason_codes=("sql_injection",))


class Denies(Agent):
    """Denies what it receives in one of its hooks."""

    def __init__(self, hook: str, audit: AuditMetadata = AUDIT) -> None:
        self._hook = hook
        self._audit = audit

    def _answer(self, hook: str) -> AgentResponse | None:
        return AgentResponse.block(403, audit=self._audit) if hook == self._hook else None

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return self._answer("request_headers")

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return self._answer("request_body_chunk")

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        return self._answer("response_headers")


def denials(manager: AgentManager, agent_id: str = "waf") -> Any:
    (agent,) = [agent for agent in take_snapshot(registry_of(manager)).agents if agent.id == agent_id]
    return agent.denials


async def denied(audit: AuditMetadata, path: str = "/") -> Incident:
    """What is shown of a request for ``path`` that was denied so."""
    manager = AgentManager([AgentConfig("waf", Denies("request_headers", audit))])
    await manager.process_request_headers(head_event(uri=path))
    (incident,) = denials(manager)
    assert isinstance(incident, Incident)
    return incident


@pytest.mark.parametrize("hook", ["request_headers", "request_body_chunk", "response_headers"])
async def test_whatever_an_agent_denies_has_its_reasons_and_the_path(hook: str) -> None:
    manager = AgentManager([AgentConfig("waf", Denies(hook))])
    client = Client("POST", "/a b/ü", body=b"x")
    client.scope.update(raw_path=b"/a%20b/%C3%BC", query_string=b"q=secret")
    await client.call(AgentMiddleware(App(), manager=manager))

    (incident,) = denials(manager)

    assert (incident.event, incident.path) == (hook, "/a%20b/%C3%BC")
    assert incident.rule_ids == ("942100",)
    assert incident.tags == ("sqli", "paranoia-1")
    assert incident.reason_codes == ("sql_injection",)


async def test_a_server_that_gives_no_raw_path_has_the_decoded_one_quoted() -> None:
    manager = AgentManager([AgentConfig("waf", Denies("request_body_chunk"))])
    client = Client("POST", "/a b/ü?", body=b"x")
    client.scope.pop("raw_path", None)
    await client.call(AgentMiddleware(App(), manager=manager))
    assert [incident.path for incident in denials(manager)] == ["/a%20b/%C3%BC%3F"]


async def test_a_find_in_text_has_its_path_and_categories() -> None:
    manager = AgentManager([AgentConfig("greetings", Greetings())])
    app = AgentMiddleware(App(), manager=manager, guardrails=[Guardrail("greetings", on={"output"})])
    await Client(path="/talk").call(app)
    assert [(incident.window, incident.path) for incident in denials(manager, "greetings")] == [(True, "/talk")]


async def test_outside_of_a_connection_no_path_is_known() -> None:
    manager = AgentManager([AgentConfig("waf", Denies("response_headers"))])
    await manager.process_response_headers(ResponseHeadersEvent(correlation_id="c", status=200, headers=Headers()))
    assert [incident.path for incident in denials(manager)] == [None]


async def test_a_query_is_never_remembered() -> None:
    incident = await denied(AUDIT, "/reset?token=s3cr3t")
    assert incident.path == "/reset"


async def test_what_looks_like_a_credential_is_not_shown() -> None:
    secret = "sk-" + "abcdefgh" * 4
    audit = AuditMetadata(rule_ids=(secret,), tags=(f"token={secret}",), reason_codes=(f"Bearer {secret}",))
    incident = await denied(audit, f"/keys/{secret}")
    shown = (incident.path or "", *incident.rule_ids, *incident.tags, *incident.reason_codes)
    assert len(shown) == 4
    assert not any("abcdefgh" in text for text in shown)


async def test_what_is_remembered_and_shown_is_bounded() -> None:
    many = tuple(f"{number}-{'r' * 10_000}" for number in range(1000))
    audit = AuditMetadata(rule_ids=many, tags=many, reason_codes=many)
    manager = AgentManager([AgentConfig("waf", Denies("request_headers", audit))])
    await manager.process_request_headers(head_event(uri=f"/{'p' * 100_000}?{'q' * 100_000}"))
    (raw,) = registry_of(manager).guard("waf").tally.denials
    assert len(raw.path or "") + sum(map(len, (*raw.rule_ids, *raw.tags, *raw.reason_codes))) <= 512 + 24 * 256
    (shown,) = denials(manager)
    assert [len(texts) for texts in (shown.rule_ids, shown.tags, shown.reason_codes)] == [8, 8, 8]
    assert len(shown.path or "") == 257
    assert (shown.path or "")[-1] == "…"
    assert {len(text) for text in shown.tags} == {129}


async def test_what_can_not_be_printed_or_written_is_escaped() -> None:
    incident = await denied(AuditMetadata(tags=("a\x1b[31m\u202eb\ud800\n",)), "/\x07\ud800")
    assert incident.tags == ("a\\x1b[31m\\u202eb?\\n",)
    assert incident.path == "/\\x07?"


async def test_what_was_allowed_is_not_looked_at_for_reasons() -> None:
    manager = AgentManager([AgentConfig("waf", Denies("nothing"))])
    await Client(path="/a").call(AgentMiddleware(App(), manager=manager))
    assert list(denials(manager)) == []
    assert all(series.latest is None for series in registry_of(manager).guard("waf").tally.series)


async def test_each_incident_is_cleaned_once_and_forgotten_with_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[str] = []

    def note(text: str) -> str:
        cleaned.append(text)
        return text

    monkeypatch.setattr("asgi_agents.status.cleaning.redact_secrets", note)
    manager = AgentManager([scripted("waf")])
    cleaner = IncidentCleaner()
    for number in range(3):
        await manager.process_request_headers(head_event(uri=f"/{number}", x_waf="block"))
        take_snapshot(registry_of(manager), 1.0, cleaner)
        first = take_snapshot(registry_of(manager), 1.0, cleaner)
    assert sorted(text for text in cleaned if text.startswith("/")) == ["/0", "/1", "/2"]
    assert [incident.path for incident in first.agents[0].denials] == ["/2", "/1", "/0"]
    await manager.remove_agent("waf")
    take_snapshot(registry_of(manager), 1.0, cleaner)
    assert cleaner._known == {}
