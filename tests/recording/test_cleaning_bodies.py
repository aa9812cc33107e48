"""Secrets in bodies and messages that have names: members of JSON, and fields of forms."""

import itertools
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents import AgentResponse, BodyMutation
from asgi_agents.recording.cleaning import Cleaner
from asgi_agents.testing import (
    request_body_chunk_event,
    request_headers_event,
    response_body_chunk_event,
    websocket_frame_event,
)

SECRET = "zq9S3cretZq9"


def cleaned(data: str | bytes, **options: Any) -> tuple[bytes, bool]:
    """A body as it is written down, and whether a secret was replaced. It is the same wherever it stands."""
    cleaner = Cleaner(bodies=True, **options)
    events: list[Any] = [request_body_chunk_event(data), response_body_chunk_event(data), websocket_frame_event(data)]
    found = {(cleaner.event(event).value.data, cleaner.event(event).redacted) for event in events}
    mutation = BodyMutation(data.encode() if isinstance(data, str) else data)
    answer = cleaner.answer(AgentResponse.allow(request_body_mutation=mutation, response_body_mutation=mutation))
    for cleaned_mutation in (answer.value.request_body_mutation, answer.value.response_body_mutation):
        found.add((cleaned_mutation.data, answer.redacted))
    [one] = found
    return one


JSON: dict[str, tuple[str, Any]] = {
    "a member": ('{"password": "S", "x": 1.5}', {"password": "[redacted]", "x": 1.5}),
    "a list": ('{"tokens": ["S", "S"]}', {"tokens": "[redacted]"}),
    "an object": ('{"secret": {"value": "S", "n": 1}}', {"secret": "[redacted]"}),
    "a number": ('{"otp": 123456}', {"otp": "[redacted]"}),
    "a name of parameters and headers": ('{"session": "S", "a": {"x-auth": "S"}}', None),
    "a name with escapes": ('{"p\\u0061ssword": "S"}', {"password": "[redacted]"}),
    "within lists": ('[[{"api_key": "S"}, "Bearer S"]]', [[{"api_key": "[redacted]"}, "Bearer [redacted]"]]),
    "a name that is a secret": ('{"Bearer S": 1}', {"Bearer [redacted]": 1}),
    "JSON in JSON": (json.dumps({"a": json.dumps({"token": "S"})}), None),
    "white space around it": ('\n {"token": "S"} \n', {"token": "[redacted]"}),
}


@pytest.mark.parametrize("case", JSON)
def test_what_has_the_name_of_a_secret_in_json_is_not_written_and_json_stays_json(case: str) -> None:
    text, expected = JSON[case]
    data, redacted = cleaned(text.replace("S", SECRET))
    assert SECRET.encode() not in data
    assert redacted
    found = json.loads(data)
    if expected is not None:
        assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        '{ "max_tokens" : 100, "usage": {"completion_tokens": 5}, "author": "S", "x": 1e2 }',
        '{"usage": {"total_tokens": null}}',
        '[1, 2.50, "\\ud800"]',
        "a=1&b=2&author=S",
        "YWJj==",
        "=",
    ],
)
def test_what_has_no_secret_is_written_as_it_is(text: str) -> None:
    assert cleaned(text) == (text.encode(), False)


@pytest.mark.parametrize(
    "text",
    [
        # What a parser would lose.
        '{"a": "Bearer S", "a": 1}',
        '{"token": "S", "x": 1e999}',
        '{"token": "S", "x": NaN}',
        '{"token": "S", "x": ' + "9" * 5000 + "}",
        "[" * 600 + '{"token": "S"}' + "]" * 600,
        "[" * 5000 + '{"token": "S"}' + "]" * 5000,
        # No whole JSON.
        '{"token": "S"',
        '{"token": "S"}{"token": "S"}',
        'data: {"tokens": ["S", "S"], "secret": {"value": "S", "more": "S"}}',
        '42["auth", {"token": "S"}]',
    ],
)
def test_what_can_not_be_read_as_json_and_written_again_is_text(text: str) -> None:
    data, redacted = cleaned(text.replace("S", SECRET))
    assert SECRET.encode() not in data
    assert redacted
    # Once more, it stays as it is.
    assert cleaned(data) == (data, False)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("otp=S&x=1", "otp=[redacted]&x=1"),
        ("x=1&session=S", "x=1&session=[redacted]"),
        ("user%5Bpassword%5D=S&sig=S", "user%5Bpassword%5D=[redacted]&sig=[redacted]"),
        ("session=S", "session=[redacted]"),
    ],
)
def test_the_first_field_of_a_form_is_as_secret_as_the_others(form: str, expected: str) -> None:
    assert cleaned(form.replace("S", SECRET)) == (expected.encode(), True)


NESTED = '{"secret":{"a":{"b":"S"}}}'
COUNT = '{"max_tokens": 4}'


@pytest.mark.parametrize(
    "form",
    [
        "\ufeffN",
        "N\nM\n",
        "N\r\nM\r\n\r\n",
        "data: N\n\ndata: M\n\n",
        ": x\nevent: a\rb\nid: 1\ndata:N\ndata: M\n\ndata: [the end]\n\n",
    ],
)
def test_json_in_lines_in_events_and_behind_a_byte_order_mark_is_looked_at_by_its_names(form: str) -> None:
    data, redacted = cleaned(form.replace("N", NESTED.replace("S", SECRET)).replace("M", COUNT))
    assert data.decode() == form.replace("N", '{"secret":"[redacted]"}').replace("M", COUNT)
    assert redacted
    assert cleaned(form.replace("N", COUNT).replace("M", COUNT)) == (
        form.replace("N", COUNT).replace("M", COUNT).encode(),
        False,
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"secret":\n["S"]\n}x',
        "-----BEGIN PRIVATE KEY-----\n[1]\nS\n-----END PRIVATE KEY-----",
        "[1]\n-----BEGIN PRIVATE KEY-----\n[1]\nS\n-----END PRIVATE KEY-----",
        "{}\n" * 10_000 + "Bearer S",
    ],
)
def test_a_text_that_has_lines_of_json_is_looked_at_as_a_whole(text: str) -> None:
    data, redacted = cleaned(text.replace("S", SECRET))
    assert redacted
    assert SECRET.encode() not in data


def test_bytes_that_are_no_text_survive_in_json() -> None:
    data, redacted = cleaned(b'{"token": "S", "x": "\xff\xc3\xa9"}')
    assert redacted
    assert json.loads(data) == {"token": "[redacted]", "x": "\udcff\xe9"}


def test_without_redaction_json_and_forms_are_written_as_they_are() -> None:
    for text in ('{"token": "S"}', "otp=S"):
        assert cleaned(text, redact=None) == (text.encode(), False)


def test_texts_in_json_are_given_to_a_function_of_ones_own() -> None:
    data, redacted = cleaned('{"a": ["lamp"], "token": "x"}', redact=lambda text: text.replace("lamp", "***"))
    assert (json.loads(data), redacted) == ({"a": ["***"], "token": "[redacted]"}, True)


NAMINGS = ["name", "Name", "NAME", "key", "Key", "field"]


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize("naming", list(itertools.permutations(NAMINGS, 2)))
def test_all_that_members_say_of_a_value_counts_in_whatever_order(naming: tuple[str, str], cut: int) -> None:
    said = f'"{naming[0]}":"lamp","{naming[1]}":"otp"'
    for members in (f'{said},"value":"S","Value":"S"', f'"value":"S",{said}', f'"VALUE":{{"a":["S"]}},{said}'):
        text = f"[{{{members}}}]"
        data, redacted = cleaned(text[: len(text) - cut].replace("S", SECRET))
        assert redacted
        assert SECRET.encode() not in data


def test_what_names_a_value_at_many_depths_is_looked_at_once() -> None:
    # Twice at each of these depths would take for ever.
    value: Any = {"password": SECRET, "a": "lamp"}
    for _ in range(90):
        value = {"name": "a", "key": "b", "value": value}
    data, redacted = cleaned(json.dumps(value))
    assert redacted
    assert b"lamp" in data
    assert SECRET.encode() not in data


def nested(inner: str, kinds: str) -> str:
    """A text in a form, in JSON, in a list, … by the letters of ``kinds``."""
    for kind in kinds:
        inner = f"a={quote(inner)}" if kind == "f" else json.dumps({"a": inner} if kind == "j" else [inner])
    return inner


@given(st.text("fjl", max_size=12), st.sampled_from(['{"otp":"S"}', "otp=S", "<otp>S</otp>", "name=x&otp=S;S"]))
def test_texts_within_texts_are_cleaned_or_replaced_at_any_depth(kinds: str, inner: str) -> None:
    data, redacted = cleaned(nested(inner.replace("S", SECRET), kinds))
    assert redacted
    assert SECRET.encode() not in data


@pytest.mark.parametrize("depth", [1, 5, 20, 100])
def test_no_depth_keeps_an_exchange_out_of_a_recording(depth: int) -> None:
    query = "".join(f"a=%{'25' * level}5B" for level in range(depth)) + "1"
    braces = "".join(
        f"a=%{'25' * level}7B%{'25' * level}22a%{'25' * level}22%{'25' * level}3A" for level in range(depth)
    )
    cleaner = Cleaner(bodies=True)
    for text in (query, braces):
        event = request_headers_event(uri=f"/evil?{text}", headers={"referer": text})
        assert cleaner.event(event).value.uri.startswith("/evil?")
        assert cleaner.event(request_body_chunk_event(text)).value.data
        assert json.loads(cleaned(json.dumps({"a": text}))[0])


def test_half_a_character_in_a_form_is_no_error() -> None:
    data, redacted = cleaned(b"a=%7B%22otp%22%3A%22zq9S3cretZq9%22%7D\xff\xed\xa0")
    assert redacted
    assert SECRET.encode() not in data
