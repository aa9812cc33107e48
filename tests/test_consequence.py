"""The line that says that an agent fails says what comes of it, and where the agent is."""

import logging
from typing import Any

import pytest

from asgi_agents import AgentConfig, EventType, FailureKind, FailureMode, HttpTransport, StreamTransport
from asgi_agents.guard import Guard

CONSEQUENCES = {
    EventType.REQUEST_HEADERS: ("the request is refused", "the request goes on without it"),
    EventType.REQUEST_BODY_CHUNK: ("the request is refused", "the request goes on without it"),
    EventType.RESPONSE_HEADERS: ("the response is withheld", "the response goes on without it"),
    EventType.RESPONSE_BODY_CHUNK: ("the response is withheld or broken off", "the response goes on without it"),
    EventType.WEBSOCKET_FRAME: ("the websocket is closed", "the message goes on without it"),
    EventType.GUARDRAIL_INSPECT: (
        "the text is stopped, or the handler that asks gets a GuardrailUnavailableError",
        "nothing counts as detected",
    ),
}


def logged(
    caplog: pytest.LogCaptureFixture, event: EventType, mode: FailureMode, *, window: bool = False, **options: Any
) -> str:
    transport = options.pop("transport", "http://waf.internal:9000/")
    guard = Guard(AgentConfig("waf", transport, events=EventType, **options))
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="asgi_agents"):
        guard.skip(event, FailureKind.ERROR, mode, "refused", window=window)
    (line,) = caplog.messages
    return line


@pytest.mark.parametrize("event", CONSEQUENCES)
def test_the_line_says_what_comes_of_a_failure(caplog: pytest.LogCaptureFixture, event: EventType) -> None:
    closed, opened = CONSEQUENCES[event]

    assert f"refused; {closed}, because the agent fails closed (" in logged(caplog, event, FailureMode.CLOSED)
    assert f"refused; {opened}, because the agent fails open (" in logged(caplog, event, FailureMode.OPEN)


def test_the_line_says_what_comes_of_a_failure_of_a_guardrail(caplog: pytest.LogCaptureFixture) -> None:
    event = EventType.GUARDRAIL_INSPECT

    line = logged(caplog, event, FailureMode.CLOSED, window=True)
    assert "refused; the call is stopped, because the agent fails closed (" in line
    line = logged(caplog, event, FailureMode.OPEN, window=True)
    assert "refused; the text goes on unjudged, because the agent fails open (" in line
    line = logged(caplog, event, FailureMode.CLOSED, window=True, enforce=False)
    assert "refused; nothing changes, because this is a shadow agent (" in line


@pytest.mark.parametrize("event", CONSEQUENCES)
def test_nothing_comes_of_that_of_a_shadow_agent(caplog: pytest.LogCaptureFixture, event: EventType) -> None:
    line = logged(caplog, event, FailureMode.CLOSED, enforce=False)

    assert "; nothing changes, because this is a shadow agent (" in line


@pytest.mark.parametrize("mode", FailureMode)
def test_nothing_depends_on_it_when_the_request_is_over(caplog: pytest.LogCaptureFixture, mode: FailureMode) -> None:
    assert "; nothing depends on it (" in logged(caplog, EventType.REQUEST_COMPLETE, mode)


@pytest.mark.parametrize(
    ("transport", "place"),
    [
        ("http://waf.internal:9000/", "waf.internal:9000"),
        ("http://waf.internal/", "waf.internal:80"),
        ("https://waf.internal/path?key=s3cret", "waf.internal:443"),
        ("http://[::1]:9000/", "[::1]:9000"),
        (HttpTransport("http://waf/", uds="/run/waf.sock"), "unix:///run/waf.sock"),
        (StreamTransport(["tcp://a:1", "tcp://b:2"]), "tcp://a:1 tcp://b:2"),
    ],
    ids=str,
)
def test_the_line_says_where_a_remote_agent_is(caplog: pytest.LogCaptureFixture, transport: Any, place: str) -> None:
    line = logged(caplog, EventType.REQUEST_HEADERS, FailureMode.CLOSED, transport=transport)

    assert line.endswith(f" (it is at {place}; logged at most once a minute)")
