"""A guarded app under every ASGI server that is installed: ``python -m tests.compat.servers`` prints a table.

Each line is something that was tried. A cell is ``ok``, or the number of the note that says what happened instead.
Servers listen on free ports of the loopback interface, and are ended by their process ids.
"""

import argparse
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import websockets.exceptions
from websockets.sync.client import ClientConnection, connect

from .cases import STOPPED
from .served import LIMIT, LOG_VARIABLE, MODE_VARIABLE, PIECES

APP: Final = "tests.compat.served:app"
# Seconds: for a server to come up, for an answer, and for a server to end.
START, PATIENCE, END = 30.0, 8.0, 15.0
# A stop has to be noticed much sooner than a stream of the app would end by itself.
SOON = 4.0


class Server(NamedTuple):
    """How to start a server on a port, what it needs, and whether it is spoken to in HTTP/2."""

    name: str
    distribution: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    http2: bool = False
    websockets: bool = True
    #: How the agent is shown request bodies.
    request_body_mode: str = "buffer"

    @property
    def title(self) -> str:
        """What it is called in the table."""
        mode = ", requests streamed" if self.request_body_mode == "stream" else ""
        return f"{self.name}{', HTTP/2' if self.http2 else ''}{mode}"

    @property
    def missing(self) -> str | None:
        """The first module that isn't here."""
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), None)


def _uvicorn(http: str, ws: str, *more: str, name: str = "") -> Server:
    module = {"h11": "h11", "httptools": "httptools", "zttp": "zttp", "websockets": "websockets"}
    needs = ("uvicorn", module[http], "websockets" if ws.startswith("websockets") else ws)
    command = ("-m", "uvicorn", APP, "--port", "{port}", "--http", http, "--ws", ws, "--log-level", "error", *more)
    return Server(name or f"uvicorn, {http}, {ws}", "uvicorn", needs, command, "--http2" in more, "--http2" not in more)


def _hypercorn(worker: str, *, http2: bool) -> Server:
    needs = ("hypercorn", "h2", *(["trio"] if worker == "trio" else []))
    command = ("-m", "hypercorn", APP, "-b", "127.0.0.1:{port}", "-k", worker, "--graceful-timeout", "3")
    return Server(f"hypercorn, {worker}", "hypercorn", needs, command, http2, not http2)


def _granian(*, http2: bool) -> Server:
    command = ("-m", "granian", APP, "--interface", "asgi", "--port", "{port}", "--http", "2" if http2 else "1")
    return Server("granian", "granian", ("granian",), command, http2, not http2)


def _gunicorn(worker: str, needs: str) -> Server:
    command = ("-m", "gunicorn", APP, "-b", "127.0.0.1:{port}", "-k", worker, "--graceful-timeout", "5")
    return Server(f"gunicorn, {worker}", "gunicorn", ("gunicorn", needs), (*command, "--log-level", "error"))


SERVERS: Final = (
    _uvicorn("h11", "websockets"),
    _uvicorn("httptools", "websockets-sansio"),
    _uvicorn("httptools", "wsproto"),
    _uvicorn("zttp", "websockets", "--http2", name="uvicorn, zttp"),
    # The way out where buffering a request without a body takes for ever.
    _uvicorn("zttp", "websockets", "--http2", name="uvicorn, zttp")._replace(request_body_mode="stream"),
    _hypercorn("asyncio", http2=False),
    _hypercorn("asyncio", http2=True),
    _hypercorn("trio", http2=False),
    _hypercorn("trio", http2=True),
    _granian(http2=False),
    _granian(http2=True),
    Server("daphne", "daphne", ("daphne",), ("-m", "daphne", "-p", "{port}", "-v", "0", APP)),
    _gunicorn("uvicorn_worker.UvicornWorker", "uvicorn_worker"),
    _gunicorn("asgi", "gunicorn.workers.gasgi") if importlib.util.find_spec("gunicorn") else None,
)


class Running:
    """A server that runs."""

    def __init__(self, server: Server, process: subprocess.Popen[bytes], port: int, log: Path, errors: Path) -> None:
        self.server = server
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.address = ("127.0.0.1", port)
        self._log = log
        self._errors = errors

    def client(self) -> httpx.Client:
        """Speaks HTTP/2 with prior knowledge where that is what is tried."""
        return httpx.Client(
            base_url=self.url, http1=not self.server.http2, http2=self.server.http2, timeout=PATIENCE, trust_env=False
        )

    @contextmanager
    def websocket(self, path: str = "/websocket") -> Iterator[ClientConnection]:
        url = f"{self.url.replace('http', 'ws')}{path}"
        with connect(url, open_timeout=PATIENCE, close_timeout=SOON, compression=None) as websocket:
            yield websocket

    def lines(self) -> list[str]:
        """What the app has logged."""
        return self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else []

    def has_ended(self, name: str) -> bool:
        """Whether as many handlers of this name have ended as have begun, soon."""
        return _soon(lambda: self.lines().count(f"{name} begun") == self.lines().count(f"{name} ended") > 0)

    def last_error(self) -> str:
        """The last line of the server's output."""
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it said nothing"


class NotStartedError(Exception):
    """A server has not come up."""


Trial = Callable[[Running], str | None]
"""Returns None where all is well, or what happens instead."""


def block(running: Running) -> str | None:
    with running.client() as client:
        response = client.get("/blocked")
        if (response.status_code, response.text) != (403, STOPPED):
            return f"{response.status_code} {response.text[:40]!r}"
        return _still_serves(client)


def too_large(running: Running) -> str | None:
    """413 for a declared and an undeclared length, and the connection can be used again, or is closed."""
    data = b"x" * 100
    with running.client() as client:
        for content in (data * (LIMIT // 50), iter([data] * (LIMIT // 50))):
            response = client.post("/echo", content=content)
            if response.status_code != 413:
                return f"{response.status_code} {response.text[:40]!r}"
        response = client.post("/echo", content=iter([b"ev", b"il"]))
        if response.status_code != 422:
            return f"{response.status_code} for a body that is blocked"
        return _still_serves(client)


def early_413(running: Running) -> str | None:
    """A large body whose declared length is too much: the answer comes before it was sent."""

    def slowly() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    with running.client() as client:
        try:
            response = client.post("/echo", content=slowly(), headers={"content-length": str(64 * 65536)})
            if response.status_code != 413:
                return f"{response.status_code} {response.text[:40]!r}"
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError) as exc:
            after = _still_serves_anew(running)
            return f"the client sees {type(exc).__name__} instead of the answer" if after is None else after
    return _still_serves_anew(running)


def streaming(running: Running) -> str | None:
    arrivals: list[float] = []
    with running.client() as client, client.stream("GET", "/stream") as response:
        text = ""
        for piece in response.iter_text():
            if piece:
                arrivals.append(time.monotonic())
                text += piece
    if text.count("good") != PIECES:
        return f"{text.count('good')} of {PIECES} events"
    if arrivals[-1] - arrivals[0] < 0.3:
        return "all events come at once"
    return None if running.has_ended("stream") else "its generator never ends"


def late_block_of_events(running: Running) -> str | None:
    with running.client() as client:
        response = client.get("/late-events")
        if response.text.count("good") != 2 or "event: error" not in response.text:
            return f"{response.text[-60:]!r}"
        if not running.has_ended("late-events"):
            return "its generator never ends"
        return _still_serves(client)


def late_block_of_pieces(running: Running) -> str | None:
    """Broken off, soon, and no client takes it for whole."""
    return _broken_off(running, "/late-pieces")


def late_block_of_length(running: Running) -> str | None:
    return _broken_off(running, "/late-length")


def _broken_off(running: Running, path: str) -> str | None:
    begun = time.monotonic()
    name = path.removeprefix("/")
    try:
        with running.client() as client:
            body = client.get(path).text
        return f"looks whole: {body[:20]!r}"
    except httpx.ReadTimeout:
        return "the client is left waiting"
    except httpx.TransportError:
        took = time.monotonic() - begun
    if took > SOON:
        return f"the client is told after {took:.0f} s"
    if not running.has_ended(name):
        return "its generator never ends"
    return _still_serves_anew(running)


def http_1_0(running: Running) -> str | None:
    """A client of HTTP/1.0 takes the end of the connection for the end of the body: documented."""
    with socket.create_connection(running.address, timeout=PATIENCE) as connection:
        connection.sendall(b"GET /late-pieces HTTP/1.0\r\nhost: x\r\n\r\n")
        data = b""
        try:
            while piece := connection.recv(65536):
                data += piece
        except ConnectionResetError:
            return None
        except TimeoutError:
            return "the client is left waiting"
    return "looks whole" if b"evil" not in data else "lets it through"


def client_gone(running: Running) -> str | None:
    with running.client() as client, client.stream("GET", "/endless") as response:
        for _ in response.iter_raw():
            break
    return None if running.has_ended("endless") else "its generator never ends"


def websocket_drop(running: Running) -> str | None:
    with running.websocket() as websocket:
        for text in ("one", "drop", "two"):
            websocket.send(text)
        received = [websocket.recv(PATIENCE), websocket.recv(PATIENCE)]
    return None if received == ["one", "two"] else f"{received}"


def websocket_close(running: Running) -> str | None:
    return _closed(running, "close", 4003, STOPPED)


def websocket_failure(running: Running) -> str | None:
    return _closed(running, "fail", 1011, "Agent error")


def _closed(running: Running, text: str, code: int, reason: str) -> str | None:
    with running.websocket() as websocket:
        websocket.send(text)
        try:
            websocket.recv(PATIENCE)
        except TimeoutError:
            return "never closed"
        except websockets.exceptions.ConnectionClosed as exc:
            if exc.rcvd is None:
                return "the connection is broken off"
            if (exc.rcvd.code, exc.rcvd.reason) != (code, reason):
                return f"code {exc.rcvd.code}, reason {exc.rcvd.reason!r}"
    return None if running.has_ended("websocket") else "its handler never ends"


def websocket_denial(running: Running) -> str | None:
    try:
        with running.websocket("/websocket/blocked"):
            return "accepted"
    except websockets.exceptions.InvalidStatus as exc:
        status, body = exc.response.status_code, (exc.response.body or b"").decode()
        if status != 403:
            return f"{status}"
        return None if body == STOPPED else "403 without the agent's text (no denial responses)"


def websocket_gone(running: Running) -> str | None:
    with running.websocket() as websocket:
        websocket.send("one")
        websocket.recv(PATIENCE)
        websocket.socket.shutdown(socket.SHUT_RDWR)
    return None if running.has_ended("websocket") else "its handler never ends"


def sigterm(running: Running) -> str | None:
    """What is under way is answered, the lifespan ends, and so does the server."""
    with running.client() as client, client.stream("GET", "/stream") as response:
        text = ""
        for piece in response.iter_text():
            if not text:
                running.process.terminate()
            text += piece
    if text.count("good") != PIECES:
        return f"the stream ends after {text.count('good')} of {PIECES} events, and looks whole"
    try:
        running.process.wait(END)
    except subprocess.TimeoutExpired:
        return "never ends"
    return None if "lifespan ended" in running.lines() else "the lifespan isn't ended"


def _still_serves(client: httpx.Client) -> str | None:
    try:
        response = client.get("/")
    except httpx.ReadTimeout:
        return "as it should, but the next GET has no answer"
    return None if response.text == "hello" else f"then {response.status_code}"


def _still_serves_anew(running: Running) -> str | None:
    try:
        with running.client() as client:
            return _still_serves(client)
    except httpx.HTTPError as exc:
        return f"serves nobody afterwards ({type(exc).__name__})"


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


TRIALS: Final[dict[str, Trial]] = {
    "block": block,
    "413, and a body that is blocked": too_large,
    "413 before the body was sent": early_413,
    "streaming": streaming,
    "late block, events": late_block_of_events,
    "late block, pieces": late_block_of_pieces,
    "late block, declared length": late_block_of_length,
    "late block, HTTP/1.0": http_1_0,
    "client gone": client_gone,
    "websocket: drop": websocket_drop,
    "websocket: close": websocket_close,
    "websocket: failure (1011)": websocket_failure,
    "websocket: denial": websocket_denial,
    "websocket: client gone": websocket_gone,
    "SIGTERM": sigterm,
}


@contextmanager
def running(server: Server, directory: Path) -> Iterator[Running]:
    """Start ``server``; raises :class:`NotStartedError` where it doesn't come up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    log, errors = directory / "log", directory / "errors"
    log.unlink(missing_ok=True)
    with errors.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *(part.format(port=port) for part in server.command)],
            env={**os.environ, LOG_VARIABLE: str(log), MODE_VARIABLE: server.request_body_mode},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = Running(server, process, port, log, errors)
    try:
        _wait_until_up(started)
        yield started
    finally:
        _end(process)


def _wait_until_up(started: Running) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            socket.create_connection(started.address, timeout=1).close()
            return
        except OSError:
            if started.process.poll() is not None or time.monotonic() > deadline:
                raise NotStartedError(f"does not start: {started.last_error()}") from None
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END)
    # Workers of its own, in the session that was made for it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def applies(server: Server, name: str) -> bool:
    """Whether there is such a thing on this server."""
    if name.startswith("websocket"):
        return server.websockets
    return not (server.http2 and name == "late block, HTTP/1.0")


def attempt(server: Server, name: str, directory: Path) -> str:
    """Try it on a server of its own, so that no failure leads to another."""
    if not applies(server, name):
        return "–"
    try:
        with running(server, directory) as started:
            return TRIALS[name](started) or "ok"
    except httpx.ReadTimeout:
        return "no answer"
    except NotStartedError as exc:
        return str(exc)
    except Exception as exc:
        # Whatever a client makes of it: httpx lets through what its library for HTTP/2 raises.
        return f"the client raises {type(exc).__name__}: {str(exc)[:80]}"


def table(servers: Sequence[Server], results: dict[tuple[str, str], str]) -> str:
    """A Markdown table, with its notes."""
    notes: list[str] = []

    def cell(outcome: str) -> str:
        if outcome in ("ok", "–"):
            return outcome
        if outcome not in notes:
            notes.append(outcome)
        return f"({notes.index(outcome) + 1})"

    lines = [
        "| | " + " | ".join(server.title for server in servers) + " |",
        "| --- |" + " :-: |" * len(servers),
    ]
    for name in TRIALS:
        cells = (cell(results[server.title, name]) for server in servers)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    versions = {server.distribution: version(server.distribution) for server in servers}
    lines += ["", "With " + ", ".join(f"{name} {number}" for name, number in sorted(versions.items())) + "."]
    return "\n".join(lines)


def main() -> None:
    """Try everything, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat.servers", description=__doc__)
    parser.add_argument("--server", default="", help="only servers whose name contains this")
    parser.add_argument("--trial", default="", help="only trials whose name contains this")
    arguments = parser.parse_args()
    present = []
    for server in filter(None, SERVERS):
        if server.missing is not None:
            print(f"{server.name}: skipped, {server.missing} is not installed", file=sys.stderr)
        elif arguments.server in server.title:
            present.append(server)
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        for server in present:
            for name in TRIALS:
                outcome = attempt(server, name, Path(directory)) if arguments.trial in name else "–"
                results[server.title, name] = outcome
                print(f"{server.title}: {name}: {outcome}", file=sys.stderr)
    print(table(present, results))


if __name__ == "__main__":
    main()
