"""ApiKey, in front of an app."""

from collections.abc import Callable
from hashlib import sha256

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from asgi_agents import AgentConfig, AgentManager, ConfigurationError, protect
from asgi_agents.agents import ApiKey, hash_key
from asgi_agents.testing import request_headers_event

KEYS = {"open sesame": "alice", hash_key("møøse"): "bob", "sha256:" + sha256(b"spare key").hexdigest().upper(): "alice"}


def client_of(agent: ApiKey) -> TestClient:
    app = FastAPI()

    @app.get("/")
    async def headers(request: Request) -> list[tuple[str, str]]:
        return [(name, value) for name, value in request.headers.items() if name[:2] == "x-" or name[0] == "a"]

    protect(app, agents=[AgentConfig("api-key", agent, sets={"x-user"})])
    return TestClient(app, headers={"accept": "*/*", "accept-encoding": "identity"})


def seen(*others: tuple[str, str]) -> list[list[str]]:
    """What the app sees besides what every client sends."""
    return [["accept", "*/*"], ["accept-encoding", "identity"], *map(list, others)]


@pytest.mark.parametrize(
    ("key", "user"), [(b"open sesame", "alice"), ("møøse".encode(), "bob"), (b"spare key", "alice")]
)
def test_a_key_becomes_the_name_of_its_user_and_is_not_passed_on(key: bytes, user: str) -> None:
    answer = client_of(ApiKey(KEYS)).get("/", headers={b"x-api-key": key, b"x-user": b"root"})
    assert answer.json() == seen(("x-user", user))


def test_no_spelling_of_its_header_comes_from_a_client_whatever_the_configuration_names() -> None:
    app = FastAPI()

    @app.get("/")
    async def users(request: Request) -> list[str]:
        # As WSGI and CGI read it.
        return [value for name, value in request.headers.items() if name.replace("_", "-") == "x-user"]

    protect(app, agents=[AgentConfig("api-key", ApiKey(KEYS))])
    forged = {"x-api-key": "open sesame", "X-User": "root", "X_User": "root"}
    assert TestClient(app).get("/", headers=forged).json() == ["alice"]


def test_what_it_reads_itself_is_not_taken_from_it() -> None:
    agent = ApiKey(KEYS, header="x-key", user_header="X-Key")
    assert (agent.own_headers, ApiKey(KEYS, user_header="authorization").own_headers) == (set(), set())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": "open sesam"},
        {"x-api-key": "Open Sesame"},
        # The hash of a key is none.
        {"x-api-key": hash_key("spare key")},
        {"x-api-key": sha256(b"spare key").hexdigest()},
        {"authorization": "Bearer open sesame"},
        {"x-user": "alice"},
    ],
)
def test_whoever_has_no_key_gets_401(headers: dict[str, str]) -> None:
    answer = client_of(ApiKey(KEYS)).get("/", headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "ApiKey")


def test_a_key_may_come_as_a_bearer_token() -> None:
    client = client_of(ApiKey(KEYS, header="Authorization"))
    assert client.get("/", headers={"authorization": "bearer  open sesame"}).json() == seen(("x-user", "alice"))
    for given in ("Basic open sesame", "open sesame", "Bearer", "Bearer "):
        answer = client.get("/", headers={"authorization": given})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_key_that_no_server_would_pass_on_fails_nothing() -> None:
    answer = await ApiKey(KEYS).on_request_headers(request_headers_event(headers={"x-api-key": "møøse\ud800"}))
    assert not answer.is_allow


def test_keys_are_kept_as_hashes() -> None:
    agent = ApiKey({"open sesame": "alice"})
    manager = AgentManager([AgentConfig("api-key", agent)])
    assert "open sesame" not in repr(vars(agent))
    assert "open sesame" not in repr(manager)


def test_each_request_is_answered_without_a_suspension() -> None:
    with pytest.raises(StopIteration):
        ApiKey(KEYS).on_request_headers(request_headers_event()).send(None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "keys is empty"),
        (["a"], "keys is a list"),
        ({"": "alice"}, "keys contains a key that is empty, expected text that is not empty"),
        ({b"key": "alice"}, "keys contains a bytes for a key, expected text"),
        ({"sha256:abc": "alice"}, "no 64 hex digits"),
        ({"key": ""}, "the user ''"),
        ({"key": " alice"}, "the user ' alice'"),
        ({"key": "al\r\nice"}, r"the user 'al\\r\\nice'"),
        ({"key": "Łukasz"}, "the user 'Łukasz'"),
        ({"key": None}, "the user None"),
        ({"key": "alice", hash_key("key"): "bob"}, "one key is given to 'alice' and to 'bob'"),
    ],
)
def test_keys_that_can_not_work_are_a_configuration_error(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^ApiKey: .*{message}") as error:
        ApiKey(keys)
    assert "abc" not in str(error.value)


@pytest.mark.parametrize("name", ["host", "content-length", "sec-websocket-key", "x user", ""])
def test_a_header_that_no_agent_may_set_is_a_configuration_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="ApiKey: header="):
        ApiKey(KEYS, header=name)
    with pytest.raises(ConfigurationError, match="ApiKey: user_header="):
        ApiKey(KEYS, user_header=name)


def test_a_hash_may_be_written_in_capitals() -> None:
    hashed = hash_key("open sesame").upper()
    answer = client_of(ApiKey({hashed: "alice"})).get("/", headers={"x-api-key": "open sesame"})
    assert answer.json() == seen(("x-user", "alice"))


@pytest.mark.parametrize("change", [str, str.upper])
def test_a_hash_without_its_prefix_is_told_and_not_shown(
    change: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    digest = change(sha256(b"spare key").hexdigest())
    ApiKey({digest: "alice", "plain key": "bob", "a" * 63: "bob", "g" * 64: "bob"})
    (record,) = caplog.records
    assert "64 hex digits without 'sha256:'" in record.getMessage()
    assert digest not in record.getMessage()
