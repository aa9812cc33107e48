"""``python -m example_app``: start the shop, play the script, show what came of it, and go on serving."""

import argparse
import logging
import signal
import sys
import threading
from contextlib import ExitStack

from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

from .app import create_app
from .demo.decisions import DecisionLog
from .demo.run import play
from .demo.servers import serving, waf_process
from .demo.table import render, style_for
from .demo.tracing import TraceTrees, trace_into

_TRY = """\
Serving at {url} until Ctrl-C; the audit log follows. Look at:

  {url}/-/agents/   what the agents do
  {url}/-/metrics   the same for Prometheus

and try:

  curl -i {url}/api/orders
  curl -i {url}/api/orders -H 'x-api-key: key-of-alice'
  curl -i "{url}/api/orders?q='+or+'1'='1" -H 'x-api-key: key-of-alice'
  curl -N "{url}/api/chat?prompt=contact" -H 'x-api-key: key-of-alice'
  curl -i {url}/admin/stats -H 'authorization: Bearer token-of-root'
"""


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="listen there; default: any free port")
    parser.add_argument("--waf-process", action="store_true", help="run the firewall in a second process, over HTTP")
    parser.add_argument("--trace", action="store_true", help="print the trace of each request, through all processes")
    parser.add_argument("--check", action="store_true", help="exit when the script is done: 0 if all was right, else 1")
    options = parser.parse_args()
    # Ends like Ctrl-C, so that the second process ends with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    _log("asgi_agents", "  agents: %(message)s")
    logging.getLogger("asgi_agents.audit").setLevel(logging.WARNING)
    traces = TraceTrees(lambda text: print(f"\n{text}", flush=True)) if options.trace else None
    if traces is not None:
        trace_into(traces, "shop")
    with ExitStack() as stack:
        take_span = None if traces is None else traces.add_line
        waf_url = stack.enter_context(waf_process(take_span)) if options.waf_process else None
        app = create_app(waf_url=waf_url)
        if traces is not None:
            # Around everything, so that the agents' spans are within those of the server.
            FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"], excluded_urls="/-/")
        decisions = DecisionLog(app)
        url = stack.enter_context(serving(decisions, options.port))
        where = f"in a process of its own, at {waf_url}" if waf_url else "in this process"
        print(f"The shop is at {url}, its firewall {where}. Playing the script ...", flush=True)
        outcomes = list(play(url, decisions))
        if traces is not None:
            traces.flush()
        print("", *render(outcomes, style_for(sys.stdout)), "", sep="\n", flush=True)
        if options.check:
            return 0 if all(outcome.right for outcome in outcomes) else 1
        print(_TRY.format(url=url), flush=True)
        _log("asgi_agents.audit", "%(message)s", propagate=False)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("\nStopping.", flush=True)
    return 0


def _log(name: str, line: str, *, propagate: bool = True) -> None:
    """Show what that logger says on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(line))
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.propagate = propagate
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
