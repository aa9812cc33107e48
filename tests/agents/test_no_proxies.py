"""What the environment says of proxies is not for agents: whoever is on the way could answer in their place."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_agents
from asgi_agents import ConfigurationError
from asgi_agents.agents import JwtAuth, Opa
from asgi_agents.errors import AgentsError
from asgi_agents.testing import request_headers_event
from tests.support.servers import serve

from .issuer import EC, ISSUER, Issuer, token

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class Proxy:
    """Whatever it is asked for, it says that it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 502, "headers": []})
        await send({"type": "http.response.body"})


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, str]]:
    proxy = Proxy()
    with serve(proxy, lifespan="off") as url:
        for name in PROXIES:
            monkeypatch.setenv(name, url.rstrip("/"))
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield proxy, url.rstrip("/")


def jwt(url: str, **options: Any) -> JwtAuth:
    return JwtAuth(url, issuer=ISSUER, audience="shop", **options)


AGENTS: dict[str, Callable[[str], JwtAuth | Opa]] = {
    "jwt": lambda url: jwt(f"{url}/jwks.json"),
    "opa": lambda url: Opa(f"{url}/v1/data/app/authz"),
}


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "https://127.0.0.1:1"])
async def test_a_proxy_of_the_environment_is_not_asked(proxy: tuple[Proxy, str], agent: str, url: str) -> None:
    with pytest.raises(AgentsError):
        await AGENTS[agent](url).on_request_headers(
            request_headers_event(headers={"authorization": f"Bearer {token()}"})
        )
    assert proxy[0].asked == []


async def test_keys_come_through_a_proxy_that_is_named(proxy: tuple[Proxy, str]) -> None:
    event = request_headers_event(headers={"authorization": f"Bearer {token()}"})
    with Issuer(EC).serving() as issuer:
        assert (await jwt(issuer.url).on_request_headers(event)).is_allow
        with pytest.raises(AgentsError, match="the server has answered 502"):
            await jwt(issuer.url, proxy=proxy[1]).on_request_headers(event)
    assert len(proxy[0].asked) == 1


@pytest.mark.parametrize("given", ["", "proxy:3128", "socks5://proxy", "http://", "http://u:hunter2@[", 1])
def test_a_proxy_that_can_not_work_is_a_configuration_error(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^JwtAuth: proxy is no URL") as error:
        jwt("https://id.example/jwks", proxy=given)
    assert "hunter" not in str(error.value)


def test_no_client_trusts_the_environment() -> None:
    package = Path(asgi_agents.__file__).parent
    found = [
        (path.name, arguments)
        for path in sorted(package.rglob("*.py"))
        for arguments in re.findall(r"httpx\.(?:Async)?Client\(((?:[^()]|\([^()]*\))*)\)", path.read_text("utf-8"))
    ]
    assert {name for name, _ in found} >= {"key_sets.py", "opa_client.py"}
    assert [name for name, arguments in found if "trust_env=False" not in arguments] == []
