"""What a row of the table is made of."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from starlette.types import ASGIApp

from . import envoy
from .envoy import Check


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that apps talk to, listening on a Unix socket. Variants that name the same peer share its process.

    :param arguments: the Python interpreter's; ``{socket}`` stands for the path of the socket.
    :param works: whether it does the work itself, so that its CPU time counts.
    """

    name: str
    arguments: tuple[str, ...]
    works: bool = True

    def socket(self, directory: Path) -> str:
        return str(directory / f"{self.name}.sock")

    def command(self, directory: Path) -> list[str]:
        return [sys.executable, *(argument.replace("{socket}", self.socket(directory)) for argument in self.arguments)]


@dataclass(frozen=True, slots=True)
class Front:
    """Envoy before an app, in the place of a server of its own.

    :param check: how it asks ``checker`` before it passes a request on. None: it doesn't.
    :param concurrency: its worker threads.
    """

    app: Peer
    check: Check = None
    checker: Peer | None = None
    concurrency: int = 1

    def command(self, directory: Path, name: str) -> list[str]:
        checker = None if self.checker is None else self.checker.socket(directory)
        return envoy.command(directory, name, self.app.socket(directory), self.check, checker, self.concurrency)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row.

    :param name: for the command line and the figures.
    :param title: for the table.
    :param serves: makes the app, in the process that serves it, from the directory of the peers' sockets; or what
        stands in front of one that a peer serves.
    :param needs: modules without which the row is left out; ``extra``: the extra that has them.
    """

    name: str
    title: str
    serves: Callable[[Path], ASGIApp] | Front
    peers: tuple[Peer, ...] = ()
    needs: tuple[str, ...] = ()
    extra: str = "benchmark"

    @property
    def available(self) -> bool:
        return all(is_there(module) for module in self.needs)


def is_there(module: str) -> bool:
    """Whether the module can be imported, as far as that can be seen without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Not even the package that it would be in.
        return False
