"""Agents that need not see every body: by its type, or by what they say of its head."""

from typing import Any

import pytest

from asgi_agents import AgentConfig, AgentResponse, BodyMode, ConfigurationError, HeaderOp
from tests.support.asgi import App, Client, Probe, SlowProbe, body, guarded, start

from .test_body import MIB, agent, each_mode

SKIP = AgentResponse.allow(skip_body=True)

TYPES = {
    b"application/json": True,
    b"Application/JSON ; charset=utf-8": True,
    b"text/html": True,
    b"TEXT/plain": True,
    b"application/problem+json": False,
    b"image/png": False,
    b"application/octet-stream": False,
    None: True,
    b"": True,
    b"json": True,
    b"image/": True,
    b"image/png, text/html": True,
}


@pytest.mark.parametrize(("content_type", "heard"), TYPES.items())
@each_mode
async def test_an_agent_hears_the_types_it_names_and_what_has_none(
    content_type: bytes | None, heard: bool, mode: BodyMode
) -> None:
    types = [] if content_type is None else [(b"content-type", content_type)]
    probe, client = Probe(response_body=None, response_headers=None), Client()
    config = agent("response", probe, mode, response_content_types=["application/json", "text/*"])
    await client.call(guarded(App(start(200, *types), body(b"ab", more=True), body(b"cd")), config))
    assert client.body == b"abcd"
    assert b"".join(event.data for event in probe.of("response_body")) == (b"abcd" if heard else b"")
    assert len(probe.of("response_headers")) == 1


async def test_two_types_in_two_fields_are_heard() -> None:
    probe, client = Probe(response_body=None), Client()
    app = App(start(200, (b"content-type", b"image/png"), (b"content-type", b"text/html")), body(b"<p>"))
    await client.call(guarded(app, agent("response", probe, BodyMode.BUFFER, response_content_types={"text/*"})))
    assert [data for _, data, _ in probe.chunks] == [b"<p>"]


@pytest.mark.parametrize("before", ["request_headers", "response_headers"])
@pytest.mark.parametrize(("given", "made"), [(b"image/png", "text/html"), (b"text/html", "image/png")])
async def test_a_type_that_another_agent_changes_is_heard_under_both_its_names(
    before: str, given: bytes, made: str
) -> None:
    probe, client = Probe(response_body=None), Client()
    other = Probe(**{before: AgentResponse.allow(response_headers=[HeaderOp.set("content-type", made)])})
    await client.call(
        guarded(
            App(start(200, (b"content-type", given)), body(b"<p>")),
            AgentConfig("other", other),
            agent("response", probe, BodyMode.BUFFER, response_content_types={"text/html"}),
        )
    )
    # The type that the client takes is what counts, and an agent that was shown the app's own hears it as well.
    heard = made == "text/html" or before == "response_headers"
    assert bool(probe.chunks) is heard


async def test_a_body_of_another_type_may_be_as_long_as_it_likes() -> None:
    config = agent("response", Probe(response_body=None), BodyMode.BUFFER, response_content_types={"text/*"})
    for content_type, status in ((b"image/png", 200), (b"text/plain", 500)):
        client = Client()
        await client.call(guarded(App(start(200, (b"content-type", content_type)), body(bytes(2 * MIB))), config))
        assert client.status == status


async def test_what_an_agent_wants_to_see_of_a_body_it_does_not_hear_is_its_last_word() -> None:
    probe = Probe(response_body=None, response_headers=AgentResponse.block(451, "no", needs_more=True))
    config = agent("response", probe, BodyMode.BUFFER, response_content_types={"text/*"})
    for content_type, status in ((b"image/png", 451), (b"text/plain", 200)):
        client = Client()
        await client.call(guarded(App(start(200, (b"content-type", content_type)), body(b"x")), config))
        assert client.status == status


@pytest.mark.parametrize(
    "types", ["text/html", [], [1], ["*/*"], ["text"], ["text/html; charset=utf-8"], ["text/"], 5], ids=repr
)
def test_types_that_make_no_sense_are_refused(types: Any) -> None:
    with pytest.raises(ConfigurationError, match="response_content_types"):
        AgentConfig("a", Probe(response_body=None), response_content_types=types)


@pytest.mark.parametrize("kind", [Probe, SlowProbe])
@each_mode
async def test_who_skips_a_requests_body_sees_nothing_of_it_and_nobody_else_misses_any(
    kind: type[Probe], mode: BodyMode
) -> None:
    skipping = kind(request_headers=SKIP, request_body=AgentResponse.block(403), response_body=None)
    other = kind(request_headers=None, request_body=None)
    app, client = App(), Client("POST", body=[b"ab", b"cd"])
    await client.call(
        guarded(app, agent("request", skipping, mode, id="skipping"), agent("request", other, mode, id="other"))
    )
    assert (client.status, app.body) == (200, b"abcd")
    assert skipping.of("request_body") == []
    assert b"".join(event.data for event in other.of("request_body")) == b"abcd"
    # What it says of a request's head is about the request's body.
    assert skipping.of("response_body") != []


@pytest.mark.parametrize("kind", [Probe, SlowProbe])
@each_mode
async def test_who_skips_a_responses_body_sees_nothing_of_it_and_nobody_else_misses_any(
    kind: type[Probe], mode: BodyMode
) -> None:
    skipping = kind(response_headers=SKIP, response_body=AgentResponse.block(403), request_body=None)
    other = kind(response_body=None)
    client = Client("POST", body=b"abcd")
    await client.call(
        guarded(App(), agent("response", skipping, mode, id="skipping"), agent("response", other, mode, id="other"))
    )
    assert (client.status, client.body) == (200, b"hello")
    assert skipping.of("response_body") == []
    assert skipping.of("request_body") != []
    assert b"".join(event.data for event in other.of("response_body")) == b"hello"


async def test_a_body_that_is_skipped_may_be_as_long_as_it_likes() -> None:
    for answer, status in ((SKIP, 200), (None, 413)):
        probe = Probe(request_headers=answer, request_body=None)
        app, client = App(), Client("POST", body=bytes(2 * MIB))
        await client.call(guarded(app, AgentConfig("a", probe)))
        assert client.status == status


async def test_to_skip_a_body_and_want_more_of_it_is_an_agent_error() -> None:
    answer = AgentResponse(skip_body=True, needs_more=True)
    client = Client()
    await client.call(guarded(App(), AgentConfig("a", Probe(request_headers=answer, request_body=None))))
    assert client.status == 503


# What goes around the response's own head


def trailers(*headers: tuple[bytes, bytes], more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.trailers", "headers": list(headers), "more_trailers": more}


OPS = AgentResponse.allow(
    response_headers=[HeaderOp.remove("X-Secret"), HeaderOp.set("x-owner", "agent"), HeaderOp.add("x-free", "agent")]
)


@pytest.mark.parametrize("when", ["request_headers", "response_headers", "response_body"])
async def test_trailers_bring_no_field_that_an_agent_has_set_or_removed(when: str) -> None:
    fields = [(b"x-secret", b"1"), (b"X-Owner", b"app"), (b"x-free", b"app"), (b"grpc-status", b"0")]
    app = App({**start(200, *fields), "trailers": True}, body(b"abc"), trailers(*fields))
    client = Client(extensions={"http.response.trailers": {}})
    await client.call(guarded(app, AgentConfig("a", Probe(**{when: OPS}))))
    assert client.messages[-1]["type"] == "http.response.trailers"
    assert client.messages[-1]["headers"] == [(b"x-free", b"app"), (b"grpc-status", b"0")]


async def test_trailers_pass_where_no_agent_has_a_rule_for_them() -> None:
    app = App({**start(200), "trailers": True}, body(b"abc"), trailers((b"x-secret", b"1")))
    client = Client()
    await client.call(guarded(app, AgentConfig("a", Probe(response_body=None))))
    assert client.messages[-1]["headers"] == [(b"x-secret", b"1")]


HINT = {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]}


@pytest.mark.parametrize("op", [HeaderOp.remove("Link"), HeaderOp.set("link", "<x>")])
async def test_early_hints_pass_unless_an_agent_has_a_rule_for_links(op: HeaderOp) -> None:
    for ops, passes in (
        ([op], False),
        ([HeaderOp.remove("x")], True),
        ([HeaderOp.add("link", "<x>")], True),
        ([], True),
    ):
        client = Client()
        probe = Probe(request_headers=AgentResponse.allow(response_headers=ops), response_headers=None)
        await client.call(guarded(App(HINT, start(), body(b"x")), AgentConfig("a", probe)))
        assert (HINT in client.messages) is passes
