"""A resolver in place of the system's, and agents at several addresses of this machine."""

import socket
import time
from collections.abc import Mapping, Sequence

import pytest
from anyio.lowlevel import checkpoint

#: Linux has all of 127/8 on its loopback interface.
LOOPBACK = tuple(f"127.0.0.{number}" for number in range(1, 6))

Answer = Sequence[str] | BaseException


class Names:
    """What names lead to.

    :ivar answers: by name: addresses, or what looking it up raises. They can be changed at any time.
    :ivar lookups: when there was a lookup, and of which name.
    """

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = dict(answers)
        self.lookups: list[tuple[float, str]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.lookups.append((time.monotonic(), host))
        await checkpoint()
        answer = self.answers[host]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @property
    def times(self) -> list[float]:
        """When there was a lookup, from the first on."""
        return [at - self.lookups[0][0] for at, _ in self.lookups]


def resolving(monkeypatch: pytest.MonkeyPatch, **answers: Answer) -> Names:
    """Names for the rest of a test. ``waf=["127.0.0.1"]`` is what ``waf.test`` leads to."""
    names = Names({f"{name}.test": answer for name, answer in answers.items()})
    monkeypatch.setattr("asgi_agents.transports.discovery.watch.look_up", names)
    return names


def free_port(addresses: Sequence[str] = LOOPBACK) -> int:
    """One that is free at all of ``addresses``."""
    while True:
        with socket.create_server((addresses[0], 0)) as listener:
            port: int = listener.getsockname()[1]
            try:
                for address in addresses[1:]:
                    socket.create_server((address, port)).close()
            except OSError:
                continue
            return port


def no_such_name() -> OSError:
    """What the system's resolver raises."""
    return socket.gaierror(socket.EAI_NONAME, "Name or service not known")
