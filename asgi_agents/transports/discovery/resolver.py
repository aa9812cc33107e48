"""Looks names up.

The system's resolver does that, and no DNS library: it is what the machine is configured for, with ``/etc/hosts``,
search domains (``waf`` in a pod is ``waf.namespace.svc.cluster.local``), mDNS and split DNS. It does not tell for how
long its answers hold. Therefore names are looked up at an interval, which is the time to live that Kubernetes gives its
records; a resolver that has a cache goes by the times to live itself.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

#: Returns the addresses of a host, numerically, in the order in which they should be tried; with its port, for those
#: that want it. It may raise OSError or ValueError.
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


async def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses that the system's resolver has of ``host``, in its order (RFC 6724).

    It runs in a thread. A thread can't be ended: one whose lookup is cancelled goes on until the system gives up.

    :raises OSError: there are none, or the resolver can't be asked.
    :raises ValueError: no host can have that name.
    """
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    # Threads of its own: a resolver that hangs must not keep the app's handlers from theirs.
    found = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    return [_numeric(address) for *_, address in found]


def _numeric(address: tuple[Any, ...]) -> str:
    host = str(address[0])
    # The addresses of a link are of use together with the link.
    return f"{host}%{address[3]}" if len(address) == 4 and address[3] and "%" not in host else host


def has_to_be_looked_up(host: str) -> bool:
    """Whether ``host`` is a name that may lead elsewhere tomorrow: neither an address nor this machine."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        # RFC 6761, section 6.3.
        return False
    try:
        # Asks nobody.
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        return True
    return False
