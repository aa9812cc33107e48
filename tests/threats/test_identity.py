"""Headers that say who a user is: the app never sees a client's own value, whatever becomes of the agent they are from.

Each owner of such headers, times each outcome of its call, times each kind of connection.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
import httpx
import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    CircuitBreakerConfig,
    EventType,
    ForwardAuthTransport,
    HeaderOp,
    RequestHeadersEvent,
)
from asgi_agents.agents import ApiKey, BasicAuth
from asgi_agents.protocol.headers import as_one_spelling
from tests.support.asgi import VIRTUAL_TIME, Client

# What the client sends everywhere; credentials and forgeries alike.
FORGED: Final = "forged"
# What the agent says of the user.
SAID: Final = "alice"

OUTCOMES: Final = ["says", "says nothing", "denies", "fails", "is late", "breaker open"]


@pytest.fixture(params=[VIRTUAL_TIME], ids=["virtual time"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Owning(Agent):
    """Sets a header, or leaves it out, or denies, or fails."""

    def __init__(self, name: str, *, reads: bool) -> None:
        self.outcome = ""
        self._name = name
        if reads:
            self.replaced_headers = {name}
        else:
            self.own_headers = {name}

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        assert (event.header(self._name) == FORGED) == bool(self.replaced_headers)
        match self.outcome:
            case "says":
                return AgentResponse.allow(request_headers=[HeaderOp.set(self._name, SAID)])
            case "says nothing":
                return None
            case "denies":
                return AgentResponse.block(403)
            case "is late":
                await anyio.sleep(3600)
        raise RuntimeError("it has failed")


class Failing(Agent):
    """Stands in for a ready-made agent that fails: all that is known of that is which headers are its own."""

    def __init__(self, agent: Agent) -> None:
        self.outcome = ""
        self.own_headers = agent.own_headers
        self.replaced_headers = agent.replaced_headers

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        if self.outcome == "is late":
            await anyio.sleep(3600)
        raise RuntimeError("it has failed")


class Service:
    """An authorization service."""

    def __init__(self, name: str) -> None:
        self.outcome = ""
        self._name = name

    async def answer(self, request: httpx.Request) -> httpx.Response:
        match self.outcome:
            case "says":
                return httpx.Response(200, headers={self._name: SAID})
            case "says nothing":
                return httpx.Response(200)
            case "denies":
                return httpx.Response(403)
            case "is late":
                await anyio.sleep(3600)
        return httpx.Response(503)


def of_agent(name: str, *, reads: bool, **options: Any) -> tuple[Any, dict[str, Any]]:
    agent = Owning(name, reads=reads)
    return agent, {"transport": agent, **options}


def of_config(name: str, field: str) -> tuple[Any, dict[str, Any]]:
    """As it is for agents elsewhere, of which only the configuration can say what is theirs."""
    agent = Owning(name, reads=field == "replaces")

    class Elsewhere:
        kind = "elsewhere"
        remote = True
        events = carries = frozenset({EventType.REQUEST_HEADERS})

        def may_suspend(self, event_type: EventType) -> bool:
            return True

        async def call(self, event: Any) -> Any:
            return await agent.on_request_headers(event)

        async def aclose(self) -> None:
            pass

    return agent, {"transport": Elsewhere(), field: {name}}


def of_service(name: str, style: Any = "forward_auth") -> tuple[Any, dict[str, Any]]:
    service = Service(name)
    mock = httpx.MockTransport(service.answer)
    transport = ForwardAuthTransport("http://sso/check", upstream_headers={name}, style=style, transport=mock)
    return service, {"transport": transport}


def of_ready_made(agent: Agent) -> tuple[Any, dict[str, Any]]:
    failing = Failing(agent)
    return failing, {"transport": failing}


def jwt(**options: Any) -> tuple[Any, dict[str, Any]]:
    pytest.importorskip("joserfc")
    from asgi_agents.agents import JwtAuth

    given = {"issuer": "https://id.example/", "audience": "shop", **options}
    return of_ready_made(JwtAuth("https://id.example/jwks.json", **given))


#: By what owns a header: the header, how it is made, and which outcomes it has.
OWNERS: Final[Mapping[str, tuple[str, Callable[[], tuple[Any, dict[str, Any]]], list[str]]]] = {
    "own_headers": ("x-user", lambda: of_agent("x-user", reads=False), OUTCOMES),
    "replaced_headers": ("x-user", lambda: of_agent("x-user", reads=True), OUTCOMES),
    "replaced authorization": ("authorization", lambda: of_agent("authorization", reads=True), OUTCOMES),
    "replaced cookie": ("cookie", lambda: of_agent("cookie", reads=True), OUTCOMES),
    "sets": ("x-user", lambda: of_config("x-user", "sets"), OUTCOMES),
    "replaces": ("authorization", lambda: of_config("authorization", "replaces"), OUTCOMES),
    "service": ("remote-user", lambda: of_service("Remote-User"), OUTCOMES),
    "service, authorization": ("authorization", lambda: of_service("Authorization"), OUTCOMES),
    "service, cookie": ("cookie", lambda: of_service("Cookie"), OUTCOMES),
    "service of Envoy": ("authorization", lambda: of_service("Authorization", "ext_authz"), OUTCOMES),
    "service of nginx": ("authorization", lambda: of_service("Authorization", "auth_request"), OUTCOMES),
    "ApiKey": ("x-user", lambda: of_ready_made(ApiKey({"key": SAID})), OUTCOMES[3:]),
    "ApiKey, the key": ("x-api-key", lambda: of_ready_made(ApiKey({"key": SAID})), OUTCOMES[3:]),
    "ApiKey, one header": (
        "x-key",
        lambda: of_ready_made(ApiKey({"key": SAID}, header="x-key", user_header="x-key")),
        OUTCOMES[3:],
    ),
    "ApiKey, authorization": (
        "authorization",
        lambda: of_ready_made(ApiKey({"key": SAID}, user_header="authorization")),
        OUTCOMES[3:],
    ),
    "BasicAuth": ("x-user", lambda: of_ready_made(BasicAuth(_hashed())), OUTCOMES[3:]),
    "BasicAuth, the password": ("authorization", lambda: of_ready_made(BasicAuth(_hashed())), OUTCOMES[3:]),
    "JwtAuth": ("x-user", jwt, OUTCOMES[3:]),
    "JwtAuth, the token": ("authorization", jwt, OUTCOMES[3:]),
    "JwtAuth, authorization": (
        "authorization",
        lambda: jwt(headers={"sub": "authorization"}, forward_token=True),
        OUTCOMES[3:],
    ),
    "JwtAuth, cookie": ("cookie", lambda: jwt(headers={"sub": "cookie"}), OUTCOMES[3:]),
}


def _hashed() -> dict[str, str]:
    from asgi_agents.agents import hash_password

    return {"alice": hash_password("secret")}


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("owner", "outcome"), [(owner, outcome) for owner, (_, _, outcomes) in OWNERS.items() for outcome in outcomes]
)
async def test_an_app_sees_what_the_agent_says_or_nothing(owner: str, outcome: str, kind: str) -> None:
    name, make, _ = OWNERS[owner]
    script, options = make()
    seen: list[list[str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append([value.decode() for each, value in scope["headers"] if as_one_spelling(each.decode()) == name])

    breaker = CircuitBreakerConfig(failure_threshold=1) if outcome == "breaker open" else None
    config = AgentConfig("owner", failure_mode="open", timeout=1.0, circuit_breaker=breaker, **options)
    guarded = AgentMiddleware(app, agents=[config])
    script.outcome = outcome
    for _ in range(2):
        client = _client(name, kind)
        given = client.scope["headers"]
        await client.call(guarded)
        # Middlewares around this one keep what the client has sent.
        assert client.scope["headers"] is given

    expected = {"says": [[SAID]] * 2, "denies": []}.get(outcome, [[], []])
    assert seen == expected
    if outcome == "breaker open":
        assert guarded.manager.metrics["owner"].outcomes["breaker_open"] == 1


def _client(name: str, kind: str) -> Client:
    spellings = {name, name.replace("-", "_"), name.title(), name.upper().replace("-", "_")}
    if name == "cookie":
        spellings = {name}
    client = Client(headers=[(spelling.encode(), FORGED.encode()) for spelling in sorted(spellings, reverse=True)])
    if kind == "websocket":
        del client.scope["method"]
        client.scope.update(type="websocket", subprotocols=[])
        client._inbox.clear()
        client._inbox.append({"type": "websocket.connect"})
    return client


async def test_a_client_has_no_other_limit_by_naming_another_user() -> None:
    """As the documentation has it: the agent that knows the user is before the limit on every route of the limit."""
    pytest.importorskip("limits")
    from asgi_agents.agents import RateLimit

    agents = [
        AgentConfig("api-key", ApiKey({"key": SAID, "other": "bob"})),
        AgentConfig("rate", RateLimit("2/minute", by="user"), after=["api-key"]),
    ]
    statuses = []
    middleware = AgentMiddleware(_well, agents=agents)
    for key, user in (("key", "a"), ("key", "b"), ("key", "c"), ("key", ""), ("other", SAID)):
        client = Client(headers=[(b"x-api-key", key.encode()), (b"x-user", user.encode())])
        await client.call(middleware)
        statuses.append(client.status)
    assert statuses == [200, 200, 429, 429, 200]


async def _well(scope: Scope, receive: Receive, send: Send) -> None:
    assert (b"x-user", SAID.encode()) in scope["headers"] or (b"x-user", b"bob") in scope["headers"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
