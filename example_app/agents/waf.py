"""A web application firewall: a list of rules over path, query, headers and body."""

import re
from collections.abc import Iterable, Mapping, Sequence

import anyio

from asgi_agents import Agent, AgentResponse, AuditMetadata, RequestBodyChunkEvent, RequestHeadersEvent

from .waf_rules import RULES, Rule

MOVED = {"/old-orders": "/api/orders"}

_ESCAPE = re.compile(r"%([0-9a-f]{2})|\\u([0-9a-f]{4})")
# Twice, since "%2527" becomes "%27" and only then a quote. Who decodes three times has a problem of its own.
_DECODINGS = 2
# Bytes. What takes longer to judge would be felt by everyone else on the event loop.
_AT_ONCE = 32 * 1024


class Waf(Agent):
    """Refuses what matches a rule with 403, and sends clients of ``moved`` paths to the new ones.

    It keeps no state, so that one instance can serve any number of processes; bodies have to come whole
    (``BodyMode.BUFFER``, which is the default).
    """

    def __init__(self, rules: Sequence[Rule] = RULES, moved: Mapping[str, str] = MOVED) -> None:
        self._rules = rules
        self._moved = moved

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        values = (value for values in event.headers.values() for value in values)
        denial = self._judge((event.uri, *values))
        if denial is not None:
            return denial
        path, mark, query = event.uri.partition("?")
        if path in self._moved:
            return AgentResponse.redirect(f"{self._moved[path]}{mark}{query}", 308)
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        # Latin-1 reads any bytes, and the rules are ASCII.
        text = event.data.decode("latin-1")
        if len(text) <= _AT_ONCE:
            return self._judge([text])
        return await anyio.to_thread.run_sync(self._judge, [text])

    def _judge(self, texts: Iterable[str]) -> AgentResponse | None:
        decoded = [_decoded(text) for text in texts]
        broken = [rule for rule in self._rules if any(rule.pattern.search(text) for text in decoded)]
        if not broken:
            return None
        return AgentResponse.block(
            403,
            "Refused by the web application firewall",
            audit=AuditMetadata(
                tags=("waf", *dict.fromkeys(rule.attack for rule in broken)),
                rule_ids=tuple(rule.id for rule in broken),
            ),
        )


def _decoded(text: str) -> str:
    """What an app may make of ``text``, in lower case: ``+``, percent-encoding and JSON escapes undone."""
    text = text.lower().replace("+", " ")
    for _ in range(_DECODINGS):
        text = _ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), text).lower()
    return text
