"""What an ASGI scope says, in the agents' words."""

import re
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from asgi_agents import AgentConfig, AgentResponse, AuditRecord, HeaderOp, Route, protocol
from asgi_agents.exchange import scope as scopes
from tests.support.asgi import App, Client, Headers, Held, Probe, SlowProbe, body, guarded, settle

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def event(client: Client, traceparent: str | None = None) -> Any:
    return scopes.request_headers_event(client.scope, "id", "/{rest:path}", traceparent=traceparent)


# Headers


def test_the_first_of_several_values_is_taken_whatever_its_spelling() -> None:
    headers = [(b"a", b"0"), (b"X-One", b"1"), (b"x-one", b"2")]
    assert scopes.header(headers, b"x-one") == "1"
    assert scopes.header(headers, b"x-two") is None


def test_a_value_that_is_not_text_is_still_a_value() -> None:
    assert scopes.header([(b"x", b"\xff\xfe\x00")], b"x") == "\xff\xfe\x00"


async def test_values_that_are_not_utf_8_reach_the_agents(probe: type[Probe]) -> None:
    agent, app = probe(request_headers=None), App()
    headers = [(b"x-bad", b"\xff\xfe"), (b"x-bad", b"\xc3\x28"), (b"X-\xff", b"1")]
    await Client(headers=headers).call(guarded(app, AgentConfig("a", agent)))
    (heard,) = agent.of("request_headers")
    assert heard.headers["x-bad"] == ("\xff\xfe", "\xc3\x28")
    assert heard.headers["x-\xff"] == ("1",)
    assert app.headers == headers


class OneAtATime:
    """Neither a list nor a tuple, but it can be read more than once."""

    def __init__(self, headers: Headers) -> None:
        self._headers = tuple(headers)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._headers)


@pytest.mark.parametrize("given", [list, tuple, iter, OneAtATime, lambda pairs: (pair for pair in pairs)])
@pytest.mark.parametrize("asks", ["nothing", "heads", "bodies", "everything"])
async def test_headers_that_can_be_read_only_once_reach_agents_audit_and_app(
    probe: type[Probe], given: Callable[[Headers], Headers], asks: str
) -> None:
    headers = [(b"content-length", b"4"), (b"accept", b"application/json"), (b"x-mine", b"1"), (b"x-mine", b"2")]
    reactions: dict[str, dict[str, Any]] = {
        "nothing": {},
        "heads": {"request_headers": None},
        "bodies": {"request_body": None},
        "everything": dict.fromkeys(
            ("request_headers", "request_body", "response_headers", "response_body", "complete")
        ),
    }
    records: list[AuditRecord] = []
    app, client, agent = App(), Client("POST", body=b"body", headers=headers), probe(**reactions[asks])
    client.scope["headers"] = given(headers)
    options: dict[str, Any] = {"audit_headers": ["x-mine"], "on_audit": records.append, "default_agents": ["a"]}
    if asks == "nothing":
        agent = probe(request_headers=None)
        options = {"routes": [Route("/elsewhere", agents=["a"])]}
    await client.call(guarded(app, AgentConfig("a", agent), **options))
    assert client.status == 200
    assert app.headers == headers
    assert app.body == b"body"
    for event in agent.of("request_headers"):
        assert event.headers == {"content-length": ["4"], "accept": ["application/json"], "x-mine": ["1", "2"]}
    assert [record.headers for record in records] == ([] if asks == "nothing" else [{"x-mine": "1, 2"}])


async def test_headers_that_can_be_read_only_once_are_there_for_nested_middlewares_and_those_around() -> None:
    headers = [(b"x-mine", b"1")]
    app, client, inner, outer = App(), Client(), Probe(request_headers=None), Probe(request_headers=None)
    client.scope["headers"] = iter(headers)
    await client.call(guarded(guarded(app, AgentConfig("inner", inner)), AgentConfig("outer", outer)))
    for agent in (inner, outer):
        assert agent.of("request_headers")[0].headers == {"x-mine": ["1"]}
    assert app.headers == client.scope["headers"] == headers


async def test_headers_that_can_be_read_only_once_are_changed_and_answered_by() -> None:
    app, client = App(), Client(headers=[])
    client.scope["headers"] = iter([(b"x-mine", b"1")])
    answer = AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])
    await client.call(guarded(app, AgentConfig("a", Probe(request_headers=answer))))
    assert app.headers == [(b"x-mine", b"1"), (b"x-user", b"alice")]

    client = Client()
    client.scope["headers"] = iter([(b"accept", b"application/json")])
    await client.call(guarded(App(), AgentConfig("a", Probe(request_headers=AgentResponse.block()))))
    assert client.header(b"content-type") == b"application/problem+json"


async def test_headers_of_a_response_that_can_be_read_only_once_reach_agents_and_client(probe: type[Probe]) -> None:
    for reactions in ({"request_headers": None}, {"response_headers": None}, {"response_body": None}):
        agent = probe(**reactions)
        app = App({"type": "http.response.start", "status": 200, "headers": iter([(b"x-mine", b"1")])}, body(b"hello"))
        client = Client()
        await client.call(guarded(app, AgentConfig("a", agent), expose_correlation_id=True))
        assert client.header(b"x-mine") == b"1"
        assert client.body == b"hello"


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (b"0", 0),
        (b"12", 12),
        (b"007", 7),
        (b"9" * 18, 10**18 - 1),
        (b"9" * 19, None),
        (b"", None),
        (b"-1", None),
        (b"+1", None),
        (b"1.0", None),
        (b"0x10", None),
        (b" 1", None),
        (b"1, 1", None),
        (b"1_0", None),
        (b"\xb2", None),
    ],
    ids=repr,
)
def test_a_declared_length_is_a_number_or_nothing(value: bytes, length: int | None) -> None:
    assert scopes.declared_length([(b"Content-Length", value)]) == length


def test_no_content_length_declares_nothing() -> None:
    assert scopes.declared_length([]) is None


def test_a_content_length_of_thousands_of_digits_is_no_error() -> None:
    assert scopes.declared_length([(b"content-length", b"9" * 5000)]) is None


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([(b"content-length", b"4"), (b"content-length", b"4")], 4),
        ([(b"content-length", b"4"), (b"Content-Length", b"5")], None),
        ([(b"content-length", b"4"), (b"content-length", b"4"), (b"content-length", b"5")], None),
        ([(b"content-length", b"4"), (b"transfer-encoding", b"chunked")], None),
        ([(b"transfer-encoding", b"chunked"), (b"content-length", b"4")], None),
        ([(b"Transfer-Encoding", b"identity"), (b"content-length", b"4")], None),
        ([(b"x-content-length", b"4")], None),
        ([(b"content-lengtH", b"4"), (b"accept-language", b"5")], 4),
    ],
)
def test_a_content_length_says_nothing_beside_transfer_encoding_or_another(
    headers: Headers, length: int | None
) -> None:
    assert scopes.declared_length(headers) == length


@pytest.mark.parametrize(
    ("http_version", "headers", "possible"),
    [
        ("1.1", [], False),
        ("1.0", [], False),
        ("1.1", [(b"content-length", b"0")], True),
        ("1.1", [(b"content-length", b"1")], True),
        ("1.1", [(b"transfer-encoding", b"chunked")], True),
        ("1.1", [(b"Transfer-Encoding", b"")], True),
        ("1.1", [(b"content-length", b"0"), (b"transfer-encoding", b"chunked")], True),
        ("1.1", [(b"content-length", b"nonsense")], True),
        ("2", [], True),
        ("2", [(b"content-length", b"0")], True),
        ("3", [], True),
        ("2", [(b"content-length", b"1")], True),
    ],
)
def test_a_head_says_whether_a_body_may_follow(http_version: str, headers: Headers, possible: bool) -> None:
    client = Client(http_version=http_version)
    client.scope["headers"] = headers
    assert scopes.may_have_body(client.scope) is possible


def test_a_request_without_a_version_and_headers_has_no_body() -> None:
    assert not scopes.may_have_body({"type": "http"})


@pytest.mark.parametrize(
    ("scope", "certain"),
    [
        ({}, True),
        ({"http_version": "1.0", "headers": []}, True),
        ({"http_version": "1.1", "headers": None}, True),
        ({"http_version": "1.1", "headers": [(b"host", b"app.example")]}, False),
        ({"http_version": "2", "headers": []}, False),
        ({"http_version": "3"}, False),
    ],
)
def test_only_a_head_of_http_1_without_any_field_makes_it_certain(scope: dict[str, Any], certain: bool) -> None:
    assert scopes.certainly_bodiless(scope) is certain


# Ids


@pytest.mark.parametrize("given", [b"abc-123", b"a", b"x" * 128, b"0.1_2~3!"])
async def test_a_sane_request_id_names_the_connection(given: bytes) -> None:
    agent = Probe(request_headers=None, complete=None)
    await Client(headers=[(b"X-Request-ID", given)]).call(guarded(App(), AgentConfig("a", agent)))
    assert [heard.correlation_id for heard in agent.of("request_headers") + agent.of("complete")] == [
        given.decode()
    ] * 2


async def test_connections_at_the_same_time_never_share_a_correlation_id() -> None:
    """Agents keep their state by it, and transports may match answers by it."""
    held = Held()
    agent = SlowProbe(request_headers=held)
    middleware = guarded(App(), AgentConfig("a", agent))
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(Client(headers=[(b"x-request-id", b"same")]).call, middleware)
        await settle()
        held.gate.set()
    first, second = agent.of("request_headers")
    assert first.correlation_id != second.correlation_id


@pytest.mark.parametrize(
    "given", [None, b"", b"x" * 129, b"two words", b"a\nb", b"caf\xe9", b"\xff", b'"quoted"', b"a/b", b"a\n"], ids=repr
)
def test_no_other_request_id_is_taken(given: bytes | None) -> None:
    client = Client(headers=[] if given is None else [(b"x-request-id", given)])
    assert scopes.given_correlation_id(protocol.Headers.from_raw(client.scope["headers"])) is None


def test_new_ids_are_different_and_sort_by_time() -> None:
    before = time.time_ns() // 1_000_000
    ids = [scopes.new_id() for _ in range(100)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 100
    for given in ids:
        assert UUID7.match(given)
        assert before <= int(given.replace("-", "")[:12], 16) <= after


def test_ids_and_timestamps_follow_the_clock_wherever_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the requests of a millisecond have in common is written once, and no longer than that."""
    second = 1_800_000_000_000_000_000
    readings = [second, second + 999_999, second + 1_000_000, second + 999_999_999, second + 10**9, second - 1, second]
    told = []
    for now in readings:
        monkeypatch.setattr(scopes, "time", SimpleNamespace(time_ns=lambda now=now: now))
        made = scopes.request_headers_event({"type": "http", "path": "/"}, None, None).metadata
        given = scopes.request_headers_event({"type": "http", "path": "/"}, "id", None).metadata
        assert made.timestamp == given.timestamp == scopes.timestamp(now)
        assert made.correlation_id == made.request_id
        told.append((made.timestamp[17:], int(made.correlation_id.replace("-", "")[:12], 16)))
    milliseconds = [now // 1_000_000 for now in readings]
    seconds = ["00.000", "00.000", "00.001", "00.999", "01.000", "59.999", "00.000"]
    assert told == [(f"{text}+00:00", number) for text, number in zip(seconds, milliseconds, strict=True)]


async def test_each_request_has_an_id_of_its_own_beside_the_correlation_id() -> None:
    agent = Probe(request_headers=None)
    app = guarded(App(), AgentConfig("a", agent))
    for _ in range(2):
        await Client(headers=[(b"x-request-id", b"same")]).call(app)
    first, second = agent.of("request_headers")
    assert first.correlation_id == second.correlation_id == "same"
    assert first.metadata.request_id != second.metadata.request_id
    assert UUID7.match(first.metadata.request_id)


# URIs


@pytest.mark.parametrize(
    ("path", "raw_path", "query", "uri"),
    [
        ("/a", b"/a", b"", "/a"),
        ("/a b", b"/a%20b", b"q=1&q=2", "/a%20b?q=1&q=2"),
        ("/a/b", b"/a%2Fb", b"", "/a%2Fb"),
        ("/a b", None, b"x", "/a%20b?x"),
        ("/caf\xe9", None, b"", "/caf%C3%A9"),
        ("/\udcff", None, b"", "/%ED%B3%BF"),
        ("/\xff", b"/\xff", b"\xfe", "/%C3%BF?\xfe"),
        ("*", b"*", b"", "*"),
        ("/a", b"/a?x", b"x", "/a?x"),
        ("/new", b"/old", b"x", "/new?x"),
        ("/../etc", b"/%2e%2e/etc", b"", "/%2e%2e/etc"),
    ],
)
def test_a_uri_is_path_and_query_as_received(path: str, raw_path: bytes | None, query: bytes, uri: str) -> None:
    client = Client(path="/")
    client.scope.update(path=path, raw_path=raw_path, query_string=query)
    assert event(client).uri == uri


def test_a_scope_without_raw_path_and_query_has_a_uri() -> None:
    assert scopes.uri({"type": "http", "path": "/a b"}) == "/a%20b"


@pytest.mark.parametrize(
    ("path", "status"),
    [("http://other.example/secret", 400), ("*", 403), ("secret", 400), ("//secret", 403), ("/\n/secret", 403)],
)
async def test_a_target_of_unusual_form_does_not_lead_past_a_route_for_everything(path: str, status: int) -> None:
    app, client = App(), Client()
    client.scope.update(path=path, raw_path=path.encode())
    agent = Probe(request_headers=AgentResponse.block())
    await client.call(guarded(app, AgentConfig("a", agent), routes=[Route("/{rest:path}", agents=["a"])]))
    assert client.status == status
    assert app.calls == 0


# The event


def test_an_event_tells_all_that_the_scope_does() -> None:
    client = Client("PUT", "/a", headers=[(b"host", b"app.example:8080"), (b"x", b"1")], http_version="2")
    client.scope["extensions"] = {"tls": {"tls_version": 0x0304, "cipher_suite": 0x1301}}
    told = event(client)
    metadata = told.metadata
    assert (told.method, told.uri, told.headers["x"]) == ("PUT", "/a", ("1",))
    assert (metadata.correlation_id, metadata.route_id) == ("id", "/{rest:path}")
    assert (metadata.client_ip, metadata.client_port) == ("192.0.2.7", 40000)
    assert metadata.server_name == "app.example:8080"
    assert metadata.protocol == "HTTP/2"
    assert (metadata.tls_version, metadata.tls_cipher) == ("TLSv1.3", "0x1301")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00\Z", metadata.timestamp)
    assert metadata.traceparent is None


def test_an_event_makes_do_with_a_bare_scope() -> None:
    told = scopes.request_headers_event({"type": "http", "path": "/"}, "id", None)
    metadata = told.metadata
    assert (told.method, told.uri, dict(told.headers)) == ("GET", "/", {})
    assert (metadata.client_ip, metadata.client_port, metadata.server_name) == ("", 0, None)
    assert (metadata.protocol, metadata.tls_version, metadata.tls_cipher) == ("HTTP/1.1", None, None)


@pytest.mark.parametrize(
    ("client_address", "expected"),
    [(None, ("", 0)), (("", None), ("", 0)), (["::1", 5], ("::1", 5)), (("1.2.3.4", 0), ("1.2.3.4", 0))],
)
def test_a_client_address_may_be_missing_in_part(client_address: Any, expected: tuple[str, int]) -> None:
    client = Client()
    client.scope["client"] = client_address
    metadata = event(client).metadata
    assert (metadata.client_ip, metadata.client_port) == expected
    assert scopes.client_ip(client.scope) == expected[0]


def test_without_a_host_header_the_server_names_itself() -> None:
    client = Client()
    assert event(client).metadata.server_name == "app.example"
    client.scope["server"] = ("/run/app.sock", None)
    assert event(client).metadata.server_name == "/run/app.sock"


@pytest.mark.parametrize(
    ("tls", "version", "cipher"),
    [
        ({"tls_version": 0x0303}, "TLSv1.2", None),
        ({"tls_version": 0x0302}, "TLSv1.1", None),
        ({"tls_version": 0x0301, "cipher_suite": 5}, "TLSv1", "0x0005"),
        ({"tls_version": None, "cipher_suite": None}, None, None),
        ({"tls_version": 0x7F00}, None, None),
        ({}, None, None),
        (None, None, None),
    ],
    ids=repr,
)
def test_tls_is_told_by_name(tls: dict[str, Any] | None, version: str | None, cipher: str | None) -> None:
    client = Client()
    client.scope["extensions"] = {"tls": tls}
    metadata = event(client).metadata
    assert (metadata.tls_version, metadata.tls_cipher) == (version, cipher)


def test_the_clients_traceparent_is_told_where_there_is_no_span() -> None:
    assert event(Client(headers=[(b"traceparent", TRACEPARENT.encode())])).metadata.traceparent == TRACEPARENT


async def test_the_current_span_comes_before_the_clients_traceparent() -> None:
    agent = Probe(request_headers=None)
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("outer") as span:
        client = Client(headers=[(b"traceparent", TRACEPARENT.encode())])
        await client.call(guarded(App(), AgentConfig("a", agent)))
    told = agent.of("request_headers")[0].metadata.traceparent
    assert told.split("-")[1] == trace.format_trace_id(span.get_span_context().trace_id)


async def test_agents_are_told_the_pattern_of_their_route() -> None:
    agent = Probe(request_headers=None)
    middleware = guarded(App(), AgentConfig("a", agent), routes=[Route("/{rest:path}", agents=["a"])])
    await Client(path="/x").call(middleware)
    assert agent.of("request_headers")[0].metadata.route_id == "/{rest:path}"


async def test_later_changes_of_the_headers_do_not_show_in_an_event() -> None:
    agent = Probe(request_headers=AgentResponse.allow(request_headers=[HeaderOp.set("x", "2")]))
    client = Client(headers=[(b"x", b"1")])
    await client.call(guarded(App(), AgentConfig("a", agent)))
    client.scope["headers"].append((b"x", b"3"))
    assert agent.of("request_headers")[0].headers["x"] == ("1",)


# The app's view


def test_what_the_app_sets_in_its_own_scope_is_handed_back_but_for_headers_and_extensions() -> None:
    given: Any = {"headers": [], "path": "/a", "state": {}, "kept": 1, "gone": 2}
    own = scopes.OwnScope(given, {"headers": [(b"a", b"b")], "extensions": {}})
    assert own.scope == {**given, "headers": [(b"a", b"b")], "extensions": {}}
    own.scope["route"] = "x"
    own.scope["path"] = "/b"
    own.scope["headers"].append((b"c", b"d"))
    own.scope["extensions"] = {"new": {}}
    del own.scope["gone"]
    assert "route" not in given
    own.hand_back()
    assert given == {"headers": [], "path": "/b", "state": {}, "kept": 1, "gone": 2, "route": "x"}
    assert given["state"] is own.scope["state"]


def test_what_others_have_set_meanwhile_is_not_undone_by_handing_back() -> None:
    given: Any = {"headers": [], "path": "/a"}
    own = scopes.OwnScope(given, {"headers": []})
    own.scope["route"] = "the app's"
    own.hand_back()
    given.update(path="/changed", route="changed")
    own.scope["endpoint"] = "the app's"
    own.hand_back()
    assert given == {"headers": [], "path": "/changed", "route": "changed", "endpoint": "the app's"}


def test_headers_may_be_missing() -> None:
    assert scopes.headers_of({}) == []
    assert scopes.headers_of({"headers": None}) == []
