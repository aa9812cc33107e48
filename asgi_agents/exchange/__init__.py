"""One object per connection: what happens between the server, the agents and the app."""

from .context import AgentContext
from .http import HttpExchange
from .reply import ChallengeRenderer
from .scope import correlation_id
from .websocket import WebSocketExchange

__all__ = ["AgentContext", "ChallengeRenderer", "HttpExchange", "WebSocketExchange", "correlation_id"]
