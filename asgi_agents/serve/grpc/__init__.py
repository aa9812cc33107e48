"""Agents behind gRPC. Needs the ``grpc`` extra."""

from .server import serve_grpc
from .service import GrpcService, ServedRpc, StatusError

__all__ = ["GrpcService", "ServedRpc", "StatusError", "serve_grpc"]
