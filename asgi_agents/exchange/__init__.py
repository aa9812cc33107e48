"""One object per connection: what happens between the server, the agents and the app."""

from .context import AgentContext
from .http import serve_http
from .reply import ChallengeRenderer
from .websocket import serve_websocket

__all__ = ["AgentContext", "ChallengeRenderer", "serve_http", "serve_websocket"]
