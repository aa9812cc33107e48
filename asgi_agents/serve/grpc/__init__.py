"""Agents behind gRPC: :func:`asgi_agents.serve.grpc.server.serve_grpc`. It needs the ``grpc`` extra."""
