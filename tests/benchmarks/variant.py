"""What a row of the table is made of."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that apps talk to, listening on a Unix socket. Variants that name the same peer share its process.

    :param arguments: the Python interpreter's; ``{socket}`` stands for the path of the socket.
    """

    name: str
    arguments: tuple[str, ...]

    def socket(self, directory: Path) -> str:
        return str(directory / f"{self.name}.sock")

    def command(self, directory: Path) -> list[str]:
        return [sys.executable, *(argument.replace("{socket}", self.socket(directory)) for argument in self.arguments)]


@dataclass(frozen=True, slots=True)
class Variant:
    """One row.

    :param name: for the command line and the JSON file.
    :param title: for the table.
    :param app: makes the app, in the process that serves it, from the directory of the peers' sockets.
    :param needs: a module without which the row is left out.
    """

    name: str
    title: str
    app: Callable[[Path], ASGIApp]
    peers: tuple[Peer, ...] = ()
    needs: str | None = None

    @property
    def available(self) -> bool:
        return self.needs is None or find_spec(self.needs) is not None
