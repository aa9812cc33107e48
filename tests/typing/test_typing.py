"""The public API has the types that users are told of: mypy and pyright agree with these files, strictly.

Both also refuse what the comments in them say they are to refuse.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def check(*command: str) -> str:
    """What a type checker prints that finds something; empty where it finds nothing."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.slow
def test_mypy_agrees() -> None:
    # Without the project's own configuration, which users don't have. What is imported is checked elsewhere.
    assert check("mypy", "--strict", "--config-file=", "--follow-imports=silent", str(HERE)) == ""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("basedpyright") is None, reason="pyright is not installed")
def test_pyright_agrees(tmp_path: Path) -> None:
    project = {
        "include": [str(HERE)],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    path = tmp_path / "pyrightconfig.json"
    path.write_text(json.dumps(project))
    assert check("basedpyright", "--project", str(path), "--pythonpath", sys.executable) == ""


def test_nothing_else_is_left_to_pyright() -> None:
    """The files say what a type checker is to refuse in the words of mypy, which pyright reads too."""
    texts = [path.read_text() for path in HERE.glob("*.py") if path != Path(__file__)]
    assert not any("pyright:" in text for text in texts)
    assert sum(text.count("# type: ignore[") for text in texts) > 30
