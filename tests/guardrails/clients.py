"""The official clients of language models: raw loops and their helpers, sync and async, all read in the same way."""

import json
import random
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.guardrails.detectors import redacted
from tests.guardrails.driving import EVERYTHING
from tests.guardrails.samples import (
    AnthropicSample,
    ChatSample,
    Cut,
    GeminiSample,
    OllamaSample,
    ResponsesSample,
    Sample,
)
from tests.guardrails.test_dialects import redacted_json

# Seconds after which a client that has not read everything hangs. Nothing here takes a hundredth of that.
PATIENCE: Final = 60.0
# How a stream ends that was blocked.
FILTERED: Final = frozenset({"content_filter", "refusal", "SAFETY"})
# What the helper of OpenAI's client says of these.
FILTERED_ERROR: Final = "content filter"


@dataclass
class Reading:
    """What a client hands to its caller.

    :ivar text: that of the first choice, or of the first block or part of text.
    :ivar calls: the arguments of tool calls.
    :ivar tokens: those of the logprobs of the text, joined.
    :ivar end: why it has ended.
    """

    text: str = ""
    calls: dict[int, str] = field(default_factory=dict)
    tokens: str = ""
    end: str = ""
    first: int | None = None

    def add_call(self, index: int, arguments: str) -> None:
        self.calls[index] = self.calls.get(index, "") + arguments

    @property
    def arguments(self) -> list[Any]:
        """Those of the calls, decoded."""
        return [json.loads(arguments or "{}") for _, arguments in sorted(self.calls.items())]


class Way:
    """A client, and a way to read streams and whole answers with it.

    :cvar helper: the helper's method for the whole message. None: the raw loop.
    """

    name: ClassVar[str]
    sample: ClassVar[Sample]
    helper: ClassVar[str | None] = None

    def errors(self) -> tuple[type[Exception], ...]:
        """What the client raises by itself."""
        raise NotImplementedError

    def sync(self, base: str) -> Any:
        raise NotImplementedError

    def asynchronous(self, base: str) -> Any:
        raise NotImplementedError

    def stream(self, client: Any, prompt: str) -> Any:
        """Call for a stream. Of helpers a context manager; of async raw loops an awaitable."""
        raise NotImplementedError

    def whole(self, client: Any, prompt: str) -> Any:
        """Call for an answer in one piece."""
        raise NotImplementedError

    def take(self, reading: Reading, item: Any) -> None:
        """The next item of a stream."""
        raise NotImplementedError

    def finish(self, reading: Reading, final: Any) -> None:
        """The whole answer, or what the helper has made of a stream: it says what its items have said."""
        read = Reading()
        self.take_whole(read, final)
        assert (read.text, read.end, read.arguments) == (reading.text, reading.end, reading.arguments)

    def take_whole(self, reading: Reading, final: Any) -> None:
        """An answer in one piece."""
        raise NotImplementedError

    async def close(self, client: Any) -> None:
        """Close an async client."""
        await client.close()


class _OpenAI(Way):
    def errors(self) -> tuple[type[Exception], ...]:
        return (pytest.importorskip("openai").OpenAIError,)

    def sync(self, base: str) -> Any:
        openai = pytest.importorskip("openai")
        return openai.OpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0, timeout=PATIENCE)

    def asynchronous(self, base: str) -> Any:
        openai = pytest.importorskip("openai")
        return openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0, timeout=PATIENCE)


class OpenAIChat(_OpenAI):
    name = "openai_chat"
    sample = ChatSample()

    def stream(self, client: Any, prompt: str) -> Any:
        return client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}], stream=True)

    def whole(self, client: Any, prompt: str) -> Any:
        return client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])

    def take(self, reading: Reading, item: Any) -> None:
        for choice in item.choices:
            if choice.index == 0:
                reading.text += choice.delta.content or ""
                reading.end = choice.finish_reason or reading.end
                for call in choice.delta.tool_calls or ():
                    assert call.index in reading.calls or (call.id and call.function.name == "send")
                    reading.add_call(call.index, call.function.arguments or "")
                reading.tokens += "".join(token.token for token in (choice.logprobs and choice.logprobs.content) or ())

    def take_whole(self, reading: Reading, final: Any) -> None:
        for choice in final.choices:
            if choice.index == 0:
                reading.text, reading.end = choice.message.content or "", choice.finish_reason
                for index, call in enumerate(choice.message.tool_calls or ()):
                    reading.add_call(index, call.function.arguments)


class OpenAIChatHelper(OpenAIChat):
    name = "openai_chat_helper"
    helper = "get_final_completion"

    def stream(self, client: Any, prompt: str) -> Any:
        return client.chat.completions.stream(model="m", messages=[{"role": "user", "content": prompt}])

    def take(self, reading: Reading, item: Any) -> None:
        if item.type == "chunk":
            super().take(reading, item.chunk)


class OpenAIResponses(_OpenAI):
    name = "openai_responses"
    sample = ResponsesSample()

    def stream(self, client: Any, prompt: str) -> Any:
        return client.responses.create(model="m", input=prompt, stream=True)

    def whole(self, client: Any, prompt: str) -> Any:
        return client.responses.create(model="m", input=prompt)

    def take(self, reading: Reading, item: Any) -> None:
        match item.type:
            case "response.output_text.delta" if item.content_index == 0:
                reading.text += item.delta
                reading.tokens += "".join(token.token for token in item.logprobs or ())
            case "response.output_item.added" if item.item.type == "function_call":
                reading.add_call(item.output_index, "")
            case "response.function_call_arguments.delta":
                reading.add_call(item.output_index, item.delta)
            case "response.completed":
                reading.end = item.response.status

    def take_whole(self, reading: Reading, final: Any) -> None:
        reading.end = final.status
        for index, item in enumerate(final.output):
            if item.type == "message":
                reading.text = item.content[0].text
            elif item.type == "function_call":
                reading.add_call(index, item.arguments)


class OpenAIResponsesHelper(OpenAIResponses):
    name = "openai_responses_helper"
    helper = "get_final_response"

    def stream(self, client: Any, prompt: str) -> Any:
        return client.responses.stream(model="m", input=prompt)


class Anthropic(Way):
    name = "anthropic"
    sample = AnthropicSample()

    def errors(self) -> tuple[type[Exception], ...]:
        return (pytest.importorskip("anthropic").APIError,)

    def sync(self, base: str) -> Any:
        return pytest.importorskip("anthropic").Anthropic(base_url=base, api_key="k", max_retries=0, timeout=PATIENCE)

    def asynchronous(self, base: str) -> Any:
        return pytest.importorskip("anthropic").AsyncAnthropic(
            base_url=base, api_key="k", max_retries=0, timeout=PATIENCE
        )

    def stream(self, client: Any, prompt: str) -> Any:
        return self._create(client, prompt, stream=True)

    def whole(self, client: Any, prompt: str) -> Any:
        return self._create(client, prompt)

    def _create(self, client: Any, prompt: str, **options: Any) -> Any:
        return client.messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": prompt}], **options
        )

    def take(self, reading: Reading, item: Any) -> None:
        match item.type:
            case "content_block_start":
                if item.content_block.type == "text" and reading.first is None:
                    reading.first = item.index
                if item.content_block.type == "tool_use":
                    reading.add_call(item.index, "")
            case "content_block_delta":
                if item.index == reading.first:
                    reading.text += getattr(item.delta, "text", "")
                if item.delta.type == "input_json_delta":
                    reading.add_call(item.index, item.delta.partial_json)
            case "message_delta":
                reading.end = item.delta.stop_reason

    def take_whole(self, reading: Reading, final: Any) -> None:
        reading.end = final.stop_reason or ""
        texts = [block.text for block in final.content if block.type == "text"]
        reading.text = texts[0] if texts else ""
        for index, block in enumerate(final.content):
            if block.type == "tool_use":
                reading.add_call(index, json.dumps(block.input))


class AnthropicHelper(Anthropic):
    name = "anthropic_helper"
    helper = "get_final_message"

    def stream(self, client: Any, prompt: str) -> Any:
        return client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": prompt}])


class Ollama(Way):
    name = "ollama"
    sample = OllamaSample()

    def errors(self) -> tuple[type[Exception], ...]:
        return (pytest.importorskip("ollama").ResponseError,)

    def sync(self, base: str) -> Any:
        return pytest.importorskip("ollama").Client(host=base, timeout=PATIENCE)

    def asynchronous(self, base: str) -> Any:
        return pytest.importorskip("ollama").AsyncClient(host=base, timeout=PATIENCE)

    def stream(self, client: Any, prompt: str) -> Any:
        return client.chat(model="m", messages=[{"role": "user", "content": prompt}], stream=True)

    def whole(self, client: Any, prompt: str) -> Any:
        return client.chat(model="m", messages=[{"role": "user", "content": prompt}])

    def take(self, reading: Reading, item: Any) -> None:
        reading.text += item.message.content or ""
        reading.end = item.done_reason or reading.end
        for call in item.message.tool_calls or ():
            reading.add_call(len(reading.calls), json.dumps(dict(call.function.arguments)))
        reading.tokens += "".join(token.token for token in item.logprobs or ())

    def take_whole(self, reading: Reading, final: Any) -> None:
        self.take(reading, final)


class Gemini(Way):
    name = "gemini"
    sample = GeminiSample()

    def errors(self) -> tuple[type[Exception], ...]:
        pytest.importorskip("google.genai")
        return (pytest.importorskip("google.genai.errors").APIError,)

    def sync(self, base: str) -> Any:
        options = {"base_url": base, "timeout": int(PATIENCE * 1000)}
        return pytest.importorskip("google.genai").Client(api_key="k", http_options=options)

    def asynchronous(self, base: str) -> Any:
        return self.sync(base).aio

    async def close(self, client: Any) -> None:
        await client.aclose()

    def stream(self, client: Any, prompt: str) -> Any:
        return client.models.generate_content_stream(model="m", contents=prompt)

    def whole(self, client: Any, prompt: str) -> Any:
        return client.models.generate_content(model="m", contents=prompt)

    def take(self, reading: Reading, item: Any) -> None:
        for candidate in item.candidates or ():
            if (candidate.index or 0) == 0:
                for part in (candidate.content and candidate.content.parts) or ():
                    if part.text and not part.thought:
                        reading.text += part.text
                    if part.function_call:
                        reading.add_call(len(reading.calls), json.dumps(part.function_call.args))
                reading.end = candidate.finish_reason.value if candidate.finish_reason else reading.end

    def take_whole(self, reading: Reading, final: Any) -> None:
        self.take(reading, final)


WAYS: Final[tuple[Way, ...]] = (
    OpenAIChat(),
    OpenAIChatHelper(),
    OpenAIResponses(),
    OpenAIResponsesHelper(),
    Anthropic(),
    AnthropicHelper(),
    Ollama(),
    Gemini(),
)


class Client:
    """One client of a server, which stays connected. An async one runs in an event loop of its own."""

    def __init__(self, way: Way, connected: Any, portal: BlockingPortal | None) -> None:
        self.way = way
        self.sample = way.sample
        self.errors = way.errors()
        self._connected = connected
        self._portal = portal

    def read(self, prompt: str = "x") -> Reading:
        """What the client makes of a stream."""
        if self._portal is None:
            return self._read(prompt)
        return self._portal.call(self._read_async, prompt)

    def read_whole(self, prompt: str = "x") -> Reading:
        """What it makes of an answer in one piece."""
        reading = Reading()
        if self._portal is None:
            self.way.take_whole(reading, self.way.whole(self._connected, prompt))
        else:
            self._portal.call(self._read_whole_async, reading, prompt)
        return reading

    def _read(self, prompt: str) -> Reading:
        way, reading = self.way, Reading()
        opened = way.stream(self._connected, prompt)
        with opened if way.helper is not None else nullcontext(opened) as stream:
            for item in stream:
                way.take(reading, item)
            if way.helper is not None:
                way.finish(reading, getattr(stream, way.helper)())
        return reading

    async def _read_async(self, prompt: str) -> Reading:
        try:
            return await self._read_stream_async(prompt)
        except self.errors as exc:
            # Its frames hold generators that the client has left suspended, and it is in a cycle with the future of the
            # portal. The garbage collector would finalise all of them at once, in any thread, while this one closes
            # them: "async generator already executing". Without the frames, they are closed here, one after another.
            traceback.clear_frames(exc.__traceback__)
            raise

    async def _read_stream_async(self, prompt: str) -> Reading:
        way, reading = self.way, Reading()
        with anyio.fail_after(PATIENCE):
            opened = way.stream(self._connected, prompt)
            async with opened if way.helper is not None else nullcontext(await opened) as stream:
                async for item in stream:
                    way.take(reading, item)
                if way.helper is not None:
                    way.finish(reading, await getattr(stream, way.helper)())
        return reading

    async def _read_whole_async(self, reading: Reading, prompt: str) -> None:
        with anyio.fail_after(PATIENCE):
            self.way.take_whole(reading, await self.way.whole(self._connected, prompt))


@contextmanager
def connected(way: Way, base: str, *, asynchronous: bool) -> Iterator[Client]:
    """A client of the server at ``base``, which has no slash at its end."""
    with ExitStack() as stack:
        if asynchronous:
            way.errors()
            portal = stack.enter_context(start_blocking_portal("asyncio"))
            client = portal.call(way.asynchronous, base)
            stack.callback(portal.call, way.close, client)
            yield Client(way, client, portal)
        else:
            client = way.sync(base)
            if hasattr(client, "close"):
                stack.callback(client.close)
            yield Client(way, client, None)


def parameters(ways: Iterable[Way]) -> list[Any]:
    """Parameters of a fixture: a way, and whether its client is async."""
    return [
        pytest.param((way, asynchronous), id=f"{way.name}{'_async' if asynchronous else ''}")
        for way in ways
        for asynchronous in (False, True)
    ]


PARAMETERS: Final = parameters(WAYS)
#: Without the helpers.
PLAIN: Final = parameters(way for way in WAYS if way.helper is None)

_TEXT: Final = "write to alice@example.com, please"
_TEXTS: Final = {
    "content 0": _TEXT,
    "text": _TEXT,
    "content": _TEXT,
    "text 0": _TEXT,
    "reasoning": "hm, bob@example.com?",
    "signed thinking": "nothing in here",
    "thought": "hm",
}
ARGUMENTS: Final = {"to": "x@example.com"}


def events_of(sample: Sample, *, longest: int = 12) -> tuple[list[bytes], str]:
    """A short stream, and its text."""
    texts = {
        name: _TEXTS.get(name, json.dumps(ARGUMENTS) if name.startswith("json") else "more") for name in sample.texts
    }
    events = sample.stream(texts, Cut(random.Random(5), longest=longest))  # noqa: S311
    # One of the clients asks for the blank.
    return [event.replace(b"data:{", b"data: {") for event in events], _TEXT


REDACTED: Final = redacted(_TEXT, EVERYTHING)
REDACTED_ARGUMENTS: Final = redacted_json(json.dumps(ARGUMENTS))
