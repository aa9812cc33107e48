"""What the processes of an app leave for the status pages of one another."""

from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from ..observability.histograms import SIZE
from ..observability.history import SLOTS
from ..observability.worker_directory import MAX_BYTES, FileKind, WorkerDirectory
from .model import WorkerShare

# How many incidents of a kind are told of each agent, where all of them would be too much for a file.
_FEW: Final = 5

_decoder: Final = msgspec.json.Decoder(WorkerShare)


def encoded(share: WorkerShare) -> tuple[bytes, bool]:
    """The share for a file, and whether there are figures in it.

    Of what would be too much the latest incidents are in it. Where that is still too much there is nothing but the
    worker, as one that is silent.
    """
    status = share.status
    data = msgspec.json.encode(share)
    if len(data) <= MAX_BYTES:
        return data, True
    agents = [replace(agent, failures=agent.failures[:_FEW], denials=agent.denials[:_FEW]) for agent in status.agents]
    data = msgspec.json.encode(replace(share, status=replace(status, agents=agents)))
    if len(data) <= MAX_BYTES:
        return data, True
    worker = replace(status.worker, silent=True)
    status = replace(status, agents=(), routes=(), source=None, worker=worker, workers=(worker,))
    return msgspec.json.encode(replace(share, status=status, durations={})), False


def _decoded(data: bytes) -> WorkerShare:
    """A share that makes sense. Raises ValueError."""
    share = _decoder.decode(data)
    worker = share.status.worker
    counts = [slots for durations in share.durations.values() for slots in (*durations.slots, durations.held)]
    if (
        not 0 < worker.pid < 2**31
        or not 0 <= share.slot < 2**63
        or len(share.status.slots) != SLOTS
        or any(len(agent.slots) != SLOTS for agent in share.status.agents)
        or any(len(durations.slots) != SLOTS for durations in share.durations.values())
        or any(len(each) % 2 for each in counts)
        or any(not 0 <= index < SIZE for each in counts for index in each[::2])
        or any(count < 0 for each in counts for count in each[1::2])
    ):
        raise ValueError("expected the figures of a process")
    return share


_KIND: Final = FileKind("watched", "json", _decoded)


class SharedDirectory(WorkerDirectory[WorkerShare]):
    """The :class:`WorkerDirectory` of the status page."""

    def __init__(self, path: Path, watched_for: float) -> None:
        super().__init__(path, watched_for, _KIND)
