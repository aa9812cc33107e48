"""Text guardrails: agents judge text, wherever it stands on the wire, and nothing of it leaves before it was judged.

What is in this package does no I/O and knows no clock: bytes, verdicts and the time are given to it, and it returns
bytes and what is to be judged. Who calls whom::

    driver ──bytes──> Stream ──bytes──> Framer     sse, ndjson, json_array, plain_text: bytes -> units
      │                 │    ──unit───> Reader     dialects: unit -> Text, Piece, End, Repeat, ... (operations)
      │                 └──operations─> Release    events in their order; which part of which may go
      │                                   ├─> SlotText   one slot: guardrails in a row, others beside them
      │                                   │     └─> SlotWindows   one slot and one guardrail: window state machine
      │                                   └─> HeldCall   a tool call, held whole: the strings in its arguments
      └──data──> Body ──operations──> Release      a request or answer that is no stream: one event

What a driver does with a :class:`~asgi_agents.guardrails.stream.Stream`::

    stream.feed(data, now)                          # or stream.end(now), or stream.tick(now) at stream.wake_at
    while inspections := stream.inspections():      # windows to judge, by which guardrail
        for inspection in inspections:
            stream.verdict(inspection, [Redact(...)], now)      # at once or later, in any order
    send(stream.take())                             # what may leave
    stream.full                                     # while True, the app's `send` waits
    stream.ended                                    # blocked or failed: nothing more leaves; stop the app

An agent that fails is the driver's decision: ``stream.fail(reason)`` ends the stream as failed, and
``stream.verdict(inspection, (), now)`` goes on without it.
"""
