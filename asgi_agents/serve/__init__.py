"""Agents behind a network address."""

from .http import agent_app
from .stream import serve_stream

__all__ = ["agent_app", "serve_stream"]
