import dataclasses
import math
from typing import Any

import pytest

from asgi_agents.agent import Agent
from asgi_agents.config import AgentConfig
from asgi_agents.errors import AgentsError, ConfigurationError
from asgi_agents.policy import BodyMode, CircuitBreakerConfig, FailureMode
from asgi_agents.protocol import AgentResponse, Event, EventType, RequestBodyChunkEvent, RequestHeadersEvent
from asgi_agents.transports import ForwardAuthTransport, GrpcTransport, HttpTransport, InProcessTransport, Transport

URL = "http://127.0.0.1:9000/"
HEADERS = {EventType.REQUEST_HEADERS}


class Waf(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        return None


class FrameTransport:
    """A transport of someone else's, which knows nothing but websocket frames."""

    kind = "frames"
    remote = True
    carries = frozenset({EventType.WEBSOCKET_FRAME, EventType.CONFIGURE})

    def __init__(self, events: Any = None) -> None:
        self.events: frozenset[EventType] | None = events

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event) -> AgentResponse | None:
        return None

    async def aclose(self) -> None:
        pass


BODY_MODES = "'buffer', 'stream', 'hybrid' or BodyMode.hybrid(threshold=...)"


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        AgentConfig(*args, **kwargs)
    return str(caught.value)


def test_the_defaults_are_those_that_are_documented() -> None:
    config = AgentConfig("waf", Waf())

    assert set(config.hears or ()) == {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK}
    assert config.failure_mode is FailureMode.CLOSED
    assert config.timeout == 1.0
    assert config.chunk_timeout == 5.0
    assert config.max_concurrent_calls == 100
    assert config.circuit_breaker == CircuitBreakerConfig(
        failure_threshold=5,
        success_threshold=2,
        reset_timeout=30.0,
        half_open_max_calls=1,
        failure_rate=0.5,
        minimum_calls=20,
        window=10.0,
    )
    assert config.request_body_mode == config.response_body_mode == BodyMode.BUFFER
    # 1 MiB where a body is buffered, none where it is streamed.
    assert config.max_request_body_bytes is None
    assert config.max_response_body_bytes is None
    assert config.body_access == "read"
    assert config.enforce is True
    assert config.config is None
    assert config.require_at_startup is False
    assert config.may_set_host is False


def test_the_breaker_has_the_documented_defaults() -> None:
    config = CircuitBreakerConfig()

    assert (config.failure_threshold, config.success_threshold) == (5, 2)
    assert (config.reset_timeout, config.half_open_max_calls) == (30.0, 1)
    assert (config.failure_rate, config.minimum_calls, config.window) == (0.5, 20, 10.0)


def test_hybrid_mode_has_a_threshold_of_64_kib_unless_it_is_given() -> None:
    assert BodyMode.hybrid().threshold == 65536
    assert BodyMode.hybrid(threshold=1) == BodyMode("hybrid", 1)


def test_everything_can_be_given() -> None:
    breaker = CircuitBreakerConfig(
        failure_threshold=1,
        success_threshold=1,
        reset_timeout=0.1,
        half_open_max_calls=3,
        failure_rate=1,
        minimum_calls=1,
        window=0.001,
    )
    config = AgentConfig(
        "waf-1.2_3",
        URL,
        events=["request_headers", EventType.REQUEST_BODY_CHUNK],  # type: ignore[list-item]
        failure_mode=FailureMode.OPEN,
        timeout=2,
        chunk_timeout=0.001,
        max_concurrent_calls=1,
        circuit_breaker=breaker,
        request_body_mode=BodyMode.STREAM,
        response_body_mode=BodyMode.hybrid(),
        max_request_body_bytes=1,
        max_response_body_bytes=1,
        body_access="write",
        enforce=False,
        config={"rules": []},
        require_at_startup=True,
        may_set_host=True,
    )

    assert set(config.hears or ()) == {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK}
    assert all(isinstance(event, EventType) for event in config.hears or ())
    assert config.circuit_breaker is breaker


def test_the_breaker_can_be_switched_off() -> None:
    assert AgentConfig("waf", Waf(), circuit_breaker=None).circuit_breaker is None


def test_configuration_is_frozen() -> None:
    for config in (AgentConfig("waf", Waf()), CircuitBreakerConfig(), BodyMode.STREAM):
        for field in dataclasses.fields(config):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(config, field.name, None)


def test_a_changed_copy_is_checked_again_and_keeps_its_transport() -> None:
    config = AgentConfig("waf", Waf())

    assert dataclasses.replace(config, timeout=2.0).resolved_transport is config.resolved_transport
    with pytest.raises(ConfigurationError, match="timeout=-1"):
        dataclasses.replace(config, timeout=-1)


def test_a_configuration_error_is_a_value_error_and_one_of_ours() -> None:
    with pytest.raises(ValueError, match="timeout") as caught:
        AgentConfig("waf", Waf(), timeout=0)
    assert isinstance(caught.value, AgentsError)


# Wrong values: the message names the field, the value and what would be right.


@pytest.mark.parametrize(
    "agent_id", ["", " ", "a b", "a/b", "caf\xe9", "a\n", "x" * 129, None, 1, b"waf"], ids=lambda value: repr(value)[:9]
)
def test_a_wrong_id_is_refused(agent_id: Any) -> None:
    message = refusal(agent_id, Waf())

    assert f"id={agent_id!r}" in message
    assert "expected 1 to 128 letters, digits or any of " in message


@pytest.mark.parametrize("agent_id", ["a", "x" * 128, "api-key", "a.b_c~1"])
def test_an_id_is_any_token_of_up_to_128_characters(agent_id: str) -> None:
    assert AgentConfig(agent_id, Waf()).id == agent_id


SECONDS = [0, -1, -0.5, math.nan, math.inf, -math.inf, True, "1", None, 1j, [1]]


@pytest.mark.parametrize("value", [*SECONDS, 10**400], ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("field", ["timeout", "chunk_timeout"])
def test_a_wrong_duration_is_refused(field: str, value: Any) -> None:
    message = refusal("waf", Waf(), **{field: value})

    assert message.startswith(f"AgentConfig('waf'): {field}={value!r}, expected a number of seconds above 0")


WHOLE = [0, -1, 1.0, math.inf, True, "1", [1]]


@pytest.mark.parametrize("value", [*WHOLE, None], ids=repr)
def test_a_wrong_limit_is_refused(value: Any) -> None:
    message = refusal("waf", Waf(), max_concurrent_calls=value)

    assert message == f"AgentConfig('waf'): max_concurrent_calls={value!r}, expected a whole number of at least 1"


@pytest.mark.parametrize("value", WHOLE, ids=repr)
@pytest.mark.parametrize("field", ["max_request_body_bytes", "max_response_body_bytes"])
def test_a_wrong_body_limit_is_refused(field: str, value: Any) -> None:
    message = refusal("waf", Waf(), **{field: value})

    assert message == f"AgentConfig('waf'): {field}={value!r}, expected a whole number of at least 1"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("failure_mode", "fail-open", "the failure mode 'closed' or 'open'"),
        ("failure_mode", None, "the failure mode 'closed' or 'open'"),
        ("circuit_breaker", True, "a CircuitBreakerConfig or None"),
        ("circuit_breaker", {}, "a CircuitBreakerConfig or None"),
        ("circuit_breaker", CircuitBreakerConfig, "a CircuitBreakerConfig or None"),
        ("request_body_mode", "streaming", BODY_MODES),
        ("request_body_mode", None, BODY_MODES),
        ("response_body_mode", "Buffer", BODY_MODES),
        ("body_access", "rw", "'read' or 'write'"),
        ("body_access", None, "'read' or 'write'"),
        ("enforce", 0, "a bool"),
        ("enforce", None, "a bool"),
        ("require_at_startup", "yes", "a bool"),
        ("may_set_host", 1, "a bool"),
    ],
)
def test_a_wrong_value_is_refused(field: str, value: Any, expected: str) -> None:
    message = refusal("waf", Waf(), **{field: value})

    assert message == f"AgentConfig('waf'): {field}={value!r}, expected {expected}"


@pytest.mark.parametrize("field", ["failure_threshold", "success_threshold", "half_open_max_calls", "minimum_calls"])
@pytest.mark.parametrize("value", [*WHOLE, None], ids=repr)
def test_a_wrong_breaker_threshold_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreakerConfig(**{field: value})

    assert str(caught.value) == f"CircuitBreakerConfig: {field}={value!r}, expected a whole number of at least 1"


@pytest.mark.parametrize("value", SECONDS, ids=repr)
def test_a_wrong_reset_timeout_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreakerConfig(reset_timeout=value)

    assert str(caught.value) == f"CircuitBreakerConfig: reset_timeout={value!r}, expected a number of seconds above 0"


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.001, 50, math.nan, math.inf, True, "0.5", 1j, [0.5]], ids=repr)
def test_a_wrong_failure_rate_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreakerConfig(failure_rate=value)

    assert str(caught.value) == (
        f"CircuitBreakerConfig: failure_rate={value!r}, expected a share above 0 and up to 1, such as 0.5, or None to "
        "open on failures in a row alone"
    )


@pytest.mark.parametrize("value", [0.001, 0.5, 1, 1.0, None])
def test_a_failure_rate_is_a_share_or_none(value: Any) -> None:
    assert CircuitBreakerConfig(failure_rate=value).failure_rate == value


@pytest.mark.parametrize("value", [*SECONDS, 0.000999, 5e-324, 366 * 24 * 3600 + 1], ids=repr)
def test_a_wrong_window_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreakerConfig(window=value)

    assert str(caught.value) == (
        f"CircuitBreakerConfig: window={value!r}, expected a number of seconds from 0.001 to 31622400"
    )


@pytest.mark.parametrize("name", ["buffered", "", None, 1])
def test_a_wrong_body_mode_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"name={name!r}, expected 'buffer', 'stream' or 'hybrid'"):
        BodyMode(name)


@pytest.mark.parametrize("threshold", [*WHOLE, None], ids=repr)
def test_a_wrong_hybrid_threshold_is_refused(threshold: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BodyMode.hybrid(threshold)

    assert str(caught.value).startswith(f"BodyMode.hybrid: threshold={threshold!r}, expected a whole number")


@pytest.mark.parametrize("name", ["buffer", "stream"])
def test_a_threshold_for_a_mode_that_has_none_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="threshold=5"):
        BodyMode(name, 5)


# Transports


def test_an_agent_is_reached_in_process() -> None:
    agent = Waf()
    transport = AgentConfig("waf", agent).resolved_transport

    assert isinstance(transport, InProcessTransport)
    assert transport.agent is agent


@pytest.mark.parametrize("url", [URL, "https://waf.example/"])
def test_a_url_is_reached_over_http(url: str) -> None:
    assert isinstance(AgentConfig("waf", url, events=HEADERS).resolved_transport, HttpTransport)


def test_a_transport_is_used_as_it_is() -> None:
    transport = FrameTransport()

    assert isinstance(transport, Transport)
    assert AgentConfig("waf", transport, events={EventType.WEBSOCKET_FRAME}).resolved_transport is transport


def test_a_class_in_place_of_an_agent_is_refused_with_advice() -> None:
    assert refusal("waf", Waf) == "AgentConfig('waf'): transport=Waf, expected an instance: Waf()"


@pytest.mark.parametrize(
    ("given", "named"),
    [(None, "None"), (1, "1"), (object(), "an object"), (b"http://a/", "b'http://a/'"), (int, "the class int")],
    ids=["None", "1", "object", "bytes", "class"],
)
def test_anything_else_in_place_of_a_transport_is_refused(given: Any, named: str) -> None:
    message = refusal("waf", given)

    assert message == f"AgentConfig('waf'): transport={named}, expected an Agent, a URL or a Transport"


@pytest.mark.parametrize("url", ["", "waf", "ftp://waf/", "//waf/"])
def test_a_url_of_no_known_scheme_is_refused(url: str) -> None:
    message = refusal("waf", url, events=HEADERS)

    assert message.startswith(
        f"AgentConfig('waf'): transport={url!r}, expected an http://, https://, unix://, tcp://, grpc://, grpcs://, "
        "grpc+unix:// or ray:// URL"
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("/run/waf.sock", "unix:///run/waf.sock"),
        ("unix:/run/waf.sock", "unix:///run/waf.sock"),
        ("127.0.0.1:9000", "tcp://127.0.0.1:9000 or http://127.0.0.1:9000/"),
        (":9000", "tcp://127.0.0.1:9000 or http://127.0.0.1:9000/"),
        ("9000", "tcp://127.0.0.1:9000 or http://127.0.0.1:9000/"),
    ],
)
def test_what_is_nearly_a_url_is_refused_with_the_url_that_was_meant(given: str, meant: str) -> None:
    assert refusal("waf", given) == f"AgentConfig('waf'): transport={given!r}, expected {meant}"


@pytest.mark.parametrize("mode", FailureMode)
def test_a_failure_mode_can_be_given_by_its_name(mode: FailureMode) -> None:
    assert AgentConfig("waf", Waf(), failure_mode=mode.value).failure_mode is mode


@pytest.mark.parametrize(
    ("name", "mode"), [("buffer", BodyMode.BUFFER), ("stream", BodyMode.STREAM), ("hybrid", BodyMode.hybrid())]
)
def test_a_body_mode_can_be_given_by_its_name(name: Any, mode: BodyMode) -> None:
    config = AgentConfig("waf", Waf(), request_body_mode=name, response_body_mode=name)

    assert (config.request_body_mode, config.response_body_mode) == (mode, mode)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    message = refusal("waf", "http://user:hunter2@waf/", events=HEADERS)

    assert "hunter2" not in message


# Events


def test_a_remote_agent_must_be_told_its_events() -> None:
    message = refusal("waf", URL)

    assert message.startswith("AgentConfig('waf'): events=None, but a remote agent can't be asked; expected a set")


@pytest.mark.parametrize("events", ["request_headers", EventType.REQUEST_HEADERS, 1, True], ids=repr)
def test_events_that_are_no_set_are_refused(events: Any) -> None:
    assert refusal("waf", URL, events=events) == f"AgentConfig('waf'): events={events!r}, expected a set of EventType"


@pytest.mark.parametrize("event", ["REQUEST_HEADERS", "headers", None, 1, [], EventType], ids=repr)
def test_an_unknown_event_is_refused(event: Any) -> None:
    message = refusal("waf", URL, events=[event])

    assert message.startswith(f"AgentConfig('waf'): events contains {event!r}, expected any of configure, ")
    assert all(known in message for known in EventType)


def test_an_event_that_the_agent_has_no_hook_for_is_refused() -> None:
    message = refusal("waf", Waf(), events={EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS})

    assert message == "AgentConfig('waf'): events contains response_headers, which the agent has no hook for"


def test_an_event_that_the_transport_can_not_carry_is_refused() -> None:
    events = {EventType.WEBSOCKET_FRAME, EventType.RESPONSE_HEADERS, EventType.REQUEST_HEADERS}

    assert refusal("waf", FrameTransport(), events=events) == (
        "AgentConfig('waf'): events contains request_headers, response_headers, which its transport can't carry"
    )


def test_an_event_that_the_transport_announces_but_can_not_carry_is_refused() -> None:
    message = refusal("waf", FrameTransport(frozenset({EventType.WEBSOCKET_FRAME, EventType.REQUEST_HEADERS})))

    assert "request_headers" in message


def test_fewer_events_than_the_agent_hears_may_be_chosen() -> None:
    assert set(AgentConfig("waf", Waf(), events=(EventType.REQUEST_HEADERS,)).hears or ()) == HEADERS


def test_events_from_an_iterator_are_not_lost() -> None:
    assert set(AgentConfig("waf", URL, events=iter([EventType.REQUEST_HEADERS])).hears or ()) == HEADERS


def test_a_transport_may_announce_its_events_in_any_kind_of_set() -> None:
    assert set(AgentConfig("waf", FrameTransport({EventType.WEBSOCKET_FRAME})).hears or ()) == {
        EventType.WEBSOCKET_FRAME
    }


def test_failure_modes_are_spelt_in_one_word() -> None:
    assert [mode.value for mode in FailureMode] == ["closed", "open"]


@pytest.mark.parametrize(
    ("transport", "event_type", "field"),
    [
        (GrpcTransport("grpc://h:1", protocol="ext_authz"), EventType.REQUEST_BODY_CHUNK, "request_body_mode"),
        (ForwardAuthTransport("http://h/", style="ext_authz"), EventType.REQUEST_BODY_CHUNK, "request_body_mode"),
        *(
            (GrpcTransport("grpc://h:1", protocol="ext_proc", body_mode="buffered"), event_type, field)
            for event_type, field in (
                (EventType.REQUEST_BODY_CHUNK, "request_body_mode"),
                (EventType.RESPONSE_BODY_CHUNK, "response_body_mode"),
            )
        ),
    ],
)
def test_pieces_of_bodies_are_refused_where_the_transport_takes_whole_ones(
    transport: Transport, event_type: EventType, field: str
) -> None:
    heads = {EventType.REQUEST_HEADERS}
    for mode in ("stream", "hybrid"):
        settings: dict[str, Any] = {field: mode}
        with pytest.raises(ConfigurationError, match=f"{field}='(stream|hybrid)', expected 'buffer'"):
            AgentConfig("agent", transport, events={*heads, event_type}, **settings)
        # It is shown none.
        AgentConfig("agent", transport, events=heads, **settings)
    AgentConfig("agent", transport, events={*heads, event_type})
