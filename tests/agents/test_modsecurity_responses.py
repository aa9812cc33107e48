"""Responses, which may begin before the request has come, and the threads that both are judged in."""

import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from asgi_agents.agents import ModSecurity
from asgi_agents.protocol import Headers, ResponseHeadersEvent
from asgi_agents.testing import request_headers_event
from tests.unjudged.asking import PATIENCE

pytest.importorskip("libmodsecurity", reason="the engine is not built for this platform")

from asgi_agents.agents.modsecurity_response import MAX_SHOWN
from asgi_agents.agents.modsecurity_transaction import Transaction

RULE = 'SecRule RESPONSE_BODY "@contains secret" "id:5,phase:4,deny,log"'


@pytest.mark.parametrize("begins", ["response", "request"])
@pytest.mark.parametrize("before", [0, 1, 2])
async def test_a_response_is_judged_that_begins_before_the_request_has_come(begins: str, before: int) -> None:
    waf = ModSecurity(text=RULE, responses=True)
    transaction = Transaction(waf._rules, request_headers_event("POST", headers={"transfer-encoding": ["chunked"]}))
    assert transaction.request_head().is_allow
    head = ResponseHeadersEvent(correlation_id="a", status=200, headers=Headers({"content-type": ["text/plain"]}))
    shown = [partial(transaction.response_head, head), partial(transaction.response_body, b"sec", False)]
    pieces = [partial(transaction.request_body, data, data == b"]") for data in (b'["a"', b"]")]
    calls = [*shown[:before], pieces[0], *shown[before:], pieces[1]] if begins == "response" else [*pieces, *shown]
    assert all(call().is_allow for call in calls)
    assert not transaction.response_body(b"ret", True).is_allow


TEXTS = [
    *("", "text/plain", "text/plain; charset=utf-8", "Text/HTML", "text/csv", "text/event-stream", " text/css"),
    *("application/json", "Application/JSON", "application/vnd.api+json;a=b", "application/problem+json", "text/xml"),
    *("application/xml", "application/soap+xml", "image/svg+xml", "application/xhtml+xml", "application/x-ndjson"),
    *("application/javascript", "application/x-yaml", "application/jsonl"),
]


@pytest.mark.parametrize(
    ("kind", "judged"),
    [
        *((kind, True) for kind in TEXTS),
        *((kind, False) for kind in ("image/png", "application/octet-stream", "video/mp4", "application/json-x")),
    ],
)
def test_a_response_of_text_is_judged_however_its_type_is_written(kind: str, judged: bool) -> None:
    waf = ModSecurity(text=RULE, responses=True)
    transaction = Transaction(waf._rules, request_headers_event())
    assert transaction.request_head().is_allow
    headers = Headers({"content-type": [kind]} if kind else {})
    assert transaction.response_head(ResponseHeadersEvent(correlation_id="a", status=200, headers=headers)).is_allow
    assert transaction.response_body(b"secret", True).is_allow != judged


def begun(headers: dict[str, list[str]], kind: str, protocol: str = "HTTP/1.1") -> Transaction:
    """A transaction that has the head of a request and of its response."""
    event = request_headers_event("POST", headers=headers)
    event = replace(event, metadata=replace(event.metadata, protocol=protocol))
    transaction = Transaction(ModSecurity(text=RULE, responses=True)._rules, event)
    assert transaction.request_head().is_allow
    head = ResponseHeadersEvent(correlation_id="a", status=200, headers=Headers({"content-type": [kind]}))
    assert transaction.response_head(head).is_allow
    return transaction


CHUNKED = {"transfer-encoding": ["chunked"]}
PIECE = 64 * 1024


@pytest.mark.parametrize(
    ("headers", "kind", "protocol", "most"),
    [
        ({}, "text/plain", "HTTP/1.1", 0),
        ({"content-length": ["0"]}, "text/plain", "HTTP/1.0", 0),
        ({}, "image/png", "HTTP/1.1", 0),
        (CHUNKED, "image/png", "HTTP/1.1", 0),
        ({}, "application/octet-stream", "HTTP/2", 0),
        (CHUNKED, "text/plain", "HTTP/1.1", MAX_SHOWN),
        ({}, "application/json", "HTTP/2", MAX_SHOWN),
    ],
)
def test_of_a_long_response_no_more_is_kept_than_the_engine_looks_at(
    headers: dict[str, list[str]], kind: str, protocol: str, most: int
) -> None:
    transaction, held = begun(headers, kind, protocol), list[int]()
    for at in range(4 * MAX_SHOWN // PIECE):
        data = bytes([at % 255 + 1]) * PIECE
        references = sys.getrefcount(data)
        transaction.response_body(data, False)
        assert sys.getrefcount(data) == references
        held.append(len(transaction._response._kept or b""))
    assert max(held) == most
    assert held[-1] == 0


@pytest.mark.parametrize(
    ("kind", "sent", "status"),
    [
        ("text/plain", MAX_SHOWN - PIECE, 200),
        ("text/plain", MAX_SHOWN + PIECE, 400),
        ("image/png", 4 * MAX_SHOWN, 200),
    ],
)
@pytest.mark.parametrize("mime", [[], ["application/json"], ["application/x-www-form-urlencoded"]])
def test_a_body_that_comes_behind_a_response_of_which_not_all_is_kept_is_refused(
    kind: str, sent: int, status: int, mime: list[str]
) -> None:
    """Nobody could judge both together."""
    transaction = begun(CHUNKED | ({"content-type": mime} if mime else {}), kind)
    for _ in range(sent // PIECE):
        transaction.response_body(b"a" * PIECE, False)
    answers = [transaction.request_body(data, data == b"]") for data in (b"[1", b"]")]
    assert [answer.is_allow for answer in answers].count(False) == (0 if status == 200 else 1)
    if status == 200 and kind != "image/png":
        assert not transaction.response_body(b"secret", True).is_allow


def test_a_body_that_no_head_says_to_come_is_not_judged_without_the_response() -> None:
    transaction = begun({}, "text/plain")
    assert transaction.response_body(b"sec", False).is_allow
    assert not transaction.request_body(b"[1]", True).is_allow


async def test_a_transaction_has_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where request and response come at the same time, or a call was cancelled whose thread goes on."""
    waf = ModSecurity(text=RULE, responses=True)
    transaction = Transaction(waf._rules, request_headers_event("POST", headers={"transfer-encoding": ["chunked"]}))
    begun, go_on, order = threading.Event(), threading.Event(), list[str]()
    head = Transaction._head

    def wait(self: Transaction) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE)
        order.append("request")
        return head(self)

    monkeypatch.setattr(Transaction, "_head", wait)
    event = ResponseHeadersEvent(correlation_id="a", status=200, headers=Headers())
    calls: list[Callable[[], object]] = [
        partial(transaction.response_head, event),
        partial(transaction.response_body, b"a", False),
        partial(transaction.request_body, b"a", True),
        transaction.end,
    ]

    def other(call: Callable[[], object]) -> None:
        assert not transaction.lock.acquire(blocking=False)
        call()
        order.append("other")

    threads = [threading.Thread(target=transaction.request_head)]
    threads[0].start()
    assert begun.wait(PATIENCE)
    threads += [threading.Thread(target=other, args=[call]) for call in calls[:2]]
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["request", "other", "other"]
