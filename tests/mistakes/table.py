"""All of the mistakes."""

from collections.abc import Mapping, Sequence
from typing import Final

from .agents import AGENTS
from .answers import ANSWERS
from .configuration import CONFIGURATION
from .guardrails import GUARDRAILS
from .mistake import Mistake
from .placement import PLACEMENT
from .routes import ROUTES
from .serving import SERVING

#: By heading of the page.
MISTAKES: Final[Mapping[str, Sequence[Mistake]]] = {
    "Agents": AGENTS,
    "What hooks answer": ANSWERS,
    "Configuration": CONFIGURATION,
    "Around the app": PLACEMENT,
    "Routes and handlers": ROUTES,
    "Text guardrails": GUARDRAILS,
    "Serving an agent": SERVING,
}
