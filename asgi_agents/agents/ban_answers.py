"""What IpBan answers, and what it says of it in the log."""

import logging
import math
from collections.abc import Mapping
from typing import Final

from ..protocol import AgentResponse, AuditMetadata
from .bans import Ban, Requester
from .crowds import Asker

logger: Final = logging.getLogger("asgi_agents")

# What the log says of a ban behind its rule.
_FOR: Final[Mapping[Asker, str]] = {
    "own": "",
    "elsewhere": ", for what pages of other origins have it ask",
    "link": ", for what links of other origins lead it to",
}


class BanAnswers:
    """:param duration: of a ban, in seconds."""

    def __init__(self, duration: float) -> None:
        self._duration = duration

    def refusal(self, client: Requester, ban: Ban) -> AgentResponse:
        """The answer to a request of a client that is banned."""
        if ban.begins:
            self._log(client, ban)
        headers = {"retry-after": str(max(1, math.ceil(ban.left)))}
        audit = AuditMetadata(reason_codes=("decoy" if ban.begins else "banned",), rule_ids=(ban.rule,))
        return AgentResponse.block(403, headers=headers, audit=audit)

    def counted(self, client: Requester, ban: Ban | None) -> AgentResponse | None:
        """What is said of a request that has its answer: something where it was the one too many."""
        if ban is None or not ban.begins:
            return None
        self._log(client, ban)
        return AgentResponse.allow(audit=AuditMetadata(tags=("banned",), rule_ids=(ban.rule,)))

    def _log(self, client: Requester, ban: Ban) -> None:
        logger.info("IpBan: %s is banned for %g s (%s)%s", client.address, self._duration, ban.rule, _FOR[client.asker])
