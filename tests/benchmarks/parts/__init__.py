"""The parts of the suite; each can be run alone."""

from collections.abc import Callable, Mapping
from typing import Final

from ..plan import Plan
from ..report import Part
from . import direct, envoy, growth, guardrails, ray, server

#: By their names on the command line. Each takes the plan, and a function that tells how far it is.
PARTS: Final[Mapping[str, Callable[[Plan, Callable[[str], None]], Part]]] = {
    "direct": direct.run,
    "server": server.run,
    "envoy": envoy.run,
    "ray": ray.run,
    "growth": growth.run,
    "guardrails": guardrails.run,
}
