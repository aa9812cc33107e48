"""How much is measured."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Plan:
    """Times are seconds.

    :param turns: rounds of what runs in this process, each about ``turn_seconds`` for each that takes turns.
    :param rounds: rounds of what runs through servers, each of ``seconds`` after ``warmup``.
    :param connections: that are loaded at the same time.
    :param events: of one stream past guardrails, whose memory is measured.
    :param streams: that wait for guardrails at the same time.
    :param proxy_rounds: of streams through proxies.
    :param processor_rounds: of processors that Envoy asks, each of ``processor_seconds`` after ``processor_warmup``.
    :param growth_rounds: of each point of a curve through servers, each of ``growth_seconds``.
    """

    turns: int = 120
    turn_seconds: float = 0.008
    rounds: int = 15
    seconds: float = 0.5
    warmup: float = 0.15
    connections: int = 16
    growth_rounds: int = 5
    growth_seconds: float = 0.4
    websockets: int = 5000
    events: int = 1_000_000
    streams: int = 1000
    proxy_rounds: int = 5
    processor_rounds: int = 100
    processor_seconds: float = 0.25
    processor_warmup: float = 0.05


FULL: Final = Plan()
QUICK: Final = Plan(
    turns=10,
    turn_seconds=0.002,
    rounds=3,
    seconds=0.2,
    warmup=0.1,
    growth_rounds=3,
    growth_seconds=0.1,
    websockets=500,
    events=20_000,
    streams=100,
    proxy_rounds=1,
    processor_rounds=5,
)
