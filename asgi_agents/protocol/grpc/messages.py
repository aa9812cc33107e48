"""The messages of agent.proto, as classes.

They are made from the file's descriptor when this is imported. Stubs that protoc generates in Python would do only for
the versions of protobuf next to that of the generator, and would share one name space with those of the application.
"""

from importlib import resources
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from ...errors import AgentProtocolError

#: The path of the only method that is used.
PROCESS_STREAM: Final = "/zentinel.agent.v2.AgentServiceV2/ProcessStream"

_PACKAGE: Final = "asgi_agents.agent.v2"


def _load() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    described = resources.files(__package__).joinpath("agent.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(described).file:
        pool.Add(file)
    return pool


_POOL: Final = _load()


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ProxyToAgent: Final = _class("ProxyToAgent")
AgentToProxy: Final = _class("AgentToProxy")


def parse(kind: Any, data: bytes) -> Any:
    """A ``kind`` from its bytes; raises :class:`AgentProtocolError` for what is none."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise AgentProtocolError(f"not a message of the protocol ({kind.DESCRIPTOR.name})") from None
