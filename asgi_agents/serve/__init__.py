"""Agents behind a network address."""

from typing import TYPE_CHECKING

from .http import agent_app
from .stream import serve_stream

if TYPE_CHECKING:
    from .grpc.server import serve_grpc
else:

    def __getattr__(name: str) -> object:
        # With it come grpc and, for some services, protobuf, which are extras.
        if name != "serve_grpc":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ..errors import ConfigurationError
        from ..imports.extras import from_extra

        with from_extra("serve_grpc", "grpc", ConfigurationError):
            from .grpc.server import serve_grpc

        return serve_grpc


__all__ = ["agent_app", "serve_grpc", "serve_stream"]
