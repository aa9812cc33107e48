"""Where the package stands: low in the house, and loaded by whoever asks for it."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_what_judges_is_not_loaded_with_the_package() -> None:
    # A configuration names agents and windows. Framers, dialects and streams are for apps that have guardrails.
    code = (
        "import asgi_agents, sys; print([name for name in sys.modules if 'dialects' in name or name[-7:] == '.stream'])"
    )
    assert run(code) == "['asgi_agents.protocol.stream', 'asgi_agents.transports.stream']\n"


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
    assert outside <= {
        *("collections", "dataclasses", "functools", "hashlib", "importlib", "inspect", "json", "re", "typing"),
        *("msgspec", "agent", "errors", "messages", "protocol"),
    }
