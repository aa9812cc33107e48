"""Apps, servers and clients that take more than the grammar, or than the limits here: none of it passes unjudged."""

import json
from typing import Any, Final

import anyio
import pytest

from tests.guardrails.wired.exchanging import CHAT, ENTITY, Finder, Sending, asking, one
from tests.guardrails.wired.test_requests import ESCAPED, FORM, hello

pytestmark = pytest.mark.anyio

_OUTPUT: Final = {"output"}


def _chunk(text: str, finish_reason: str | None) -> bytes:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


async def test_an_empty_finish_reason_ends_no_text() -> None:
    app = Sending([_chunk("I am alice.smith@", ""), _chunk("example.com, hello", ""), _chunk("", "stop")])
    client = await one(app, Finder(), _OUTPUT).call(asking(CHAT, b"{}"))
    assert b"alice.smith" not in client.body
    assert b"[0]" in client.body


_DEEP: Final = f'{{"deep": {"[" * 250}{"]" * 250}, "a": "{ESCAPED}"}}'
_LONG: Final = f'{{"long": {"1" * 5000}, "a": "{ESCAPED}"}}'


@pytest.mark.parametrize("media_type", ["text/plain", FORM, None])
@pytest.mark.parametrize("body", [_DEEP, _LONG], ids=["deep", "long number"])
async def test_json_over_a_limit_is_not_taken_for_text_alone(body: str, media_type: str | None) -> None:
    # Starlette's `request.json()` asks for no type, and reads what is nested deeper.
    app = hello()
    client = await one(app, Finder(), {"input"}).call(asking("/x", body.encode(), media_type))
    assert client.status == 400
    assert app.calls == 0
