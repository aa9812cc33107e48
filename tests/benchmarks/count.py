"""A process whose instructions :mod:`.instructions` counts: ``python -m tests.benchmarks.count NAME TIMES``."""

import argparse
import asyncio
import gc
import itertools
import sys
import time
from pathlib import Path
from typing import Any, Final

# Seconds by which a clock has advanced whenever it is read: some ten readings are a request of 0.1 ms.
_STEP: Final = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.count", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("times", type=int)
    parser.add_argument("--socket", type=Path, default=Path("agent.sock"), help="of the agent in another process")
    options = parser.parse_args()
    _replace_clocks()
    # Not before: some of the package's modules look a clock up when they are imported.
    import asgi_agents

    from .counted import COUNTED

    found = Path(asgi_agents.__file__).parents[1]
    if found != Path.cwd():
        sys.exit(f"the package is that of {found}, expected that of {Path.cwd()}")
    # As `turns` does it: what was there before is not looked through.
    gc.collect()
    gc.freeze()
    asyncio.run(COUNTED[options.name].run(options.times, options.socket))


def _replace_clocks() -> None:
    """Let time depend on how often it is read, and not on how busy the machine is.

    Some work is done once in a millisecond or a second. With a real clock, a process that takes longer does more of it.
    These clocks are functions in C, as the real ones are: no frame of Python's is counted for a reading.
    """
    clocks: Any = time
    clocks.monotonic = clocks.perf_counter = itertools.count(1e6, _STEP).__next__
    clocks.time = itertools.count(1.8e9, _STEP).__next__
    clocks.time_ns = itertools.count(1_800_000_000_000_000_000, int(_STEP * 1e9)).__next__


if __name__ == "__main__":
    main()
