"""Processes that serve the same sockets, and are replaced when they die."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import anyio
from anyio import create_task_group, move_on_after
from anyio.abc import Process

logger: Final = logging.getLogger("asgi_agents.serve")

# A worker that dies is replaced after 0.1 s, 0.2 s, ... up to 10 s, and after 0.1 s again once one has lived that long.
_FIRST_BACKOFF: Final = 0.1
_MAX_BACKOFF: Final = 10.0
# What a process says by its exit code that can't do what it was told.
_MISTAKE: Final = 2


class WorkerMistake(Exception):  # noqa: N818 - says whose it is
    """Workers can't be started, or can't do what they were told, and have said why."""


class Workers:
    """Keeps a number of processes running.

    :param fds: descriptors (on Windows: handles) that each of them inherits.
    """

    def __init__(self, command: Sequence[str], fds: Sequence[int]) -> None:
        self._command = command
        self._fds = fds
        self._processes: set[Process] = set()
        self._stopping = anyio.Event()
        self._patience = 0.0

    async def run(self, count: int) -> None:
        """Run ``count`` of them, until stopped. Raises :class:`WorkerMistake` for one that can't even begin."""
        async with create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(self._keep_one)

    def signal(self, signum: int) -> None:
        """Hand a signal on to all of them, unless it is the first: by that, :meth:`stop` closes their standard inputs.

        A service manager may send it to all processes of a service. With a signal of the parent's it would be their
        second one, which ends them at once. Windows has no signals for other processes: there a further one kills.
        """
        if not self._stopping.is_set():
            return
        for process in self._processes:
            if process.returncode is not None:
                continue
            if sys.platform != "win32":
                process.send_signal(signal.Signals(signum))
            else:
                process.kill()

    def stop(self, patience: float) -> None:
        """Replace none that end from now on, and kill those that haven't after ``patience`` seconds."""
        self._patience = patience
        self._stopping.set()

    async def _keep_one(self) -> None:
        backoff = _FIRST_BACKOFF
        first = True
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                process = await self._start_one()
            except OSError as exc:
                told = f"{self._command[0]!r}: {exc.strerror or exc}"
                if first:
                    raise WorkerMistake(f"a worker can't be started: {told}") from exc
                # Such as too many processes. The others serve on meanwhile.
                logger.warning("a worker can't be started, and is tried again: %s", told)
            else:
                code = await self._wait_for(process)
                if self._stopping.is_set():
                    return
                if first and code == _MISTAKE:
                    raise WorkerMistake("a worker could not begin; it has said why")
                if time.monotonic() - started > _MAX_BACKOFF:
                    backoff = _FIRST_BACKOFF
                logger.warning("a worker has ended with %s, another one follows", _describe(code))
            first = False
            with move_on_after(backoff):
                await self._stopping.wait()
            backoff = min(_MAX_BACKOFF, backoff * 2)

    async def _start_one(self) -> Process:
        # By its standard input it notices when this ends.
        return await anyio.open_process(
            self._command, stdin=subprocess.PIPE, stdout=None, stderr=None, **_inheriting(self._fds)
        )

    async def _wait_for(self, process: Process) -> int:
        self._processes.add(process)
        if self._stopping.is_set():
            # It was no process yet when the others were told.
            process.terminate()
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._kill_in_the_end, process)
                code = await process.wait()
                tasks.cancel_scope.cancel()
            return code
        finally:
            self._processes.discard(process)
            with anyio.CancelScope(shield=True):
                await process.aclose()

    async def _kill_in_the_end(self, process: Process) -> None:
        await self._stopping.wait()
        if process.stdin is not None:
            # What tells it to stop.
            with suppress(OSError, anyio.BrokenResourceError):
                await process.stdin.aclose()
        await anyio.sleep(self._patience)
        logger.warning("a worker has not ended in time, and is killed")
        process.kill()


def _inheriting(fds: Sequence[int]) -> dict[str, Any]:
    """How to start a process that inherits ``fds``, and that the terminal's Ctrl-C does not reach a second time."""
    if sys.platform != "win32":
        return {"pass_fds": fds, "start_new_session": True}
    for fd in fds:
        os.set_handle_inheritable(fd, True)
    startup = subprocess.STARTUPINFO(lpAttributeList={"handle_list": list(fds)})
    return {"startupinfo": startup, "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
