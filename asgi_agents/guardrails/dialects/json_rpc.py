"""JSON-RPC 2.0: what a body asks, and the errors that answer it."""

import json
import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from ..dialect import Stop, StopReply
from ..framing import UnreadableError
from ..json_text import JSON, Path
from .base import Mapped, to_json

# Of JSON-RPC: what could not be read as JSON, what is JSON and no message, and what went wrong in the server.
_PARSE_ERROR: Final = -32700
_INVALID_REQUEST: Final = -32600
_INTERNAL_ERROR: Final = -32603
# Of the servers' own. The clients' SDKs have a meaning of theirs for some of those near -32000.
_BLOCKED: Final = -32090
#: What a method looks like.
METHOD: Final = re.compile(r"[\w.$/:-]{1,128}")

#: An id as JSON: 1 and "1" are two.
Id = str


class Asked(Struct, frozen=True):
    """One request in a body.

    :ivar id: as it came.
    :ivar tool: the name of the tool, or prompt, that it is about.
    """

    id: JSON
    method: str
    tool: str | None = None


class AskedBody(Struct, frozen=True):
    """What the body of one HTTP request asks.

    :ivar requests: those with an id, by it.
    :ivar batch: whether the body is an array.
    :ivar answered: the ids of answers in it, to what the server has asked.
    """

    requests: Mapping[Id, Asked]
    batch: bool = False
    answered: tuple[JSON, ...] = ()


def id_of(value: JSON) -> Id:
    """An id, so that it can be compared."""
    return json.dumps(value)


def messages_in(value: JSON) -> list[tuple[Path, JSON]]:
    """The messages of a body or event, and where they are: one, or those of a batch."""
    if isinstance(value, list):
        return [((index,), message) for index, message in enumerate(value)]
    return [((), value)]


def is_message(value: JSON) -> bool:
    """Whether it is called a message."""
    return isinstance(value, dict) and value.get("jsonrpc") == "2.0"


def checked(value: JSON) -> Mapped:
    """``value``, which is a message.

    :raises UnreadableError: for what is none.
    """
    if not isinstance(value, dict) or value.get("jsonrpc", "2.0") != "2.0":
        raise UnreadableError('expected a JSON-RPC message, with "jsonrpc": "2.0"')
    if "method" in value:
        if not isinstance(value["method"], str):
            raise UnreadableError("method: expected a string")
        if not isinstance(value.get("params"), dict | list | None):
            raise UnreadableError("params: expected an object or an array")
    elif "result" not in value and "error" not in value:
        raise UnreadableError("expected a method, a result or an error")
    if isinstance(value.get("id"), dict | list | bool):
        raise UnreadableError("id: expected a string or a number")
    return value


def asking_of(value: JSON) -> AskedBody:
    """What a body asks. What is no message asks nothing."""
    requests: dict[Id, Asked] = {}
    answered: list[JSON] = []
    for _, message in messages_in(value):
        if not isinstance(message, dict) or "id" not in message or isinstance(message["id"], dict | list):
            continue
        if isinstance(method := message.get("method"), str):
            params = message.get("params")
            tool = params.get("name") if isinstance(params, dict) else None
            asked = Asked(message["id"], method, tool if isinstance(tool, str) else None)
            requests[id_of(message["id"])] = asked
        elif "method" not in message and ("result" in message or "error" in message):
            answered.append(message["id"])
    return AskedBody(requests, isinstance(value, list), tuple(answered))


def error(request_id: JSON, stop: Stop) -> Mapped:
    """The answer to a request that is stopped."""
    code = _INTERNAL_ERROR if stop.failure else _INVALID_REQUEST if stop.malformed else _BLOCKED
    message = stop.message or ("a guardrail has failed" if stop.failure else "blocked by a guardrail")
    told: Mapped = {"code": code, "message": message, "data": {"status": stop.status}}
    return {"jsonrpc": "2.0", "id": request_id, "error": told}


def reply(asking: AskedBody | None, stop: Stop) -> StopReply:
    """The whole answer to a body that is stopped; ``asking`` is None where nothing is known of it."""
    if asking is None:
        told = error(None, stop)
        if stop.malformed and isinstance(told["error"], dict):
            told["error"]["code"] = _PARSE_ERROR
        return _json(stop.status, told)
    errors: list[JSON] = [error(asked.id, stop) for asked in asking.requests.values()]
    if stop.malformed:
        # No request of it was taken, as if none of it had been read.
        return _json(stop.status, errors[0] if len(errors) == 1 and not asking.batch else error(None, stop))
    if not errors:
        # Nobody waits for an answer to these.
        return StopReply(202, "application/json", b"")
    return _json(200, errors if asking.batch else errors[0])


def in_place_of(asking: AskedBody, stop: Stop) -> bytes | None:
    """What the server gets in place of a body that is stopped. None: nothing.

    It waits for answers to what it has asked, and would wait for ever.
    """
    if asking.requests or not asking.answered:
        return None
    errors: list[JSON] = [error(answered, stop) for answered in asking.answered]
    return to_json(errors if asking.batch else errors[0])


def _json(status: int, value: JSON) -> StopReply:
    return StopReply(status, "application/json", to_json(value))
