"""Agents that judge text, to be served by processes of their own: ``python -m asgi_agents.serve``."""

import re
from collections.abc import Sequence
from typing import Final

import anyio
import anyio.lowlevel

from asgi_agents import Agent, Detection, GuardrailInspectEvent, GuardrailResponse, TextSpan
from asgi_agents.guardrails import Block, Decision, Flag, TextGuardrail, Window
from tests.guardrails.detectors import EMAIL, HOLD, Detector, detector, redacted
from tests.guardrails.driving import EVERYTHING

REASON: Final = "the policy says no, not even \u201ca bit\u201d"
#: What the guardrail does where a text has these in it.
BLOCKED: Final = "do-block"
FLAGGED: Final = re.compile(r"\bdo-flag\b")
WRONG: Final = "do-raise"
EMAILS: Final = detector(EMAIL)


class Everything(TextGuardrail):
    """Redacts what the tests plant. Its patterns look at what precedes."""

    hold = HOLD

    async def check(self, window: Window) -> Sequence[Decision]:
        await anyio.lowlevel.checkpoint()
        if WRONG in window.text:
            raise RuntimeError("the guardrail is broken")
        found: list[Decision] = [*EVERYTHING(window)]
        found += [Flag(match.start(), match.end(), "flagged") for match in FLAGGED.finditer(window.text, window.fresh)]
        if BLOCKED in window.text:
            found.append(Block(REASON))
        return found


class Forgetful(TextGuardrail):
    """Finds all that is in a window, and so finds what precedes for a second time."""

    hold = HOLD

    async def check(self, window: Window) -> Sequence[Decision]:
        return EMAILS(Window(window.text))


class Plain(Agent):
    """Knows no windows. The inspection type says how it answers."""

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        content = event.content
        match event.inspection_type:
            case "spans":
                found = [
                    Detection(category="email", description="", span=TextSpan(*match.span()), replacement="[0]")
                    for match in EMAIL.finditer(content)
                ]
                return GuardrailResponse(detected=bool(found), detections=found)
            case "categories":
                found = [
                    Detection(category="0", description="", confidence=0.9, span=TextSpan(*match.span()))
                    for match in EMAIL.finditer(content)
                ]
                return GuardrailResponse(detected=bool(found), detections=found)
            case "found":
                # The content only where it is changed.
                changed = redacted(content, EMAILS)
                if changed == content:
                    return GuardrailResponse(detected=False)
                return GuardrailResponse(detected=True, redacted_content=changed)
            case _:
                return GuardrailResponse(detected=False, redacted_content=redacted(content, EMAILS))


#: What each of them does to a whole text.
DETECTORS: Final[dict[str, Detector]] = {"everything": EVERYTHING, "forgetful": EMAILS, "plain": EMAILS}

everything = Everything()
forgetful = Forgetful()
plain = Plain()
