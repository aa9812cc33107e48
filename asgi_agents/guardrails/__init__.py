"""Text guardrails: agents judge text, wherever it stands on the wire, and nothing of it leaves before it was judged.

What is in this package does no I/O and knows no clock: bytes, verdicts and the time are given to it, and it returns
bytes and what is to be judged. Who calls whom::

    driver ──bytes──> Stream ──bytes──> Framer       sse, ndjson, json_array, plain_text: bytes -> units
      │                 │    ──unit───> Reader       of a Dialect: unit -> Text, Piece, End, Repeat, ... (operations)
      │                 └──operations─> Release      the events in their order, and which of them may leave
      │                 │                 │  (MixedRelease: two of them in a row, where events may be JSON or text)
      │                                   ├─> SlotText     one slot: guardrails in a row, others beside them
      │                                   │     └─> SlotWindows    one of them: which windows, which text may leave
      │                                   ├─> WholeText    a text that is known in full
      │                                   ├─> HeldCall     a tool call: the strings in its arguments
      │                                   └─> HeldEvent    what an event leaves as; json_text puts strings back
      ├──data──> Body ──operations──> Release        a request, or an answer that is no stream: one event
      └──message─> MessageStream ─operations─> MixedRelease    one direction of a websocket: each message is an event

    Backlog: copies that wait for a shadow agent, whose driver has a Stream or Body of its own

What a driver does with a :class:`~asgi_agents.guardrails.stream.Stream`::

    stream.feed(data, now)                           # or stream.end(now), or stream.tick(now) at stream.wake_at()
    while inspections := stream.inspections():       # windows to judge, and by whom
        for inspection in inspections:
            stream.verdict(inspection, decisions, now)       # at once or later, in any order
    await send(stream.take())                        # what may leave
    stream.full                                      # while True, the app's next `send` waits for verdicts
    stream.ending                                    # how it was stopped: what is taken then is the last there is
    stream.done                                      # whether nothing more will leave

An agent that fails is the driver's decision: ``stream.fail(stop)`` ends the stream as failed, and
``stream.verdict(inspection, (), now)`` goes on without it. Verdicts of windows that have become ``stale`` meanwhile
are ignored. While nothing has left (``stream.started``) a whole answer can take the stream's place:
``dialect.reply(stop)``. A dialect may be bound to its request, to answer that
(:class:`~asgi_agents.guardrails.dialect.Binding`).

Beside all that, :mod:`~asgi_agents.guardrails.tool_policy` says which tools of an MCP server may be called, and
:mod:`~asgi_agents.guardrails.tool_listing` leaves the others out of its lists.

:func:`~asgi_agents.guardrails.dialects.known.of_request`, ``of_answer`` and ``of_stream`` choose dialects.
:func:`~asgi_agents.guardrails.verdicts.decisions_of` turns the answer of an agent that knows no windows into decisions.
"""

from typing import TYPE_CHECKING

from .call_policy import CallPolicy, headers, models, tools, users
from .guardrail import Guardrail
from .slots import Block, Call, Decision, Flag, Kind, Redact, Slot, Window
from .text_guardrail import TextGuardrail
from .tool_policy import ToolPolicy, ToolRule
from .windows import Found

if TYPE_CHECKING:
    from .dialect import Binding, Dialect, Stop, StopReply
    from .dialects.pointers import Pointers
    from .dialects.unknown import Lines
else:
    # What only some need is imported when it is asked for (PEP 562).
    _LAZY = {
        "Binding": "dialect",
        "Dialect": "dialect",
        "Lines": "dialects.unknown",
        "Pointers": "dialects.pointers",
        "Stop": "dialect",
        "StopReply": "dialect",
    }

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "Binding",
    "Block",
    "Call",
    "CallPolicy",
    "Decision",
    "Dialect",
    "Flag",
    "Found",
    "Guardrail",
    "Kind",
    "Lines",
    "Pointers",
    "Redact",
    "Slot",
    "Stop",
    "StopReply",
    "TextGuardrail",
    "ToolPolicy",
    "ToolRule",
    "Window",
    "headers",
    "models",
    "tools",
    "users",
]
