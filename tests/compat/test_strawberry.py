"""Strawberry's GraphQL subscriptions, over a websocket."""

import json
import logging
from collections.abc import AsyncGenerator, Iterator

import pytest
import websockets.exceptions
from starlette.types import ASGIApp
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from asgi_agents import EventType

from .cases import FRAMES, MESSAGES, WORDS, Act, Case, Seen
from .promises import complaints
from .stage import PATIENCE, Handlers, Stage

pytest.importorskip("strawberry", reason="Strawberry is not installed: pip install '.[compat]'")

import strawberry
from strawberry.asgi import GraphQL

ENDING = [case for case in FRAMES if case.act not in (Act.ALLOW, Act.CHANGE)]


@strawberry.type
class Query:
    hello: str = "hello"


class TestStrawberry:
    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        @strawberry.type
        class Subscription:
            @strawberry.subscription
            async def words(self) -> AsyncGenerator[str, None]:
                with handlers.one():
                    for word in WORDS:
                        yield word

            @strawberry.subscription
            async def endless(self) -> AsyncGenerator[str, None]:
                async for word in handlers.endless("{}"):
                    yield word

        app: ASGIApp = GraphQL(strawberry.Schema(Query, subscription=Subscription))
        return app

    @pytest.fixture(autouse=True)
    def everything_ends(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        logging.getLogger("websockets").setLevel(logging.CRITICAL)
        yield
        assert stage.handlers.all_ended(), f"{stage.handlers.begun} handlers have begun, {stage.handlers.ended} ended"
        # What it makes of a client that left, too.
        assert not complaints(caplog, ("strawberry.ws.task",))

    @pytest.mark.parametrize("case", FRAMES, ids=str)
    def test_messages_reach_the_client_as_agents_decide(self, stage: Stage, case: Case) -> None:
        stage.guard(case.agent(EventType.WEBSOCKET_FRAME))
        assert subscribe(stage.url, "words") == MESSAGES[case.act]

    @pytest.mark.parametrize("case", ENDING, ids=str)
    def test_a_subscription_ends_with_its_websocket(self, stage: Stage, case: Case) -> None:
        stage.guard(case.agent(EventType.WEBSOCKET_FRAME))
        expected = MESSAGES[case.act]
        assert subscribe(stage.url, "endless") == expected


def subscribe(url: str, field: str) -> Seen:
    """What a client of a subscription sees."""
    words: list[str] = []
    try:
        with connect(
            url.replace("http", "ws") + "/graphql",
            subprotocols=[Subprotocol("graphql-transport-ws")],
            open_timeout=PATIENCE,
        ) as websocket:
            websocket.send(json.dumps({"type": "connection_init"}))
            assert json.loads(websocket.recv(PATIENCE)) == {"type": "connection_ack"}
            query = {"query": f"subscription {{{field}}}"}
            websocket.send(json.dumps({"id": "1", "type": "subscribe", "payload": query}))
            while (message := json.loads(websocket.recv(PATIENCE)))["type"] == "next":
                words.append(message["payload"]["data"][field])
            assert message["type"] == "complete"
            return Seen(1000, tuple(words))
    except websockets.exceptions.ConnectionClosed as exc:
        close = exc.rcvd
        return Seen(1006, tuple(words)) if close is None else Seen(close.code, tuple(words), close.reason)
    except websockets.exceptions.InvalidStatus as exc:
        return Seen(exc.response.status_code, (), exc.response.body.decode())
