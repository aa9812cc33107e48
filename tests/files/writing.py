"""Files with configurations, for tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from asgi_agents import Agent, AgentResponse, Configuration, ConfigurationError, RequestHeadersEvent, load
from asgi_agents.guardrails import TextGuardrail, Window

FORMATS: Final = ("toml", "json", "yaml")
#: Of an agent elsewhere, as little as it may be.
REMOTE: Final = {"id": "waf", "transport": "tcp://127.0.0.1:9", "events": ["request_headers"]}


class Teapot(Agent):
    """An agent that files name."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.block(418)


class Words(TextGuardrail):
    """A guardrail that files name."""

    async def check(self, window: Window) -> None: ...


class Choosy(Agent):
    """Can't be made without an argument."""

    def __init__(self, words: str) -> None: ...


TEAPOT: Final = Teapot()
NUMBER: Final = 5


def in_toml(value: Any) -> str:
    """A value as TOML, in one line; tables at the top with a line for each key."""
    match value:
        case dict():
            inner = ", ".join(f"{json.dumps(key)} = {in_toml(each)}" for key, each in value.items())
            return f"{{{inner}}}"
        case list() | tuple():
            return f"[{', '.join(map(in_toml, value))}]"
        case str():
            # DEL is the one character that JSON leaves as it is and TOML does not take.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case bool():
            return "true" if value else "false"
    return repr(value)


def text_in(suffix: str, data: Mapping[str, Any]) -> str:
    match suffix:
        case "toml":
            return "".join(f"{json.dumps(key)} = {in_toml(value)}\n" for key, value in data.items())
        case "json":
            return json.dumps(data)
        case _:
            return str(yaml.safe_dump(dict(data), sort_keys=False))


def write(directory: Path, data: Mapping[str, Any] | str, suffix: str = "toml") -> Path:
    path = directory / f"agents.{suffix}"
    path.write_text(data if isinstance(data, str) else text_in(suffix, data), encoding="utf-8")
    return path


def loaded(directory: Path, data: Mapping[str, Any] | str, suffix: str = "toml", **options: Any) -> Configuration:
    return load(write(directory, data, suffix), **options)


def refusal_of(directory: Path, data: Mapping[str, Any] | str, suffix: str = "toml", **options: Any) -> list[str]:
    """The lines of the refusal, without the directory; none where the file is taken."""
    path = write(directory, data, suffix)
    try:
        load(path, **options)
    except ConfigurationError as exc:
        return [line.replace(f"{directory}/", "") for line in str(exc).splitlines()]
    return []
