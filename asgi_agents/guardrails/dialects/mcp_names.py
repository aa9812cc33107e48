"""Which strings of MCP's messages name something, and so are no text.

A name is one by its place and by its form. Places are those of MCP's schema, and of A2A's, which is JSON-RPC too. Under
the same key anywhere else there is text: a server may call a member ``level`` or ``kind``, and write into it what it
likes.
"""

import re
from typing import Final

from ..json_text import Path
from ..naming import is_time, is_word

# Words that a schema has for what is under a key, at whatever depth: nothing else can be said with them.
_WORDS: Final[dict[str, frozenset[str]]] = {
    key: frozenset(words.split())
    for key, words in {
        "jsonrpc": "2.0",
        "type": "text image audio resource resource_link tool_use tool_result ref/prompt ref/resource"
        " object array string number integer boolean null json",
        "role": "user assistant system agent ROLE_USER ROLE_AGENT",
        "audience": "user assistant",
        "level": "debug info notice warning error critical alert emergency",
        "action": "accept decline cancel",
        "mode": "form url auto required none",
        "stopReason": "endTurn stopSequence maxTokens toolUse",
        "resultType": "complete task input_required inputRequired",
        "status": "working input_required completed failed cancelled",
        "includeContext": "none thisServer allServers",
        "taskSupport": "forbidden optional required",
        "theme": "light dark",
        "format": "email uri uri-reference date date-time time uuid hostname ipv4 ipv6",
        "contentEncoding": "base64",
        # A2A's
        "kind": "message task status-update artifact-update text file data",
        "state": "submitted working input-required completed canceled failed rejected auth-required unknown",
    }.items()
}
_MIME_TYPE: Final = re.compile(
    r"(?:application|audio|font|image|message|model|multipart|text|video)/[A-Za-z][A-Za-z.+-]{0,80}[0-9]{0,4}"
)
_TIMES: Final = frozenset({"lastModified", "createdAt", "lastUpdatedAt", "timestamp"})
# Where ids and tokens are, which have to come back as they were given out.
_TOKENS: Final = frozenset(
    tuple(place.split())
    for place in (
        *("id", "params progressToken", "params requestId", "params cursor", "result nextCursor"),
        *("params taskId", "result taskId", "result task taskId", "result tasks taskId", "params elicitationId"),
        *("params requestState", "result requestState", "error data elicitations elicitationId"),
        *(
            f"{at} _meta {name}"
            for at in ("params", "result")
            for name in ("progressToken", "traceparent", "io.modelcontextprotocol/related-task taskId")
        ),
    )
)
# A2A's; nothing that a tool gives is there.
_TOKENS_OF_A2A: Final = frozenset(
    tuple(place.split())
    for place in (
        *(f"{at} {name}" for at in ("params", "result") for name in ("id", "contextId", "messageId")),
        *(
            f"{at} {name}"
            for at in ("params message", "result message", "result status message", "result history")
            for name in ("messageId", "contextId", "taskId")
        ),
        *("result artifact artifactId", "result artifacts artifactId"),
    )
)
_TOKEN: Final = re.compile(r"[A-Za-z0-9_.:/+=$#\[\]*-]{1,4096}")
# Names of versions and models, and in schemas of what they describe.
_NAMED: Final = frozenset({("params", "protocolVersion"), ("result", "protocolVersion"), ("result", "model")})
_SCHEMAS: Final = frozenset({"inputSchema", "outputSchema", "requestedSchema"})
_OF_SCHEMAS: Final = frozenset({"$schema", "$ref", "required"})


def is_name(path: Path, text: str, *, given: bool = False) -> bool:
    """Whether a string names something.

    :param path: of the string in the body or event: of a batch, too.
    :param given: whether a tool, a prompt or a resource has given it.
    """
    where = tuple(part for part in path if isinstance(part, str))
    if not where or "structuredContent" in where:
        # A tool may give an id for text.
        return False
    last = where[-1]
    if text in _WORDS.get(last, ()) or (last in _TIMES and is_time(text)):
        return True
    if last == "mimeType" and _MIME_TYPE.fullmatch(text):
        return True
    if where in _TOKENS or (not given and where in _TOKENS_OF_A2A):
        return is_token(text)
    of_schema = last in _OF_SCHEMAS and not _SCHEMAS.isdisjoint(where[:3])
    return (where in _NAMED or of_schema) and (is_word(text) or is_time(text))


def is_token(text: object) -> bool:
    """Whether it looks like an id or a token."""
    return isinstance(text, str) and _TOKEN.fullmatch(text) is not None
