"""For the tests of guarded apps: agents that are fakes, agents that are down, and what the agents have decided.

Needs neither pytest nor a test client. The fixtures for pytest are in the module ``asgi_agents.testing.plugin``.
"""

from .asserting import Recorded, RecordedResponse, assert_blocked_by, assert_failed_closed, assert_failed_open
from .events import (
    configure_event,
    guardrail_inspect_event,
    request_body_chunk_event,
    request_complete_event,
    request_headers_event,
    request_metadata,
    response_body_chunk_event,
    response_headers_event,
    websocket_frame_event,
)
from .fake_agent import FakeAgent, Reaction, Script
from .overriding import agent_down, breaker_open, override_agents
from .recording import Recording
from .virtual_time import run_in_virtual_time, virtual_time

__all__ = [
    "FakeAgent",
    "Reaction",
    "Recorded",
    "RecordedResponse",
    "Recording",
    "Script",
    "agent_down",
    "assert_blocked_by",
    "assert_failed_closed",
    "assert_failed_open",
    "breaker_open",
    "configure_event",
    "guardrail_inspect_event",
    "override_agents",
    "request_body_chunk_event",
    "request_complete_event",
    "request_headers_event",
    "request_metadata",
    "response_body_chunk_event",
    "response_headers_event",
    "run_in_virtual_time",
    "virtual_time",
    "websocket_frame_event",
]
