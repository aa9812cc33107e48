"""Presidio itself, without a model and with an engine."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from asgi_agents import AgentConfig, ConfigurationError, protect
from asgi_agents.agents import Presidio
from asgi_agents.guardrails import Block, Flag, Guardrail, Redact, Window

from ..docs.pages import DOCS
from ..docs.running import PageRun

pytest.importorskip("presidio_analyzer", reason="Presidio is not installed: pip install '.[compat]'")

FOUND = {
    "CREDIT_CARD": "4111 1111 1111 1111",
    "CRYPTO": "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2",
    "EMAIL_ADDRESS": "alice@example.com",
    "IBAN_CODE": "DE89 3704 0044 0532 0130 00",
    "IP_ADDRESS": "192.0.2.7",
    "PHONE_NUMBER": "(212) 555-1234",
    "US_SSN": "536-90-4399",
}


@pytest.mark.parametrize(("entity", "value"), FOUND.items(), ids=FOUND)
async def test_personal_data_is_found_where_it_stands(entity: str, value: str) -> None:
    text = f"It is {value} as far as I know."
    assert await Presidio([entity]).check(Window(text)) == [Redact(6, 6 + len(value), f"[{entity}]")]
    assert Redact(6, 6 + len(value), f"[{entity}]") in (await Presidio().check(Window(text)) or ())


@pytest.mark.parametrize("text", ["Nothing to see here.", "4111 1111 1111 1112", "DE00 3704 0044", "alice at example"])
async def test_other_text_passes(text: str) -> None:
    assert not await Presidio(["CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE"]).check(Window(text))


async def test_nothing_is_loaded_from_the_net(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        raise AssertionError("it asks the net")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert await Presidio(["EMAIL_ADDRESS"]).check(Window("bob@shop.co.uk"))


async def test_it_may_block_or_only_record_and_ignores_low_scores() -> None:
    window = Window("Call (212) 555-1234 now")
    assert await Presidio(["PHONE_NUMBER"], action="block").check(window) == [
        Block("contains personal data: PHONE_NUMBER")
    ]
    assert await Presidio(["PHONE_NUMBER"], action="flag").check(window) == [Flag(5, 19, "PHONE_NUMBER")]
    assert await Presidio(["PHONE_NUMBER"], threshold=0.5).check(window) == []


async def test_what_was_judged_before_is_context() -> None:
    text = "alice@example.com and bob@example.com"
    assert await Presidio(["EMAIL_ADDRESS"]).check(Window(text, fresh=20)) == [Redact(22, 37, "[EMAIL_ADDRESS]")]


def test_an_answer_is_redacted() -> None:
    app = FastAPI()

    @app.get("/")
    async def contact() -> str:
        return "Write to alice@example.com, or pay 4111 1111 1111 1111"

    protect(
        app,
        agents=[AgentConfig("pii", Presidio(["EMAIL_ADDRESS", "CREDIT_CARD"]), timeout=30.0)],
        guardrails=[Guardrail("pii", on={"output"})],
    )
    assert TestClient(app).get("/").json() == "Write to [EMAIL_ADDRESS], or pay [CREDIT_CARD]"


async def test_an_engine_is_asked_instead() -> None:
    """One with a blank model: what it knows are the recognisers that it was given."""
    import spacy
    from presidio_analyzer import AnalyzerEngine, Pattern, PatternRecognizer, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__["nlp"] = {"en": spacy.blank("en")}

    orders = PatternRecognizer("ORDER", patterns=[Pattern("order", r"#\d{4}", 0.9)])
    registry = RecognizerRegistry(recognizers=[orders])
    engine = AnalyzerEngine(registry=registry, nlp_engine=Blank(), supported_languages=["en"])
    window = Window("Order #1042 is late")
    assert await Presidio(analyzer=engine).check(window) == [Redact(6, 11, "[ORDER]")]
    assert await Presidio(["ORDER"], analyzer=engine).check(window) == [Redact(6, 11, "[ORDER]")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entities": ["PERSON"]}, "entities has 'PERSON', expected some of CREDIT_CARD"),
        ({"entities": "PERSON"}, "entities='PERSON'"),
        ({"action": "delete"}, "action='delete'"),
        ({"threshold": 2}, "threshold=2"),
        ({"threshold": True}, "threshold=True"),
        ({"language": 1}, "language is"),
        ({"analyzer": object()}, "analyzer is"),
    ],
)
def test_what_can_not_work_is_a_configuration_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^Presidio: {message}"):
        Presidio(**options)


def test_presidio_is_imported_when_an_agent_is_made() -> None:
    code = "import sys, asgi_agents.agents.presidio\nprint('presidio_analyzer' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    PageRun(DOCS / "agents" / "presidio.md", tmp_path, runner="tests/agents/test_presidio.py").run()
