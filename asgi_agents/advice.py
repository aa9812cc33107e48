"""Configuration that works, but not as it was most likely meant: one warning for each, in the log."""

import logging
from collections.abc import Iterator
from typing import Final

from .agent import HOOKS, overrides
from .config import AgentConfig
from .policy import BodyMode
from .protocol import EventType
from .transports.resolve import agent_of

logger: Final = logging.getLogger("asgi_agents")

# A deadline of more seconds was most likely meant in milliseconds.
_MOST_SECONDS: Final = 300

_REQUESTS: Final = (EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK)
_REQUEST_HEAD: Final = (EventType.REQUEST_HEADERS,)
_REQUEST_BODY: Final = (EventType.REQUEST_BODY_CHUNK,)
_RESPONSE_BODY: Final = (EventType.RESPONSE_BODY_CHUNK,)
_BODIES: Final = (*_REQUEST_BODY, *_RESPONSE_BODY)
# By field: its default, and the events without which the rest has no effect.
_NEEDED: Final[dict[str, tuple[object, tuple[EventType, ...]]]] = {
    "sets": (frozenset(), _REQUESTS),
    "replaces": (frozenset(), _REQUESTS),
    "after": ((), _REQUEST_HEAD),
    "may_set_host": (False, _REQUESTS),
    "decode": (False, _BODIES),
    "body_access": ("read", (*_BODIES, EventType.WEBSOCKET_FRAME)),
    "request_body_mode": (BodyMode.BUFFER, _REQUEST_BODY),
    "max_request_body_bytes": (None, _REQUEST_BODY),
    "request_length": ("known", _REQUEST_BODY),
    "response_body_mode": (BodyMode.BUFFER, _RESPONSE_BODY),
    "max_response_body_bytes": (None, _RESPONSE_BODY),
    "response_content_types": (None, _RESPONSE_BODY),
    "hold_head": (False, _RESPONSE_BODY),
    "ranges": (False, _RESPONSE_BODY),
}


def warn_of(config: AgentConfig) -> None:
    """Warn in the log of what in ``config`` has no effect, or was most likely meant otherwise."""
    for name in ("timeout", "chunk_timeout"):
        warn_of_seconds(f"AgentConfig({config.id!r})", name, getattr(config, name))
    if config.circuit_breaker is not None:
        where = f"AgentConfig({config.id!r}): CircuitBreakerConfig"
        warn_of_seconds(where, "reset_timeout", config.circuit_breaker.reset_timeout)
    for fault in _without_effect(config):
        logger.warning("AgentConfig(%r): %s", config.id, fault)


def warn_of_seconds(where: str, name: str, seconds: float) -> None:
    """Warn in the log if a duration looks like milliseconds."""
    if seconds > _MOST_SECONDS:
        logger.warning(
            "%s: %s=%g is more than %d seconds; durations are seconds: for milliseconds write %s=%g",
            where,
            name,
            seconds,
            _MOST_SECONDS,
            name,
            seconds / 1000,
        )


def warn_of_hold(agent_id: str, hold: int) -> None:
    """Warn in the log of a guardrail whose agent is elsewhere, where nobody has said how much text it has to see."""
    logger.warning(
        "Guardrail(%r): hold is not given, and nothing is known of that of a remote agent: what is longer than %d code"
        " points may leave in part; write hold=...",
        agent_id,
        hold,
    )


def warn_of_short_hold(agent_id: str, hold: int, needed: int) -> None:
    """Warn in the log of a guardrail that holds less text back than its agent says that it has to see."""
    logger.warning(
        "Guardrail(%r): hold=%d is less than the %d code points that the agent looks for: what is longer may leave in"
        " part; leave hold out",
        agent_id,
        hold,
        needed,
    )


def _without_effect(config: AgentConfig) -> Iterator[str]:
    hears = config.hears
    if hears is None:
        # Its events are known only once it is connected.
        return
    agent = agent_of(config.resolved_transport)
    for name, (usual, needed) in _NEEDED.items():
        if getattr(config, name) != usual and hears.isdisjoint(needed):
            if agent is None or any(overrides(agent, HOOKS[event]) for event in needed):
                what = f"its events have no {' or '.join(needed)}"
            else:
                what = f"the agent has no {' or '.join(HOOKS[event] for event in needed)}"
            yield f"{name} has no effect, because {what}; add that, or leave {name} out"
    for name in ("sets", "replaces"):
        if getattr(config, name) and not config.enforce:
            yield (
                f"{name} has no effect, because a shadow agent (enforce=False) sets nothing: what clients send in these"
                f" headers reaches the app; name them in {name} of the agent that is enforced"
            )
    # An agent that is given a configuration is asked to take it, be that among its events or not.
    if agent is not None and config.config is not None and not overrides(agent, HOOKS[EventType.CONFIGURE]):
        yield "config has no effect, because the agent has no on_configure; add that, or leave config out"
