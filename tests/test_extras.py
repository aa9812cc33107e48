"""Without an extra, whatever needs it says so in one line, the same for all of them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[1]
EXTRAS: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


class Needing(NamedTuple):
    """What needs an extra.

    :ivar code: what does it; None: a command line.
    :ivar blocked: modules that come with the extra. Each of them is missing once.
    """

    extra: str
    who: str
    code: str
    blocked: tuple[str, ...]
    command: tuple[str, ...] = ()


_SERVED: Final = """
import anyio, main
from asgi_agents.serve import serve_grpc
anyio.run(serve_grpc, main.Waf(), "127.0.0.1:0")
"""
_RAY: Final = "from asgi_agents.transports.ray_serve import RayTransport\nRayTransport('ray://guards/Waf')"
NEEDING: Final = (
    Needing("geo", "GeoFilter", "agents.GeoFilter('x.mmdb', allow=['DE'])", ("maxminddb",)),
    Needing("jwt", "JwtAuth", "agents.JwtAuth('https://id.example/jwks', issuer='a', audience='b')", ("joserfc",)),
    Needing("modsecurity", "ModSecurity", "agents.ModSecurity(text='# none')", ("libmodsecurity",)),
    Needing("openapi", "OpenApiValidation", "agents.OpenApiValidation('x')", ("jsonschema_rs", "python_multipart")),
    Needing("presidio", "Presidio", "agents.Presidio()", ("presidio_analyzer",)),
    Needing("ratelimit", "RateLimit", "agents.RateLimit('1/minute')", ("limits",)),
    Needing("ratelimit", "IpBan", "agents.IpBan(storage='redis://h')", ("limits", "redis")),
    Needing("secrets", "Secrets", "agents.Secrets()", ("detect_secrets",)),
    Needing("prometheus", "asgi_agents.prometheus", "import asgi_agents.prometheus", ("prometheus_client",)),
    Needing(
        "prometheus",
        "asgi_agents.prometheus",
        "AgentManager([AgentConfig('a', 'unix:///a')]).export_prometheus()",
        ("prometheus_client",),
    ),
    Needing("yaml", "agents.yaml", "load('agents.yaml')", ("yaml",)),
    Needing(
        "grpc", "GrpcTransport: protocol='agent'", "GrpcTransport('grpc://h:1')", ("grpc", "google", "google.protobuf")
    ),
    Needing("grpc", "serve_grpc", "import asgi_agents.serve\nasgi_agents.serve.serve_grpc", ("grpc",)),
    Needing("grpc", "serve_grpc", _SERVED, ("google.protobuf",)),
    Needing("grpc", "Envoy's protocols", "GrpcTransport('grpc://h:1', protocol='ext_proc')", ("envoy",)),
    Needing("grpc", "Envoy's protocols", "GrpcTransport('grpc://h:1', protocol='ext_authz')", ("envoy",)),
    Needing("grpc", "Envoy's protocols", "import asgi_agents.serve.grpc.ext_authz", ("envoy",)),
    Needing("grpc", "Envoy's protocols", "import asgi_agents.serve.grpc.ext_proc", ("envoy",)),
    Needing("ray", "RayTransport", _RAY, ("ray",)),
    Needing("ray", "AgentConfig('a'): RayTransport", "AgentConfig('a', 'ray://guards/Waf')", ("ray",)),
    Needing(
        "ray", "agent_deployment", "from asgi_agents.ray import agent_deployment\nagent_deployment(Agent)", ("ray",)
    ),
    Needing("ray", "asgi_agents.ray", "", ("ray",), ("asgi_agents.ray", "main:Waf")),
    Needing("serve", "--http", "", ("uvicorn",), ("asgi_agents.serve", "main:Waf", "--http", "127.0.0.1:0")),
    *(
        Needing(
            "grpc", option, "", ("grpc", "google.protobuf"), ("asgi_agents.serve", "main:Waf", option, "127.0.0.1:0")
        )
        for option in ("--grpc", "--ext-proc", "--ext-authz")
    ),
)
#: Extras that nothing fails without, and why.
NEEDED_BY_NOTHING: Final = {
    "compression": "encodings that can't be read go by the settings of who would read them",
    "fast": "another HTTP client takes its place",
}
#: Extras for who works on the project.
FOR_DEVELOPERS: Final = {"bench-litellm", "benchmark", "compat", "docs", "example", "fuzz", "test"}
# A module that is there and can't be found: so it is where it is not installed, for imports and for `find_spec`.
_HIDE: Final = """
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name == {module!r} or name.startswith({module!r} + ".")
        return None if hidden else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
_CASES: Final = [(needing, module) for needing in NEEDING for module in needing.blocked]


def run(code: str, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text("from asgi_agents import Agent\nclass Waf(Agent): ...\n")
    (tmp_path / "agents.yaml").write_text("agents: []\n")
    return tmp_path


@pytest.mark.parametrize(
    ("needing", "module"),
    [
        # Each in a process of its own.
        pytest.param(each, module, id=f"{each.who} {module}", marks=[pytest.mark.slow] if number % 8 else [])
        for number, (each, module) in enumerate(_CASES)
    ],
)
def test_without_an_extra_one_line_says_what_to_install(needing: Needing, module: str, place: Path) -> None:
    code = _HIDE.format(module=module)
    if needing.command:
        name, *arguments = needing.command
        code += f"import runpy\nsys.argv = {['', *arguments]!r}\nrunpy.run_module({name!r}, run_name='__main__')"
    else:
        indented = "".join(f"    {line}\n" for line in needing.code.splitlines())
        code += (
            "from asgi_agents import *\nfrom asgi_agents import agents, ConfigurationError\n"
            f"try:\n{indented}except ConfigurationError as exc:\n    sys.exit(f'error: {{exc}}')"
        )
    done = run(code, place)
    assert done.returncode in (1, 2), done
    [line] = done.stderr.splitlines()
    expected = f" which is not installed; expected pip install 'asgi-agents[{needing.extra}]'"
    told = re.fullmatch(re.escape(f"error: {needing.who}: needs ") + r"([a-z0-9.-]+)," + re.escape(expected), line)
    assert told, line
    # What pip can be told, and not the name of a module.
    assert told[1] in {canonicalize_name(Requirement(each).name) for each in EXTRAS[needing.extra]}


def test_every_extra_is_in_the_table() -> None:
    known = {needing.extra for needing in NEEDING} | NEEDED_BY_NOTHING.keys() | FOR_DEVELOPERS
    assert known == EXTRAS.keys()


def test_a_version_without_what_is_imported_says_so_too(place: Path) -> None:
    (place / "joserfc").mkdir()
    for name in ("__init__", "errors", "jwk"):
        (place / "joserfc" / f"{name}.py").write_text("")
    done = run("from asgi_agents.agents import JwtAuth\nJwtAuth('https://a', issuer='a', audience='b')", place)
    [*_, line] = done.stderr.splitlines()
    assert line.startswith("asgi_agents.errors.ConfigurationError: JwtAuth: cannot import name ")
    assert line.endswith("; expected pip install 'asgi-agents[jwt]'")


def test_what_is_missing_of_the_package_itself_is_no_matter_of_an_extra(place: Path) -> None:
    code = _HIDE.format(module="asgi_agents.agents.tokens") + (
        "from asgi_agents.agents import JwtAuth\nJwtAuth('https://a', issuer='a', audience='b')"
    )
    assert run(code, place).stderr.splitlines()[-1].startswith("ModuleNotFoundError")


def test_nothing_else_has_words_of_its_own_for_it() -> None:
    for path in (ROOT / "asgi_agents").rglob("*.py"):
        if path.name != "extras.py":
            assert "pip install 'asgi-agents[" not in path.read_text(encoding="utf-8"), path
