"""Cases of agents that judge text."""

import json
from collections.abc import Sequence
from typing import Any, Final

from .case import PLAIN, Case, Expected, Kind, Reply

_JSON: Final = (("content-type", "application/json"),)


def _question(text: str, *, stream: bool = False) -> bytes:
    return json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()


def _answer(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def _events(*words: str, ending: bytes = b"data: [DONE]\n\n") -> tuple[bytes, ...]:
    deltas = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    deltas.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return (*(b"data: %s\n\n" % json.dumps(delta).encode() for delta in deltas), ending)


def _text(stream: bytes) -> bytes:
    """The text of a stream, and how it ended. Into which events it is cut is a matter of timing."""
    lines = [line.removeprefix("data: ") for line in stream.decode().splitlines() if line.startswith("data: ")]
    choices = [choice for line in lines if line.startswith("{") for choice in json.loads(line)["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    return f"{text} | {', '.join(reasons)} | {lines[-1]}".encode()


def _value(body: bytes) -> bytes:
    """JSON, however it is written."""
    return json.dumps(json.loads(body), sort_keys=True).encode()


def _case(name: str, expected: Expected, *, body: bytes, reply: Reply, **more: Any) -> Case:
    settings = {"method": "POST", "headers": _JSON, "body": body, "reply": reply, "mode": "stream", **more}
    return Case(name=name, kind=Kind.TEXTS, expected=expected, **settings)


CASES: Final[Sequence[Case]] = (
    _case(
        "redact a prompt",
        Expected(app_body=_question("I am [email]")),
        body=_question("I am me@example.org"),
        reply=Reply((_answer("hello"),), 200, _JSON),
        never=b"me@example.org",
    ),
    _case(
        "block a prompt",
        Expected(
            status=400,
            called=False,
            headers={"content-type": "application/json"},
            body=b"content_filter",
        ),
        body=_question("FORBIDDEN"),
        reply=Reply((_answer("hello"),), 200, _JSON),
        read=lambda body: str(json.loads(body)["error"]["code"]).encode(),
        never=b"FORBIDDEN",
    ),
    _case(
        "redact an answer",
        Expected(body=_value(_answer("write to [email] now"))),
        body=_question("whom?"),
        reply=Reply((_answer("write to me@example.org now"),), 200, _JSON),
        read=_value,
        never=b"me@example.org",
    ),
    _case(
        "redact a streamed answer",
        Expected(body=b"write to [email] now | stop | [DONE]"),
        body=_question("whom?", stream=True),
        reply=Reply(_events("write to me@", "exam", "ple.org now"), 200, (("content-type", "text/event-stream"),)),
        read=_text,
        never=b"ple.org",
    ),
    _case(
        "stop a streamed answer",
        Expected(body=b" | content_filter | [DONE]"),
        body=_question("whom?", stream=True),
        reply=Reply(_events("FORB", "IDDEN", " words"), 200, (("content-type", "text/event-stream"),)),
        read=_text,
        never=b"IDDEN",
    ),
    _case(
        "redact plain text",
        Expected(body=b"write to [email]"),
        body=_question("whom?"),
        reply=Reply((b"write to me@", b"example.org"), 200, (("content-type", PLAIN),)),
        never=b"example.org",
    ),
)
