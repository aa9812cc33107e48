"""Making a mistake, and taking down what it gets."""

import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from starlette.testclient import TestClient

from .mistake import Mistake

ROOT: Final = Path(__file__).parents[2]

#: What stands before every mistake: imports, an app, and an agent that is right.
GIVEN: Final = """
import asgi_agents
from fastapi import FastAPI, HTTPException, Request
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

from asgi_agents import *
from asgi_agents.fastapi import Agents
from asgi_agents.guardrails import Block, Guardrail, Redact, TextGuardrail, models


class Waf(Agent):
    async def on_request_headers(self, event):
        return None


app = FastAPI()


@app.get("/items")
async def items():
    return ["item"]
"""
_STEP: Final = re.compile(r"for \S+ s in one step")
# What is served by command lines, as waf.py and main.py.
_WAF: Final = """
from asgi_agents import Agent


class Waf(Agent):
    async def on_request_headers(self, event):
        return None
"""


def outcome_of(mistake: Mistake) -> list[str]:
    """What whoever makes the mistake gets to see: what is raised, written to the log, and answered."""
    return _run_command(mistake.code) if mistake.command else _run(mistake)


def _run(mistake: Mistake) -> list[str]:
    seen: list[str] = []
    names: dict[str, Any] = {"__name__": "main"}
    exec(compile(GIVEN, "given.py", "exec"), names)  # noqa: S102
    with _logged(seen, blocking="sleep(" in mistake.code):
        try:
            exec(compile(mistake.code.strip(), "main.py", "exec"), names)  # noqa: S102
            if mistake.ask is not None:
                response = TestClient(names["app"]).get(mistake.ask)
                seen.append(f"GET {mistake.ask}: {response.status_code} {response.text}")
        except Exception as exc:
            seen.append(f"{type(exc).__name__}: {exc}")
    return seen


def _run_command(line: str) -> list[str]:
    program, *arguments = shlex.split(line)
    assert program == "python"
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "waf.py").write_text(_WAF)
        Path(folder, "main.py").write_text(GIVEN)
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    return ended.stderr.splitlines()


@contextmanager
def _logged(seen: list[str], *, blocking: bool) -> Iterator[None]:
    """Append what is logged meanwhile to ``seen``, from warnings up.

    ``blocking``: whether a hook blocks the event loop. On a busy machine others seem to as well, and take any time.
    """

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message, steps = _STEP.subn("for 0.2 s in one step", record.getMessage())
            if blocking or not steps:
                seen.append(f"{record.levelname} {record.name}: {message}")

    logger = logging.getLogger("asgi_agents")
    handler = Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
