"""The tool policies of a route: what they deny and hide in one exchange, and what is noted of that."""

import logging
import re
from collections.abc import Sequence
from typing import Final

from starlette.types import Message, Scope

from ..decision import AgentDecision
from ..evaluation.text_judges import RouteJudges
from ..guardrails.body import Parsed
from ..guardrails.dialect import Stop
from ..guardrails.json_text import JSON
from ..guardrails.tool_policy import TOOL_POLICY, denial_of
from ..messages.places import raised_by
from ..protocol import Block as DeniedBy
from .guardrail_report import GuardrailReport
from .state import ExchangeState
from .text_asking import Stopped

logger: Final = logging.getLogger("asgi_agents")

# In whatever encoding, with whatever marks in front.
_MAYBE_JSON: Final = re.compile(rb"[\x00\s\xef\xbb\xbf\xff\xfe]*(?:[{\[]|\Z)")


class ToolGate:
    """The policies of a route for one exchange."""

    def __init__(self, judges: RouteJudges, state: ExchangeState) -> None:
        self._judges = judges
        self._state = state
        self._report: GuardrailReport | None = None

    @property
    def guards(self) -> bool:
        """Whether there is any policy."""
        return bool(self._judges.policies)

    def check(self, parsed: Parsed, dialect: str) -> Stopped | None:
        """Whether a request may pass to the app, as the app will read it. Returns what it is stopped with."""
        if not self.guards:
            return None
        denial = denial_of(self._judges.policies, parsed.value, duplicates=parsed.duplicates)
        if denial is None:
            return None
        if denial.error is not None and denial.rule is not None and self._judges.complaints.due(("tool", denial.rule)):
            fault = raised_by(denial.error, denial.rule.when)
            logger.warning("%r: when %s; the call is denied (logged once a minute)", denial.rule, fault)
        return self._stopped(Stop(denial.reason, 400 if denial.malformed else 403, denial.malformed), dialect)

    def check_size(self, messages: Sequence[Message], most: int, dialect: str, *, encoded: bool) -> Stopped | None:
        """Whether a request that is too large to be read may pass to the app: not if that may read JSON in it.

        :param encoded: whether it has a content-encoding, so that anything may be in it.
        """
        data = b"" if encoded else b"".join(bytes(message.get("body", b"")) for message in messages)
        if not self.guards or not _MAYBE_JSON.match(data):
            return None
        return self._stopped(Stop(f"a request body of more than {most} bytes", 413, malformed=True), dialect)

    def may_list(self, scope: Scope, value: JSON, *, known: bool) -> bool:
        """Whether the answer may be a list of tools.

        :param value: the request's, if that is ``known``.
        """
        if not self.guards:
            return False
        if known:
            messages = value if isinstance(value, list) else [value]
            return any(isinstance(message, dict) and message.get("method") == "tools/list" for message in messages)
        # A client that takes up a stream again gets the answers that it has missed. Not all say what they accept.
        return scope.get("method") == "GET"

    def hides(self, tool: str) -> bool:
        """Whether no call of this tool can pass."""
        return any(policy.hides(tool) for policy in self._judges.policies)

    def note_hidden(self, count: int) -> None:
        """Take note of tools that were left out of a list."""
        for _ in range(count):
            self._noted("mcp").count("hide")

    def _stopped(self, stop: Stop, dialect: str) -> Stopped:
        self._noted(dialect).add("block", "tool_call", None)
        return Stopped(stop, AgentDecision(decision=DeniedBy(stop.status, stop.message), decided_by=TOOL_POLICY))

    def _noted(self, dialect: str) -> GuardrailReport:
        if self._report is None:
            self._report = GuardrailReport(TOOL_POLICY, dialect)
            self._state.guardrails = (*self._state.guardrails, self._report)
        return self._report
