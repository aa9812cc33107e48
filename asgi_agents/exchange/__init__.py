"""One object per connection: what happens between the server, the agents and the app."""

from .attendance import answer_departed
from .context import AgentContext
from .http import serve_http
from .inspected_text import InspectedText
from .malformed import refuse_target
from .rendering import ChallengeRenderer, ErrorInfo, ErrorRenderer, Renderers, fastapi_error
from .websocket import serve_websocket

__all__ = [
    "AgentContext",
    "ChallengeRenderer",
    "ErrorInfo",
    "ErrorRenderer",
    "InspectedText",
    "Renderers",
    "answer_departed",
    "fastapi_error",
    "refuse_target",
    "serve_http",
    "serve_websocket",
]
