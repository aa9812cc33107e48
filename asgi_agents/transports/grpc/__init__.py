"""Agents behind gRPC. What is imported from here imports neither grpc nor protobuf; the protocols' modules do."""

from .transport import GrpcTransport

__all__ = ["GrpcTransport"]
