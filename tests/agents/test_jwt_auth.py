"""JwtAuth, with a real server for the keys."""

import asyncio
import hmac
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trustme
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from joserfc import jws
from joserfc.jwk import ECKey
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from asgi_agents import (
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    Block,
    ConfigurationError,
    ConfigureEvent,
    FailureKind,
    protect,
)
from asgi_agents.agents import JwtAuth
from asgi_agents.agents.key_sets import MAX_JWKS_BYTES
from asgi_agents.errors import AgentUnavailableError
from asgi_agents.testing import request_headers_event
from tests.support.asgi import App, Client

from .issuer import EC, ED, ISSUER, OTHER_EC, Issuer, Key, claims, encoded, rsa, token

# Longer than any test takes.
PAST, FUTURE = timedelta(hours=-1), timedelta(hours=1)


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """For fetches from a server in a thread, however slow the machine is."""
    monkeypatch.setattr("asgi_agents.agents.jwks._PATIENCE", 60.0)
    monkeypatch.setattr("asgi_agents.agents.key_sets.TIMEOUT", 60.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Issuer]:
    with Issuer().serving() as serving:
        yield serving


@pytest.fixture
def issuer(server: Issuer) -> Issuer:
    server.keys, server.others, server.answer, server.asked = [EC, ED], [], None, 0
    server.wait = None
    return server


def agent_of(served: Issuer, **options: Any) -> JwtAuth:
    return JwtAuth(served.url, **{"issuer": ISSUER, "audience": "shop"} | options)


async def ask(agent: JwtAuth, given: str | None, **headers: str) -> AgentResponse:
    if given is not None:
        headers["authorization"] = f"Bearer {given}"
    return await agent.on_request_headers(request_headers_event(headers=headers))


def reason(answer: AgentResponse) -> str:
    """Why a request was denied; empty where it was not."""
    if answer.is_allow:
        return ""
    assert isinstance(answer.decision, Block)
    assert answer.decision.headers is not None
    assert answer.decision.headers["www-authenticate"].startswith("Bearer")
    (code,) = answer.audit.reason_codes
    return code


def operations(answer: AgentResponse) -> dict[str, str | None]:
    return {op.name: None if op.kind == "remove" else op.value for op in answer.request_headers}


# What is valid


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key": ED, "algorithm": "Ed25519"},
        {"key": ED, "algorithm": "EdDSA"},
        {"header": {"typ": "at+jwt"}},
        {"header": {"typ": "at+JWT", "x5t": "abc", "nonce": "fields that nobody knows mean nothing"}},
        {"aud": ["other", "shop"]},
        {"exp": FUTURE, "nbf": PAST},
        {"iat": None, "scope": None},
    ],
)
async def test_a_token_of_the_issuer_is_valid(issuer: Issuer, options: dict[str, Any]) -> None:
    answer = await ask(agent_of(issuer), token(**options))
    assert reason(answer) == ""
    assert operations(answer)["x-user"] == "alice"
    assert issuer.asked == 1


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
async def test_a_token_may_be_signed_by_an_rsa_key(issuer: Issuer, algorithm: str) -> None:
    issuer.keys.append(rsa())
    assert reason(await ask(agent_of(issuer), token(rsa(), algorithm=algorithm))) == ""


def test_the_app_finds_user_and_scopes_and_what_the_client_pretends_is_gone(issuer: Issuer) -> None:
    app = FastAPI()

    @app.get("/")
    async def headers(request: Request) -> dict[str, Any]:
        names = ("authorization", "x-user", "x-scopes", "x-org")
        metadata = dict(request.state.agents.routing_metadata)
        return {"metadata": metadata, **{name: request.headers.get(name) for name in names}}

    agent = agent_of(
        issuer, headers={"sub": "x-user", "scope": "x-scopes", "org": "x-org"}, metadata={"sub": "user", "n": "number"}
    )
    protect(app, agents=[AgentConfig("jwt", agent, sets={"x-user", "x-scopes", "x-org"}, timeout=30)])
    with TestClient(app, headers={"x-user": "root", "x-org": "root", "X-Scopes": "admin"}) as client:
        answer = client.get("/", headers={"authorization": f"Bearer {token(n=7, scope=None, scp=['a', 'b'])}"})
        assert answer.json() == {
            "authorization": None,
            "x-user": "alice",
            "x-scopes": "a b",
            "x-org": None,
            "metadata": {"user": "alice", "number": "7"},
        }
        refused = client.get("/")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_token_may_come_in_a_cookie(issuer: Issuer) -> None:
    agent = agent_of(issuer, cookie="token")
    assert reason(await ask(agent, None, cookie=f"a=b; token={token()}")) == ""
    assert reason(await ask(agent, None, cookie="a=b; token=")) == "missing_credentials"
    # The header counts, where there is one.
    assert reason(await ask(agent, "x", cookie=f"token={token()}")) == "malformed_token"


async def test_the_token_is_passed_on_where_that_is_asked_for(issuer: Issuer) -> None:
    assert "authorization" not in operations(await ask(agent_of(issuer, forward_token=True), token()))


async def test_required_scopes_are_all_needed(issuer: Issuer) -> None:
    agent = agent_of(issuer, scopes=["read", "write"])
    assert reason(await ask(agent, token(scope="admin write read"))) == ""
    for scopes in ("read", "", None, "readwrite", "READ WRITE"):
        answer = await ask(agent, token(scope=scopes))
        assert reason(answer) == "insufficient_scope"
        assert answer.decision == Block(
            403, None, {"www-authenticate": 'Bearer error="insufficient_scope", scope="read write"'}
        )


async def test_several_issuers_and_audiences_may_be_taken(issuer: Issuer) -> None:
    agent = agent_of(issuer, issuer=[ISSUER, "https://id-2.example/"], audience=["shop", "bank"])
    assert reason(await ask(agent, token(iss="https://id-2.example/", aud="bank"))) == ""
    assert reason(await ask(agent, token(iss="https://id-3.example/"))) == "wrong_claims"


# What is not


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"exp": PAST}, "expired_token"),
        ({"exp": None}, "wrong_claims"),
        ({"exp": "tomorrow"}, "wrong_claims"),
        ({"exp": float("nan")}, "wrong_claims"),
        ({"exp": float("inf")}, "wrong_claims"),
        ({"exp": 10**400}, "wrong_claims"),
        ({"nbf": FUTURE}, "wrong_claims"),
        ({"iat": FUTURE}, "wrong_claims"),
        ({"iss": "https://id.example"}, "wrong_claims"),
        ({"iss": "https://id.example/evil"}, "wrong_claims"),
        ({"iss": [ISSUER]}, "wrong_claims"),
        ({"iss": None}, "wrong_claims"),
        ({"aud": "shop2"}, "wrong_claims"),
        ({"aud": []}, "wrong_claims"),
        ({"aud": None}, "wrong_claims"),
        ({"aud": {"shop": 1}}, "wrong_claims"),
        ({"sub": "alice\r\nx-admin: 1"}, "unsendable_claim"),
        ({"sub": " alice"}, "unsendable_claim"),
        ({"sub": "Łukasz"}, "unsendable_claim"),
        ({"scope": None, "scp": ["read", "x admin"]}, "unsendable_claim"),
        ({"scope": 7}, "unsendable_claim"),
        ({"scope": {"admin": True}}, "unsendable_claim"),
    ],
)
async def test_a_token_whose_claims_are_wrong_is_refused(issuer: Issuer, changes: dict[str, Any], code: str) -> None:
    answer = await ask(agent_of(issuer), token(**changes))
    assert reason(answer) == code
    assert isinstance(answer.decision, Block)
    assert answer.decision.status == 401


async def test_leeway_is_for_clocks_that_differ(issuer: Issuer) -> None:
    patient, exact = agent_of(issuer, leeway=7200), agent_of(issuer, leeway=0)
    for given, code in ((token(exp=PAST), "expired_token"), (token(nbf=FUTURE, exp=2 * FUTURE), "wrong_claims")):
        assert reason(await ask(patient, given)) == ""
        assert reason(await ask(exact, given)) == code


def forged(header: Mapping[str, Any], secret: bytes | None) -> str:
    """A token that is signed with a shared secret, or with nothing."""
    signed = f"{encoded(header)}.{encoded(claims())}"
    signature = b"" if secret is None else hmac.digest(secret, signed.encode(), "sha256")
    return f"{signed}.{encoded(signature)}"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
async def test_a_token_that_is_not_signed_is_refused(issuer: Issuer, algorithm: str) -> None:
    agent = agent_of(issuer)
    for header in ({"alg": algorithm}, {"alg": algorithm, "kid": "ec"}):
        assert reason(await ask(agent, forged(header, None))) == "algorithm_not_allowed"
        assert reason(await ask(agent, forged(header, b"x"))) == "algorithm_not_allowed"
    assert issuer.asked == 0


async def test_a_public_key_is_no_secret_for_another_algorithm(issuer: Issuer) -> None:
    issuer.keys.append(rsa())
    agent = agent_of(issuer)
    pem = rsa().as_pem(private=False)
    for secret in (pem, pem.strip(), rsa().as_der(private=False), encoded(rsa().as_dict(private=False)).encode(), b""):
        assert reason(await ask(agent, forged({"alg": "HS256", "kid": "rsa"}, secret))) == "algorithm_not_allowed"
        # Nor is one taken for a signature with the right algorithm.
        assert reason(await ask(agent, forged({"alg": "RS256", "kid": "rsa"}, secret))) == "bad_signature"


async def test_a_key_is_used_with_an_algorithm_that_fits_it(issuer: Issuer) -> None:
    issuer.keys = []
    issuer.others = [{**rsa().as_dict(private=False), "alg": "RS256"}, {**EC.as_dict(private=False), "use": "enc"}]
    agent = agent_of(issuer)
    assert reason(await ask(agent, token(rsa(), algorithm="RS256"))) == ""
    assert reason(await ask(agent, token(rsa(), algorithm="PS256"))) == "bad_signature"
    assert reason(await ask(agent, token(rsa(), algorithm="RS512"))) == "bad_signature"
    assert reason(await ask(agent, token(EC))) == "unknown_key"
    assert reason(await ask(agent, token(EC, header={"kid": "rsa"}))) == "bad_signature"


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("turned", [False, True])
async def test_keys_of_several_types_may_have_one_id(issuer: Issuer, turned: bool, named: bool) -> None:
    keys: list[tuple[Key, str]] = [(rsa(), "RS256"), (EC, "ES256"), (ED, "Ed25519")]
    issuer.keys = []
    issuer.others = [{**key.as_dict(private=False), "kid": "2026"} for key, _ in keys]
    if turned:
        issuer.others.reverse()
    agent = agent_of(issuer)
    header = {"kid": "2026" if named else None}
    for key, algorithm in keys:
        assert reason(await ask(agent, token(key, algorithm=algorithm, header=header))) == ""
    assert reason(await ask(agent, token(OTHER_EC, header=header))) == "bad_signature"


async def test_only_algorithms_that_were_chosen_are_taken(issuer: Issuer) -> None:
    agent = agent_of(issuer, algorithms=["ES256"])
    assert reason(await ask(agent, token())) == ""
    assert reason(await ask(agent, token(ED, algorithm="Ed25519"))) == "algorithm_not_allowed"


async def test_a_secret_among_the_keys_is_no_key(issuer: Issuer) -> None:
    issuer.others = [{"kty": "oct", "kid": "secret", "k": encoded(b"0123456789abcdef")}]
    assert reason(await ask(agent_of(issuer), forged({"alg": "ES256", "kid": "secret"}, b"0123456789abcdef"))) == (
        "unknown_key"
    )


@pytest.mark.parametrize(
    "kid",
    [
        *("../../dev/null", "/dev/null", "ec' OR '1'='1", "ec\x00", "EC", "", "http://evil.example/jwks.json", "[]"),
        "x" * 4000,
    ],
)
async def test_a_key_id_is_looked_up_among_the_keys_and_nowhere_else(issuer: Issuer, kid: str) -> None:
    agent = agent_of(issuer)
    assert reason(await ask(agent, token(EC, header={"kid": kid}))) == "unknown_key"
    assert reason(await ask(agent, forged({"alg": "ES256", "kid": kid}, b""))) == "unknown_key"


@pytest.mark.parametrize("kid", [1, True, [], ["ec"], {}, {"ec": 1}, 1.5])
async def test_a_key_id_that_is_no_text_is_refused(issuer: Issuer, kid: object) -> None:
    assert reason(await ask(agent_of(issuer), forged({"alg": "ES256", "kid": kid}, b"x"))) == "malformed_token"


async def test_keys_and_urls_in_a_token_mean_nothing(issuer: Issuer) -> None:
    mallory = ECKey.generate_key("P-256", {"kid": "ec"})
    with Issuer(mallory).serving() as evil:
        for header in (
            {"jwk": mallory.as_dict(private=False)},
            {"jku": evil.url},
            {"x5u": evil.url},
            {"x5c": ["AA=="]},
        ):
            assert reason(await ask(agent_of(issuer), token(mallory, header=header))) == "bad_signature"
            assert reason(await ask(agent_of(issuer), token(mallory, header={"kid": "m", **header}))) == "unknown_key"
    assert evil.asked == 0


async def test_a_token_without_a_key_id_is_that_of_the_only_key(issuer: Issuer) -> None:
    anonymous = token(EC, header={"kid": None})
    assert reason(await ask(agent_of(issuer), anonymous)) == "unknown_key"
    issuer.keys = [EC]
    assert reason(await ask(agent_of(issuer), anonymous)) == ""


# The header of each begins with what a token begins with; none gets as far as its signature.
MALFORMED = {
    "empty": "",
    "dots": "..",
    "too few parts": "a.b",
    "letters": "a.b.c",
    "no ascii": "é.é.é",
    "nul": "\x00",
    "long": "A" * 100_000,
    "many parts": "." * 10_000,
    "list": f"{encoded([])}.{encoded({})}.x",
    "text": f"{encoded('alg')}.{encoded({})}.x",
    "number": f"{encoded(7)}.{encoded({})}.x",
    "no algorithm": f"{encoded({})}.{encoded({})}.x",
    "nested": f"{encoded(b'[' * 5000)}.{encoded({})}.x",
    "no JSON": f"{encoded(b'{')}.{encoded({})}.x",
    "list of algorithms": f"{encoded({'alg': ['ES256']})}.{encoded({})}.x",
    "critical": f"{encoded({'alg': 'ES256', 'kid': 'ec', 'crit': ['exp'], 'exp': 1})}.{encoded({})}.x",
    "unencoded": f"{encoded({'alg': 'ES256', 'kid': 'ec', 'b64': False, 'crit': ['b64']})}.x.x",
    "long header": f"{encoded({'alg': 'ES256', 'kid': 'ec', 'x': 'x' * 10_000})}.{encoded({})}.x",
    "long payload": f"{encoded({'alg': 'ES256', 'kid': 'ec'})}.{'A' * 50_000}.x",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_token_is_refused_and_asks_nobody(issuer: Issuer, name: str) -> None:
    assert reason(await ask(agent_of(issuer), MALFORMED[name])) in {
        *("malformed_token", "algorithm_not_allowed", "missing_credentials")
    }
    assert issuer.asked == 0


async def test_parts_too_many_or_too_few_are_no_token(issuer: Issuer) -> None:
    agent = agent_of(issuer)
    for given in (f"{token()}.x", token().rpartition(".")[0], f"{token()}."):
        assert reason(await ask(agent, given)) == "malformed_token"


async def test_a_signature_that_is_wrong_is_refused(issuer: Issuer) -> None:
    agent = agent_of(issuer)
    signed, _, signature = token().rpartition(".")
    header, payload = signed.split(".")
    for given in (
        f"{signed}.{signature[:-4]}AAAA",
        f"{signed}.",
        f"{signed}.{signature}{signature}",
        f"{header}.{encoded(claims(sub='root'))}.{signature}",
        f"{encoded({'alg': 'ES256', 'kid': 'ec', 'typ': 'JWT', 'x': 1})}.{payload}.{signature}",
        token(OTHER_EC, header={"kid": "ec"}),
    ):
        assert reason(await ask(agent, given)) == "bad_signature"


@pytest.mark.parametrize("payload", [b"[]", b"7", b"null", b"{", b'"iss"', b"\xff", b"[" * 20_000])
async def test_a_signed_payload_that_is_no_set_of_claims_is_refused(issuer: Issuer, payload: bytes) -> None:
    given = jws.serialize_compact({"alg": "ES256", "kid": "ec"}, payload, EC)
    assert reason(await ask(agent_of(issuer), given)) in {"wrong_claims", "bad_signature"}


@pytest.mark.parametrize("types", [("JWT", "at+jwt"), ("Application/JWT", "application/at+jwt")])
async def test_a_type_may_be_written_as_a_media_type(issuer: Issuer, types: tuple[str, ...]) -> None:
    agent = agent_of(issuer, types=types)
    for kind in ("JWT", "at+JWT", "application/at+jwt", "Application/jwt"):
        assert (await ask(agent, token(header={"typ": kind}))).is_allow


async def test_a_token_of_another_type_is_refused(issuer: Issuer) -> None:
    agent = agent_of(issuer)
    others = (
        "logout+jwt",
        "secevent+jwt",
        "dpop+jwt",
        "",
        "application/logout+jwt",
        "text/jwt",
        "application/",
        "a/at+jwt",
    )
    for kind in (*others, "application/application/jwt", " at+jwt", "/jwt"):
        assert reason(await ask(agent, token(header={"typ": kind}))) == "wrong_type"
    assert reason(await ask(agent, forged({"alg": "ES256", "kid": "ec", "typ": 7}, b"x"))) == "wrong_type"


@pytest.mark.parametrize("given", ["Basic YTpi", "Bearer", "Bearer ", "bearer:x", ""])
async def test_another_scheme_is_no_token(issuer: Issuer, given: str) -> None:
    event = request_headers_event(headers={"authorization": given})
    assert reason(await agent_of(issuer).on_request_headers(event)) in {"missing_credentials", "malformed_token"}


async def test_two_tokens_are_none(issuer: Issuer) -> None:
    """An app that sees the header might read the other one."""
    event = request_headers_event(headers={"authorization": [f"Bearer {token()}", f"Bearer {token(sub='root')}"]})
    assert reason(await agent_of(issuer, forward_token=True).on_request_headers(event)) == "missing_credentials"


# The keys, and where they come from


class Clock:
    """What time it is for the cache of keys."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("asgi_agents.agents.jwks.time", SimpleNamespace(monotonic=clock))
    return clock


async def fetched(issuer: Issuer, times: int) -> None:
    """Wait for a fetch that nobody else waits for."""
    with anyio.fail_after(30):
        while issuer.asked < times:  # noqa: ASYNC110 - a server in a thread
            await anyio.sleep(0.001)


async def test_keys_are_fetched_once_however_many_need_them(issuer: Issuer) -> None:
    agent = agent_of(issuer)
    answers: list[str] = []

    async def ask_once() -> None:
        answers.append(reason(await ask(agent, token())))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask_once)
    assert (answers, issuer.asked) == ([""] * 20, 1)


async def test_a_key_that_is_new_is_fetched_when_a_token_names_it(issuer: Issuer, clock: Clock) -> None:
    agent = agent_of(issuer)
    assert reason(await ask(agent, token())) == ""
    issuer.keys.append(OTHER_EC)
    clock.now += 31
    assert reason(await ask(agent, token(OTHER_EC))) == ""
    assert issuer.asked == 2


async def test_a_key_that_was_withdrawn_is_not_used_any_more(issuer: Issuer, clock: Clock) -> None:
    agent = agent_of(issuer)
    assert reason(await ask(agent, token(EC))) == ""
    issuer.keys.remove(EC)
    clock.now += 601
    # Nobody waits for the fetch: this request has the old keys, the next the new ones.
    assert reason(await ask(agent, token(EC))) == ""
    await fetched(issuer, 2)
    with anyio.fail_after(30):
        while reason(await ask(agent, token(EC))) != "unknown_key":  # noqa: ASYNC110 - as above
            await anyio.sleep(0.001)
    assert reason(await ask(agent, token(ED, algorithm="Ed25519"))) == ""


async def test_a_flood_of_made_up_key_ids_does_not_reach_the_issuer(issuer: Issuer, clock: Clock) -> None:
    agent = agent_of(issuer)
    assert reason(await ask(agent, token())) == ""
    for number in range(200):
        assert reason(await ask(agent, token(header={"kid": f"k{number}"}))) == "unknown_key"
        assert reason(await ask(agent, token())) == ""
    assert issuer.asked == 1
    for _ in range(5):
        clock.now += 31
        for number in range(20):
            assert reason(await ask(agent, token(header={"kid": f"k{number}"}))) == "unknown_key"
    assert issuer.asked == 6


ANSWERS: dict[str, Callable[[], Response]] = {
    "status": lambda: PlainTextResponse("down", 500),
    "text": lambda: PlainTextResponse("no JSON"),
    "nested": lambda: PlainTextResponse("[" * 100_000),
    "list": lambda: JSONResponse([]),
    "object": lambda: JSONResponse({"keys": {}}),
    "none": lambda: JSONResponse({"keys": []}),
    "unusable": lambda: JSONResponse(
        {"keys": [7, None, "x", {}, {"kty": "RSA"}, {"kty": "new"}, {"kty": "EC", "crv": "P-256", "x": 1}]}
    ),
    "secret": lambda: JSONResponse({"keys": [{"kty": "oct", "k": "AAAA"}]}),
    "redirect": lambda: RedirectResponse("http://127.0.0.1:1/"),
    "large": lambda: PlainTextResponse(" " * (MAX_JWKS_BYTES + 1)),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_issuer_without_keys_is_a_failure_and_no_401(issuer: Issuer, name: str, clock: Clock) -> None:
    issuer.answer = ANSWERS[name]()
    agent = agent_of(issuer)
    with pytest.raises(AgentUnavailableError, match=r"the JWKS of .* can't be fetched: "):
        await ask(agent, token())
    issuer.answer = None
    # It is not asked again at once, but soon.
    with pytest.raises(AgentUnavailableError):
        await ask(agent, token())
    assert issuer.asked == 1
    clock.now += 6
    assert reason(await ask(agent, token())) == ""


async def test_who_waits_for_an_issuer_that_is_slow_is_told_so_before_the_deadline(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is late counts for the breaker."""
    monkeypatch.setattr("asgi_agents.agents.jwks._PATIENCE", 0.01)
    agent, let_go = agent_of(issuer), threading.Event()
    issuer.wait = let_go.wait
    try:
        for _ in range(3):
            with pytest.raises(AgentUnavailableError, match="still being fetched"):
                await ask(agent, token())
    finally:
        let_go.set()
    with anyio.fail_after(30):
        await agent.on_configure(ConfigureEvent(agent_id="jwt"))
    assert reason(await ask(agent, token())) == ""
    assert issuer.asked == 1


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
async def test_keys_over_tls_are_those_of_a_server_that_is_trusted(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    with Issuer(EC).serving(ssl_certfile=str(tmp_path / "server.pem")) as served:
        served.url = served.url.replace("https", scheme)
        with pytest.raises(AgentUnavailableError, match="ConnectError"):
            await ask(agent_of(served), token())
        assert served.asked == 0
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert reason(await ask(agent_of(served), token())) == ""


async def test_an_issuer_that_never_answers_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_agents.agents.key_sets.TIMEOUT", 0.05)
    agent, let_go = agent_of(issuer), threading.Event()
    issuer.wait = let_go.wait
    try:
        with pytest.raises(AgentUnavailableError, match=r"the server has not answered within 0\.05 s"):
            await agent.on_configure(ConfigureEvent(agent_id="jwt"))
    finally:
        let_go.set()


def test_a_fetch_that_was_given_up_with_its_event_loop_is_made_again(issuer: Issuer, clock: Clock) -> None:
    """Some event loops are stopped, and neither run on nor closed."""
    agent, let_go = agent_of(issuer), threading.Event()
    issuer.wait = let_go.wait
    loop = asyncio.new_event_loop()
    first = loop.create_task(ask(agent, token()))
    while not issuer.asked:
        loop.run_until_complete(asyncio.sleep(0.001))
    let_go.set()
    issuer.wait = None
    clock.now += 11
    assert reason(anyio.run(ask, agent, token())) == ""
    assert issuer.asked == 2
    assert reason(loop.run_until_complete(first)) == ""
    loop.close()


async def test_keys_that_nobody_knows_don_t_spoil_the_others(issuer: Issuer) -> None:
    issuer.others = [
        {"kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AAAA"},
        {"kty": "RSA", "kid": "x", "n": 1},
    ]
    assert reason(await ask(agent_of(issuer), token())) == ""


async def test_while_the_issuer_is_down_known_keys_go_on_and_unknown_ones_are_no_401(
    issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asgi_agents")
    agent = agent_of(issuer)
    assert reason(await ask(agent, token())) == ""
    issuer.answer = PlainTextResponse("secret", 503)
    clock.now += 601
    for _ in range(3):
        assert reason(await ask(agent, token())) == ""
    await fetched(issuer, 2)
    with pytest.raises(AgentUnavailableError):
        await ask(agent, token(OTHER_EC))
    assert reason(await ask(agent, token())) == ""
    clock.now += 86_400
    with pytest.raises(AgentUnavailableError):
        await ask(agent, token())
    issuer.answer = None
    clock.now += 6
    assert reason(await ask(agent, token())) == ""
    place = issuer.url.split("/")[2]
    assert [record.getMessage() for record in caplog.records] == [
        f"JwtAuth: the JWKS of {place} can't be fetched: the server has answered 503",
        f"JwtAuth: the JWKS of {place} can be fetched again",
    ]


def test_where_it_fails_open_nobody_can_say_who_he_is() -> None:
    app = FastAPI()

    @app.get("/")
    async def users(request: Request) -> list[str]:
        return [name for name in request.headers if name.startswith(("x-", "x_"))]

    with Issuer(EC).serving() as issuer:
        pass
    agent = JwtAuth(issuer.url, issuer=ISSUER, audience="shop", headers={"sub": "x-sub"})
    protect(app, agents=[AgentConfig("jwt", agent, failure_mode="open", timeout=30)])
    forged = {"authorization": f"Bearer {token()}", "x-sub": "root", "X_Sub": "root", "x-other": "1"}
    answer = TestClient(app).get("/", headers=forged)
    assert (answer.status_code, answer.json()) == (200, ["x-other"])


def test_an_issuer_that_is_down_is_the_failure_mode_and_opens_no_breaker() -> None:
    with Issuer(EC).serving() as issuer:
        pass
    agent = JwtAuth(issuer.url, issuer=ISSUER, audience="shop")
    app = FastAPI()
    protect(app, agents=[AgentConfig("jwt", agent, sets={"x-user"}, timeout=30)])
    with TestClient(app) as client:
        for _ in range(30):
            answer = client.get("/", headers={"authorization": f"Bearer {token()}"})
            assert (answer.status_code, "www-authenticate" in answer.headers) == (503, False)
        assert issuer.asked == 0


async def test_whoever_sends_unknown_key_ids_opens_no_breaker_while_the_issuer_is_down(
    issuer: Issuer, clock: Clock
) -> None:
    agent = agent_of(issuer)
    async with AgentManager([AgentConfig("jwt", agent, timeout=30)]) as manager:
        middleware = AgentMiddleware(App(), manager=manager)
        issuer.answer = PlainTextResponse("", 500)
        clock.now += 31
        statuses = []
        for _ in range(40):
            client = Client(headers=[(b"authorization", b"Bearer " + token(OTHER_EC).encode())])
            await client.call(middleware)
            statuses.append(client.status)
        assert set(statuses) == {503}
        client = Client(headers=[(b"authorization", b"Bearer " + token().encode())])
        await client.call(middleware)
        assert client.status == 200
        outcomes = manager.metrics["jwt"].outcomes
        assert outcomes == {"unavailable": 40, "allow": 1} | outcomes
        assert FailureKind.BREAKER_OPEN not in outcomes


async def test_a_token_with_a_known_key_waits_for_nothing(issuer: Issuer) -> None:
    agent = agent_of(issuer)
    assert reason(await ask(agent, token())) == ""
    with pytest.raises(StopIteration):
        ask(agent, token()).send(None)


async def test_the_keys_are_there_when_the_app_has_started(issuer: Issuer) -> None:
    agent = agent_of(issuer)
    await agent.on_configure(ConfigureEvent(agent_id="jwt"))
    assert issuer.asked == 1
    assert reason(await ask(agent, token())) == ""
    assert issuer.asked == 1


# Configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jwks_url": "http://id.example/jwks"}, "plain HTTP from 'id.example'"),
        ({"jwks_url": "ftp://id.example/jwks"}, "jwks_url is no URL"),
        ({"jwks_url": "id.example"}, "jwks_url is no URL"),
        ({"jwks_url": "https://"}, "jwks_url is no URL"),
        ({"jwks_url": "https://[::1"}, "jwks_url is no URL"),
        ({"jwks_url": None}, "jwks_url is no URL"),
        ({"issuer": []}, "issuer is empty"),
        ({"issuer": ""}, "issuer is empty"),
        ({"issuer": None}, "issuer=None"),
        ({"audience": ()}, "audience is empty"),
        ({"algorithms": []}, "algorithms is empty"),
        ({"algorithms": ["HS256"]}, "algorithms contains 'HS256'"),
        ({"algorithms": ["none"]}, "algorithms contains 'none'"),
        ({"algorithms": ["RS128"]}, "algorithms contains 'RS128'"),
        ({"algorithms": "RS256"}, "algorithms='RS256', expected a list"),
        ({"scopes": "read"}, "scopes='read', expected a list"),
        ({"scopes": ['re"ad']}, "scopes contains what is no scope"),
        ({"headers": {"sub": "host"}}, "headers='host' belongs to the server"),
        ({"headers": ["sub"]}, "headers is a list"),
        ({"headers": {"sub": "x-user", "name": "X-User"}}, "headers has two claims for 'x-user'"),
        ({"headers": {"sub": "x-user", "name": "x_user"}}, "headers has two claims for 'x_user'"),
        ({"metadata": {"sub": 1}}, "metadata is a dict"),
        ({"cookie": 1}, "cookie=1"),
        ({"leeway": -1}, "leeway=-1"),
        ({"cooldown": 0}, "cooldown=0"),
        ({"max_age": 10}, "expected each at least as long"),
        ({"max_stale": 60}, "expected each at least as long"),
    ],
)
def test_what_can_not_work_is_a_configuration_error(options: dict[str, Any], message: str) -> None:
    given = {"jwks_url": "https://id.example/jwks", "issuer": ISSUER, "audience": "shop"} | options
    with pytest.raises(ConfigurationError, match=f"^JwtAuth: .*{message}"):
        JwtAuth(**given)


def test_a_url_with_credentials_is_not_quoted() -> None:
    with pytest.raises(ConfigurationError) as error:
        JwtAuth("http://user:hunter2@id.example/jwks?key=hunter3", issuer="a", audience="b")
    assert "hunter" not in str(error.value)
    JwtAuth("http://user:hunter2@id.example/jwks", issuer="a", audience="b", allow_http=True)
