"""A pytest plugin: notes which test failed first, and from where the package was imported.

It is given with ``-p``, and writes to the file that the environment variable names.
"""

import json
import os
import sys
from pathlib import Path
from typing import Final

import pytest

from .defect import PACKAGE

#: The environment variable with the path of the file.
FILE: Final = "MUTATION_FIRST_FAILURE"

_failed: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _failed.append(f"{report.nodeid} (not to be collected)")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return  # the process that has started this one writes
    package = sys.modules.get(PACKAGE)
    found = {"failed": _failed[:1], "imported": None if package is None else package.__file__}
    Path(os.environ[FILE]).write_text(json.dumps(found))
