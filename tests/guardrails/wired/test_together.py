"""Overlap, shadow agents, tool policies and encoded bodies in one exchange: what one of them does counts for all."""

import gzip
import json
import zlib
from collections.abc import Iterable
from typing import Any, Final

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import AgentConfig
from asgi_agents.exchange import text_request
from asgi_agents.guardrails import Block, Decision, Guardrail, TextGuardrail, ToolPolicy, Window
from tests.guardrails.wired.exchanging import CHAT, SSE, Finder, Guarded, Sending, SlowFinder, asking, one
from tests.support.asgi import Client

pytestmark = pytest.mark.anyio

_GZIP: Final = (b"content-encoding", b"gzip")
_POLICY: Final = ToolPolicy(deny=["delete_*"])
_ASKED: Final = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()


def _call(**arguments: Any) -> bytes:
    params = {"name": "delete_user", "arguments": arguments}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


async def test_a_denied_call_is_not_hidden_by_what_makes_it_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_request, "MAX_REQUEST_BYTES", 2000)
    data = gzip.compress(_call(text=str(list(range(900)))))
    assert len(data) < 2000
    app = Sending([b"{}"], "application/json")
    client = await Guarded(app, [], [_POLICY]).call(asking("/mcp", data, headers=[_GZIP]))
    assert client.status == 413
    assert app.calls == 0


@pytest.mark.parametrize("media_type", ["application/octet-stream", "image/png", None, "text/plain"])
async def test_a_denied_call_is_not_hidden_by_what_is_not_quite_utf_8(media_type: str | None) -> None:
    # Python's `json.loads` reads lone surrogates from bytes.
    data = _call(text="@@").replace(b"@@", b"\xed\xa0\x80")
    assert json.loads(data)["params"]["name"] == "delete_user"
    app = Sending([b"{}"], "application/json")
    client = await Guarded(app, [], [_POLICY]).call(asking("/mcp", data, media_type))
    assert client.status == 400
    assert app.calls == 0


async def test_a_denied_call_is_not_hidden_in_a_batch_within_a_batch() -> None:
    app = Sending([b"{}"], "application/json")
    await Guarded(app, [], [_POLICY]).call(asking("/mcp", b"[[" + _call() + b"]]"))
    assert app.calls == 0


_LIST: Final = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "delete_user"}, {"name": "ok"}]}})


@pytest.mark.parametrize("accept", [None, b"*/*", b"text/*", SSE.encode()])
@pytest.mark.parametrize("encoded", [True, False])
async def test_a_stream_that_is_taken_up_again_lists_no_denied_tools(accept: bytes | None, encoded: bool) -> None:
    data = f"data: {_LIST}\n\n".encode()
    app = Sending([gzip.compress(data) if encoded else data], SSE, headers=[_GZIP] if encoded else [])
    client = Client("GET", "/mcp", headers=[] if accept is None else [(b"accept", accept)])
    await Guarded(app, [], [_POLICY]).call(client)
    assert b"delete_user" not in client.body
    assert b"delete_user" not in (gzip.decompress(client.body) if client.body.startswith(b"\x1f") else b"")


@pytest.mark.parametrize(("status", "media_type"), [(200, b"image/png"), (204, b"text/plain"), (304, b"text/plain")])
async def test_headers_that_can_be_read_once_reach_the_client(status: int, media_type: bytes) -> None:
    def headers() -> Iterable[tuple[bytes, bytes]]:
        yield b"content-type", media_type
        yield b"set-cookie", b"a=b"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers()})
        await send({"type": "http.response.body", "body": b""})

    client = await one(app, Finder(), {"output"}).call(asking("/x"))
    assert (b"set-cookie", b"a=b") in client.headers


async def test_a_shadow_agent_changes_no_encoded_request() -> None:
    data = gzip.compress(_ASKED)
    app = Sending([b"{}"], "application/json")
    await one(app, SlowFinder(), {"input"}, enforce=False).call(asking(CHAT, data, headers=[_GZIP]))
    assert app.body == data
    assert app.header(b"content-encoding") == b"gzip"
    assert app.header(b"content-length") in (None, b"%d" % len(data))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("media_type", ["text/html", "application/x-ndjson", SSE, "text/plain"])
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_an_encoded_answer_that_is_cut_short_has_one_head_and_an_end(
    media_type: str, overlap: bool, spec_version: str
) -> None:
    packing = zlib.compressobj(wbits=31)
    cut = packing.compress(b"hello world ") + packing.flush(zlib.Z_SYNC_FLUSH)
    app = Sending([cut], media_type, headers=[_GZIP], length=True)
    agents = [AgentConfig("i", SlowFinder(lambda window: [])), AgentConfig("o", SlowFinder())]
    guardrails = [Guardrail("i", on={"input"}, overlap=overlap), Guardrail("o", on={"output"})]
    client = asking(CHAT, _ASKED, spec_version=spec_version)
    with anyio.fail_after(60):
        await Guarded(app, agents, guardrails).call(client)
    assert client.status == 500
    assert client.complete


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("grace", [0, 0.2])
async def test_what_a_stopped_app_s_tasks_raise_together_is_no_error(grace: float, overlap: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})

        async def send_body() -> None:
            await send({"type": "http.response.body", "body": b'"a"', "more_body": False})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_body)
            tasks.start_soon(anyio.sleep, 9)

    agent = SlowFinder(lambda window: [Block("no")])
    options = {"overlap": True} if overlap else {}
    client = asking(CHAT, _ASKED)
    await one(app, agent, {"input"} if overlap else {"output"}, stop_grace=grace, **options).call(client)
    assert client.status == 400


@pytest.mark.parametrize("overlap", [True, False])
async def test_a_client_that_leaves_as_it_is_answered_is_an_error_of_its_own(overlap: bool) -> None:
    client = asking(CHAT, _ASKED, spec_version="2.4")

    class Late(TextGuardrail):
        async def check(self, window: Window) -> list[Decision]:
            await anyio.sleep(0.05)
            client.leave()
            return [Block("no")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await anyio.sleep(1)

    # Servers know this one, and no group of it.
    with pytest.raises(OSError, match="gone"):
        await one(app, Late(), {"input"}, overlap=overlap).call(client)
