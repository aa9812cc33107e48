"""Processes that serve the same sockets, and are replaced when they die."""

import logging
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Final

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
    """Workers can't do what they were told; they have said why."""


class Workers:
    """Keeps a number of processes running."""

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
        """Hand a signal on to all of them."""
        for process in self._processes:
            if process.returncode is None:
                process.send_signal(signal.Signals(signum))

    def stop(self, patience: float) -> None:
        """Replace none that end from now on, and kill those that haven't after ``patience`` seconds."""
        self._patience = patience
        self._stopping.set()

    async def _keep_one(self) -> None:
        backoff = _FIRST_BACKOFF
        first = True
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run_one()
            if self._stopping.is_set():
                return
            if first and code == _MISTAKE:
                raise WorkerMistake("a worker could not begin; it has said why")
            first = False
            if time.monotonic() - started > _MAX_BACKOFF:
                backoff = _FIRST_BACKOFF
            logger.warning("a worker has ended with %s, another one follows", _describe(code))
            with move_on_after(backoff):
                await self._stopping.wait()
            backoff = min(_MAX_BACKOFF, backoff * 2)

    async def _run_one(self) -> int:
        # A session of its own, or a Ctrl-C would reach it twice; by its standard input it notices when this ends.
        process = await anyio.open_process(
            self._command,
            stdin=subprocess.PIPE,
            stdout=None,
            stderr=None,
            pass_fds=self._fds,
            start_new_session=True,
        )
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
        await anyio.sleep(self._patience)
        logger.warning("a worker has not ended in time, and is killed")
        process.kill()


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
