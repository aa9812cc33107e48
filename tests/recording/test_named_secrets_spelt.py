"""More ways to write down what has the name of a secret: YAML in one line, settings, tags of XML, fields of lines."""

import html
import json

import pytest
import yaml

from asgi_agents import redact_secrets
from asgi_agents.observability.secret_names import is_secret_name
from asgi_agents.recording.cleaning import Cleaner
from asgi_agents.testing import request_body_chunk_event
from tests.recording.test_named_secrets import OTHERS, SECRET, SECRETS, written

# @: the name, $: the value.
YAML = {
    "a mapping in braces": "user: {name: joe, @: $, a: 1}\n",
    "a mapping in braces in a list": "- {@: $}\n",
    "a mapping in braces that is first": "{@: $, a: 1}\n",
    "a mapping in braces in lines": "user: {\n  name: joe,\n  @: $\n}\n",
    "a value of several words in braces": "{a: 1, @: x $}\n",
    "a value of several lines in braces": "{a: 1, @: x\n  $}\n",
    "a list in braces": "{a: 1, @: [x, $], b: 2}\n",
    "a mapping in a mapping in braces": "{a: 1, @: {x: 1, y: $}, b: 2}\n",
    "what is named in braces": "- {name: @, value: $}\n",
    "a key of several words": "a: 1\nmy @: $\n",
    "a key of several words in a list": "- my own @: $\n",
    "a key of several words in braces": "{a: 1, my own @: $}\n",
    "a key that begins with a sign": "a: 1\n_@: $\n",
    "a key that begins with a digit": "a: 1\n2fa_@: $\n",
    "a key that is asked for": "? @\n: $\n",
    "a key that is asked for in a list": "- ? @\n  : $\n",
    "a quoted value of several lines": '@: "first\n$"\nb: 1\n',
    "a value of several lines in single quotation marks": "@: 'it''s\n$'\nb: 1\n",
    "a list of several lines": '@: [\n"$"\n]\nb: 1\n',
    "a mapping of several lines": '@: {\n"a": "$"\n}\nb: 1\n',
    "a value with a tag": '@: !!str "first\n$"\nb: 1\n',
    "a value with an anchor": '@: &a [\n"$"\n]\nb: 1\n',
}
OTHER = {
    "a key behind the mark of a document": "--- @: $\n",
    "an object of JavaScript": "send({a: 1, @:'$'})",
    "an object of JavaScript with a number": "{a: 1, @: $}",
    "an attribute behind a tab": '<user @\t=\t"$"/>',
    "an attribute of several lines": "<user @\n=\n'$'/>",
    "an attribute behind many blanks": '<user @                    =                    "$"/>',
    "an attribute that says the name in other lines": '<input name\n=\n"@" value\n=\n"$">',
    "an element that says the name in CDATA": "<m><name><![CDATA[@]]></name><value>$</value></m>",
    "an element that says the name in parts": "<m><name><!-- x -->@<![CDATA[]]></name><value>$</value></m>",
    "an element with an attribute that seems to end it": '<a><@ b="></@>">$</@></a>',
    "settings with tabs": "[a]\n@\t=\t$\n",
    "settings with many blanks": "[a]\n@              = $\n",
    "a setting of several lines": '@="a\n$"\nb=1\n',
    "a field of several lines": "a=1&@=x\n$&b=1",
    "a field whose value begins with a line end": "a=1&@=\r\n$&b=1",
    "a field with a line that looks like another": "a=1&@=x\nb=$&c=1",
    "a field of several lines that is alone": "@=x\r$",
    "bytes of Python": "{'a': 1, '@': b'$', 'b': 2}",
    "pairs of bytes of Python": "[(b'host', b'x'), (b'@', b'$')]",
    "a list of Python": "{'a': 1, '@': [']', '$'], 'b': None}",
    "a list behind an equals sign": 'f(a: 1) {@=["$", "$"]}',
}
SPELLINGS = YAML | OTHER


def names_in(spelling: str, names: list[str], *, secret: bool) -> list[str]:
    """Those that are names of secrets, or none, with what stands before them in this spelling."""
    before = next((word for word in ("my own ", "my ", "2fa_", "_") if f"{word}@" in SPELLINGS[spelling]), "")
    return [name for name in names if is_secret_name(f"{before}{name}") is secret]


def text_of(spelling: str, name: str, value: str) -> str:
    return SPELLINGS[spelling].replace("@", name).replace("$", value)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_has_the_name_of_a_secret_is_not_written(spelling: str) -> None:
    names = names_in(spelling, SECRETS, secret=True)
    assert len(names) > 20
    for name in names:
        text = text_of(spelling, name, SECRET)
        for redact in (redact_secrets, lambda given: given):
            assert not [found for found in written(text, redact) if SECRET in found], name


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_has_another_name_is_written_as_it_is(spelling: str) -> None:
    names = names_in(spelling, OTHERS, secret=False)
    assert len(names) > 10
    for name in names:
        text = text_of(spelling, name, "lamp")
        cleaned = Cleaner(bodies=True).event(request_body_chunk_event(text))
        assert (cleaned.value.data.decode(), cleaned.redacted) == (text, False), name


@pytest.mark.parametrize("spelling", YAML)
def test_what_is_taken_for_yaml_is_yaml(spelling: str) -> None:
    assert "lamp" in json.dumps(yaml.safe_load(text_of(spelling, "pin", "lamp")))


@pytest.mark.parametrize("name", SECRETS)
def test_a_name_may_be_written_in_references_to_characters(name: str) -> None:
    for at in (0, len(name) // 2, len(name) - 1):
        for reference in (f"&#{ord(name[at])};", f"&#x{ord(name[at]):x};"):
            said = f"{name[:at]}{reference}{name[at + 1 :]}"
            assert html.unescape(said) == name
            for text in (
                f"<m><name>{said}</name><value>{SECRET}</value></m>",
                f'<entry key="{said}">{SECRET}</entry>',
                f'<input name="{said}" value="{SECRET}">',
            ):
                assert not [found for found in written(text) if SECRET in found], text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("otp=x\nb=2\n", "otp=[redacted]\nb=2\n"),
        ("otp=x\ny\n\nb=2\n", "otp=[redacted]\n\nb=2\n"),
        ("a=1&otp=x\r\n&b=2", "a=1&otp=[redacted]\r\n&b=2"),
        ("a: 1\notp: 'x'\nb: 2\n", "a: 1\notp: [redacted]\nb: 2\n"),
        ("a: {otp: x, b: 2}\n", "a: {otp: [redacted], b: 2}\n"),
        ("a: {otp: [x, y], b: 2}\n", "a: {otp: [redacted], b: 2}\n"),
        ("Well, see the token: https://shop.example/a", None),
        ("He came, he saw: then he left", None),
        ("see the session at https://shop.example/a", None),
        ("12:30 a session, 13:30 another", None),
    ],
)
def test_what_stands_behind_a_secret_is_kept(text: str, expected: str | None) -> None:
    if expected is not None or "token:" not in text:
        assert Cleaner(bodies=True).text(text) == (expected or text)
