"""Metadata that are written when somebody looks at them are in no other way different."""

import copy
import pickle
from typing import Any

import msgspec
import pytest

from asgi_agents import Agent, AgentConfig, RequestHeadersEvent, RequestMetadata, current_correlation_id
from asgi_agents.protocol import Encoding, decode_event, encode_event
from asgi_agents.protocol.events import PendingMetadata

from .asgi import App, Client, guarded


class Keeper(Agent):
    """Looks at nothing."""

    def __init__(self) -> None:
        self.events_heard: list[RequestHeadersEvent] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self.events_heard.append(event)


async def heard(**options: Any) -> RequestHeadersEvent:
    agent = Keeper()
    await Client(**options).call(guarded(App(), AgentConfig("a", agent)))
    [event] = agent.events_heard
    assert type(event.metadata) is not RequestMetadata
    return event


async def test_they_are_the_metadata_to_whoever_looks() -> None:
    event = await heard(headers=[(b"host", b"api.example"), (b"x-request-id", b"abc"), (b"traceparent", b"tp")])
    metadata = event.metadata
    assert isinstance(metadata, RequestMetadata)
    assert metadata.correlation_id == event.correlation_id == "abc"
    assert metadata.server_name == "api.example"
    assert metadata.traceparent == "tp"
    assert metadata.request_id != "abc"
    assert metadata.request_id == metadata.request_id
    with pytest.raises(AttributeError):
        _ = metadata.nothing  # type: ignore[attr-defined]


async def test_copies_are_plain_metadata() -> None:
    metadata = (await heard()).metadata
    for made in (copy.copy(metadata), copy.deepcopy(metadata), pickle.loads(pickle.dumps(metadata))):  # noqa: S301
        assert type(made) is RequestMetadata
        assert made == metadata
        assert metadata == made
        assert hash(made) == hash(metadata)
        assert repr(made) == repr(metadata)


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_an_event_can_be_encoded_before_anybody_has_looked(encoding: Encoding) -> None:
    event = await heard()
    again = decode_event(encode_event(event, encoding), encoding)
    assert isinstance(again, RequestHeadersEvent)
    assert type(again.metadata) is RequestMetadata
    assert again == event
    assert msgspec.structs.replace(event, method="PUT").metadata == event.metadata


async def test_they_say_when_the_request_came_not_when_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_123_000_000)
    event = await heard()
    monkeypatch.setattr("time.time_ns", lambda: 1_800_000_000_000_000_000)
    assert event.metadata.timestamp == "2023-11-14T22:13:20.123+00:00"


async def test_an_id_that_is_asked_for_after_the_end_stays_and_is_nobodys() -> None:
    agent = Keeper()
    middleware = guarded(App(), AgentConfig("a", agent))
    await Client().call(middleware)
    [event] = agent.events_heard
    assert event.correlation_id == event.metadata.correlation_id
    assert not middleware.manager.live_correlation_ids


async def test_the_id_is_the_same_wherever_it_is_asked_for_first() -> None:
    found: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(current_correlation_id())
        found.append(scope["state"]["agents"].correlation_id)

    agent = Keeper()
    await Client().call(guarded(app, AgentConfig("a", agent)))
    assert found == [agent.events_heard[0].correlation_id] * 2


def test_what_does_not_say_how_it_is_written_can_not_be_looked_at() -> None:
    with pytest.raises(NotImplementedError):
        PendingMetadata().written()
