"""What `import asgi_agents` brings with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import asgi_agents
from asgi_agents import agents, transports
from tests.support.examples import the_first_is_short

# Packages that the package needs itself, with all that they import on their own.
_NEEDED = """
import anyio, anyio.lowlevel, anyio.streams.memory, anyio.streams.tls, msgspec, opentelemetry.context
from anyio.abc import SocketAttribute
import opentelemetry.metrics
import opentelemetry.trace.propagation.tracecontext
import starlette.applications
import starlette.datastructures, starlette.exceptions, starlette.requests, starlette.responses, starlette.routing
import starlette.websockets
"""
# What only some need: each of them takes longer to import than the package itself.
_LATER = [
    *("h11", "httpcore", "httptools", "httpx"),
    *("asgi_agents.files", "yaml"),
    *("envoy", "google.protobuf", "grpc", "ray"),
    *("opentelemetry.sdk", "prometheus_client", "trio", "uvicorn", "uvloop"),
]


def run(code: str) -> list[str]:
    """What ``code``, in a process of its own, leaves in ``out``, sorted."""
    code = f"import json, sys\nout = []\n{code}\nprint(json.dumps(sorted(out)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_what_only_some_need_is_not_imported() -> None:
    assert (
        run(f"import asgi_agents, asgi_agents.serve\nout = [name for name in {_LATER!r} if name in sys.modules]") == []
    )


def test_the_test_kit_is_not_imported_with_the_package() -> None:
    assert (
        run("import asgi_agents, asgi_agents.serve\nout = [n for n in sys.modules if 'asgi_agents.testing' in n]") == []
    )


def test_a_file_brings_what_it_needs_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "agents.toml"
    path.write_text('agents = [{id = "a", transport = "tcp://127.0.0.1:9", events = ["request_headers"]}]')
    code = f"import asgi_agents\nasgi_agents.load({str(path)!r})\nout = [n for n in {_LATER!r} if n in sys.modules]"
    assert run(code) == ["asgi_agents.files"]


def test_nothing_is_imported_beside_the_package_and_the_parts_of_others_that_it_needs() -> None:
    found = run(f"{_NEEDED}\nbefore = set(sys.modules)\nimport asgi_agents\nout = set(sys.modules) - before")
    others = {name for name in found if name.partition(".")[0] not in {"asgi_agents", *sys.stdlib_module_names}}
    assert others == set()


def test_what_finds_the_transports_of_others_is_imported_once_one_is_looked_for() -> None:
    new = "out = [name for name in ('importlib.metadata',) if name in sys.modules and name not in before]"
    assert run(f"{_NEEDED}\nbefore = set(sys.modules)\nimport asgi_agents\n{new}") == []


def test_agents_that_need_nothing_else_bring_nothing_else() -> None:
    code = (
        "from asgi_agents import Agent, AgentConfig, AgentMiddleware\n"
        "class Waf(Agent):\n"
        "    async def on_request_headers(self, event): ...\n"
        "AgentMiddleware(print, agents=[AgentConfig('a', Waf()), AgentConfig('b', 'tcp://127.0.0.1:9')])\n"
        f"out = [name for name in {_LATER!r} if name in sys.modules]"
    )
    assert run(code) == []


@pytest.mark.parametrize(
    "code",
    the_first_is_short(
        [
            "from asgi_agents import HttpTransport\nHttpTransport('http://127.0.0.1:9')",
            "from asgi_agents.transports import HttpTransport\nHttpTransport('http://127.0.0.1:9')",
            "import asgi_agents\nasgi_agents.HttpTransport('http://127.0.0.1:9')",
            "from asgi_agents import AgentConfig\nAgentConfig('a', 'http://127.0.0.1:9', events=['request_headers'])",
        ]
    ),
)
def test_an_agent_behind_http_brings_what_it_needs_when_it_is_configured_not_at_its_first_call(code: str) -> None:
    """An import takes longer than many calls may, and nothing else runs on the event loop meanwhile."""
    assert run(f"{code}\nout = [name for name in ('httpcore', 'httptools', 'httpx') if name in sys.modules]") == [
        "httpcore",
        "httptools",
        "httpx",
    ]


def test_an_agent_behind_grpc_brings_what_it_needs_when_it_is_configured_and_no_stubs_of_envoy() -> None:
    code = (
        "from asgi_agents import AgentConfig, GrpcTransport\nout = [n for n in ('grpc', 'google') if n in sys.modules]"
    )
    assert run(code) == []
    code = "from asgi_agents import AgentConfig\nAgentConfig('a', 'grpc://127.0.0.1:9')"
    found = "out = [n for n in ('envoy', 'google.protobuf', 'grpc', 'grpc.aio') if n in sys.modules]"
    assert run(f"{code}\n{found}") == ["google.protobuf", "grpc", "grpc.aio"]


def test_all_public_names_are_there() -> None:
    assert set(asgi_agents.__all__) <= set(dir(asgi_agents))
    assert all(getattr(asgi_agents, name) is not None for name in asgi_agents.__all__)
    assert run(
        "from asgi_agents import *\nout = [n for n in globals() if n[0] != '_' and n not in ('json', 'sys', 'out')]"
    ) == sorted(name for name in asgi_agents.__all__ if name[0] != "_")
    assert set(run("import asgi_agents\nout = dir(asgi_agents)")) >= set(asgi_agents.__all__)


@pytest.mark.parametrize("module", ["asgi_agents", "asgi_agents.transports"])
def test_a_name_that_does_not_exist_is_an_error_that_names_it(module: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'HttpTransprot'"):
        getattr(sys.modules[module], "HttpTransprot")  # noqa: B009


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("asgi_agents RateLimit", "from asgi_agents.agents import RateLimit"),
        ("asgi_agents TextGuardrail", "from asgi_agents.guardrails import TextGuardrail"),
        ("asgi_agents serve_grpc", "from asgi_agents.serve import serve_grpc"),
        ("asgi_agents agentConfig", "from asgi_agents import AgentConfig"),
        ("asgi_agents.agents OpenAPIValidation", "from asgi_agents.agents import OpenApiValidation"),
        ("asgi_agents.agents AgentConfig", "from asgi_agents import AgentConfig"),
        ("asgi_agents.transports AgentConfig", "from asgi_agents import AgentConfig"),
    ],
)
def test_a_name_that_is_elsewhere_or_misspelt_is_an_error_that_says_where_it_is(asked: str, told: str) -> None:
    package, name = asked.split()
    with pytest.raises(ImportError) as caught:
        exec(f"from {package} import {name}")  # noqa: S102 - the statement that users write
    assert str(caught.value) == f"cannot import name {name!r} from {package!r}; expected {told}"


def test_a_name_that_nobody_has_is_missing_as_everywhere() -> None:
    for package in (asgi_agents, agents, transports):
        # The last ones: attributes that tools look for, and what is no name.
        for name in ("Nothing", "__wrapped__", "_pytestfixturefunction", "a.b", ""):
            assert not hasattr(package, name)


@pytest.mark.parametrize("name", the_first_is_short(["secrets", "presidio", "opa", "modsecurity"]))
def test_modules_that_are_named_as_a_class_is_can_be_imported(name: str) -> None:
    code = f"from asgi_agents.agents import {name}\nout = [{name}.__name__]"
    assert run(code) == [f"asgi_agents.agents.{name}"]
