"""What Serve's gRPC proxy is told of the deployments of agents: the methods that it passes on to them."""

from typing import Any, Final

import grpc

from ..transports.grpc.ray import SERVICE

# What a type checker sees of these depends on the stubs that it has.
_unary: Final[Any] = grpc.unary_unary_rpc_method_handler
_streams: Final[Any] = grpc.stream_stream_rpc_method_handler

# The names of Envoy's are written here: its stubs are needed by the replicas alone.
_METHODS: Final = {
    SERVICE: {"Ask": _unary},
    "envoy.service.auth.v3.Authorization": {"Check": _unary},
    "envoy.service.ext_proc.v3.ExternalProcessor": {"Process": _streams},
}


def add_services_to_server(servicer: object, server: Any) -> None:
    """Called by Serve where it is one of ``grpc_servicer_functions``, as generated functions of that kind are.

    A deployment's replicas are called by a method's last name: ``Ask``, ``Check`` and ``Process``. Messages stay bytes
    on the way. The agent protocol of the Rust proxy (``ProcessStream``) is not among them: its streams last as long as
    the client's process. A replica that is to end would have to cut them off, and Serve would count them as requests.
    """
    for service, methods in _METHODS.items():
        handlers = {name: handler(getattr(servicer, name)) for name, handler in methods.items()}
        # One by one: Serve looks at the first of a call's only.
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
