"""Starts the processes of all variants, and ends them."""

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from . import envoy
from .variant import Front, Peer, Variant

ROOT: Final = Path(__file__).parents[2]

_SECONDS_TO_START: Final = 30.0
# A cluster of Ray's takes some twenty on an idle machine, and minutes on a busy one.
_SECONDS_FOR_PEERS: Final = 300.0
# A cluster of Ray's has several processes to end.
_SECONDS_TO_STOP: Final = 20.0

_Process = subprocess.Popen[bytes]


class StartError(Exception):
    """A process that did not come up."""


@dataclass(frozen=True, slots=True)
class Server:
    """A variant that is being served on the loopback interface."""

    variant: Variant
    port: int
    pid: int
    peer_pids: tuple[int, ...]


@contextmanager
def serve(variants: Iterable[Variant]) -> Iterator[list[Server]]:
    """Serve all of them and their peers, until the end of the block, however it ends.

    :raises StartError: when one of them doesn't come up.
    """
    variants = tuple(variants)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="asgi-agents-")))
        # The servers, entered last, are ended first: they would miss their peers.
        peer_processes: list[_Process] = []
        stack.callback(_stop, peer_processes)
        server_processes: list[_Process] = []
        stack.callback(_stop, server_processes)

        peers: dict[Peer, _Process] = {}
        for variant in variants:
            for peer in variant.peers:
                if peer not in peers:
                    peers[peer] = _start(peer.command(directory), peer_processes)
        for peer, process in peers.items():
            _wait_for_peer(peer, process, directory)
        # All at once, and then waited for: their imports take most of the time.
        servers = [_start_server(variant, directory, peers, server_processes) for variant in variants]
        for server in servers:
            _wait_for_server(server)
        yield servers


@contextmanager
def started(peer: Peer, directory: Path, root: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Run one peer alone, until the end of the block, with its socket in ``directory``.

    :param root: where its modules are.
    :raises StartError: when it doesn't come up.
    """
    processes: list[_Process] = []
    try:
        process = _start(peer.command(directory), processes, root=root, environment=environment)
        _wait_for_peer(peer, process, directory)
        yield
    finally:
        _stop(processes)


def _start(
    command: list[str],
    processes: list[_Process],
    pass_fds: tuple[int, ...] = (),
    root: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> _Process:
    # In a group of its own: an interrupt from the keyboard is for the parent alone, which ends them in good order.
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdin=subprocess.DEVNULL, pass_fds=pass_fds, process_group=0
    )
    processes.append(process)
    return process


def _start_server(
    variant: Variant, directory: Path, peers: Mapping[Peer, _Process], processes: list[_Process]
) -> Server:
    pids = tuple(peers[peer].pid for peer in variant.peers if peer.works)
    if isinstance(variant.serves, Front):
        process = _start(variant.serves.command(directory, variant.name), processes)
        try:
            port = envoy.port(directory, variant.name, _SECONDS_TO_START)
        except TimeoutError as exc:
            raise StartError(str(exc)) from exc
        return Server(variant, port, process.pid, pids)
    # Closed here, so that it closes when the server dies and nobody waits for an answer from it.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        command = [sys.executable, "-m", "tests.benchmarks.server", variant.name, str(directory), str(fd)]
        process = _start(command, processes, pass_fds=(fd,))
        port = listener.getsockname()[1]
    return Server(variant, port, process.pid, pids)


def _wait_for_peer(peer: Peer, process: _Process, directory: Path) -> None:
    deadline = time.monotonic() + _SECONDS_FOR_PEERS
    while True:
        with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
            probe.connect(peer.socket(directory))
            return
        if process.poll() is not None:
            raise StartError(f"peer {peer.name!r} ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise StartError(f"peer {peer.name!r} did not listen within {_SECONDS_FOR_PEERS} s")
        time.sleep(0.02)


def _wait_for_server(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_SECONDS_TO_START)
    try:
        connection.request("GET", "/items/42")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        raise StartError(f"variant {server.variant.name!r} doesn't answer: {exc!r}") from exc
    finally:
        connection.close()
    if status != 200:
        raise StartError(f"variant {server.variant.name!r} answered {status}, expected 200")


def _stop(processes: list[_Process]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_STOP
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
