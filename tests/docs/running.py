"""Runs the code blocks of a page, in order."""

import contextlib
import importlib.util
import inspect
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import anyio
import trustme
from starlette.types import ASGIApp

from tests.support.servers import serve

from .installing import CONFTEST, missing_for
from .markdown import Block, blocks_of
from .pages import ROOT, name_of

#: The address that pages use for the app that they show.
SHOWN: Final = "http://127.0.0.1:8000"
BASH: Final = shutil.which("bash") or "bash"
# Seconds after which a command is taken to hang.
_PATIENCE: Final = 120.0
# Their levels and filters are those of before when a page has run.
_LOGGERS: Final = ("asgi_agents", "asgi_agents.audit")


class PageRun:
    """The run of one page, in a directory of its own.

    Python blocks share one namespace. One with a ``title`` is a file instead, which is imported; a file whose name
    begins with ``test_`` is for pytest, which runs in the end with no more packages than the pages name. Functions
    ``test_…`` of the namespace are called.
    ``console`` blocks are played against the ``app`` that was defined last.

    Marks, in a comment before the block: ``not run: REASON``; ``run by: FILE`` for one that those tests run, because it
    needs more than is installed here; ``from: FILE`` for a quotation, which is looked for in
    that file; ``output`` for what the Python blocks before have printed.

    :param runner: the file of tests whose blocks are run, where the page has any of ``run by``.
    """

    def __init__(self, page: Path, directory: Path, *, runner: str = "") -> None:
        self._page = page
        self._runner = runner
        self._directory = directory
        self._module = ModuleType("page_" + re.sub(r"\W", "_", name_of(page)))
        self._app: ASGIApp | None = None
        self._printed = ""
        self._tested: set[str] = set()

    def run(self) -> None:
        """All blocks, in order."""
        with self._set_up():
            for block in blocks_of(self._page.read_text()):
                if "not run" in block.marks or block.marks.get("run by", self._runner) != self._runner:
                    continue
                try:
                    self._run(block)
                except BaseException as exc:
                    exc.add_note(f"in the {block.language} block at {name_of(self._page)}:{block.line}")
                    raise
            if any(self._directory.glob("test_*.py")):
                (self._directory / "conftest.py").write_text(CONFTEST.format(missing=missing_for(self._page)))
                pytest(self._directory)

    @contextlib.contextmanager
    def _set_up(self) -> Iterator[None]:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self._directory / "ca.pem"))
        authority.issue_cert("app.internal").private_key_and_cert_chain_pem.write_to_path(
            str(self._directory / "client.pem")
        )
        modules, before = set(sys.modules), Path.cwd()
        levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        filters = {name: list(logging.getLogger(name).filters) for name in _LOGGERS}
        sys.modules[self._module.__name__] = self._module
        sys.path.insert(0, str(self._directory))
        os.chdir(self._directory)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
                logging.getLogger(name).filters[:] = filters[name]
            os.chdir(before)
            sys.path.remove(str(self._directory))
            del sys.modules[self._module.__name__]
            for name in set(sys.modules) - modules:
                if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(self._directory)):
                    del sys.modules[name]

    def _run(self, block: Block) -> None:
        if "from" in block.marks:
            assert is_quoted(block.code, (ROOT / block.marks["from"]).read_text()), "this is not in that file"
        elif "output" in block.marks:
            assert self._printed == block.code
            self._printed = ""
        elif block.language == "python":
            self._run_python(block)
        elif block.title is not None:
            (self._directory / block.title).write_text(block.code)
        elif block.language == "console":
            assert self._app is not None, "no block before has defined an app"
            play(block, self._app, self._directory)

    def _run_python(self, block: Block) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if block.title is not None:
                self._run_file(block.title, block.code)
            else:
                self._execute(block)
        self._printed += printed.getvalue()

    def _run_file(self, title: str, code: str) -> None:
        path = self._directory / title
        path.write_text(code)
        if path.name.startswith("test_"):
            return  # for pytest, in the end
        importlib.invalidate_caches()
        # Its size and time may be those of the version before.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
        sys.modules.pop(path.stem, None)
        module = importlib.import_module(path.stem)
        self._app = getattr(module, "app", self._app)

    def _execute(self, block: Block) -> None:
        namespace = vars(self._module)
        # The lines before, so that a traceback names those of the page.
        exec(compile("\n" * (block.line - 1) + block.code, str(self._page), "exec"), namespace)  # noqa: S102 - our own
        self._app = namespace.get("app", self._app)
        for name in [name for name in namespace if name.startswith("test_") and name not in self._tested]:
            self._tested.add(name)
            _await(namespace[name]())


def is_quoted(code: str, text: str) -> bool:
    """Whether the lines of ``code`` are in ``text``, one after the other: the same, but for an indentation of all."""
    wanted, lines = code.splitlines(), text.splitlines()
    return any(
        textwrap.dedent("\n".join(lines[start : start + len(wanted)])) == "\n".join(wanted)
        for start in range(len(lines) - len(wanted) + 1)
    )


def _await(result: Any) -> None:
    if inspect.isawaitable(result):

        async def wait() -> None:
            await result

        anyio.run(wait)


def pytest(directory: Path) -> None:
    """Run the tests of a directory as a reader would."""
    # The package's own plugin, and anyio's, which tests of coroutine functions need.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "anyio",
        "-p",
        "asgi_agents.testing.plugin",
    ]
    found = subprocess.run(
        command,
        cwd=directory,
        # The plugins that are installed here take longer to import than the tests take.
        env={**_environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def play(block: Block, app: ASGIApp, directory: Path) -> None:
    """Run the commands of a console block against ``app``; each expected line has to come, in order."""
    with serve(app) as url:
        for command, expected in commands_of(block.code):
            found = subprocess.run(
                [BASH, "-euo", "pipefail", "-c", command.replace(SHOWN, url.rstrip("/"))],
                cwd=directory,
                env=_environment(),
                check=False,
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
            )
            lines = iter(found.stdout.splitlines())
            for line in expected:
                assert any(_matches(line, shown.rstrip()) for shown in lines), (
                    f"{command}\nexpected the line {line!r}, got\n{found.stdout}{found.stderr}"
                )


def commands_of(code: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console block, and the lines that are shown behind each."""
    command: list[str] = []
    shown: list[str] = []
    for line in code.splitlines():
        if line.startswith("$ "):
            if command:
                yield "\n".join(command), shown
            command, shown = [line.removeprefix("$ ")], []
        elif command and command[-1].endswith("\\") and not shown:
            command.append(line)
        elif line.strip():
            shown.append(line.rstrip())
    assert command, "a console block begins with a command: $ curl ..."
    yield "\n".join(command), shown


def _matches(expected: str, shown: str) -> bool:
    """Whether that is the line; of a line that ends in ``...`` only the beginning is expected."""
    return shown.startswith(expected[:-3]) if expected.endswith("...") else shown == expected


def _environment() -> dict[str, str]:
    # `python` is the one that runs the tests.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # As wide as the pages, and without colours.
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "no_proxy": "127.0.0.1"}
