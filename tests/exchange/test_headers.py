"""Header operations, and what a changed body may no longer claim."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents import AgentConfig, AgentResponse, HeaderOp
from asgi_agents.exchange.headers import apply_header_ops, without_body_claims
from tests.support.asgi import App, Client, Probe, guarded

GIVEN = [(b"Accept", b"a"), (b"x-one", b"1"), (b"X-One", b"2"), (b"cookie", b"c")]


def test_set_replaces_every_field_of_that_name_in_any_case() -> None:
    assert apply_header_ops(GIVEN, [HeaderOp.set("X-ONE", "new")]) == [
        (b"Accept", b"a"),
        (b"cookie", b"c"),
        (b"x-one", b"new"),
    ]


def test_set_of_a_new_name_appends() -> None:
    assert apply_header_ops(GIVEN, [HeaderOp.set("x-two", "new")]) == [*GIVEN, (b"x-two", b"new")]


def test_add_keeps_what_is_there() -> None:
    assert apply_header_ops(GIVEN, [HeaderOp.add("X-One", "3")]) == [*GIVEN, (b"x-one", b"3")]


def test_remove_takes_every_field_of_that_name_in_any_case() -> None:
    assert apply_header_ops(GIVEN, [HeaderOp.remove("x-ONE")]) == [(b"Accept", b"a"), (b"cookie", b"c")]


def test_remove_of_what_is_not_there_changes_nothing() -> None:
    assert apply_header_ops(GIVEN, [HeaderOp.remove("x-two")]) == GIVEN


def test_operations_are_done_in_order() -> None:
    ops = [HeaderOp.set("x", "1"), HeaderOp.add("x", "2"), HeaderOp.remove("x"), HeaderOp.add("x", "3")]
    assert apply_header_ops([], ops) == [(b"x", b"3")]


def test_values_are_sent_as_latin_1() -> None:
    assert apply_header_ops([], [HeaderOp.set("x", "caf\xe9")]) == [(b"x", b"caf\xe9")]


def test_the_given_list_is_left_alone() -> None:
    before = list(GIVEN)
    result = apply_header_ops(GIVEN, [HeaderOp.remove("accept")])
    assert result is not GIVEN
    assert before == GIVEN
    assert apply_header_ops(GIVEN, []) is not GIVEN


def test_any_iterable_of_pairs_will_do() -> None:
    assert apply_header_ops(iter(GIVEN), [HeaderOp.remove("cookie")]) == GIVEN[:-1]


@settings(derandomize=True, database=None, deadline=None)
@given(
    names=st.lists(st.sampled_from([b"a", b"A", b"b", b"c"]), max_size=6),
    ops=st.lists(
        st.one_of(
            st.builds(HeaderOp.set, st.sampled_from("aAb"), st.just("new")),
            st.builds(HeaderOp.add, st.sampled_from("aAb"), st.just("new")),
            st.builds(HeaderOp.remove, st.sampled_from("aAb")),
        ),
        max_size=6,
    ),
)
def test_fields_that_no_operation_names_keep_their_order_and_spelling(names: list[bytes], ops: list[HeaderOp]) -> None:
    raw = [(name, b"%d" % index) for index, name in enumerate(names)]
    touched = {op.name.lower().encode() for op in ops}
    result = apply_header_ops(raw, ops)
    assert [pair for pair in result if pair[0].lower() not in touched] == [
        pair for pair in raw if pair[0].lower() not in touched
    ]
    for op in ops[-1:]:
        values = [value for name, value in result if name.lower() == op.name.lower().encode()]
        if op.kind == "remove":
            assert values == []
        elif op.kind == "set":
            assert values == [b"new"]
        else:
            assert values[-1] == b"new"


CLAIMS = [
    (b"ETag", b'"1"'),
    (b"digest", b"x"),
    (b"Content-Digest", b"x"),
    (b"repr-digest", b"x"),
    (b"Content-MD5", b"x"),
    (b"accept-ranges", b"bytes"),
    (b"Content-Length", b"5"),
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda pair: pair[0].decode())
def test_a_changed_body_makes_no_claims_about_the_old_one(claim: tuple[bytes, bytes]) -> None:
    assert without_body_claims([(b"a", b"1"), claim, (b"b", b"2")], None) == [(b"a", b"1"), (b"b", b"2")]


def test_a_changed_body_whose_size_is_known_says_so() -> None:
    assert without_body_claims([*CLAIMS, (b"a", b"1")], 12) == [(b"a", b"1"), (b"content-length", b"12")]
    assert without_body_claims([], 0) == [(b"content-length", b"0")]


def test_a_changed_body_with_a_transfer_encoding_has_no_length_beside_it() -> None:
    assert without_body_claims([(b"Transfer-Encoding", b"chunked")], 12) == [(b"Transfer-Encoding", b"chunked")]


def test_what_describes_the_content_and_not_its_bytes_stays() -> None:
    kept = [(b"content-type", b"text/plain"), (b"last-modified", b"x"), (b"content-encoding", b"gzip")]
    assert without_body_claims([*kept, *CLAIMS], None) == kept


FORBIDDEN = [
    "content-length",
    "Transfer-Encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "proxy-connection",
    "proxy-authenticate",
    "Proxy-Authorization",
    "sec-websocket-key",
    "host",
    ":path",
    "x y",
    "",
]


@pytest.mark.parametrize("name", FORBIDDEN)
@pytest.mark.parametrize("kind", [HeaderOp.set, HeaderOp.add, lambda name, _: HeaderOp.remove(name)])
@pytest.mark.parametrize("event", ["request_headers", "response_headers"])
async def test_an_agent_that_touches_what_it_may_not_is_in_error(
    name: str, kind: Callable[[str, str], HeaderOp], event: str
) -> None:
    ops: dict[str, Any] = {event: [kind(name, "1")]}
    answer = AgentResponse.allow(**ops)
    app, client = App(), Client()
    await client.call(guarded(app, AgentConfig("a", Probe(**{event: answer}))))
    assert (client.status, client.body) == (503, b"Agent unavailable")
    assert app.calls == (event == "response_headers")


@pytest.mark.parametrize("value", ["a\r\nx: 1", "a\nb", "a\0", "\u20ac"], ids=["crlf", "lf", "nul", "not latin-1"])
async def test_a_value_that_would_split_a_header_is_an_agent_error(value: str) -> None:
    answer = AgentResponse.allow(response_headers=[HeaderOp.set("x-agent", value)])
    client = Client()
    await client.call(guarded(App(), AgentConfig("a", Probe(response_headers=answer))))
    assert client.status == 503
    assert client.header(b"x-agent") is None


async def test_the_host_may_be_set_by_an_agent_that_is_allowed_to() -> None:
    app, client = App(), Client(headers=[(b"host", b"app.example")])
    answer = AgentResponse.allow(request_headers=[HeaderOp.set("host", "other.example")])
    await client.call(guarded(app, AgentConfig("a", Probe(request_headers=answer), may_set_host=True)))
    assert app.header(b"host") == b"other.example"
