import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asgi_agents.commands.command_line import main
from asgi_agents.routing.marks import marks

AGENTS = """
import anyio
from asgi_agents import Agent, AgentResponse, AuditMetadata, Detection, GuardrailResponse, HeaderOp


class Waf(Agent):
    async def on_request_headers(self, event):
        if "script" in event.uri:
            audit = AuditMetadata(reason_codes=["xss"], rule_ids=["941"])
            return AgentResponse.block(403, "No scripts", headers={"x-waf": "1", "set-cookie": "a=b"}, audit=audit)
        if "login" in event.uri:
            return AgentResponse.redirect("https://id.example/?token=s3cret", 302)
        if "key" in event.uri:
            return AgentResponse.challenge("bearer", {"realm": "api"})
        return AgentResponse.allow(request_headers=[HeaderOp.set("authorization", "Bearer s3cret")])

    async def on_request_body_chunk(self, event):
        return AgentResponse.block(403) if b"bad" in event.data else None

    async def on_response_body_chunk(self, event):
        return AgentResponse.block(502) if b"secret" in event.data else None

    async def on_websocket_frame(self, event):
        return AgentResponse.websocket_close(1008, "no") if event.data == b"bye" else AgentResponse.websocket_drop()

    async def on_guardrail_inspect(self, event):
        found = [Detection(category="email", description="an address")] if "@" in event.content else []
        return GuardrailResponse(detected=bool(found), detections=found)


class Auth(Agent):
    async def on_request_headers(self, event):
        return None


class Late(Agent):
    async def on_request_headers(self, event):
        await anyio.sleep_forever()


class Broken(Agent):
    async def on_request_headers(self, event):
        raise LookupError("s3cret")


class Refusing(Agent):
    async def on_configure(self, event):
        return AgentResponse.block(403, "no level given")

    async def on_request_headers(self, event):
        return None


class Limit(Agent):
    async def on_configure(self, event):
        self.rate = event.config["rate"]

    async def on_request_headers(self, event):
        return None


class Frames(Agent):
    async def on_websocket_frame(self, event):
        return None


words = "words"


def fail():
    raise LookupError("no such luck")
"""

MODULES = {
    "house.py": AGENTS,
    "broken.py": "import json\n\n1 / 0\n",
    "unreadable.py": "def\n",
    "ending.py": "raise SystemExit(0)\n",
    "talkative.py": """
from house import Auth

print("hello")


class Waf(Auth):
    async def on_request_headers(self, event):
        print("asked")
""",
}


class Done(NamedTuple):
    """What a command has come to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs the command line in a directory with modules of agents; further ones are given by their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    # A policy that a module gives an endpoint counts for the whole process.
    monkeypatch.setattr(marks, "used", False)

    def forget() -> None:
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
                del sys.modules[name]

    def run(*arguments: str, **modules: str) -> Done:
        for name, text in {**MODULES, **{f"{name}.py": text for name, text in modules.items()}}.items():
            (tmp_path / name).write_text(text)
        forget()
        capsys.readouterr()
        try:
            code = main([argument.replace("PLACE", str(tmp_path)) for argument in arguments])
        except SystemExit as exc:
            code = int(exc.code or 0)  # from argparse
        captured = capsys.readouterr()
        out, err = (text.replace(str(tmp_path), "PLACE") for text in captured)
        return Done(code, out, err)

    yield run
    forget()


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="agents-") as path:
        yield Path(path)
