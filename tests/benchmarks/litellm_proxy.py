"""LiteLLM's proxy with a custom guardrail, and a proxy of ours with one: the same provider, the same streams."""

import asyncio
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx

from .chat import ENTITY, text
from .fleet import ROOT, StartError
from .load import cpu_seconds
from .model import PACE, TOKENS
from .plan import Plan
from .report import Table

# Streams at once.
_CLIENTS: Final = 2
# It imports for half a minute.
_SECONDS_TO_START: Final = 180.0
_SECONDS_TO_STOP: Final = 10.0
_GUARDRAILS: Final = ("PerEvent", "Buffered")


@dataclass(frozen=True)
class _Row:
    """:param bare: the row that it is compared with.
    :param asks: what its requests have in them beside the messages.
    """

    title: str
    server: str
    bare: str | None
    asks: Mapping[str, Any]


_ROWS: Final = {
    "relay": _Row("a proxy of Starlette and httpx", "relay", None, {}),
    "guarded-relay": _Row("the same, guarded", "guarded_relay", "relay", {}),
    "litellm": _Row("LiteLLM's proxy", "litellm", None, {}),
    "per-event": _Row(
        "the same, with a guardrail that judges each event", "litellm", "litellm", {"guardrails": ["PerEvent"]}
    ),
    "buffered": _Row(
        "the same, with one that waits for the whole answer", "litellm", "litellm", {"guardrails": ["Buffered"]}
    ),
}


@dataclass(frozen=True)
class Server:
    """A server that was started. ``key`` is what its clients have to send."""

    port: int
    pid: int
    key: str


def available() -> bool:
    """Whether LiteLLM is installed, and its proxy with it."""
    return all(find_spec(module) is not None for module in ("litellm", "apscheduler", "fastapi_sso"))


def measure(plan: Plan, progress: Callable[[str], None]) -> Table:
    """:raises StartError: when a server doesn't come up."""
    with _serve(progress) as servers:
        costs, firsts, bodies, ends = asyncio.run(_measure(servers, plan.proxy_rounds, progress))
    planted = {match.group() for match in ENTITY.finditer(text(TOKENS))}
    rows = []
    for name, row in _ROWS.items():
        said = _said(bodies[name])
        readable = sum(said.count(one) for one in planted)
        added = "" if row.bare is None else f"{costs[name] - costs[row.bare]:.0f}"
        whole, cut = map(ending, ends[name])
        rows.append((row.title, f"{costs[name]:.0f}", added, f"{firsts[name] * 1000:.0f}", str(readable), whole, cut))
    columns = (
        "µs of CPU for a token",
        "added by the guardrail",
        "first token after, ms",
        "addresses and numbers that the client can read",
        "a word that is not allowed, in one event",
        "the same, cut over two",
    )
    title = (
        f"Beside LiteLLM {version('litellm')}, through proxies: streams of {TOKENS:,} tokens of the same provider, one "
        f"each {PACE * 1000:g} ms (the least of {plan.proxy_rounds} rounds)"
    )
    return Table(title, columns, tuple(rows))


async def _measure(
    servers: Mapping[str, Server], rounds: int, progress: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, float], dict[str, bytes], dict[str, list[bytes]]]:
    """Microseconds of CPU for a token, seconds until the first one, what the client has received, and what of streams
    that have something in them which is not allowed.
    """
    costs: dict[str, list[float]] = {name: [] for name in _ROWS}
    firsts: dict[str, list[float]] = {name: [] for name in _ROWS}
    bodies: dict[str, bytes] = {}
    async with httpx.AsyncClient(timeout=120) as client:
        for row in _ROWS.values():
            await _ask(client, servers[row.server], row, "warm up")
        for number in range(rounds):
            progress(f"guardrails: proxies, round {number + 1} of {rounds}")
            for name, row in list(_ROWS.items())[:: -1 if number % 2 else 1]:
                server = servers[row.server]
                before = cpu_seconds(server.pid)
                found = await asyncio.gather(*(_ask(client, server, row, "hello") for _ in range(_CLIENTS)))
                after = cpu_seconds(server.pid)
                if before is None or after is None:
                    raise StartError(f"{row.title}: the system doesn't tell its CPU time")
                costs[name].append((after - before) / _CLIENTS / TOKENS * 1e6)
                firsts[name] += [first for first, _ in found]
                bodies[name] = found[0][1]
        ends = {
            name: [(await _ask(client, servers[row.server], row, what))[1] for what in ("whole", "cut")]
            for name, row in _ROWS.items()
        }
    # Whatever else runs on the machine makes it more.
    return (
        {name: min(one) for name, one in costs.items()},
        {name: median(one) for name, one in firsts.items()},
        bodies,
        ends,
    )


async def _ask(client: httpx.AsyncClient, server: Server, row: _Row, what: str) -> tuple[float, bytes]:
    """How many seconds the first text takes, and all that comes."""
    body = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": what}], **row.asks}
    headers = {"authorization": f"Bearer {server.key}"}
    received = b""
    first = 0.0
    started = time.perf_counter()
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    async with client.stream("POST", url, json=body, headers=headers) as answer:
        try:
            async for part in answer.aiter_raw():
                received += part
                if not first and b'"content"' in received:
                    first = time.perf_counter() - started
        except httpx.HTTPError as exc:
            received += f"\n\n{type(exc).__name__}".encode()
    return first, received


def _events(body: bytes) -> Iterator[Any]:
    for line in body.decode().splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))
        elif line.startswith("{"):
            yield json.loads(line)


def _said(body: bytes) -> str:
    choices = (choice for event in _events(body) for choice in event.get("choices", ()))
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def ending(body: bytes) -> str:
    """How a client sees a stream end."""
    *_, last = _events(body)
    if "error" in last:
        error = last["error"]
        return f"`error`: {error.get('message')}, {error.get('code')}"
    reasons = [choice.get("finish_reason") for choice in last.get("choices", ())]
    return f"`{reasons[0]}`" if reasons and reasons[0] else "cut off"


@contextmanager
def _serve(progress: Callable[[str], None]) -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="asgi-agents-")))
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(stop, processes)
        url = f"http://127.0.0.1:{_uvicorn('provider', {}, processes).port}"
        servers = {name: _uvicorn(name, {"MODEL_URL": url}, processes) for name in ("relay", "guarded_relay")}
        progress("guardrails: LiteLLM's proxy starts")
        servers["litellm"] = _litellm(directory, url, processes)
        for process, server in zip(processes[1:], servers.values(), strict=True):
            wait(process, server.port)
        yield servers


def _uvicorn(name: str, environment: Mapping[str, str], processes: list[subprocess.Popen[bytes]]) -> Server:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options = ("--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log")
        command = (sys.executable, "-m", "uvicorn", f"tests.benchmarks.model:{name}", "--fd", str(listener.fileno()))
        process = subprocess.Popen(
            (*command, *options),
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(),),
            process_group=0,
        )
        processes.append(process)
        return Server(listener.getsockname()[1], process.pid, "none")


def _litellm(directory: Path, url: str, processes: list[subprocess.Popen[bytes]]) -> Server:
    shutil.copy(Path(__file__).parent / "litellm_guardrails.py", directory)
    configuration = {
        "model_list": [
            {
                "model_name": "gpt-4o-mini",
                "litellm_params": {"model": "openai/gpt-4o-mini", "api_base": f"{url}/v1", "api_key": "none"},
            }
        ],
        "guardrails": [
            {
                "guardrail_name": name,
                "litellm_params": {"guardrail": f"litellm_guardrails.{name}", "mode": "post_call", "default_on": False},
            }
            for name in _GUARDRAILS
        ],
    }
    return start_litellm(directory, configuration, processes)


def start_litellm(
    directory: Path, configuration: Mapping[str, Any], processes: list[subprocess.Popen[bytes]]
) -> Server:
    """Start LiteLLM's proxy, whose configuration is written to ``directory``, where it loads guardrails from."""
    # JSON is YAML.
    path = directory / "config.yaml"
    path.write_text(json.dumps({"litellm_settings": {"telemetry": False}, **configuration}))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    key = f"sk-{secrets.token_hex(16)}"
    run = "import sys; from litellm import run_server; sys.exit(run_server())"
    process = subprocess.Popen(
        [sys.executable, "-c", run, "--config", str(path), "--host", "127.0.0.1", "--port", str(port)],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LITELLM_MASTER_KEY": key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    processes.append(process)
    return Server(port, process.pid, key)


def wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until it answers. Raises StartError where it does not."""
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartError(f"{process.args!r:.200} ended with status {process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS_TO_START)
        try:
            connection.request("GET", "/")
            connection.getresponse()
            return
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
        finally:
            connection.close()
    raise StartError(f"{process.args!r:.200} did not answer within {_SECONDS_TO_START:g} s")


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what was started here."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_STOP
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
