"""Circuit breakers: a pure state machine, and one that several threads may use."""

from .breaker import BreakerState, CircuitBreaker

__all__ = ["BreakerState", "CircuitBreaker"]
