"""Authorization services over HTTP, named in a file."""

from pathlib import Path

import pytest

from asgi_agents import ForwardAuthTransport, load
from asgi_agents.errors import ConfigurationError

FILE = """
[[agents]]
id = "sso"
transport.address = "http://127.0.0.1:4180/oauth2/auth"
transport.style = "auth_request"
transport.upstream_headers = ["X-Auth-Request-Email"]
"""


def test_a_service_is_named_by_its_address(tmp_path: Path) -> None:
    path = tmp_path / "agents.toml"
    path.write_text(FILE)
    [agent] = load(path).agents
    assert isinstance(agent.transport, ForwardAuthTransport)
    assert agent.sets == {"x-auth-request-email"}


def test_a_mistake_in_it_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "agents.toml"
    path.write_text(FILE.replace('"auth_request"', '"nginx"'))
    with pytest.raises(ConfigurationError, match=r"agents\[0\]\.transport\.style: .*'forward_auth', 'auth_request'"):
        load(path)
