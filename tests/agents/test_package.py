"""What importing ready-made agents brings with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from asgi_agents import Agent, agents

MOST_LINES = 150


def run(code: str) -> str:
    """What ``code`` prints in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_does_not_import_them() -> None:
    assert run("import asgi_agents, sys\nprint([n for n in sys.modules if 'asgi_agents.agents' in n])") == "[]"


def test_importing_one_brings_neither_others_nor_extras() -> None:
    code = (
        "from asgi_agents.agents import ApiKey, GeoFilter, IpBan, JwtAuth, RateLimit\nimport sys\nIpBan()\n"
        "others = ('joserfc', 'limits', 'maxminddb', 'redis', 'asgi_agents.agents.basic_auth')\n"
        "print([n for n in others if n in sys.modules])"
    )
    assert run(code) == "[]"


def test_all_names_are_there() -> None:
    assert set(agents.__all__) <= set(dir(agents))
    assert all(getattr(agents, name) is not None for name in agents.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'ApiKeys'"):
        getattr(agents, "ApiKeys")  # noqa: B009


@pytest.mark.parametrize("name", [name for name in agents.__all__ if isinstance(getattr(agents, name), type)])
def test_a_class_is_an_agent(name: str) -> None:
    assert issubclass(getattr(agents, name), Agent)


@pytest.mark.parametrize("path", sorted(Path(agents.__path__[0]).rglob("*.py")), ids=lambda path: path.stem)
def test_a_file_of_an_agent_has_few_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
