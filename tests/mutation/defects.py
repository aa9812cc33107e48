"""All planted defects."""

from typing import Final

from .defect import Defect
from .of_agents import AGENTS
from .of_bans import BANS
from .of_calls import CALLS
from .of_commands import COMMANDS
from .of_endpoints import ENDPOINTS
from .of_evaluation import EVALUATION
from .of_exchange import EXCHANGE
from .of_files import FILES
from .of_fuzz import FUZZ
from .of_geo import GEO
from .of_guardrails import GUARDRAILS
from .of_modsecurity import MODSECURITY
from .of_recording import RECORDING
from .of_routing import ROUTING
from .of_serving import SERVING
from .of_streams import STREAMS
from .of_testing import TESTING
from .of_text import TEXT
from .of_workers import WORKERS

DEFECTS: Final[tuple[Defect, ...]] = (
    *FUZZ,
    *CALLS,
    *EVALUATION,
    *ROUTING,
    *ENDPOINTS,
    *EXCHANGE,
    *STREAMS,
    *SERVING,
    *GUARDRAILS,
    *TEXT,
    *GEO,
    *MODSECURITY,
    *AGENTS,
    *FILES,
    *TESTING,
    *RECORDING,
    *COMMANDS,
    *BANS,
    *WORKERS,
)
