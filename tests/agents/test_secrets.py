"""Secrets, with detect-secrets itself."""

import json
import subprocess
import sys
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from asgi_agents import AgentConfig, ConfigurationError, protect
from asgi_agents.agents import Secrets
from asgi_agents.guardrails import Block, Flag, Guardrail, Redact, Window

# In parts, so that nobody who searches this file takes them for real ones.
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiJhbGljZSJ9." + "c2lnbmF0dXJlLW9mLWl0"
STRIPE = "sk_live_" + "a1B2c3D4e5F6g7H8i9J0k1L2"
SLACK = "xoxb-" + "123456789012-123456789012-abcdefghijkl"
OPENAI = "sk-" + "a" * 20 + "T3BlbkFJ" + "b" * 20
KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA\n" * 200 + "-----END RSA PRIVATE KEY-----"
SECRETS = {
    "aws_access_key": AWS,
    "github_token": GITHUB[:40],
    "json_web_token": JWT,
    "stripe_access_key": STRIPE,
    "slack_token": SLACK,
    "openai_token": OPENAI,
    "private_key": KEY,
}


@pytest.mark.parametrize(("kind", "secret"), SECRETS.items(), ids=SECRETS)
async def test_a_secret_is_redacted_and_nothing_else(kind: str, secret: str) -> None:
    text = f"Use {secret} for it."
    [first, *others] = await Secrets().check(Window(text)) or ()
    assert first == Redact(4, 4 + len(secret), f"[{kind}]")
    assert all(isinstance(other, Redact) and 4 <= other.start <= other.end <= first.end for other in others)


@pytest.mark.parametrize(
    "text",
    [
        "Nothing to see here: 3f9a1c, 192.0.2.7 and alice@example.com.",
        "my password is swordfish",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    ],
)
async def test_text_without_a_secret_passes(text: str) -> None:
    assert not await Secrets().check(Window(text))


def served(text: str, at: int, **options: Any) -> str:
    """What a client receives of a streamed answer that is cut there."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat() -> StreamingResponse:
        chunks = [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in (text[:at], text[at:])]
        return StreamingResponse((f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), media_type="text/event-stream")

    agent = AgentConfig("secrets", Secrets(**options), timeout=30.0)
    protect(app, agents=[agent], guardrails=[Guardrail("secrets", on={"output"})])
    lines = TestClient(app).post("/v1/chat/completions", json={"messages": []}).text.split("\n\n")
    received = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in received if "choices" in chunk)


@pytest.mark.parametrize("at", [0, 5, 8, 9, 20, 29, 30, 35])
def test_a_token_is_redacted_wherever_a_stream_is_cut(at: int) -> None:
    assert served(f"First\nkey {AWS} here.\nLast", at) == "First\nkey [aws_access_key] here.\nLast"


@pytest.mark.parametrize("at", [10, 40, 300, 1000, 3440, 3445, 3470])
def test_a_private_key_is_redacted_whole_wherever_a_stream_is_cut(at: int) -> None:
    assert served(f"A key:\n{KEY}\nThat was it.", at) == "A key:\n[private_key]\nThat was it."


def test_a_private_key_that_does_not_end_is_redacted_to_the_end() -> None:
    assert served(f"A key:\n{KEY[:1000]}", 200) == "A key:\n[private_key]"


async def test_it_may_block_or_only_record() -> None:
    window = Window(f"Use {AWS} for it.")
    assert await Secrets(action="block").check(window) == [Block("contains a secret: aws_access_key")]
    assert await Secrets(action="flag").check(window) == [Flag(4, 24, "aws_access_key")]
    assert await Secrets(leave_out=["aws_access_key"]).check(window) == []


def test_a_prompt_with_a_secret_is_refused_before_the_app_runs() -> None:
    app, called = FastAPI(), []

    @app.post("/v1/chat/completions")
    async def chat() -> str:
        called.append(1)
        return "hello"

    agent = AgentConfig("secrets", Secrets(action="block"), timeout=30.0)
    protect(app, agents=[agent], guardrails=[Guardrail("secrets", on={"input"})])
    client = TestClient(app)
    body = {"messages": [{"role": "user", "content": f"My key is {GITHUB}"}]}
    assert (client.post("/v1/chat/completions", json=body).status_code, called) == (400, [])
    body["messages"][0]["content"] = "hello"
    assert (client.post("/v1/chat/completions", json=body).status_code, called) == (200, [1])


def test_words_settle_and_the_lines_of_a_key_do_not() -> None:
    settled = Secrets().settled
    assert settled("one") == 0
    assert settled("one line") == 4
    assert settled("one\ntwo ") == 8
    assert settled("one\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n") == 4
    assert settled(f"one\n{KEY}") == 4
    assert settled(f"one\n{KEY}\n") == len(KEY) + 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "delete"}, "action='delete'"),
        ({"leave_out": ["nothing"]}, "leave_out has 'nothing'"),
        ({"leave_out": "jwt"}, "leave_out='jwt'"),
    ],
)
def test_what_can_not_work_is_a_configuration_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^Secrets: {message}"):
        Secrets(**options)


def test_detect_secrets_is_imported_when_an_agent_is_made() -> None:
    code = "import sys, asgi_agents.agents.secrets\nprint('detect_secrets' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
