"""The official clients read every stream that was touched: text, an exception of their own, or a filtered end."""

import http.server
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgi_agents.guardrails.dialect import Dialect, Stop
from asgi_agents.guardrails.judges import Judges
from asgi_agents.guardrails.slots import Block, Decision, Window
from asgi_agents.guardrails.stream import Stream
from tests.guardrails.detectors import redacted
from tests.guardrails.driving import EVERYTHING, LOCAL, Driver
from tests.guardrails.samples import (
    AnthropicSample,
    ChatSample,
    Cut,
    GeminiSample,
    OllamaSample,
    ResponsesSample,
    Sample,
)

REASON = "the policy says no"
_TEXTS = {
    "content 0": "write to alice@example.com, please",
    "text": "write to alice@example.com, please",
    "content": "write to alice@example.com, please",
    "reasoning": "hm, bob@example.com?",
    "signed thinking": "nothing in here",
    "thought": "hm",
}
# What a client hands to its caller: text, and how it ended.
Reading = tuple[str, str]


class _Server(http.server.ThreadingHTTPServer):
    body: bytes = b""
    media_type: str = ""
    status: int = 200


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(self.server.status)
        self.send_header("content-type", self.server.media_type)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    """Answers everything with the body that it is given."""
    with _Server(("127.0.0.1", 0), _Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


class _Client:
    """One client, connected, and a way to read with it."""

    def __init__(
        self, sample: Sample, errors: tuple[type[Exception], ...], connected: Any, read: Callable[[Any], Reading]
    ) -> None:
        self.sample = sample
        self.errors = errors
        self._connected = connected
        self._read = read

    def read(self) -> Reading:
        return self._read(self._connected)

    def close(self) -> None:
        if hasattr(self._connected, "close"):
            self._connected.close()


def _openai(base: str) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0), openai


def openai_chat(base: str) -> _Client:
    client, openai = _openai(base)

    def read(client: Any) -> Reading:
        text, end = "", ""
        for chunk in client.chat.completions.create(model="m", messages=[], stream=True):
            for choice in chunk.choices:
                if choice.index == 0:
                    text += choice.delta.content or ""
                    end = choice.finish_reason or end
        return text, end

    return _Client(ChatSample(), (openai.APIError,), client, read)


def openai_chat_helper(base: str) -> _Client:
    client, openai = _openai(base)

    def read(client: Any) -> Reading:
        with client.chat.completions.stream(model="m", messages=[]) as stream:
            final = stream.get_final_completion()
        first = next((choice for choice in final.choices if choice.index == 0), None)
        return (first.message.content or "", first.finish_reason) if first else ("", "")

    return _Client(ChatSample(), (openai.OpenAIError,), client, read)


def _responses(events: Any) -> Reading:
    text, end = "", ""
    for event in events:
        if event.type == "response.output_text.delta" and event.content_index == 0:
            text += event.delta
        if event.type == "response.completed":
            end = event.response.status
    return text, end


def openai_responses(base: str) -> _Client:
    client, openai = _openai(base)

    def read(client: Any) -> Reading:
        return _responses(client.responses.create(model="m", input="x", stream=True))

    return _Client(ResponsesSample(), (openai.APIError,), client, read)


def openai_responses_helper(base: str) -> _Client:
    client, openai = _openai(base)

    def read(client: Any) -> Reading:
        with client.responses.stream(model="m", input="x") as stream:
            return _responses(stream)

    return _Client(ResponsesSample(), (openai.OpenAIError,), client, read)


def anthropic_raw(base: str) -> _Client:
    anthropic = pytest.importorskip("anthropic")

    def read(client: Any) -> Reading:
        text, end = "", ""
        for event in client.messages.create(model="m", max_tokens=9, messages=[], stream=True):
            if event.type == "content_block_delta" and event.index == 1:
                text += getattr(event.delta, "text", "")
            if event.type == "message_delta":
                end = event.delta.stop_reason
        return text, end

    client = anthropic.Anthropic(base_url=base, api_key="k", max_retries=0)
    return _Client(AnthropicSample(), (anthropic.APIError,), client, read)


def anthropic_helper(base: str) -> _Client:
    anthropic = pytest.importorskip("anthropic")

    def read(client: Any) -> Reading:
        with client.messages.stream(model="m", max_tokens=9, messages=[]) as stream:
            final = stream.get_final_message()
        texts = [block.text for block in final.content if block.type == "text"]
        return texts[0] if texts else "", final.stop_reason or ""

    client = anthropic.Anthropic(base_url=base, api_key="k", max_retries=0)
    return _Client(AnthropicSample(), (anthropic.APIError,), client, read)


def ollama(base: str) -> _Client:
    module = pytest.importorskip("ollama")

    def read(client: Any) -> Reading:
        text, end = "", ""
        for part in client.chat(model="m", messages=[], stream=True):
            text += part.message.content or ""
            end = part.done_reason or end
        return text, end

    return _Client(OllamaSample(), (module.ResponseError,), module.Client(host=base), read)


def gemini(base: str) -> _Client:
    genai = pytest.importorskip("google.genai")
    errors = pytest.importorskip("google.genai.errors")

    def read(client: Any) -> Reading:
        text, end = "", ""
        for chunk in client.models.generate_content_stream(model="m", contents="x"):
            for candidate in chunk.candidates or ():
                if (candidate.index or 0) == 0:
                    parts = (candidate.content and candidate.content.parts) or ()
                    text += "".join(part.text or "" for part in parts if not part.thought)
                    end = candidate.finish_reason.value if candidate.finish_reason else end
        return text, end

    client = genai.Client(api_key="k", http_options={"base_url": base})
    return _Client(GeminiSample(), (errors.APIError,), client, read)


CLIENTS = (
    openai_chat,
    openai_chat_helper,
    openai_responses,
    openai_responses_helper,
    anthropic_raw,
    anthropic_helper,
    ollama,
    gemini,
)
_FILTERED = {"content_filter", "refusal", "SAFETY"}


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda make: make.__name__)
def client(request: pytest.FixtureRequest, server: _Server) -> Iterator[_Client]:
    made: _Client = request.param(f"http://127.0.0.1:{server.server_address[1]}")
    yield made
    made.close()


def events_of(sample: Sample) -> tuple[list[bytes], str]:
    """A short stream, and its text."""
    texts = {
        name: _TEXTS.get(name, json.dumps({"to": "x@example.com"}) if "json" in name else "more")
        for name in sample.texts
    }
    text = texts.get("content 0") or texts.get("text") or texts.get("content") or texts["text 0"]
    events = sample.stream(texts, Cut(random.Random(5), longest=12))  # noqa: S311
    # One of the clients asks for the blank.
    return [event.replace(b"data:{", b"data: {") for event in events], text


def serve(server: _Server, dialect_media_type: str, body: bytes) -> None:
    server.body = body
    server.media_type = dialect_media_type
    server.status = 200


def test_a_redacted_stream_is_read(client: _Client, server: _Server) -> None:
    events, text = events_of(client.sample)
    driver = Driver(Stream([client.sample.dialect], client.sample.media_type, Judges([LOCAL])), {"local": EVERYTHING})
    for event in events:
        driver.feed(event)
    driver.end()
    serve(server, client.sample.media_type, driver.sent)
    read, end = client.read()
    assert read == redacted(text, EVERYTHING)
    assert end not in _FILTERED


@pytest.mark.parametrize("how", ["blocked", "failed", "blocked late"])
def test_a_stream_that_ends_at_any_event_is_understood(client: _Client, server: _Server, how: str) -> None:
    events, text = events_of(client.sample)
    expected = redacted(text, EVERYTHING)
    for count in range(len(events) + 1):
        stopping = False

        def check(window: Window) -> list[Decision]:
            return [Block(REASON)] if stopping else list(EVERYTHING(window))  # noqa: B023

        stream = Stream([client.sample.dialect], client.sample.media_type, Judges([LOCAL]))
        driver = Driver(stream, {"local": check})
        for event in events[:count]:
            driver.feed(event)
        if how == "failed":
            stream.fail(Stop(REASON, 503))
        else:
            stopping = True
            for event in events[count:] if how == "blocked" else ():
                driver.feed(event)
        driver.end()
        if stream.ending is None:
            continue
        body = driver.sent
        serve(server, client.sample.media_type, body)
        try:
            read, end = client.read()
        except client.errors as exc:
            if not any(reason in str(exc) for reason in (REASON, "content filter", "the arguments of a tool call")):
                raise
        else:
            assert expected.startswith(read), (count, body)
            assert end in _FILTERED or read == expected or not count, (count, end, body)


@pytest.mark.parametrize("how", ["cut", "failed"])
def test_a_stream_that_breaks_off_at_any_byte_is_understood(client: _Client, server: _Server, how: str) -> None:
    events, _ = events_of(client.sample)
    data = b"".join(events)
    for count in range(7, len(data), 97):
        stream = Stream([client.sample.dialect], client.sample.media_type, Judges([LOCAL]))
        driver = Driver(stream, {"local": EVERYTHING})
        driver.feed(data[:count])
        if how == "failed":
            stream.fail(Stop(REASON, 503))
        driver.end()
        serve(server, client.sample.media_type, driver.sent)
        if stream.ending is None:
            # The app's own end: nothing was added.
            continue
        try:
            client.read()
        except client.errors as exc:
            if REASON not in str(exc) and "expected JSON" not in str(exc):
                raise


@pytest.mark.parametrize("status", [400, 503])
def test_a_call_that_is_stopped_before_its_answer_is_understood(client: _Client, server: _Server, status: int) -> None:
    dialect: Dialect = client.sample.dialect
    reply = dialect.reply(Stop(REASON, status))
    server.body, server.media_type, server.status = reply.body, reply.media_type, reply.status
    with pytest.raises(client.errors, match=REASON):
        client.read()
