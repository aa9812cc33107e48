"""Recording what agents are asked and answer, and replaying it: in tests, and against other versions of an agent."""

from .comparing import Difference, FieldDifference
from .format import RecordingError
from .recorded_agent import RecordedAgent
from .replaying import assert_same_decisions, replay
from .report import ReplayReport, ReplayTiming
from .traffic_log import DEFAULT_MAX_BYTES, TrafficLog, record

__all__ = [
    "DEFAULT_MAX_BYTES",
    "Difference",
    "FieldDifference",
    "RecordedAgent",
    "RecordingError",
    "ReplayReport",
    "ReplayTiming",
    "TrafficLog",
    "assert_same_decisions",
    "record",
    "replay",
]
