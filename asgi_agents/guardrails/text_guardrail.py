"""Agents that judge text, and the events by which they are asked."""

import inspect
from collections.abc import Sequence
from typing import Any, Final

from ..agent import Agent
from ..errors import AgentProtocolError, ConfigurationError
from ..messages.naming import kind_of
from ..protocol import Detection, GuardrailInspectEvent, GuardrailResponse, TextSpan
from .redactions import check_decisions
from .slots import Block, Decision, Flag, Redact, Slot, Window

#: What the metadata of an inspection says of the window to agents that look: what it is, and the text before it.
CONTEXT: Final = "window.context"
START: Final = "window.start"
FINAL: Final = "window.final"
GOING_ON: Final = "window.going_on"
KIND: Final = "slot.kind"
ROLE: Final = "slot.role"
TOOL: Final = "slot.tool"


class TextGuardrail(Agent):
    """An agent that judges text: it never sees bytes, events of a stream, or JSON.

    ::

        class Emails(TextGuardrail):
            hold = 320

            async def check(self, window: Window) -> Sequence[Decision]:
                return [Redact(m.start(), m.end(), "[email]") for m in EMAIL.finditer(window.text, window.fresh)]

    It judges what a :class:`Guardrail` with its id names. Where it runs in the process, what it says is done. Served to
    other processes, it answers with detections that say the same.

    :cvar hold: code points; the longest thing that it looks for, with all that the pattern looks at before and behind.
    :cvar window: code points; how much text is judged at once. None: the larger of 400 and four times ``hold``.
    """

    hold: int = 80
    window: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, right in (("check", "an 'async def' that takes a window"), ("settled", "a 'def' that takes a text")):
            function = vars(cls).get(name)
            plain = inspect.unwrap(function) if callable(function) else function
            if not inspect.isfunction(plain):
                continue
            if inspect.isasyncgenfunction(plain) or inspect.iscoroutinefunction(plain) != (name == "check"):
                raise ConfigurationError(f"{cls.__name__}.{name}: expected {right}")

    async def check(self, window: Window) -> Sequence[Decision] | None:
        """What is to be done about a window. None or nothing: it may leave as it is.

        What precedes ``window.fresh`` was judged with the window before, and is context: a find that ends there is
        ignored, and one that reaches beyond it counts from there on. So search from there:
        ``pattern.finditer(window.text, window.fresh)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no check(self, window)")

    def settled(self, text: str) -> int:
        """How many code points at the beginning of ``text`` can't be part of anything any more, whatever follows.

        They leave at once, where otherwise ``hold`` code points wait for what follows. A pattern that ends where the
        text ends is not settled: the next letter may belong to it. Not overridden, nothing is settled.
        """
        return 0

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse | None:
        window = event.window if isinstance(event, WindowEvent) else window_of(event)
        decisions = await self.check(window)
        if decisions is None or decisions == []:
            return None
        if not isinstance(decisions, list | tuple):
            raise AgentProtocolError(f"check: expected a list of decisions or None, got {kind_of(decisions)}")
        check_decisions(decisions, window)
        if isinstance(event, WindowEvent):
            # A flag stops nothing and changes nothing, also where a shadow agent is asked what it would have done.
            detected = any(not isinstance(decision, Flag) for decision in decisions)
            return Decisions(detected=detected, confidence=1.0, decisions=decisions)
        return _answer(decisions, window)

    # Its only `await` is that of `check`, so that it suspends where that does.
    on_guardrail_inspect.awaits = "check"  # type: ignore[attr-defined]


class WindowEvent(GuardrailInspectEvent, frozen=True, kw_only=True):
    """An inspection of a window by an agent in the process.

    ``content`` is the window's text from ``fresh`` on, which is all that an agent needs that knows no windows.
    """

    window: Window
    slot: Slot

    def __post_init__(self) -> None:
        """Nothing is checked: it is made of what was checked before."""


class Decisions(GuardrailResponse, frozen=True, kw_only=True):
    """The answer of a :class:`TextGuardrail` in the process. It never leaves it."""

    decisions: Sequence[Decision]


def window_of(event: GuardrailInspectEvent) -> Window:
    """The window that an event asks about. Where its metadata says nothing, that is all of the content."""
    context = event.metadata.get(CONTEXT, "")
    start = event.metadata.get(START, "0")
    return Window(
        context + event.content,
        int(start) if start.isdecimal() and len(start) < 20 else 0,
        len(context),
        event.metadata.get(FINAL, "true") == "true",
        event.metadata.get(GOING_ON, ""),
    )


def metadata_of(window: Window, slot: Slot) -> dict[str, str]:
    """What :func:`window_of` needs beside the content, which is the window's text from ``fresh`` on."""
    said = {START: str(window.start), FINAL: "true" if window.final else "false", KIND: slot.kind}
    if window.fresh:
        said[CONTEXT] = window.text[: window.fresh]
    if window.going_on:
        said[GOING_ON] = window.going_on
    if slot.role is not None:
        said[ROLE] = slot.role
    if slot.tool is not None:
        said[TOOL] = slot.tool
    return said


def outside(
    event: WindowEvent, answer: GuardrailResponse | None
) -> tuple[GuardrailInspectEvent, GuardrailResponse | None]:
    """The event and the answer as agents in other processes have them: an event of the protocol, and detections.

    Nothing else may leave the process, into a recording, say: who knows the protocol alone does not know the window.
    """
    asked = GuardrailInspectEvent(
        correlation_id=event.correlation_id,
        inspection_type=event.inspection_type,
        content=event.content,
        model=event.model,
        categories=sorted(event.categories),
        route_id=event.route_id,
        metadata={**event.metadata, **metadata_of(event.window, event.slot)},
    )
    if isinstance(answer, Decisions):
        answer = _answer(answer.decisions, event.window)
    return asked, answer


def _answer(decisions: Sequence[Decision], window: Window) -> GuardrailResponse:
    """The same in the protocol's terms, where spans count from ``fresh`` on."""
    shift, length = window.fresh, len(window.text) - window.fresh
    detections: list[Detection] = []
    for decision in decisions:
        if isinstance(decision, Block):
            detections.append(Detection(category=decision.reason, description="", action="block"))
            continue
        start, end = decision.start, decision.end
        if end < shift or start < end == shift:
            # Judged with the window before.
            continue
        span = TextSpan(max(start - shift, 0), min(end - shift, length))
        match decision:
            case Redact(text=text):
                detections.append(
                    Detection(category="redacted", description="", span=span, replacement=text, action="redact")
                )
            case Flag(category=category):
                detections.append(Detection(category=category, description="", span=span, action="flag"))
    return GuardrailResponse(detected=bool(detections), confidence=1.0, detections=detections)
