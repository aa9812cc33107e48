"""The command: its options, and what it does in which order."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.middleware import Middleware

from ..app import create_app
from ..configuration import agent_configs
from . import screen
from .decisions import DecisionLog
from .run import Outcome, play
from .servers import serving, waf_process
from .table import Style, render, style_for
from .tracing import TraceTrees, trace_into


def run(arguments: Sequence[str]) -> int:
    """Run it with those arguments; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m example_app",
        description="A shop behind agents: starts it, plays a script against it, and goes on serving until Ctrl-C.",
    )
    parser.add_argument("--port", type=int, default=0, help="listen there; default: any free port")
    parser.add_argument("--waf-process", action="store_true", help="run the firewall in a second process, over HTTP")
    parser.add_argument("--verbose", action="store_true", help="show the whole script, the log, and audit records")
    parser.add_argument("--trace", action="store_true", help="print the trace of each request, through all processes")
    parser.add_argument("--check", action="store_true", help="exit when the script is done: 0 if all was right, else 1")
    options = parser.parse_args(arguments)
    # Ends like Ctrl-C, so that the second process ends with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        return _run(options, stack)


def _run(options: argparse.Namespace, stack: ExitStack) -> int:
    traces: TraceTrees | None = None
    outside: list[Middleware] = []
    if options.trace:
        traces = TraceTrees(lambda text: print(f"\n{text}", flush=True))
        trace_into(traces, "shop")
        # Around the agents, so that their spans are within those of the server.
        outside = [Middleware(OpenTelemetryMiddleware, exclude_spans=["receive", "send"], excluded_urls="/-/")]
    log, held = logging.StreamHandler(), _Held()
    log.setFormatter(logging.Formatter("  agents: %(message)s"))
    # Two agents fail on purpose. Their lines are worth a look only where something else has gone wrong as well.
    _log_to("asgi_agents", log if options.verbose else held)
    # No audit records of the script.
    logging.getLogger("asgi_agents.audit").setLevel(logging.WARNING)
    waf_url = (
        stack.enter_context(waf_process(None if traces is None else traces.add_line)) if options.waf_process else None
    )
    decisions = DecisionLog()
    app = create_app(waf_url=waf_url, outside=outside, on_audit=decisions.note)
    url = stack.enter_context(serving(decisions.around(app), options.port, grace=1))
    style = style_for(sys.stdout)

    print(*screen.opening(url, waf_url, len(agent_configs())), sep="\n", flush=True)
    in_full = options.verbose or options.trace
    outcomes = _play(url, decisions, style, rows=not in_full)
    if traces is not None:
        traces.flush()
    right = all(outcome.right for outcome in outcomes)
    print("", *(render if in_full else screen.summary)(outcomes, style), sep="\n", flush=True)
    if not right:
        held.pass_to(log)
    if options.check:
        return 0 if right else 1

    _log_to("asgi_agents", log)
    audit = logging.StreamHandler(sys.stdout)
    audit.setFormatter(logging.Formatter("%(message)s") if options.verbose else screen.AuditRow())
    _log_to("asgi_agents.audit", audit)
    try:
        print("", *screen.where_to_look(url), "", sep="\n", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("\nStopping.", flush=True)
    return 0


def _play(url: str, decisions: DecisionLog, style: Style, *, rows: bool) -> list[Outcome]:
    """Play the script; with ``rows``, show some of what comes of it as it comes."""
    if rows:
        print("", screen.headings(style), sep="\n", flush=True)
    outcomes = []
    for outcome in play(url, decisions):
        outcomes.append(outcome)
        if rows and outcome.step.shown:
            print(screen.row_of(outcome), flush=True)
    return outcomes


class _Held(logging.Handler):
    """Keeps log records until they are worth a look."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def pass_to(self, other: logging.Handler) -> None:
        for record in self._records:
            other.handle(record)


def _log_to(name: str, handler: logging.Handler) -> None:
    """Give a logger that one handler."""
    logger = logging.getLogger(name)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
