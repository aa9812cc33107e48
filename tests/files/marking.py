"""Agents that files name, which mark the requests that they are asked about; and an app that shows the marks."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi_agents import Agent, AgentError, AgentResponse, ConfigureEvent, HeaderOp, RequestHeadersEvent

from .writing import write

MODULE = "tests.files.marking"


class Marker(Agent):
    """Adds its ``mark`` to a request. Its configuration may have it refuse that, or be slow."""

    made: ClassVar[int] = 0

    def __init__(self) -> None:
        type(self).made += 1
        self._config: Mapping[str, Any] = {}

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        self._config = event.config
        if self._config.get("refuses"):
            return AgentResponse.block(400, body=f"no such mark: {self._config['mark']}")
        return None

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        await anyio.sleep(self._config.get("delay", 0))
        return AgentResponse.allow(request_headers=[HeaderOp.add("x-mark", str(self._config["mark"]))])


class Waking(Marker):
    """Can't be configured while it is ``down``, which says why. It counts how often that was tried."""

    down: ClassVar[str | None] = None
    tries: ClassVar[int] = 0

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        type(self).tries += 1
        if self.down is not None:
            raise AgentError(self.down)
        return await super().on_configure(event)


def marker(agent_id: str, mark: object, **fields: Any) -> dict[str, Any]:
    """The entry of an agent. ``refuses`` and ``delay`` belong to its configuration."""
    config = {"mark": mark} | {key: fields.pop(key) for key in ("refuses", "delay") if key in fields}
    return {"id": agent_id, "transport": f"{MODULE}:Marker", "config": config, **fields}


def marks(*agents: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"agents": list(agents), **others}


async def show(request: Request) -> PlainTextResponse:
    return PlainTextResponse(" ".join(request.headers.getlist("x-mark")))


def marked_app(**options: Any) -> Starlette:
    return Starlette(routes=[Route("/{rest:path}", show)], **options)


class File:
    """A configuration file that is written again and again."""

    def __init__(self, directory: Path, data: Mapping[str, Any] | str, suffix: str = "toml") -> None:
        self._directory = directory
        self._suffix = suffix
        self.path = write(directory, data, suffix)

    def write(self, data: Mapping[str, Any] | str) -> None:
        """Put another file in its place, so that no reader finds half of one."""
        with TemporaryDirectory(dir=self._directory) as directory:
            write(Path(directory), data, self._suffix).replace(self.path)
