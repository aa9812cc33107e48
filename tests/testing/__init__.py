"""Of the kit for the tests of guarded apps, :mod:`asgi_agents.testing`."""
