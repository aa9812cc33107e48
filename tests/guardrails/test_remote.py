"""Guardrails whose agents run in processes of their own: they do what they do in the process of the app."""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AuditRecord,
    CircuitBreakerConfig,
    EventType,
    FailureMode,
)
from asgi_agents.guardrails import Guardrail, Kind
from tests.guardrails import served_agents
from tests.guardrails.samples import (
    SAMPLES,
    AnthropicSample,
    ChatSample,
    Cut,
    OllamaSample,
    ResponsesSample,
    Sample,
    TextSample,
)
from tests.guardrails.served_agents import BLOCKED, DETECTORS, REASON, WRONG
from tests.guardrails.test_dialects import check, some_texts
from tests.support.asgi import Client, body, start

# They start processes, and kill some.
pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT: Final = Path(__file__).parents[2]
#: How many cuttings of each dialect are tried.
CUTTINGS: Final = int(os.environ.get("GUARDRAIL_REMOTE_CUTTINGS", "2"))
ANSWERS: Final[frozenset[Kind]] = frozenset({"output", "tool_call", "tool_result", "reasoning"})
UNAVAILABLE: Final = b"Agent unavailable"
# Seconds after which a server has not started.
_PATIENCE: Final = 60.0
_EVENTS: Final = [EventType.GUARDRAIL_INSPECT]
_PATHS: Final = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "anthropic": "/v1/messages",
    "ollama": "/api/chat",
    "gemini": "/v1beta/models/m:streamGenerateContent",
    "gemini array": "/v1beta/models/m:streamGenerateContent",
}


class Process:
    """An agent in a process of its own, on a Unix socket and over HTTP."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._log = directory / f"{name}.log"
        self.socket = f"unix://{directory}/{name}.sock"
        self.http = ""
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        arguments = [f"tests.guardrails.served_agents:{self._name}", "--bind", self.socket, "--http", "127.0.0.1:0"]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "asgi_agents.serve", *arguments], cwd=ROOT, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + _PATIENCE
        while not (found := re.search(r"listening on (http://\S+)", self._log.read_text())):
            assert process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)
        self.http = f"{found[1].rstrip('/')}/"
        return process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        Path(self.socket.removeprefix("unix://")).unlink(missing_ok=True)
        self.process = self._start()

    def address(self, transport: str) -> str:
        return self.socket if transport == "stream" else self.http


@contextmanager
def served(*names: str) -> Iterator[dict[str, Process]]:
    with tempfile.TemporaryDirectory(prefix="agents-") as directory:
        processes: dict[str, Process] = {}
        try:
            for name in names:
                processes[name] = Process(name, Path(directory))
            yield processes
        finally:
            for process in processes.values():
                process.kill()


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, Process]]:
    with served("everything", "forgetful", "plain") as processes:
        yield processes


def in_process(name: str) -> Agent:
    agent: Agent = getattr(served_agents, name)
    return agent


class Exchange:
    """An app that streams, behind one guardrail."""

    def __init__(self, agent: Any, *, guardrail: dict[str, Any] | None = None, **options: Any) -> None:
        self.audits: list[AuditRecord] = []
        self.pieces: Sequence[bytes] = ()
        self.media_type = ""
        #: Of the latest stream.
        self.client = Client()
        #: Called behind each piece.
        self.behind = _nothing
        events = {} if isinstance(agent, Agent) else {"events": _EVENTS}
        # A busy machine makes no failures.
        options = {"timeout": _PATIENCE, "circuit_breaker": None} | events | options
        self.middleware = AgentMiddleware(
            self._app,
            agents=[AgentConfig("judge", agent, **options)],
            guardrails=[Guardrail("judge", on=ANSWERS, **(guardrail or {}))],
            on_audit=self.audits.append,
        )

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start(200, (b"content-type", self.media_type.encode())))
        for index, piece in enumerate(self.pieces):
            await send(body(piece, more=True))
            await self.behind(index)
        await send(body())

    async def stream(self, sample: Sample, pieces: Sequence[bytes]) -> Client:
        self.pieces, self.media_type = pieces, sample.media_type
        client = self.client = Client("POST", _PATHS.get(sample.name, "/"), body=b"{}")
        with anyio.fail_after(_PATIENCE):
            await client.call(self.middleware)
        return client


async def _nothing(index: int) -> None:
    await checkpoint()


def planted(sample: Sample, text: str) -> dict[str, str]:
    return {name: json.dumps({"say": "fine"}) if name.startswith("json") else text for name in sample.texts}


ADDRESSES: Final = ["in the process", "stream", "http"]


def exchange_with(name: str, address: str, processes: dict[str, Process], **options: Any) -> Exchange:
    return Exchange(in_process(name) if address == "in the process" else processes[name].address(address), **options)


# The same redactions


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    ("name", "inspection_type", "hold"),
    [
        ("everything", "pii_detection", None),
        ("forgetful", "pii_detection", None),
        ("plain", "spans", 90),
        ("plain", "categories", 90),
        ("plain", "found", 90),
        ("plain", "redacted_content", 90),
    ],
)
async def test_an_agent_redacts_the_same_wherever_it_runs(
    processes: dict[str, Process], name: str, inspection_type: str, hold: int | None, address: str
) -> None:
    for sample in [*SAMPLES[:6], TextSample()]:
        for seed in range(CUTTINGS):
            rng = random.Random(f"{sample.name} {seed}")  # noqa: S311
            # One of a remote agent has its own hold nowhere to say.
            guardrail: dict[str, Any] = {
                "inspection_type": inspection_type,
                "hold": hold or 90,
                "window": rng.randrange(181, 400),
                "in_flight": rng.randrange(1, 4),
                "max_hold": rng.choice([0.001, 5.0]),
            }
            exchange = exchange_with(name, address, processes, guardrail=guardrail)
            texts = some_texts(sample, rng)
            cut = Cut(rng, longest=rng.choice([9, 30]))
            pieces = cut.bytes(b"".join(sample.stream(texts, cut)), longest=rng.choice([200, 5000]))
            client = await exchange.stream(sample, pieces)
            assert client.complete
            check(sample, texts, client.body, DETECTORS[name])


@pytest.mark.parametrize("address", ADDRESSES)
async def test_what_was_judged_with_the_window_before_is_not_redacted_twice(
    processes: dict[str, Process], address: str
) -> None:
    # The first window has a limit of 91. What it finds ends there, and the second window is shown that as context.
    text = f"{' ' * 74}alice@example.com{' ' * 200}"
    exchange = exchange_with("forgetful", address, processes, guardrail={"hold": 90, "window": 181})
    client = await exchange.stream(TextSample(), [text.encode()])
    assert client.body.decode() == text.replace("alice@example.com", "[0]")


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_pattern_looks_at_what_precedes_the_new_text_wherever_its_agent_runs(
    processes: dict[str, Process], address: str
) -> None:
    exchange = exchange_with("everything", address, processes, guardrail={"hold": 90, "window": 181})
    # The second window begins at 91, and from there on either could be something.
    for text in (
        f"{' ' * 75}{'7' * 30}{' ' * 200}",
        f"{' ' * 89}no-do-flag{' ' * 200}",
        f"{' ' * 90}xdo-flag{' ' * 200}",
    ):
        client = await exchange.stream(TextSample(), [text.encode()])
        assert client.body.decode() == text
        (report,) = exchange.audits[-1].guardrails
        assert report.counts.get("flag", 0) == text.count("-do-flag")


# The same decisions


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_block_is_the_same_wherever_the_agent_runs(processes: dict[str, Process], address: str) -> None:
    exchange = exchange_with("everything", address, processes)
    sent = {}
    for sample in (ChatSample(), AnthropicSample(), ResponsesSample(), OllamaSample()):
        text = f"{'some words ' * 40} {BLOCKED} and more"
        events = sample.stream(planted(sample, text), Cut(random.Random(1), longest=30))  # noqa: S311
        sent[sample.name] = (await exchange.stream(sample, events)).body
        assert BLOCKED.encode() not in sent[sample.name]
        (report,) = exchange.audits[-1].guardrails
        assert report.counts["block"] == 1
    assert b'"content_filter"' in sent["chat"]
    assert b'"refusal"' in sent["anthropic"]
    assert REASON in json.loads(sent["ollama"].split(b"\n")[-2])["error"]
    assert REASON in json.loads(sent["responses"].strip().rpartition(b"data: ")[2])["error"]["message"]


async def test_flags_and_redactions_are_recorded_the_same_wherever_the_agent_runs(
    processes: dict[str, Process],
) -> None:
    text = f"do-flag {'some words ' * 45} alice@example.com, do-flag; {'more ' * 60} 4111 1111 1111 1111 and do-flag"
    sample = TextSample()
    recorded = []
    for address in ADDRESSES:
        exchange = exchange_with("everything", address, processes, guardrail={"hold": 90})
        client = await exchange.stream(sample, sample.stream({"text": text}, Cut(random.Random(2))))  # noqa: S311
        assert client.body.decode() == text.replace("alice@example.com", "[0]").replace("4111 1111 1111 1111", "[1]")
        (report,) = exchange.audits[-1].guardrails
        recorded.append((report.counts, sorted(report.spans)))
    assert recorded[0][0] == {"flag": 3, "redact": 2}
    assert recorded[1] == recorded[0]
    assert recorded[2] == recorded[0]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("mode", [FailureMode.CLOSED, FailureMode.OPEN])
async def test_a_check_that_raises_is_a_failure_wherever_the_agent_runs(
    processes: dict[str, Process], address: str, mode: FailureMode
) -> None:
    exchange = exchange_with("everything", address, processes, failure_mode=mode)
    sample = ChatSample()
    events = sample.stream(planted(sample, f"a {WRONG} b"), Cut(random.Random(3)))  # noqa: S311
    client = await exchange.stream(sample, events)
    if mode is FailureMode.OPEN:
        assert client.body == b"".join(events)
    else:
        assert UNAVAILABLE in client.body.rstrip().rpartition(b"\n\n")[2]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_half_a_character_is_judged_wherever_the_agent_runs(processes: dict[str, Process], address: str) -> None:
    exchange = exchange_with("everything", address, processes)
    lines = [
        json.dumps({"message": {"role": "assistant", "content": text}, "done": False})
        for text in ("\ud83d", "alice@example.com ", "\ud83d", "\ude00 bob@example.com")
    ]
    client = await exchange.stream(OllamaSample(), [f"{line}\n".encode() for line in lines])
    said = "".join(json.loads(line)["message"]["content"] for line in client.body.splitlines())
    assert said == "\ud83d[0] \ud83d\ude00 [0]"


# Agents that end


@pytest.mark.parametrize("address", ADDRESSES[1:])
@pytest.mark.parametrize(
    ("sample", "mode"),
    [
        (ChatSample(), FailureMode.CLOSED),
        (AnthropicSample(), FailureMode.CLOSED),
        (ResponsesSample(), FailureMode.CLOSED),
        (OllamaSample(), FailureMode.CLOSED),
        (ChatSample(), FailureMode.OPEN),
    ],
    ids=lambda it: getattr(it, "name", it),
)
async def test_an_agent_that_ends_in_the_middle_of_a_stream_is_a_failure(
    address: str, sample: Sample, mode: FailureMode
) -> None:
    with served("everything") as processes:
        process = processes["everything"]
        exchange = Exchange(process.address(address), failure_mode=mode, guardrail={"max_hold": 0.01, "hold": 90})
        events = sample.stream(
            planted(sample, f"alice@example.com {'some words ' * 200}"),
            Cut(random.Random(4), longest=30),  # noqa: S311
        )

        async def kill(index: int) -> None:
            await checkpoint()
            if index == len(events) // 2:
                while b"[0]" not in exchange.client.body:  # noqa: ASYNC110
                    await anyio.sleep(0.005)
                process.kill()

        exchange.behind = kill
        client = await exchange.stream(sample, events)
    assert client.status == 200
    assert client.complete
    if mode is FailureMode.OPEN:
        assert client.body.endswith(events[-1])
    else:
        # An error in the dialect's terms is the last thing that is said.
        assert UNAVAILABLE in client.body.rstrip().rpartition(b"\n")[2]
        assert b"[DONE]" not in client.body
        assert b"message_stop" not in client.body


@pytest.mark.parametrize("address", ADDRESSES[1:])
async def test_an_agent_that_has_ended_is_soon_asked_no_more(address: str) -> None:
    sample = ChatSample()
    events = sample.stream(planted(sample, "alice@example.com"), Cut(random.Random(5)))  # noqa: S311
    with served("everything") as processes:
        process = processes["everything"]
        breaker = CircuitBreakerConfig(failure_threshold=2, reset_timeout=3600.0)
        exchange = Exchange(process.address(address), circuit_breaker=breaker, guardrail={"hold": 90})
        assert b"[0]" in (await exchange.stream(sample, events)).body
        process.kill()
        told = [(await exchange.stream(sample, events)).body for _ in range(6)]
    assert all(b"alice" not in data for data in told)
    assert UNAVAILABLE in told[0]
    assert all(b"Service unavailable" in data for data in told[3:])


async def test_an_agent_that_was_started_again_redacts_again() -> None:
    sample = ChatSample()
    events = sample.stream(planted(sample, "alice@example.com"), Cut(random.Random(6)))  # noqa: S311
    with served("everything") as processes:
        process = processes["everything"]
        exchange = Exchange(process.socket, failure_mode=FailureMode.OPEN, guardrail={"hold": 90})
        process.kill()
        assert (await exchange.stream(sample, events)).body == b"".join(events)
        process.restart()
        with anyio.fail_after(_PATIENCE):
            # The pool waits a little before it connects again, perhaps in the middle of a stream.
            while b"alice" in (await exchange.stream(sample, events)).body:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert b"[0]" in exchange.client.body
