"""Defects in agents that know users, and in OpenApiValidation."""

from typing import Final

from .defect import Defect

AGENTS: Final = (
    Defect(
        "any-number-of-calls-waits-for-keys",
        "agents/key_fetches.py",
        "            if self._waiting >= most:\n",
        "            if self._waiting > most * most:\n",
        "Made-up key ids hold the permits that valid tokens need, while the issuer is slow.",
        ("tests/agents/test_jwt_slow_issuer.py::test_a_few_wait_for_a_key_that_is_new",),
    ),
    Defect(
        "a-client-says-what-is-a-handshake",
        "agents/openapi/routes.py",
        "        if isinstance(described, str):\n",
        "        if isinstance(described, str) and not handshake:\n",
        "A request with a header of websockets passes unjudged where a websocket route has its path as well.",
        ("tests/agents/test_openapi_validation.py::test_an_agent_that_is_served_sees_events_alone",),
    ),
)
