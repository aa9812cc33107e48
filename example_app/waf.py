"""A demonstration of the hook interface with a handful of rules: no replacement for the OWASP Core Rule Set.

Use a maintained rule set against real attacks. This shows how an agent judges path, query, headers and body. What it
recognises is in :mod:`example_app.waf_rules.rules`, how text is normalised before in
:mod:`example_app.waf_rules.text`; an attack in any other form passes.
"""

from collections.abc import Iterable, Mapping, Sequence

import anyio

from asgi_agents import Agent, AgentResponse, AuditMetadata, RequestBodyChunkEvent, RequestHeadersEvent

from .waf_rules import CANDIDATE_RULES, RULES, Rule, readings

__all__ = ["CANDIDATE_RULES", "Waf"]

MOVED = {"/old-orders": "/api/orders"}

# Bytes. What takes longer to judge would be felt by everyone else on the event loop.
_AT_ONCE = 32 * 1024


class Waf(Agent):
    """Refuses what matches a rule with 403, and sends clients of ``moved`` paths to the new ones. A demonstration.

    It keeps no state, so that one instance can serve any number of processes; bodies have to come whole
    (``BodyMode.BUFFER``, which is the default).
    """

    def __init__(self, rules: Sequence[Rule] = RULES, moved: Mapping[str, str] = MOVED) -> None:
        self._rules = rules
        self._moved = moved

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        values = (value for values in event.headers.values() for value in values)
        denial = self._judge(_bytes(text) for text in (event.uri, *values))
        if denial is not None:
            return denial
        path, mark, query = event.uri.partition("?")
        if path in self._moved:
            return AgentResponse.redirect(f"{self._moved[path]}{mark}{query}", 308)
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        if len(event.data) <= _AT_ONCE:
            return self._judge([event.data])
        return await anyio.to_thread.run_sync(self._judge, [event.data])

    def _judge(self, pieces: Iterable[bytes]) -> AgentResponse | None:
        texts = [text for piece in pieces for text in readings(piece)]
        broken = [rule for rule in self._rules if any(rule.pattern.search(text) for text in texts)]
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


def _bytes(text: str) -> bytes:
    """What was on the wire: a head's bytes come as Latin-1."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
