"""Whatever an app or client sends, it is read or refused: no other exception, and no text passes unjudged."""

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents.guardrails.dialect import Dialect, Stop
from asgi_agents.guardrails.dialects.known import BUILT_IN
from asgi_agents.guardrails.dialects.pointers import Pointers
from asgi_agents.guardrails.dialects.unknown import Events, Lines
from asgi_agents.guardrails.framing import Unit, UnreadableError
from asgi_agents.guardrails.json_text import JSON
from asgi_agents.guardrails.judges import Judges
from asgi_agents.guardrails.stream import Stream
from tests.guardrails.driving import EVERYTHING, LOCAL, Driver, judged_body
from tests.support.examples import examples

_WORDS = re.findall(
    r"\S+",
    """
    choices delta message content index finish_reason tool_calls function arguments name id type logprobs token
    role messages system prompt parts text input tools candidates functionCall args partialArgs jsonPath
    stringValue groundingMetadata usage usageMetadata content_block partial_json thinking signature citation
    response output item item_id output_index content_index part annotations summary call_id done error errorText
    toolCallId toolName inputTextDelta providerMetadata contents systemInstruction functionResponse tool_use_id
    custom audio transcript
    """,
)
_TYPES = re.findall(
    r"\S+",
    """
    message_start content_block_start content_block_delta content_block_stop message_delta message_stop ping error
    text text_delta input_json_delta thinking_delta signature_delta citations_delta tool_use tool_result thinking
    document response.created response.completed response.output_text.delta response.output_text.done output_text
    function_call response.output_item.added response.output_item.done response.content_part.done
    response.function_call_arguments.done response.foo.delta text-start text-delta text-end tool-input-start tool-
    input-delta tool-input-available finish data-x custom_tool_call reasoning message web_search_call refusal
    """,
)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.sampled_from(_TYPES),
    st.sampled_from(["x", "", '{"a":"b"}', "\ud800"]),
)
VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4)
        | st.tuples(st.sampled_from(_TYPES), st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4)).map(
            lambda pair: {"type": pair[0], **pair[1]}
        )
    ),
    max_leaves=12,
)
DIALECTS: list[Dialect] = [*BUILT_IN, Events(), Lines(), Pointers("/", request=["/*"], answer=[""], stream=["/*/text"])]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@settings(max_examples=examples(40))
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_any_json_is_read_or_refused(dialect: Dialect, values: list[JSON]) -> None:
    for value in values:
        with contextlib.suppress(UnreadableError):
            dialect.call(value, "/")
        for operations in (dialect.request, dialect.answer):
            with contextlib.suppress(UnreadableError):
                assert judged_body(json.dumps(value).encode(), operations).data is not None
        dialect.knows(value)
    reader = dialect.reader("text/event-stream")
    for value in values:
        with contextlib.suppress(UnreadableError):
            reader.read(Unit(b"x", b"x", 0), value)
    for stop in (Stop("no"), Stop("down", 503)):
        assert isinstance(reader.ending(stop), bytes)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@settings(max_examples=examples(40))
@given(st.lists(VALUES, max_size=6), st.booleans())
def test_any_stream_passes_or_is_stopped(dialect: Dialect, values: list[JSON], strict: bool) -> None:
    lines = dialect.name in ("ollama", "ndjson")
    stream = Stream([dialect], "application/x-ndjson" if lines else "text/event-stream", Judges([LOCAL]), strict=strict)
    driver = Driver(stream, {"local": EVERYTHING})
    data = [json.dumps(value).encode() for value in values]
    events = [line + b"\n" if lines else b"data: " + line + b"\n\n" for line in data]
    for event in events:
        driver.feed(event)
    driver.end()
    assert stream.done
    if stream.ending is None:
        assert sorted(driver.sent) == sorted(b"".join(events))


@pytest.mark.parametrize("dialect", BUILT_IN, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    "value", [[], "x", 1, None, {"messages": 1}, {"messages": [1]}, {"messages": [{"content": 7}]}]
)
def test_a_request_of_another_shape_is_refused_or_has_no_text(dialect: Dialect, value: Any) -> None:
    with contextlib.suppress(UnreadableError):
        assert dialect.request(value) in ([], dialect.request({}))
