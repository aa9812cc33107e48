"""Workers that can't be started: in the beginning, and later."""

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import anyio
import pytest
from anyio import create_task_group, fail_after

from asgi_agents.serve.__main__ import main
from asgi_agents.serve.workers import WorkerMistake, Workers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="they are shell scripts")

# A worker that keeps the next one from being started.
LAST: Final = '#!/bin/sh\nchmod -x "$0"\nexit 1\n'
# One that serves until its parent closes its standard input.
SERVING: Final = '#!/bin/sh\ntouch "$0.serves"\nread line\n'


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="agents-") as path:
        yield Path(path)


def write(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what it waits for is in another process
        await anyio.sleep(0.01)


@pytest.mark.parametrize("there", [True, False])
def test_workers_that_cannot_be_started_are_one_line_and_exit_code_2(
    there: bool, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = place / "python"
    if there:
        write(python, SERVING, mode=0o644)
    (place / "lone_house.py").write_text("from asgi_agents import Agent\nclass Waf(Agent): ...\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "executable", str(python))
    assert main(["lone_house:Waf", "--workers", "3", "--bind", f"unix://{place}/waf.sock"]) == 2
    told = "Permission denied" if there else "No such file or directory"
    assert capsys.readouterr().err == f"error: a worker can't be started: '{python}': {told}\n"
    # Nothing is left behind.
    assert not (place / "waf.sock").exists()


async def test_a_worker_that_cannot_be_started_again_is_tried_again(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = write(place / "worker", LAST)
    workers = Workers([str(script)], [])
    told = f"a worker can't be started, and is tried again: '{script}': Permission denied"
    with caplog.at_level(logging.WARNING, "asgi_agents.serve"), fail_after(60):
        async with create_task_group() as tasks:
            tasks.start_soon(workers.run, 1)
            await until(lambda: told in caplog.messages)
            write(script, SERVING)
            await until(lambda: (place / "worker.serves").exists())
            workers.stop(30)
    assert caplog.messages[0] == "a worker has ended with exit code 1, another one follows"
    assert set(caplog.messages[1:]) == {told}


async def test_a_first_worker_that_cannot_be_started_is_raised(place: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await Workers([str(place / "nothing")], []).run(1)
    assert caught.group_contains(WorkerMistake, match="nothing': No such file or directory$")
