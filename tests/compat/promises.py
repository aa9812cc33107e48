"""The promises that hold around every HTTP framework. A test module for one says how its app is made, and inherits."""

import asyncio
import gc
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
import pytest
from starlette.types import ASGIApp

from asgi_agents import EventType
from asgi_agents.errors import ResponseAborted

from .cases import (
    CASES,
    EVENT_STREAM,
    EVENTS,
    PIECES,
    STOPPED,
    TEXT,
    UNAVAILABLE,
    WHOLE,
    WORDS,
    Act,
    Case,
    Seen,
    pieces,
)
from .sse import read_events
from .stage import PATIENCE, Handlers, Stage

STREAMS: Final = 20
# What uvicorn says after every denial response, whoever sends it.
DENIAL_COMPLAINT: Final = "ASGI callable returned without completing handshake."


# Frameworks leave the files of a form to the garbage collector when its client leaves.
@pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning")
class Promises:
    """An app of a framework, guarded.

    Its paths: ``POST /echo`` returns the body as text. ``POST /form`` returns the field ``note`` and the content of the
    file ``file``, with a blank between. ``GET /events``, ``/pieces`` and ``/endless`` stream what :class:`Handlers` has
    under these names; handlers run within ``handlers.one()``.
    """

    #: Loggers whose errors are what the framework makes of a client that left.
    complains: tuple[str, ...] = ()
    #: Whether the app reads bodies whose length nobody has declared.
    reads_chunked = True

    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def everything_ends(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        """After each test no handler is left, and neither framework nor event loop has complained."""
        yield
        assert stage.handlers.all_ended(), f"{stage.handlers.begun} handlers have begun, {stage.handlers.ended} ended"
        assert not complaints(caplog, self.complains)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_a_body_reaches_the_app_as_its_agents_decide(self, stage: Stage, client: httpx.Client, case: Case) -> None:
        stage.guard(case.agent(EventType.REQUEST_BODY_CHUNK))
        assert seen_whole(client.post("/echo", content=TEXT)) == WHOLE[case.act]
        if self.reads_chunked:
            assert seen_whole(client.post("/echo", content=pieces())) == WHOLE[case.act]

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_a_form_with_a_file_reaches_the_app_as_its_agents_decide(
        self, stage: Stage, client: httpx.Client, case: Case
    ) -> None:
        stage.guard(case.agent(EventType.REQUEST_BODY_CHUNK))
        response = client.post("/form", data={"note": "one two"}, files={"file": ("file.txt", b"three four")})
        assert seen_whole(response) == WHOLE[case.act]

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_a_response_reaches_the_client_as_its_agents_decide(
        self, stage: Stage, client: httpx.Client, case: Case
    ) -> None:
        stage.guard(case.agent(EventType.RESPONSE_BODY_CHUNK))
        assert seen_whole(client.post("/echo", content=TEXT)) == WHOLE[case.act]

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_events_reach_the_client_as_its_agents_decide(self, stage: Stage, client: httpx.Client, case: Case) -> None:
        stage.guard(case.agent(EventType.RESPONSE_BODY_CHUNK))
        assert seen_events(client.get("/events")) == EVENTS[case.act]

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_a_stream_of_another_type_never_looks_whole_where_it_is_not(
        self, stage: Stage, client: httpx.Client, case: Case
    ) -> None:
        stage.guard(case.agent(EventType.RESPONSE_BODY_CHUNK))
        expected = (WHOLE if case.mode.name == "buffer" else PIECES)[case.act]
        assert seen_pieces(client) == expected

    @pytest.mark.parametrize("suspends", [False, True], ids=["prompt", "slow"])
    @pytest.mark.parametrize("act", [Act.MIDWAY, Act.FAIL], ids=str)
    def test_streams_that_are_stopped_leave_nothing_behind(self, stage: Stage, act: Act, suspends: bool) -> None:
        stage.guard(Case(act, CASES[0].mode, suspends).agent(EventType.RESPONSE_BODY_CHUNK))
        before = stage.handlers.begun
        expected = EVENTS[act]

        async def watch() -> list[Seen]:
            async with httpx.AsyncClient(base_url=stage.url, timeout=PATIENCE) as client:
                return await asyncio.gather(*(one(client) for _ in range(STREAMS)))

        async def one(client: httpx.AsyncClient) -> Seen:
            return seen_events(await client.get("/endless"))

        assert asyncio.run(watch()) == [expected] * STREAMS
        assert stage.handlers.all_ended()
        assert stage.handlers.begun - before == STREAMS
        # Tasks that nobody has awaited complain when they are collected.
        gc.collect()

    @pytest.mark.parametrize("suspends", [False, True], ids=["prompt", "slow"])
    def test_clients_that_leave_streams_leave_nothing_behind(self, stage: Stage, suspends: bool) -> None:
        stage.guard(Case(Act.ALLOW, CASES[0].mode, suspends).agent(EventType.RESPONSE_BODY_CHUNK))
        before = stage.handlers.begun

        async def watch() -> None:
            async with httpx.AsyncClient(base_url=stage.url, timeout=PATIENCE) as client:
                await asyncio.gather(*(one(client) for _ in range(STREAMS)))

        async def one(client: httpx.AsyncClient) -> None:
            async with client.stream("GET", "/endless") as response:
                async for _ in response.aiter_lines():
                    break

        asyncio.run(watch())
        assert stage.handlers.all_ended()
        assert stage.handlers.begun - before == STREAMS
        # Tasks that nobody has awaited complain when they are collected.
        gc.collect()


def seen_whole(response: httpx.Response) -> Seen:
    """What a client sees of a response that is judged before it leaves."""
    if response.status_code == 200:
        return Seen(200, tuple(response.text.split()))
    return Seen(response.status_code, (), response.text)


def seen_events(response: httpx.Response) -> Seen:
    """What a client sees of an event stream."""
    if response.status_code != 200:
        return seen_whole(response)
    assert response.headers["content-type"].startswith(EVENT_STREAM)
    words, error = [], None
    for event in read_events(response.text):
        assert error is None, "nothing comes after an error"
        if event.kind == "error":
            error = error_message(event.json())
        else:
            words.append(event.data)
    return Seen(200, tuple(words), error)


def error_message(document: Mapping[str, Any]) -> str:
    """The message of an error event, if it is what clients of language models raise for."""
    assert document["type"] == "error"
    error: dict[str, str] = document["error"]
    failed = error["message"] == UNAVAILABLE
    assert (error["type"], error["code"]) == (("error", "503") if failed else ("blocked", "403"))
    assert failed or error["message"] == STOPPED
    return error["message"]


def seen_pieces(client: httpx.Client) -> Seen:
    """What a client sees of ``/pieces``."""
    body, whole = b"", True
    with client.stream("GET", "/pieces") as response:
        try:
            for piece in response.iter_raw():
                body += piece
        except httpx.RemoteProtocolError:
            whole = False
    if response.status_code != 200:
        return Seen(response.status_code, (), body.decode())
    words = tuple(body.decode().split())
    assert set(words) <= {*WORDS, "twenty-two"}
    return Seen(200, words, whole=whole)


def complaints(caplog: pytest.LogCaptureFixture, expected: tuple[str, ...] = ()) -> list[str]:
    """The errors that others than the agents' own package have logged."""
    return [
        f"{record.name}: {record.getMessage()}"
        for when in ("setup", "call", "teardown")
        for record in caplog.get_records(when)
        if record.levelno >= logging.ERROR
        and not record.name.startswith(("asgi_agents", *expected))
        and record.getMessage() != DENIAL_COMPLAINT
        # Of a response that was broken off the server is told why.
        and not (record.exc_info and isinstance(record.exc_info[1], ResponseAborted))
    ]
