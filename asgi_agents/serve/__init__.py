"""Agents behind a network address."""

from .http import agent_app

__all__ = ["agent_app"]
