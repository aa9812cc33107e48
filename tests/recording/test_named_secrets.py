"""Whatever a secret is named, and however a client writes it down, it is not in a recording: names times spellings."""

import gzip
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents import (
    AgentResponse,
    AuditMetadata,
    Detection,
    Encoding,
    GuardrailResponse,
    HeaderOp,
    redact_secrets,
)
from asgi_agents.observability import pieces, redaction
from asgi_agents.observability.redaction import redact_subprotocols
from asgi_agents.observability.secret_names import is_secret_member, is_secret_name
from asgi_agents.protocol import encode_answer, encode_event
from asgi_agents.recording import cleaning, forms, texts
from asgi_agents.recording.cleaning import Cleaner
from asgi_agents.recording.forms import fields_without_secrets
from asgi_agents.recording.texts import without_named_secrets
from asgi_agents.testing import (
    guardrail_inspect_event,
    request_body_chunk_event,
    request_headers_event,
    response_headers_event,
    websocket_frame_event,
)
from tests.support.examples import the_first_is_short
from tests.test_redaction import seconds

SECRET = "zq9S3cretZq9"

SECRETS = [
    *(
        "password",
        "passcode",
        "user_pass",
        "pass",
        "pin",
        "otp",
        "session",
        "sid",
        "PHPSESSID",
        "sessid",
        "connect.sid",
    ),
    *("jwt", "auth", "api_key", "encryptionKey", "signing_key", "SAMLResponse", "code_verifier", "X-Amz-Signature"),
    *("writeKey", "client_key", "hmac", "csrf-token", "tokens", "MASTER_KEY"),
]
OTHERS = [
    *("author", "coauthors", "prompt", "key", "publicKey", "sort_key", "primary-key", "idempotency-key", "monkey"),
    *("compass", "spin", "bypass_cache", "side", "design", "signal", "passenger", "shipping", "turkey", "n"),
]
# N: the name, S: the value.
SPELLINGS = {
    "json": '{"a":1,"N":"S"}',
    "json that is spread out": '{\n  "a": 1,\n  "N" : "S"\n}\n',
    "json with NaN": '{"N":"S","x":NaN}',
    "json with a name twice": '{"N":"S","a":1,"a":2}',
    "json that is cut": '{"a":1,"N":"S","user":"an',
    "json that is cut in the value": '{"a":1,"N":"S',
    "the rest of json that is cut": 'na","N":"S","b":2}',
    "json in a string": json.dumps({"a": json.dumps({"N": "S"})}),
    "json in a string in a string": json.dumps({"a": json.dumps({"b": json.dumps({"N": "S"})})}),
    "json in a string that is cut": json.dumps({"a": json.dumps({"N": "S"}), "b": 1})[:-1],
    "json with a list": '{"N":["S","S"],"x":NaN}',
    "json with an object": '{"N":{"a":["}","S"],"b":"S"},"x":NaN}',
    "json with what is named beside it": '{"name":"N","value":"S"}',
    "json with what has a key": '[{"Key":"N","Value":"S"}]',
    "what is named beside it, cut": '[{"name": "N", "value": "S"},',
    "lines of json": '{"N":"S"}\n{"N":"S"}\n',
    "a message of socket.io": '42["auth",{"N":"S"}]',
    "an event": 'data: {"N":"S"}\n\n',
    "an event with CR": 'data: {"N":"S"}\r\rdata: x\r\r',
    "an event with two lines": 'data: {"a":1,"N":\ndata: "S"}\n\n',
    "a form": "a=1&N=S&b=2",
    "a form whose first it is": "N=S&b=2",
    "a form with a line": "N=S\n",
    "a form with a quotation mark": "N=S&name=O'Brien",
    "a form with blanks": "N=S&note=hello world",
    "a form with a blank in the name": "N =S&a=1",
    "a form with JSON": 'N=S&f={"a":1}',
    "a form with JSON in it": "payload=%7B%22N%22%3A%22S%22%7D&b=2",
    "a form without a name": "=x&N=S",
    "a piece of a form": "&N=S",
    "a form that is not one": "a&N=S",
    "a line of a header": "CONNECT\nlogin:a\nN:S\n\n\0",
    "yaml": "a: 1\nN: S\n",
    "an environment": "A=1\nN=S,S S\n",
    "html": '<input name="N" value="S">',
    "python": "{'a': 1, 'N': 'S'}",
    "parts": '@@\r\nContent-Disposition: form-data; name="N"\r\n\r\nS\r\n@@--\r\n',
    "parts without quotation marks": "@@\nContent-Disposition: form-data; name=N\n\nS\n@@--\n",
    "parts with more headers": '@@\r\nContent-Type: x\ncontent-disposition:form-data;name="N"\r\nA: b\r\n\r\nS\r\n@@--',
    "parts with a file": '@@\r\nContent-Disposition: form-data; name="N"; filename="a"\r\n\r\n\r\n--S\r\nS\r\n@@--\r\n',
    "parts that are cut": '@@\r\nContent-Disposition: form-data; name="N"\r\n\r\nS S',
    "parts with a header of two lines": '@@\r\nContent-Disposition: form-data;\r\n name="N"\r\n\r\nS\r\n@@--\r\n',
    "parts with a parameter before": '@@\nContent-Disposition: form-data; x="; name=y"; name="N"\n\nS\n@@--\n',
    "a form in which all begins with a blank": "the user=joe&N=x;S&b=2",
    "a form whose first name has a bracket": "a<b=1&N=x;S&b=2",
    "a form whose first name has a brace": "{a=1&N=x;S&b=2",
    "a form with JSON behind a blank in it": "payload=+%7B%22N%22%3A%22S%22%7D&b=2",
    "a form with JSON that is encoded twice": "payload=%257B%2522N%2522%253A%2522S%2522%257D&b=2",
    "a form in a form": "payload=a%3D1%26N%3DS%3BS&b=2",
    "pairs": '[["a","b"],["N","S"]]',
    "pairs that are cut": '[["a","b"],["N","S"',
    "pairs of python": "[('a', 'b'), ('N', 'S')]",
    "json whose value is first": '[{"value":"S","name":"N"}]',
    "json whose value is first, cut": '[{"value":{"a":["S"]},"name":"N"',
    "json with two that name": '[{"name":"user-7","key":"N","value":"S","Value":"S"}]',
    "json with two that name, cut": '[{"key":"N","name":"user-7","value":"S","Value":"S"',
    "xml": "<a><user>joe</user><N>S</N></a>",
    "xml of two namespaces": '<?xml version="1.0"?><x:a><x:N type="t">S</x:N></x:a>',
    "xml in xml": "<a><N><b>x</b>S</N></a>",
    "xml with its name in it": "<a><N><N>x</N>S</N></a>",
    "xml with a comment": "<a><N><!-- </N> -->S</N></a>",
    "xml with an instruction": "<a><N><?x y?>S</N></a>",
    "xml with CDATA": "<a><N><![CDATA[</N>]]>S</N></a>",
    "xml with a bracket in an attribute": '<a><N a="<">S</N></a>',
    "xml that is cut": "<a><N><b>S",
    "xml with a key": '<a><entry key="N">S</entry></a>',
    "xml with a key and elements": '<a><entry key="N"><b>x</b>S</entry></a>',
    "xml-rpc": "<member><name>N</name><value><string>S</string></value></member>",
    "a plist": "<dict><key>N</key><string>S</string></dict>",
    "html whose value is first": '<input value="S" name="N">',
    "yaml in lines": "a: 1\nN: |\n  x\n\n  S\nb: 2\n",
    "yaml with a list": "N:\n- x\n- S\nb: 2\n",
    "yaml with a list that is indented": "a:\n  N:\n    - S\nb: 2\n",
    "yaml with quotation marks": '"N": >-\n  S\nb: 2\n',
    "yaml in a list": "- N: S\n  b: 2\n",
    "yaml with what is named beside it": "- name: N\n  value: S\n",
    "a header of two lines": "N:\r\n S\r\n\r\n",
    "the rest of parts": 'Content-Disposition: form-data; name="N"\r\n\r\nS\r\n--',
}


def written(data: str | bytes, redact: Any = redact_secrets) -> Iterator[str]:
    """All that is written of a text, wherever it stands."""
    cleaner = Cleaner(bodies=True, redact=redact)
    for event in (request_body_chunk_event(data), websocket_frame_event(data)):
        cleaned = cleaner.event(event)
        yield cleaned.value.data.decode(errors="replace")
        # What is written stays as it is.
        assert cleaner.event(cleaned.value).value == cleaned.value
    if isinstance(data, bytes):
        return
    metadata = {"said": data}
    yield encode_event(cleaner.event(guardrail_inspect_event(data, metadata=metadata)).value, Encoding.JSON).decode()
    detection = Detection(category="x", description=data, replacement=data)
    audit = AuditMetadata(custom={"body": data, "list": [data]}, tags=(data,))
    for answer in (
        GuardrailResponse(detected=True, redacted_content=data, detections=(detection,)),
        AgentResponse.block(403, data, headers={"x-a": data}),
        AgentResponse(audit=audit, routing_metadata={"a": data}, request_headers=[HeaderOp.set("x-a", data)]),
    ):
        yield encode_answer(cleaner.answer(answer).value, Encoding.JSON).decode()


def spelt(spelling: str, name: str, value: str = SECRET) -> str:
    text = SPELLINGS[spelling].replace("@@", "--boundary").replace("N", "\1").replace("S", value)
    return text.replace("\1aN", "NaN").replace("\1", name)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_has_the_name_of_a_secret_is_not_written_however_it_is_spelt(spelling: str) -> None:
    for name in SECRETS:
        text = spelt(spelling, name)
        assert SECRET in text
        for redact in (redact_secrets, lambda given: given):
            assert not [found for found in written(text, redact) if SECRET in found], name


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_has_another_name_is_written_as_it_is(spelling: str) -> None:
    for name in OTHERS:
        text = spelt(spelling, name, "lamp")
        cleaned = Cleaner(bodies=True).event(request_body_chunk_event(text))
        assert (cleaned.value.data.decode(), cleaned.redacted) == (text, False), name


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("cut", [0, 1])
def test_json_may_be_in_any_of_its_encodings(encoding: str, cut: int) -> None:
    data = f'{{"a":"é","password":"{SECRET}"}}'.encode(encoding)
    cleaned = Cleaner(bodies=True).event(request_body_chunk_event(data[: len(data) - cut]))
    assert cleaned.redacted
    found = cleaned.value.data[: len(cleaned.value.data) - cut]
    assert SECRET not in found.decode(encoding, "ignore")
    assert found.decode(encoding, "ignore").startswith('{"a":')
    other = f'{{"a":"é","lamp":"{SECRET}"}}'.encode(encoding)
    assert Cleaner(bodies=True).event(request_body_chunk_event(other)).value.data == other


def test_what_looks_like_another_encoding_is_looked_at_as_text_too() -> None:
    for data in (b"\xff\xfepassword=S&a=1", b"a\0\0\0&password=S", b"\0\0&password=S"):
        found = Cleaner(bodies=True).event(request_body_chunk_event(data.replace(b"S", SECRET.encode())))
        assert found.value.data == data.replace(b"S", b"[redacted]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/cb?code=S&state=1", "/cb?code=[redacted]&state=1"),
        ("https://shop.example/cb?state=1&code=S", "https://shop.example/cb?state=1&code=[redacted]"),
        ("code=S&grant_type=authorization_code", "code=[redacted]&grant_type=authorization_code"),
        ("grant_type=authorization_code&code=S", "grant_type=authorization_code&code=[redacted]"),
        ('{"grant_type":"authorization_code","code":"S"}', '{"grant_type":"authorization_code","code":"[redacted]"}'),
        ('{"grant_type":"authorization_code","code":"S",', '{"grant_type":"authorization_code","code":"[redacted]",'),
        ('{"code":"S","redirect_uri":"x"}', '{"code":"[redacted]","redirect_uri":"x"}'),
        ('{"code":"S","grant_type":"x"}', None),
        ("/cb?code=S", None),
        ("code=S&a=state", None),
        ("/a?zipcode=S&state=1", None),
    ],
)
def test_a_code_is_a_credential_where_it_is_one_of_authorization(text: str, expected: str | None) -> None:
    given = text.replace("S", SECRET)
    assert Cleaner(bodies=False).answer(AgentResponse.redirect(given)).value.decision.url == (expected or given)
    assert Cleaner(bodies=True).event(request_body_chunk_event(given)).value.data.decode() == (expected or given)


# What is not looked at


@pytest.mark.parametrize("bodies", [True, False])
def test_what_is_compressed_is_left_out(bodies: bool) -> None:
    data = gzip.compress(b"password=hunter2")
    cleaned = Cleaner(bodies=bodies).event(request_body_chunk_event(data))
    assert (cleaned.value.data, cleaned.left_out, cleaned.redacted) == (b"", {"data": len(data)}, False)
    assert Cleaner(bodies=True, redact=None).event(request_body_chunk_event(data)).value.data == data


def test_what_is_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "MAX_TEXT", 10)
    cleaner, whole = Cleaner(bodies=True), Cleaner(bodies=True, redact=None)
    answer = GuardrailResponse(detected=True, redacted_content="x" * 11)
    for size, left_out in ((10, {}), (11, {"data": 11})):
        assert cleaner.event(request_body_chunk_event("x" * size)).left_out == left_out
        assert whole.event(request_body_chunk_event("x" * size)).left_out == {}
    assert cleaner.event(guardrail_inspect_event("x" * 11)).left_out == {"content": 11}
    assert cleaner.answer(answer).left_out == {"redacted_content": 11}
    assert cleaner.answer(AgentResponse.block(403, "x" * 11)).value.decision.body == "[redacted]"


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"b": {"password": SECRET}}},
        [{"name": "session", "value": [SECRET]}],
        {"password": SECRET},
        {"n": json.dumps({"password": SECRET})},
    ],
)
def test_values_that_are_nested_deeply_are_replaced(value: Any) -> None:
    for depth in (1, 50, 300):
        nested = value
        for _ in range(depth):
            nested = [{"a": nested}]
        cleaner = Cleaner(bodies=True)
        answer = cleaner.answer(AgentResponse(audit=AuditMetadata(custom={"x": nested})))
        assert answer.redacted
        assert SECRET not in str(answer.value.audit.custom)
        assert SECRET not in str(cleaner.plain(nested))


# Names


@pytest.mark.parametrize(
    "name",
    [
        *("ocp-apim-subscription-key", "x-functions-key", "x-master-key", "x-encryption-key", "x-passcode", "X-Key"),
        *("x-amz-server-side-encryption-customer-key", "authentication-info", "x-api-key", "cookie", "X-Auth"),
    ],
)
def test_headers_are_known_by_the_shapes_of_their_names(name: str) -> None:
    cleaner = Cleaner(bodies=False)
    found = cleaner.event(request_headers_event(headers={name: SECRET})).value.headers
    assert dict(found) == {name.lower(): ("[redacted]",)}
    assert cleaner.answer(AgentResponse(routing_metadata={name: SECRET})).value.routing_metadata[name] == "[redacted]"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("max_tokens", 100),
            ("max_tokens", "100"),
            ("promptTokenCount", 5),
            ("x-ratelimit-remaining-tokens", "149984"),
        ),
        *(
            ("x-ratelimit-reset-tokens", "1m30.5s"),
            ("tokens", 3),
            ("has_session", True),
            ("token", None),
            ("token", ""),
        ),
        *(("prompt_tokens_details", {"cached_tokens": 1}), ("sec-websocket-key", "dGhl"), ("author", "anna")),
        *(("access-control-allow-credentials", "true"), ("www-authenticate", "Basic"), ("author[name]", "anna")),
    ],
)
def test_what_can_be_no_credential_is_none(name: str, value: object) -> None:
    assert not is_secret_member(name, value)
    assert Cleaner(bodies=True).plain({name: value}) == {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", "123456"),
        ("otp", 123456),
        ("tokens", ["a"]),
        ("max_tokens", "abc"),
        ("token_details", "a"),
        ("pin", 1),
    ],
)
def test_numbers_can_be_credentials(name: str, value: object) -> None:
    assert is_secret_member(name, value)


@given(st.sampled_from(SECRETS), st.integers(1, 4), st.data())
def test_a_name_may_be_percent_encoded(name: str, times: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(name) - 1))
    name = f"{name[:index]}%{ord(name[index]):02x}{name[index + 1 :]}"
    for _ in range(times - 1):
        name = quote(name)
    url = f"https://shop.example/?a=1&{name}={SECRET}&b=2"
    assert is_secret_name(name)
    assert redact_secrets(url) == f"https://shop.example/?a=1&{name}=[redacted]&b=2"
    headers = {"referer": url, "x-from": quote(url)}
    assert SECRET not in str(dict(Cleaner(bodies=False).event(request_headers_event(headers=headers)).value.headers))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("graphql-transport-ws", None),
        ("v12.stomp, v11.stomp, mqtt,wamp.2.json", None),
        ("bearer", None),
        ("bearer, SECRET", "bearer, [redacted]"),
        ("chat, access_token, SECRET", "chat, access_token, [redacted]"),
        ("base64url.bearer.authorization.k8s.io.SECRET", "base64url.bearer.authorization.k8s.io.[redacted]"),
        ("v4.channel.k8s.io, bearer.SECRET.SECRET", "v4.channel.k8s.io, bearer.[redacted]"),
        ("chat," + "SECRET" * 7, "chat,[redacted]"),
    ],
)
def test_credentials_among_the_protocols_of_a_websocket_are_not_written(value: str, expected: str | None) -> None:
    assert redact_subprotocols(value) == (value if expected is None else expected)
    event = request_headers_event(headers={"sec-websocket-protocol": value})
    assert "SECRET" not in str(dict(Cleaner(bodies=False).event(event).value.headers))


def test_a_function_of_ones_own_is_given_challenges_without_their_tokens() -> None:
    given: list[str] = []
    cleaner = Cleaner(bodies=True, redact=lambda text: given.append(text) or text.replace("lamp", "***"))  # type: ignore[func-returns-value]
    event = response_headers_event(headers={"www-authenticate": f'Negotiate {SECRET}, Basic realm="lamp"'})
    found = cleaner.event(event).value.headers
    assert dict(found) == {"www-authenticate": ('Negotiate [redacted], Basic realm="***"',)}
    assert given == ['Negotiate [redacted], Basic realm="lamp"']


# Time


@pytest.mark.parametrize(
    "unit",
    the_first_is_short(
        [
            *(
                "a",
                '"',
                "'",
                "\\",
                '"a"',
                '"a":',
                '"token":"',
                '"token":{',
                '"token":\\"',
                "a=",
                "&a",
                "a\n",
                "a:",
                " ",
            ),
            *('"token":"a",', "token=", "%26a", "--a\n", 'content-disposition: form-data; name="token"\n', '"name":"'),
            *(
                'content-disposition: form-data; name="token"\n\n',
                "--a\n\ncontent-disposition: form-data; name=otp\n\n",
            ),
            *(
                '{"name":"token","value":',
                "\r\ndata:",
                "<a",
                "<token ",
                "<token>",
                "<token><![CDATA[",
                "?a",
                "?a=",
                "?token=",
                "&a=",
                ";token=",
                "/",
                "\na=",
                "\ntoken=",
                "%7b",
                '"a\\',
                "[",
                "{",
            ),
        ]
    ),
)
def test_names_are_looked_for_in_time_in_proportion_to_the_text(unit: str) -> None:
    # A text of more than 64 KiB is no URL, and is looked at in another way.
    for size, times in ((250, 8), (2_000, 8), (8_000, 8), (70_000, 4)):
        text = unit * (times * size)
        short, long = text[:size], text[: times * size]
        for function in (without_named_secrets, fields_without_secrets):
            ratio = seconds(partial(function, f":{long}", str)) / seconds(partial(function, f":{short}", str))
            assert ratio < 3.5 * times, f"{ratio:.0f} times as long for {times} times {size} characters"


def test_a_long_text_is_looked_at_in_pieces_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    filling = "x" * 16_380
    spellings = ("&otp=S&", ' "token": "S S", ', "\nBearer SSSSSS\n", " https://a:S@b ", " password : S ", '{"otp":"S"')
    long = [
        filling[at:] + spelling.replace("S", SECRET) + "\n" + filling
        for at in range(0, 40, 3)
        for spelling in (*spellings, f"&otp=S{filling}{filling}&", f'"token":"S{filling}{filling}",')
    ]
    found = [Cleaner(bodies=True).text(text) for text in long]
    assert not [text for text in found if SECRET in text]
    monkeypatch.setattr(pieces, "_PIECE", 10**9)
    assert found == [Cleaner(bodies=True).text(text) for text in long]


class Watched:
    """A pattern that tells how much of a text it has been given at once."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self.sizes: list[int] = []

    def finditer(self, text: str, start: int = 0, end: int | None = None) -> Iterator[re.Match[str]]:
        self.sizes.append((len(text) if end is None else end) - start)
        return self._pattern.finditer(text, start, self.sizes[-1] + start)

    def match(self, *args: Any) -> re.Match[str] | None:
        return self._pattern.match(*args)


def test_no_look_at_a_text_keeps_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []
    monkeypatch.setattr(time, "sleep", turns.append)
    watched = [Watched(redaction._SECRETS), Watched(redaction._PARAMETER), Watched(texts._NAME), Watched(forms._PART)]
    monkeypatch.setattr(redaction, "_SECRETS", watched[0])
    monkeypatch.setattr(redaction, "_PARAMETER", watched[1])
    monkeypatch.setattr(texts, "_NAME", watched[2])
    monkeypatch.setattr(forms, "_PART", watched[3])
    Cleaner(bodies=True).event(request_body_chunk_event("&[" * 500_000 + ":%=form-data"))
    assert all(len(one.sizes) >= 61 and max(one.sizes) <= 32 * 1024 for one in watched)
    assert len(turns) >= 4 * 60
