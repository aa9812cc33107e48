"""External processors as agents: what they say, and what they get wrong."""

import re
from typing import Any

import anyio
import pytest

from asgi_agents import (
    AgentConfig,
    AgentConnectionError,
    AgentError,
    AgentMiddleware,
    AgentProtocolError,
    AgentResponse,
    AgentUnavailableError,
    AuditMetadata,
    BodyMutation,
    CircuitBreakerConfig,
    ConfigurationError,
    EventTooLargeError,
    EventType,
    FailureMode,
    HeaderOp,
    RequestBodyChunkEvent,
    ResponseHeadersEvent,
)
from asgi_agents.protocol import Headers
from asgi_agents.testing.events import request_headers_event, request_metadata
from asgi_agents.transports import GrpcTransport
from asgi_agents.transports.grpc import ext_proc_exchange
from asgi_agents.transports.grpc.ext_proc import ExtProcClient
from asgi_agents.transports.grpc.ext_proc_answers import CARRIES
from asgi_agents.transports.grpc.ext_proc_messages import (
    HeaderValueOption,
    ProcessingMode,
    Side,
    header_map,
    make_streamed_reply,
    messages,
    struct,
)
from tests.support.asgi import App, Client, Probe, body, start
from tests.transports.grpc.processors import Processor, Script, Stream, guarded, serving
from tests.transports.stream.pools import until

HEADS = {EventType.REQUEST_HEADERS}
REQUESTS = {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK}
RESPONSES = {EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK}


def sets(name: str, value: str) -> dict[str, Any]:
    option = HeaderValueOption(header={"key": name, "raw_value": value.encode()})
    return {"response": {"header_mutation": {"set_headers": [option]}}}


def immediate(code: int, text: bytes = b"") -> dict[str, Any]:
    return {"status": {"code": code}, "body": text}


async def ask(processor: Processor | Script, app: App, client: Client, events: Any = HEADS, **config: Any) -> Client:
    """One request to a guarded app."""
    service = processor if isinstance(processor, Processor) else Processor(processor)
    async with serving(service) as address, guarded(app, address, events, **config) as middleware:
        await client.call(middleware)
    return client


# What they say


async def test_a_whole_exchange() -> None:
    seen: list[Any] = []

    async def script(stream: Stream) -> None:
        head = await stream.next()
        assert head is not None
        seen.append(head)
        await stream.say(request_headers=sets("x-user", "alice"), dynamic_metadata=struct({"lb": {"canary": True}}))
        seen.append(await stream.expect("request_body"))
        await stream.say(request_body={"response": {"body_mutation": {"body": b"ABC"}}})
        seen.append(await stream.expect("response_headers"))
        await stream.say(response_headers=sets("x-seen", "1"))
        seen.append(await stream.expect("response_body"))
        await stream.say(response_body={"response": {"body_mutation": {"clear_body": True}}})
        assert await stream.next() is None

    processor = Processor(script)
    app = App()
    client = await ask(processor, app, Client("POST", "/x?y", body=b"abc"), CARRIES, body_access="write")
    assert (client.status, client.body, client.header(b"x-seen"), client.header(b"content-length")) == (
        200,
        b"",
        b"1",
        b"0",
    )
    assert (app.body, app.header(b"x-user"), app.header(b"content-length")) == (b"ABC", b"alice", b"3")
    head, chunk, response, piece = seen
    assert head.protocol_config.request_body_mode == ProcessingMode.STREAMED
    assert (chunk.body, chunk.end_of_stream, piece.body) == (b"abc", True, b"hello")
    assert response.headers.headers[0].raw_value == b"200"
    assert processor.ended == 1


async def test_dynamic_metadata_and_details_are_what_is_recorded() -> None:
    async def script(stream: Stream) -> None:
        await stream.next()
        await stream.say(
            immediate_response={**immediate(403), "details": "rule 7"},
            dynamic_metadata=struct({"asgi_agents.audit": {"rule_ids": ["r7"]}}),
        )

    async with serving(Processor(script)) as address, guarded(App(), address, HEADS) as middleware:
        client = Client()
        await client.call(middleware)
        (verdict,) = client.scope["state"]["asgi_agents"].decision.verdicts
    assert verdict.response.audit == AuditMetadata(rule_ids=["r7"], reason_codes=["rule 7"])
    assert client.status == 403


@pytest.mark.parametrize("event", ["request_headers", "request_body", "response_headers", "response_body"])
async def test_an_immediate_response_is_a_denial_of_any_event(event: str) -> None:
    async def script(stream: Stream) -> None:
        while (message := await stream.next()) is not None:
            kind = message.WhichOneof("request")
            if kind == event:
                await stream.say(immediate_response=immediate(451, b"no"))
                return
            await stream.say(**{kind: {}})

    client = await ask(script, App(), Client("POST", body=b"abc"), CARRIES)
    assert (client.status, client.body, client.header(b"content-type")) == (451, b"no", b"text/plain")


async def test_an_answer_to_nothing_is_never_taken_for_that_to_the_next_event() -> None:
    async def script(stream: Stream) -> None:
        await stream.next()
        await stream.say(request_headers={})
        await stream.expect("request_body")
        for _ in range(2):
            await stream.say(request_body={"response": {"body_mutation": {"body": b"<a>"}}})
        await stream.next()

    async with serving(Processor(script)) as address:
        transport = GrpcTransport(address, protocol="ext_proc")
        client = transport.bind("processor", events=frozenset(REQUESTS), config=None, max_concurrent_calls=1)
        assert isinstance(client, ExtProcClient)
        await client.call(request_headers_event(metadata=request_metadata(correlation_id="c")))
        chunk = RequestBodyChunkEvent(correlation_id="c", data=b"a", is_last=False)
        answer = await client.call(chunk)
        assert answer == AgentResponse.allow(request_body_mutation=BodyMutation(b"<a>"))
        (exchange,) = (await client._exchanges.get()).open.values()
        await until(lambda: exchange._incoming.waits(Side.REQUEST))
        with pytest.raises(AgentProtocolError, match="answered what it was not asked"):
            await client.call(RequestBodyChunkEvent(correlation_id="c", data=b"b", is_last=True, chunk_index=1))
        client.forget("c")
        await client.aclose()


@pytest.mark.parametrize("how", ["aclose", "retire", "forget", "its channel is closed", "the other side fails"])
async def test_a_call_whose_stream_ends_here_is_no_allow(how: str) -> None:
    shown = anyio.Event()

    async def script(stream: Stream) -> None:
        await stream.next()
        shown.set()
        await anyio.sleep_forever()

    outcomes: list[object] = []

    async def ask_for_ever(client: ExtProcClient) -> None:
        try:
            outcomes.append(await client.call(request_headers_event(metadata=request_metadata(correlation_id="c"))))
        except AgentError as exc:
            outcomes.append(type(exc))

    async with serving(Processor(script)) as address:
        client = GrpcTransport(address, protocol="ext_proc").bind("processor", events=CARRIES)
        assert isinstance(client, ExtProcClient)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_for_ever, client)
            await shown.wait()
            match how:
                case "aclose":
                    await client.aclose()
                case "retire":
                    await client.retire()
                case "forget":
                    client.forget("c")
                case "its channel is closed":
                    # As for an exchange that has begun after those of the client were ended.
                    await client._channels.aclose()
                case _:
                    with anyio.CancelScope() as scope:
                        scope.cancel()
                        await client.call(ResponseHeadersEvent(correlation_id="c", status=200, headers=Headers()))
            await until(lambda: outcomes)
            tasks.cancel_scope.cancel()
        await client.aclose()
    assert outcomes in ([AgentUnavailableError], [AgentConnectionError])


async def test_a_redirect() -> None:
    async def script(stream: Stream) -> None:
        await stream.next()
        option = HeaderValueOption(header={"key": "location", "raw_value": b"https://x.example/"})
        await stream.say(immediate_response={"status": {"code": 302}, "headers": {"set_headers": [option]}})

    client = await ask(script, App(), Client())
    assert (client.status, client.header(b"location")) == (302, b"https://x.example/")


async def test_a_reply_in_pieces_is_put_together() -> None:
    async def script(stream: Stream) -> None:
        await stream.next()
        pairs = [(":status", b"402"), ("content-type", b"text/x"), ("set-cookie", b"a"), ("set-cookie", b"b")]
        await stream.send(make_streamed_reply(messages.HttpHeaders(headers=header_map(pairs))))
        await stream.send(make_streamed_reply(messages.StreamedBodyResponse(body=b"pay ")))
        await stream.send(make_streamed_reply(messages.StreamedBodyResponse(body=b"first", end_of_stream=True)))

    client = await ask(script, App(), Client())
    assert (client.status, client.body, client.header(b"content-type")) == (402, b"pay first", b"text/x")
    assert [value for name, value in client.headers if name == b"set-cookie"] == [b"a", b"b"]


@pytest.mark.parametrize(
    "pieces",
    [
        [messages.HttpHeaders(headers=header_map([(":status", b"402"), ("content-type", b"a/b")]))],
        [
            messages.HttpHeaders(headers=header_map([(":status", b"402"), ("content-type", b"a/b")])),
            messages.StreamedBodyResponse(body=b"x" * 600),
            messages.StreamedBodyResponse(body=b"x" * 600),
        ],
        [messages.StreamedBodyResponse(body=b"pay", end_of_stream=True)],
    ],
)
async def test_a_reply_in_pieces_without_its_rest_lets_nothing_pass(pieces: list[Any]) -> None:
    async def script(stream: Stream) -> None:
        await stream.next()
        for piece in pieces:
            await stream.send(make_streamed_reply(piece))

    app, client = App(), Client()
    async with serving(Processor(script)) as address:
        transport = GrpcTransport(address, protocol="ext_proc", max_answer_bytes=1000)
        agent = AgentConfig("processor", transport, events=HEADS, failure_mode=FailureMode.OPEN)
        middleware = AgentMiddleware(app, agents=[agent])
        try:
            await client.call(middleware)
        finally:
            with anyio.CancelScope(shield=True):
                await middleware.manager.shutdown()
    assert client.status == (402 if isinstance(pieces[0], messages.HttpHeaders) else 403)
    assert client.header(b"content-type") != b"a/b"


@pytest.mark.parametrize("override", ["all", "bodies"])
async def test_what_a_processor_does_not_want_is_not_shown(override: str) -> None:
    seen: list[str] = []

    async def script(stream: Stream) -> None:
        mode = {"response_header_mode": ProcessingMode.SKIP} if override == "all" else {}
        while (message := await stream.next()) is not None:
            kind = message.WhichOneof("request")
            seen.append(kind)
            await stream.say(**{kind: {}}, mode_override=mode)

    client = await ask(script, App(), Client("POST", body=b"abc"), CARRIES)
    assert client.body == b"hello"
    assert seen == (["request_headers"] if override == "all" else ["request_headers", "response_headers"])


async def test_continue_and_replace_is_the_last_word_about_a_message() -> None:
    seen: list[str] = []

    async def script(stream: Stream) -> None:
        while (message := await stream.next()) is not None:
            kind = message.WhichOneof("request")
            seen.append(kind)
            status = messages.CommonResponse.CONTINUE_AND_REPLACE if kind.endswith("headers") else 0
            await stream.say(**{kind: {"response": {"status": status}}})

    await ask(script, App(), Client("POST", body=b"abc"), CARRIES)
    assert seen == ["request_headers", "response_headers"]


async def test_a_processor_that_ends_the_stream_wants_to_see_nothing_more() -> None:
    async def script(stream: Stream) -> None:
        await stream.expect("request_headers")
        await stream.say(request_headers=sets("x-user", "alice"))

    app = App()
    client = await ask(script, app, Client("POST", body=b"abc"), CARRIES)
    assert (client.body, app.header(b"x-user")) == (b"hello", b"alice")

    async def at_once(stream: Stream) -> None:
        await stream.next()

    assert (await ask(at_once, App(), Client("POST", body=b"abc"), CARRIES)).body == b"hello"


async def test_a_wish_for_more_time_is_no_answer() -> None:
    async def script(stream: Stream) -> None:
        await stream.next()
        await stream.say(override_message_timeout={"seconds": 1})
        await stream.say(request_headers=sets("x-user", "alice"))

    app = App()
    await ask(script, app, Client())
    assert app.header(b"x-user") == b"alice"


async def test_headers_changed_with_a_streamed_body_are_ignored_as_envoy_does() -> None:
    async def script(stream: Stream) -> None:
        while (message := await stream.next()) is not None:
            kind = message.WhichOneof("request")
            await stream.say(**{kind: sets("x-late", "1")})

    app = App()
    client = await ask(script, app, Client("POST", body=[b"a", b"b"]), REQUESTS, request_body_mode="stream")
    assert (client.status, app.body, app.header(b"x-late")) == (200, b"ab", b"1")
    assert [value for name, value in app.headers if name == b"x-late"] == [b"1"]


async def test_the_request_and_the_response_do_not_wait_for_one_another() -> None:
    async def script(stream: Stream) -> None:
        await stream.expect("request_headers")
        await stream.say(request_headers={})
        kinds = {(await stream.next()).WhichOneof("request") for _ in range(2)}  # type: ignore[union-attr]
        assert kinds == {"request_body", "response_headers"}
        await stream.say(response_headers=sets("x-seen", "1"))
        await stream.say(request_body={"response": {"body_mutation": {"body": b"ABC"}}})
        await stream.next()

    class Early(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send, start())
                self.received.append(await receive())
            await send(body(b"done"))

    app = Early()
    events = CARRIES - {EventType.RESPONSE_BODY_CHUNK}
    config: dict[str, Any] = {"request_body_mode": "stream", "body_access": "write", "request_length": "unknown"}
    client = await ask(script, app, Client("POST", body=b"abc"), events, **config)
    assert (client.header(b"x-seen"), app.body) == (b"1", b"ABC")


async def test_the_trace_goes_on_in_the_processor_and_the_client_is_told() -> None:
    found: list[Any] = []

    async def script(stream: Stream) -> None:
        message = await stream.next()
        assert message is not None
        found.append(message.attributes["envoy.filters.http.ext_proc"])
        await stream.say(request_headers={})

    await ask(script, App(), Client())
    (attributes,) = found
    assert attributes["source.address"] == "192.0.2.7:40000"
    assert attributes["request.protocol"] == "HTTP/1.1"


# What they get wrong: the failure table


async def _wrong_kind(stream: Stream) -> None:
    await stream.next()
    await stream.say(response_body={})
    await stream.say(request_body={})


async def _no_message(stream: Stream) -> None:
    await stream.next()
    await stream.send(b"\xff\xff\xff")


async def _empty(stream: Stream) -> None:
    await stream.next()
    await stream.say()


async def _raises(stream: Stream) -> None:
    await stream.next()
    raise ValueError


async def _sets_path(stream: Stream) -> None:
    await stream.next()
    await stream.say(request_headers=sets(":path", "/other"))


async def _sets_framing(stream: Stream) -> None:
    await stream.next()
    await stream.say(request_headers=sets("transfer-encoding", "chunked"))


async def _replaces(stream: Stream) -> None:
    await stream.next()
    common = {"status": messages.CommonResponse.CONTINUE_AND_REPLACE, "body_mutation": {"body": b"x"}}
    await stream.say(request_headers={"response": common})


async def _hangs(stream: Stream) -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (_no_message, "error", "a message is no ProcessingResponse"),
        (_empty, "error", "a message says nothing"),
        (_raises, "error", "it ended the call with the status INTERNAL"),
        (_sets_path, "error", "it changes ':path', which only a proxy can"),
        (_sets_framing, "error", "'transfer-encoding' belongs to the server"),
        (_replaces, "not_applicable", "a body can only be replaced in answer to the body"),
        (_hangs, "timeout", "within the deadline of 0.2 s"),
        (_wrong_kind, "error", "expected a response to request_headers, got request_body"),
    ],
)
async def test_what_a_processor_gets_wrong_is_a_failure_of_its_kind(script: Script, kind: str, message: str) -> None:
    status = 504 if kind == "timeout" else 503
    async with serving(Processor(script)) as address:
        for mode, expected in ((FailureMode.CLOSED, status), (FailureMode.OPEN, 200)):
            config: dict[str, Any] = {"failure_mode": mode, "circuit_breaker": None}
            if kind == "timeout":
                config["timeout"] = 0.2
            async with guarded(App(), address, HEADS, **config) as middleware:
                client = Client()
                await client.call(middleware)
                (verdict,) = client.scope["state"]["asgi_agents"].decision.verdicts
            assert client.status == expected
            assert verdict.failure is not None
            assert verdict.failure.kind == kind
            assert message in verdict.failure.message


async def test_a_processor_that_is_not_there_fails_and_opens_the_breaker() -> None:
    async with serving(Processor(_hangs)) as address:
        pass
    breaker = CircuitBreakerConfig(failure_threshold=2)
    async with guarded(App(), address, HEADS, circuit_breaker=breaker) as middleware:
        kinds = []
        for _ in range(3):
            client = Client()
            await client.call(middleware)
            assert client.status == 503
            (verdict,) = client.scope["state"]["asgi_agents"].decision.verdicts
            assert verdict.failure is not None
            kinds.append(verdict.failure.kind.value)
    assert kinds == ["error", "error", "breaker_open"]
    transport = GrpcTransport(address, protocol="ext_proc", connect_timeout=1.0)
    client_of_it = transport.bind("processor", events=frozenset(HEADS))
    with pytest.raises(AgentConnectionError):
        await client_of_it.connect()
    await client_of_it.retire()


async def test_after_a_call_that_failed_nothing_more_is_asked_in_its_exchange() -> None:
    async def script(stream: Stream) -> None:
        await stream.next()
        await stream.say(request_headers=sets(":path", "/"))
        await anyio.sleep_forever()

    processor = Processor(script)
    async with serving(processor) as address:
        config: dict[str, Any] = {"failure_mode": "open", "circuit_breaker": None}
        async with guarded(App(), address, CARRIES, **config) as middleware:
            client = Client("POST", body=b"abc")
            await client.call(middleware)
            verdicts = client.scope["state"]["asgi_agents"].decision.verdicts
    assert client.body == b"hello"
    kinds = [verdict.failure.kind.value for verdict in verdicts if verdict.failure is not None]
    assert kinds == ["error", "unavailable", "unavailable", "unavailable"]
    assert processor.calls == 1


async def test_an_event_that_is_longer_than_may_be_is_too_large() -> None:
    async def script(stream: Stream) -> None:
        while (message := await stream.next()) is not None:
            await stream.say(**{message.WhichOneof("request"): {}})

    async with serving(Processor(script)) as address:
        transport = GrpcTransport(address, protocol="ext_proc", max_event_bytes=1000)
        client = transport.bind("processor", events=frozenset(REQUESTS))
        with pytest.raises(EventTooLargeError):
            await client.call(RequestBodyChunkEvent(correlation_id="c", data=b"x" * 1000, is_last=True))
        await client.retire()


async def test_streams_end_with_their_exchanges_and_leave_nothing() -> None:
    async def script(stream: Stream) -> None:
        while (message := await stream.next()) is not None:
            await stream.say(**{message.WhichOneof("request"): {}})

    processor = Processor(script)
    async with serving(processor) as address, guarded(App(), address, CARRIES) as middleware:

        async def one() -> None:
            client = Client("POST", body=b"abc")
            await client.call(middleware)
            assert client.body == b"hello"

        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(one)
        with anyio.fail_after(10):
            while processor.ended < 40:  # noqa: ASYNC110 - the server's own time
                await anyio.sleep(0.01)
    assert processor.calls == 40


# Bodies in both directions at once


def released(kind: str, *pieces: bytes) -> Any:
    async def script(stream: Stream) -> None:
        """Takes all of the body before it says anything about it, and then says it in pieces."""
        message = await stream.past_heads()
        while not getattr(message, kind).end_of_stream:
            message = await stream.next()
        for index, piece in enumerate(pieces):
            await stream.stream(kind, piece, index == len(pieces) - 1)
        await stream.next()

    return script


DUPLEX: dict[str, Any] = {"body_mode": "full_duplex_streamed", "body_access": "write"}


@pytest.mark.parametrize("mode", ["buffer", "stream"])
async def test_a_processor_may_hold_all_of_a_body_back(mode: str) -> None:
    app = App(start(200), body(b"one ", more=True), body(b"two ", more=True), body(b"three"))
    script = released("response_body", b"O", b"", b"TT")
    client = await ask(script, app, Client(), RESPONSES, response_body_mode=mode, **DUPLEX)
    assert (client.status, client.body, client.complete) == (200, b"OTT", True)


async def test_a_processor_may_answer_to_each_piece() -> None:
    async def script(stream: Stream) -> None:
        while (message := await stream.next()) is not None:
            kind = message.WhichOneof("request")
            if kind.endswith("_headers"):
                await stream.say(**{kind: {}})
            else:
                part = getattr(message, kind)
                await stream.stream(kind, part.body.upper(), part.end_of_stream)

    app = App(start(200), body(b"one ", more=True), body(b"two ", more=True), body(b"three"))
    client = await ask(script, app, Client("POST", body=[b"a", b"b"]), CARRIES, response_body_mode="stream", **DUPLEX)
    assert client.chunks == [b"ONE ", b"TWO ", b"THREE"]
    assert app.body == b"AB"


async def test_a_processor_may_answer_to_the_head_when_it_has_seen_the_body() -> None:
    async def script(stream: Stream) -> None:
        await stream.expect("request_headers")
        body = await stream.expect("request_body")
        await stream.say(request_headers=sets("x-model", "small"))
        await stream.stream("request_body", body.body, True)
        await stream.next()

    for mode in ("buffer", "stream"):
        app = App()
        client = await ask(script, app, Client("POST", body=b"abc"), REQUESTS, request_body_mode=mode, **DUPLEX)
        assert (client.status, app.header(b"x-model"), app.body) == (200, b"small", b"abc")

    async def denies(stream: Stream) -> None:
        await stream.expect("request_headers")
        await stream.expect("request_body")
        await stream.say(immediate_response=immediate(403))

    app = App()
    assert (await ask(denies, app, Client("POST", body=b"abc"), REQUESTS, **DUPLEX)).status == 403
    assert app.calls == 0


@pytest.mark.parametrize("side", ["request", "response"])
@pytest.mark.parametrize("mode", ["buffer", "stream"])
@pytest.mark.parametrize("denies", [False, True])
async def test_a_processor_that_waits_for_a_body_is_shown_the_end_of_an_empty_one(
    side: str, mode: str, denies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Envoy: that a body is empty is known only when it has ended, and the processor may answer late as well."""
    monkeypatch.setattr(ext_proc_exchange, "PATIENCE", 0)
    shown: list[Any] = []

    async def script(stream: Stream) -> None:
        while (message := await stream.next()) is not None:
            kind = message.WhichOneof("request")
            if kind == f"{side}_headers":
                continue
            if kind != f"{side}_body":
                await stream.say(**{kind: {}})
                continue
            part = getattr(message, kind)
            shown.append((part.body, part.end_of_stream))
            if denies:
                await stream.say(immediate_response=immediate(451))
                return
            await stream.say(**{f"{side}_headers": sets("x-late", "1")})
            await stream.stream(kind, b"", True)

    app = App(start(200), body(b"", more=True), body(b""))
    events = REQUESTS if side == "request" else RESPONSES
    config = {f"{side}_body_mode": mode, **DUPLEX}
    client = await ask(script, app, Client("POST", body=[b"", b""]), events, **config)
    assert shown == [(b"", True)]
    assert client.status == (451 if denies else 200)
    assert app.calls == (0 if denies and side == "request" else 1)
    if not denies:
        assert (app.header(b"x-late") if side == "request" else client.header(b"x-late")) == b"1"


@pytest.mark.parametrize("held", [False, True])
async def test_another_agent_is_not_shown_the_end_of_an_empty_body_and_its_denial_stands(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ext_proc_exchange, "PATIENCE", 0)

    async def script(stream: Stream) -> None:
        await stream.expect("request_headers")
        await stream.expect("request_body")
        await stream.say(request_headers={})
        await stream.stream("request_body", b"", True)
        await stream.next()

    answer = AgentResponse.block(418, needs_more=True) if held else None
    beside = Probe(request_headers=answer, request_body=AgentResponse.block(500))
    async with serving(Processor(script)) as address:
        transport = GrpcTransport(address, protocol="ext_proc", body_mode="full_duplex_streamed")
        agents = [
            AgentConfig("beside", beside, request_body_mode="stream"),
            AgentConfig("processor", transport, events=REQUESTS, request_body_mode="stream"),
        ]
        app, client = App(), Client("POST", body=[b""])
        middleware = AgentMiddleware(app, agents=agents)
        async with middleware.manager:
            await client.call(middleware)
    assert (client.status, app.calls) == ((418, 0) if held else (200, 1))
    assert not beside.of("request_body")


@pytest.mark.parametrize("mode", ["buffer", "stream"])
async def test_a_processor_may_answer_to_the_head_when_it_has_seen_all_pieces_of_the_body(mode: str) -> None:
    async def script(stream: Stream) -> None:
        await stream.expect("request_headers")
        await stream.say(request_headers={})
        await stream.expect("response_headers")
        whole = b""
        while not whole.endswith(b"three"):
            whole += (await stream.expect("response_body")).body
        await stream.say(response_headers=sets("x-pieces", "3"))
        await stream.stream("response_body", whole.upper(), False)
        await stream.stream("response_body", b"!", True)
        await stream.next()

    length = (b"content-length", b"13")
    app = App(start(200, length), body(b"one ", more=True), body(b"two ", more=True), body(b"three"))
    client = await ask(script, app, Client("POST", body=b"abc"), RESPONSES, response_body_mode=mode, **DUPLEX)
    assert (client.status, client.body, client.complete) == (200, b"ONE TWO THREE!", True)
    assert client.header(b"x-pieces") == b"3"


async def test_a_denial_in_pieces_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails open must not let pass what it has begun to deny."""
    monkeypatch.setattr(ext_proc_exchange, "PATIENCE", 0.01)

    async def script(stream: Stream) -> None:
        await stream.next()
        await stream.send(make_streamed_reply(messages.HttpHeaders(headers=header_map([(":status", b"402")]))))
        await anyio.sleep(0.1)
        await stream.send(make_streamed_reply(messages.StreamedBodyResponse(body=b"pay first", end_of_stream=True)))
        await stream.next()

    app, client = App(), Client("POST", body=b"abc")
    await ask(script, app, client, REQUESTS, failure_mode="open", **DUPLEX)
    assert (client.status, client.body, app.calls) == (402, b"pay first", 0)


async def test_one_that_only_reads_needs_no_right_to_write() -> None:
    async def script(stream: Stream) -> None:
        while (message := await stream.next()) is not None:
            kind = message.WhichOneof("request")
            if kind.endswith("_headers"):
                await stream.say(**{kind: {}})
            else:
                part = getattr(message, kind)
                await stream.stream(kind, part.body, part.end_of_stream)

    client = await ask(script, App(), Client("POST", body=b"abc"), CARRIES, body_mode="full_duplex_streamed")
    assert client.body == b"hello"


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_processor_that_holds_something_fails_closed_in_any_mode(keeps: bool) -> None:
    async def script(stream: Stream) -> None:
        first = await stream.past_heads()
        if not keeps:
            await stream.stream("response_body", first.response_body.body, False)
        await stream.expect("response_body")
        raise ValueError

    app = App(start(200), body(b"one ", more=True), body(b"two ", more=True), body(b"three"))
    client = Client()
    config: dict[str, Any] = {"failure_mode": "open", "response_body_mode": "stream", **DUPLEX}
    async with serving(Processor(script)) as address, guarded(app, address, RESPONSES, **config) as middleware:
        if keeps:
            with pytest.raises(Exception, match="broken off"):
                await client.call(middleware)
            assert not client.complete
        else:
            # It fails with the second piece, which it has not released.
            with pytest.raises(Exception, match="broken off"):
                await client.call(middleware)
            assert client.body == b"one "


async def test_a_processor_that_ends_the_stream_with_bytes_of_ours_has_failed() -> None:
    async def script(stream: Stream) -> None:
        await stream.expect("request_headers")
        await stream.say(request_headers={})
        await stream.expect("request_body")

    client = await ask(script, App(), Client("POST", body=b"abc"), REQUESTS, failure_mode="open", **DUPLEX)
    assert client.status == 503


async def test_a_stream_of_the_other_mode_is_an_error() -> None:
    async def script(stream: Stream) -> None:
        while (message := await stream.next()) is not None:
            await stream.say(**{message.WhichOneof("request"): {"response": {"body_mutation": {"body": b"x"}}}})

    client = await ask(script, App(), Client("POST", body=b"abc"), REQUESTS, **DUPLEX)
    assert client.status == 503


async def test_what_is_released_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ext_proc_exchange, "PATIENCE", 0.01)

    async def script(stream: Stream) -> None:
        await stream.expect("request_body")
        with pytest.raises(Exception):  # noqa: B017, PT011, PT012 - the client has gone
            while True:
                await stream.stream("request_body", b"x" * 1000, False)

    async with serving(Processor(script)) as address:
        transport = GrpcTransport(address, protocol="ext_proc", body_mode="full_duplex_streamed", max_answer_bytes=5000)
        client = transport.bind("processor", events=frozenset({EventType.REQUEST_BODY_CHUNK}))
        with pytest.raises(AgentProtocolError, match="max_answer_bytes"):
            await client.call(RequestBodyChunkEvent(correlation_id="c", data=b"x", is_last=True))
        await client.retire()


# Our own served agents, asked by our own client


LATE_HEADERS: dict[str, Any] = {"response_body": AgentResponse.allow(response_headers=[HeaderOp.set("x-r", "1")])}
SETS: AgentResponse = AgentResponse.allow(request_headers=[HeaderOp.set("x-u", "1"), HeaderOp.add("x-u", "2")])
REMOVES: AgentResponse = AgentResponse.allow(request_headers=[HeaderOp.remove("x-old")])
EARLY: AgentResponse = AgentResponse.allow(response_headers=[HeaderOp.set("x-r", "1")])
UNTYPED: AgentResponse = AgentResponse.allow(response_headers=[HeaderOp.remove("content-type")])
UNDECIDED: AgentResponse = AgentResponse.block(403, "never", needs_more=True)
POST: dict[str, Any] = {"method": "POST", "body": b"abc"}
OUTCOMES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"request_headers": None}, {}),
    ({"request_headers": AgentResponse.block(403, "no", headers={"x-a": "1"})}, {}),
    ({"request_headers": AgentResponse.block(204)}, {}),
    ({"request_headers": AgentResponse.redirect("https://x.example/", 308)}, {}),
    ({"request_headers": AgentResponse.challenge("basic", {"realm": "a"})}, {}),
    ({"request_headers": AgentResponse.challenge("captcha", {"key": "1"})}, {}),
    ({"request_headers": SETS}, {}),
    ({"request_headers": REMOVES}, {"headers": [(b"x-old", b"1")]}),
    ({"request_headers": EARLY, "response_headers": None}, {}),
    ({"request_headers": UNDECIDED, "request_body": None}, POST),
    ({"request_body": AgentResponse.block(422, "bad")}, POST),
    ({"request_body": AgentResponse.allow(request_body_mutation=BodyMutation(b"changed"))}, POST),
    ({"request_body": AgentResponse.allow(request_body_mutation=BodyMutation(b""))}, POST),
    ({"response_headers": AgentResponse.block(502, "hidden")}, {}),
    ({"response_headers": UNTYPED}, {}),
    ({"response_body": AgentResponse.block(451, "secret")}, {}),
    ({"response_body": AgentResponse.allow(response_body_mutation=BodyMutation(b"changed"))}, {}),
    (LATE_HEADERS, {}),
]


@pytest.mark.parametrize(
    ("body_mode", "reactions", "given"),
    [
        pytest.param(mode, reactions, given, id=f"{mode}-{index}")
        for index, (reactions, given) in enumerate(OUTCOMES)
        for mode in ("streamed", "buffered", "full_duplex_streamed")
        # Envoy takes changes of headers with a body where that is buffered, and nowhere else.
        if mode == "buffered" or reactions is not LATE_HEADERS
    ],
)
async def test_an_agent_does_the_same_here_and_served(
    body_mode: str, reactions: dict[str, Any], given: dict[str, Any]
) -> None:
    probe = Probe(**reactions)
    config: dict[str, Any] = {"body_access": "write"} if any("body" in name for name in reactions) else {}
    here, here_app = Client(**given), App()
    await here.call(AgentMiddleware(here_app, agents=[AgentConfig("processor", probe, **config)]))
    there, there_app = Client(**given), App()
    async with (
        serving(Probe(**reactions)) as address,
        guarded(there_app, address, probe.events, body_mode=body_mode, **config) as middleware,
    ):
        await there.call(middleware)
    assert (there.status, there.body) == (here.status, here.body)
    assert (there_app.calls, there_app.body) == (here_app.calls, here_app.body)
    assert sorted(there_app.headers) == sorted(here_app.headers)
    assert sorted(there.headers) == sorted(here.headers)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "agent", "body_mode": "buffered"}, "body_mode='buffered'"),
        ({"protocol": "ext_proc", "body_mode": "grpc"}, "body_mode='grpc'"),
    ],
)
def test_what_can_not_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        GrpcTransport("grpc://127.0.0.1:9001", **arguments)


def test_processors_take_no_configuration_and_no_events_that_they_are_not_shown() -> None:
    transport = GrpcTransport("grpc://127.0.0.1:9001", protocol="ext_proc")
    with pytest.raises(ConfigurationError, match="events=None"):
        AgentConfig("processor", transport)
    with pytest.raises(ConfigurationError, match="websocket_frame, which its transport can't carry"):
        AgentConfig("processor", transport, events={EventType.WEBSOCKET_FRAME})
    with pytest.raises(ConfigurationError, match="takes no configuration"):
        transport.bind("processor", events=frozenset(HEADS), config={"a": 1})


async def test_a_client_that_was_retired_asks_nobody() -> None:
    client = GrpcTransport("grpc://127.0.0.1:9001", protocol="ext_proc").bind("processor", events=frozenset(HEADS))
    await client.retire()
    with pytest.raises(AgentUnavailableError, match="removed"):
        await client.call(request_headers_event(metadata=request_metadata()))
