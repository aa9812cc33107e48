"""Requests and responses held to an OpenAPI description, for :class:`~asgi_agents.agents.OpenApiValidation`."""
