"""BasicAuth, in front of an app."""

from base64 import b64encode
from hashlib import scrypt
from threading import Event, Lock
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from asgi_agents import AgentConfig, AgentResponse, Block, Challenge, ConfigurationError, protect
from asgi_agents.agents import BasicAuth, hash_password
from asgi_agents.agents.passwords import PasswordHash
from asgi_agents.testing import request_headers_event


def cheap(password: str, ln: int = 1, r: int = 1, p: int = 1) -> str:
    """A hash that takes no time."""
    derived = scrypt(password.encode(), salt=b"0123456789", n=2**ln, r=r, p=p, dklen=32)
    salt, text = (b64encode(data).decode().rstrip("=") for data in (b"0123456789", derived))
    return f"$scrypt$ln={ln},r={r},p={p}${salt}${text}"


USERS = {"alice": cheap("open sesame"), "bob": cheap("pæss:wörd"), "eve": cheap("")}


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


async def ask(agent: BasicAuth, authorization: str | None) -> AgentResponse:
    headers = {} if authorization is None else {"authorization": authorization}
    return await agent.on_request_headers(request_headers_event(headers=headers))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passwords that were hashed."""
    passwords: list[str] = []
    verify = PasswordHash.verify

    def note(self: PasswordHash, password: str) -> bool:
        passwords.append(password)
        return verify(self, password)

    monkeypatch.setattr(PasswordHash, "verify", note)
    return passwords


def test_the_app_finds_the_name_and_never_the_password() -> None:
    app = FastAPI()

    @app.get("/")
    async def headers(request: Request) -> dict[str, str | None]:
        return {name: request.headers.get(name) for name in ("authorization", "x-user")}

    protect(app, agents=[AgentConfig("basic", BasicAuth(USERS, realm="The shop"), sets={"x-user"})])
    client = TestClient(app)
    assert client.get("/", auth=("alice", "open sesame")).json() == {"authorization": None, "x-user": "alice"}
    refused = client.get("/", auth=("alice", "open"), headers={"x-user": "alice"})
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == 'Basic realm="The shop", charset="UTF-8"'


@pytest.mark.parametrize(
    "given",
    [
        *(basic("alice", "open sesame"), basic("bob", "pæss:wörd"), basic("eve", "")),
        "basic " + basic("alice", "open sesame").removeprefix("Basic "),
        # Typed on another keyboard: the same letters, composed otherwise.
        basic("bob", "pæss:wo\u0308rd"),
    ],
)
async def test_a_right_password_is_allowed(given: str) -> None:
    assert (await ask(BasicAuth(USERS), given)).is_allow


@pytest.mark.parametrize(
    "given",
    [
        *(None, "", "Basic", "Basic ", "Bearer abc", basic("alice", "Open sesame"), basic("alice", "")),
        *(basic("mallory", "open sesame"), basic("mallory", ""), basic("", ""), basic("alice ", "open sesame")),
        "Basic " + b64encode(b"alice").decode(),
        "Basic " + b64encode(b"alice:\xff").decode(),
        *("Basic !!!!", "Basic YWxp Y2U=", "Basic YWxpY2U", "Basic æ", "Basic " + "A" * 100_000),
    ],
)
async def test_anything_else_is_a_challenge(given: str | None) -> None:
    answer = await ask(BasicAuth(USERS), given)
    assert isinstance(answer.decision, Challenge)
    wanted = "missing_credentials" if given is None else "wrong_credentials"
    assert answer.audit.reason_codes == (wanted,)


async def test_a_name_that_nobody_has_takes_as_long_as_one_that_somebody_has(checked: list[str]) -> None:
    agent = BasicAuth(USERS)
    await ask(agent, basic("mallory", "guess"))
    await ask(agent, basic("alice", "guess"))
    assert checked == ["guess", "guess"]


@pytest.mark.parametrize("costs", [{}, {"ln": 2}, {"r": 2}, {"p": 2}])
def test_hashes_of_different_costs_are_warned_of(costs: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    BasicAuth({"alice": cheap("a"), "bob": cheap("b", **costs)})
    assert [record.getMessage().partition(":")[2][:42] for record in caplog.records] == (
        [" the passwords are hashed at different cos"] if costs else []
    )


async def test_a_right_password_is_hashed_once_and_a_wrong_one_each_time(checked: list[str]) -> None:
    agent = BasicAuth(USERS)
    for _ in range(3):
        assert (await ask(agent, basic("alice", "open sesame"))).is_allow
        assert not (await ask(agent, basic("alice", "guess"))).is_allow
        # What is right for one user is not for another.
        assert not (await ask(agent, basic("bob", "open sesame"))).is_allow
    assert checked.count("open sesame") == 4
    assert checked.count("guess") == 3


async def test_a_right_password_is_remembered_for_so_long(checked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    agent = BasicAuth(USERS, remember=60)
    now = 1000.0
    monkeypatch.setattr("asgi_agents.agents.basic_auth.time", SimpleNamespace(monotonic=lambda: now))
    await ask(agent, basic("alice", "open sesame"))
    now += 59
    await ask(agent, basic("alice", "open sesame"))
    assert len(checked) == 1
    now += 2
    await ask(agent, basic("alice", "open sesame"))
    assert len(checked) == 2


async def test_a_flood_of_guesses_keeps_nobody_out_who_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = BasicAuth(USERS, max_checks=2)
    assert (await ask(agent, basic("alice", "open sesame"))).is_allow
    let_go, under_way, lock = Event(), 0, Lock()

    def slow(self: PasswordHash, password: str) -> bool:
        nonlocal under_way
        with lock:
            under_way += 1
        return let_go.wait(30) and False

    monkeypatch.setattr(PasswordHash, "verify", slow)
    async with anyio.create_task_group() as tasks:
        try:
            for _ in range(2):
                tasks.start_soon(ask, agent, basic("alice", "guess"))
            while under_way < 2:  # noqa: ASYNC110 - set by threads
                await anyio.sleep(0.001)
            refused = await ask(agent, basic("bob", "guess"))
            assert (await ask(agent, basic("alice", "open sesame"))).is_allow
        finally:
            let_go.set()
    assert isinstance(refused.decision, Block)
    assert (refused.decision.status, refused.decision.headers) == (503, {"retry-after": "1"})
    assert isinstance((await ask(agent, basic("bob", "guess"))).decision, Challenge)


def test_a_hash_is_of_its_password_alone_and_never_twice_the_same() -> None:
    text = hash_password("open sesame")
    assert text.startswith("$scrypt$ln=14,r=8,p=5$")
    parsed = PasswordHash.parse(text)
    assert parsed is not None
    assert parsed.verify("open sesame")
    assert not parsed.verify("open sesamE")
    assert not parsed.of_nobody().verify("open sesame")
    assert hash_password("open sesame") != text


def test_a_hash_that_others_have_made_is_taken() -> None:
    """A test vector of RFC 7914, section 12, as a PHC string."""
    derived = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    salt, text = (b64encode(data).decode().rstrip("=") for data in (b"SodiumChloride", derived))
    parsed = PasswordHash.parse(f"$scrypt$ln=14,r=8,p=1${salt}${text}")
    assert parsed is not None
    assert parsed.verify("pleaseletmein")
    assert not parsed.verify("pleaseletmeout")


def test_neither_passwords_nor_hashes_are_shown() -> None:
    agent = BasicAuth(USERS)
    assert "open sesame" not in repr(vars(agent))
    assert "derived" not in repr(vars(agent))


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({}, "users is empty"),
        ([("a", "b")], "users is a list"),
        ({"alice": "open sesame"}, "the password of 'alice' is not hashed"),
        ({"alice": "$scrypt$ln=99,r=8,p=1$aaaaaaaaaaaaaaaa$aaaaaaaaaaaaaaaaaaaaaa"}, "is not hashed"),
        ({"alice": "$scrypt$ln=0,r=8,p=1$aaaaaaaaaaaaaaaa$aaaaaaaaaaaaaaaaaaaaaa"}, "is not hashed"),
        ({"alice": "$scrypt$ln=2,r=0,p=1$aaaaaaaaaaaaaaaa$aaaaaaaaaaaaaaaaaaaaaa"}, "is not hashed"),
        ({"alice": "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$aaaa"}, "is not hashed"),
        ({"alice": None}, "is not hashed"),
        ({"a:b": cheap("x")}, "without a colon"),
        ({"": cheap("x")}, "the user ''"),
        ({"Łukasz": cheap("x")}, "the user 'Łukasz'"),
    ],
)
def test_users_that_can_not_work_are_a_configuration_error(users: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^BasicAuth: .*{message}") as error:
        BasicAuth(users)
    assert "sesame" not in str(error.value)


def test_a_realm_that_no_header_can_carry_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="BasicAuth: realm="):
        BasicAuth(USERS, realm="a\r\nb")
