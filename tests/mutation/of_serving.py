"""Defects in what serves agents: hooks, and the gRPC server."""

from typing import Final

from .defect import Defect

SERVING: Final = (
    Defect(
        "a-cancelled-future-ends-the-server",
        "serve/hooks.py",
        "            if not is_of_cancellations(exc):\n                raise\n            if suspends:\n",
        "            if is_of_cancellations(exc):\n                raise\n            if suspends:\n",
        "A hook awaits what was cancelled: Envoy has no answer, and a configuration ends the gRPC server.",
        ("tests/serve/test_cancelled_inside.py::test_nothing_passes_unjudged_and_the_server_goes_on",),
    ),
    Defect(
        "texts-that-were-not-judged-are-allowed",
        "serve/gateways.py",
        "        if len(judged) < len(found):\n",
        "        if not found:\n",
        "Where the judging of a question with several texts ends early, the gateway is told that all of it may pass.",
        ("tests/serve/test_cancelled_inside.py::test_what_was_never_judged_is_not_said_to_be_allowed",),
    ),
    Defect(
        "who-is-on-the-way-in-is-hung-up-on",
        "serve/stream.py",
        "        for door in accepting:\n            await door.settled()\n        await drained(service)\n",
        "        await drained(service)\n",
        "A client that was accepted as the agent is told to stop is lost, though the next process would answer it.",
        ("tests/serve/test_arrivals.py::test_who_was_accepted_is_served_whenever_it_stops",),
    ),
)
