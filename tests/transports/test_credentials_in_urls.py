"""Where a URL is configured that can't be used, the message shows none of the credentials in it."""

from collections.abc import Callable
from typing import Any, Final

import pytest

from asgi_agents import AgentConfig, ConfigurationError, ForwardAuthTransport, HttpTransport, StreamTransport
from asgi_agents.agents import JwtAuth, Opa, RateLimit
from asgi_agents.guardrail_services import AgentgatewayWebhook, LiteLLMGuardrail, NeMoGuardrails, OpenAIModeration
from asgi_agents.transports import ray_serve

MARK: Final = "Zq9X"
SCHEMES: Final = ("http", "https", "htp", "redis", "tcp", "unix", "grpc", "grpcs", "grpc+unix", "ray", "", "HTTP")
REST: Final = (
    f"{MARK}@h",
    f"{MARK}@h:80/a",
    f"u:{MARK}@h:80/a",
    f":{MARK}@h",
    f"u:{MARK}@[::1]:80",
    f"u:{MARK}@[::1",
    f"u:{MARK}@h:99999/",
    f"{MARK}@",
    f"{MARK}@/run/x.sock",
    f"u:it's-{MARK}@h",
    f"u:a@{MARK}@h/a",
    f"u:%2F{MARK}@h/a/b/c",
    f"h/a?api_key={MARK}",
    f"h:x/a?sig={MARK}",
    f"u:p@h/a?access_token={MARK}",
    f"?token={MARK}",
)


def ray(url: str) -> object:
    # Without Ray.
    return ray_serve._parse(url)


def grpc(url: str) -> object:
    pytest.importorskip("grpc")
    from asgi_agents.transports.grpc import GrpcTransport

    return GrpcTransport(url)


MAKERS: Final[dict[str, Callable[[str], object]]] = {
    "http": HttpTransport,
    "forward_auth": ForwardAuthTransport,
    "stream": StreamTransport,
    "grpc": grpc,
    "ray": ray,
    "config": lambda url: AgentConfig("a", url, events=()),
    "configs": lambda url: AgentConfig("a", [url, f"{url}/"], events=()),
    "litellm": LiteLLMGuardrail,
    "agentgateway": AgentgatewayWebhook,
    "nemo": NeMoGuardrails,
    "openai": lambda url: OpenAIModeration(None, url=url),
    "opa": Opa,
    "jwks": lambda url: JwtAuth(jwks_url=url, issuer="i", audience="a"),
    "redis": lambda url: RateLimit("1/second", storage=url),
}


@pytest.mark.parametrize("rest", REST)
@pytest.mark.parametrize("maker", MAKERS)
def test_no_message_shows_them(maker: str, rest: str) -> None:
    for scheme in SCHEMES:
        url = f"{scheme}://{rest}"
        try:
            made: Any = MAKERS[maker](url)
        except ConfigurationError as exc:
            shown = f"{exc}"
        else:
            shown = f"{made!r} {getattr(made, 'address', '')}" if maker != "ray" else ""
        assert MARK not in shown, (url, shown)
