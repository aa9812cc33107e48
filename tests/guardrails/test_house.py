"""Where the package stands: low in the house, and loaded by whoever asks for it."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_does_not_load_guardrails() -> None:
    code = "import asgi_agents, sys; print([name for name in sys.modules if 'guardrails' in name])"
    assert run(code) == "[]\n"


def test_guardrails_need_no_event_loop_and_nothing_above_them() -> None:
    code = """
import ast, pathlib, asgi_agents.guardrails as guardrails
for path in pathlib.Path(guardrails.__file__).parent.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            up = node.level - len(path.relative_to(pathlib.Path(guardrails.__file__).parent).parts)
            print(node.module if node.level == 0 or up > 0 else "")
        elif isinstance(node, ast.Import):
            print(*(alias.name for alias in node.names))
"""
    outside = {name.split(".")[0] for name in run(code).split()}
    assert outside <= {"collections", "functools", "hashlib", "json", "re", "typing", "msgspec", "errors", "protocol"}
