"""Real servers on the loopback interface."""

import logging
import socket
import subprocess
import sys
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.types import ASGIApp

HOST = "127.0.0.1"
_PATIENCE = 15.0  # seconds for a server to start or to stop


# uvicorn says so of every websocket that is denied with a response (https://github.com/Kludex/uvicorn/pull/3138).
_UNTRUE = "ASGI callable returned without completing handshake."
_CUT_OFF = "Cancel %s running task(s), timeout graceful shutdown exceeded"


@contextmanager
def serving(app: ASGIApp, port: int = 0, *, grace: int = 6) -> Iterator[str]:
    """Serve ``app`` with uvicorn in a thread; gives its URL. Port 0 is any that is free.

    ``grace``: seconds at the end for requests that are under way. Then they are cut off, which is no news: somebody has
    ended it.
    """
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    try:
        listener = socket.create_server((HOST, port))
    except (OSError, OverflowError) as exc:
        raise SystemExit(f"can't listen on {HOST}:{port}: {exc}") from exc
    with listener:
        # Else the requests of a connection inherit the trace of one that had a large body (uvicorn#2167).
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=grace, reset_contextvars=True)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="uvicorn")
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise SystemExit("the server did not start")
                time.sleep(0.01)
            yield f"http://{HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            try:
                thread.join()
            except KeyboardInterrupt:
                # A second Ctrl-C: connections that are still open are not waited for.
                server.force_exit = True
                thread.join()


def _is_news(record: logging.LogRecord) -> bool:
    raised = record.exc_info[1] if record.exc_info else None
    return record.msg not in (_UNTRUE, _CUT_OFF) and not isinstance(raised, CancelledError)


@contextmanager
def waf_process(take_span: Callable[[str], object] | None = None) -> Iterator[str]:
    """Run the firewall in a process of its own; gives its URL. ``take_span`` is given its spans, a line each."""
    # Somebody else may take the port before uvicorn does, in which case that fails, and so do we.
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    options = ["--host", HOST, "--port", str(port), "--log-level", "warning", "--ws", "none", "--reset-contextvars"]
    service = ["example_app.waf_service:app"] if take_span is None else ["--factory", "example_app.demo.traced_waf:app"]
    code = str(Path(__file__).parents[2])
    process = subprocess.Popen(  # noqa: S603 - nothing in there comes from outside
        [sys.executable, "-m", "uvicorn", "--app-dir", code, *options, *service],
        start_new_session=True,  # Ctrl-C is for this process, which stops the server at the end
        stdout=None if take_span is None else subprocess.PIPE,
        text=True,
    )
    if take_span is not None:
        threading.Thread(target=_pass_on, args=(process, take_span), name="spans", daemon=True).start()
    try:
        url = f"http://{HOST}:{port}/"
        _wait_until_up(url, process)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pass_on(process: subprocess.Popen[str], take_span: Callable[[str], object]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        take_span(line)


def _wait_until_up(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                # An agent app says what it is.
                client.get(url).raise_for_status()
                return
            except httpx.TransportError:
                time.sleep(0.05)
    raise SystemExit(f"the firewall did not start at {url}")
