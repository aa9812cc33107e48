"""Each promise is planted a breach of, which has to be found: a check that can't fail is worth nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos import checks
from tests.chaos.app import content
from tests.chaos.checks import Checker, Sent, Session
from tests.chaos.http_client import Ending, Got
from tests.chaos.recovery import left, logged, reached
from tests.chaos.stamps import POISON, Seal
from tests.chaos.targets import Target

SEALS = {agent: Seal(agent, b"secret") for agent in ("waf", "auth")}
CHECKER = Checker(SEALS)
CLOSED = Target("/closed/x", ("waf",), frozenset({"waf"}))
OPEN = Target("/open/x", ("waf",), frozenset())
CHAIN = Target("/closed/chain", ("waf", "auth"), frozenset({"waf", "auth"}))
MIXED = Target("/mixed/chain", ("waf", "auth"), frozenset({"waf"}))
TARGETS = pytest.mark.parametrize("target", [CLOSED, OPEN, CHAIN, MIXED], ids=lambda target: target.path)
TOKEN = "c1-7"


def sent(target: Target, poison: str = "", *, echoes: bool = False, events: bool = False) -> Sent:
    plain = b"an upload" if echoes else b"".join(content(TOKEN, 2, leak=poison == "response"))
    return Sent(target, TOKEN, f"{target.path}/thing", plain, poison, echoes=echoes, events=events)


def good(request: Sent, *, token: str = TOKEN, skip: tuple[str, ...] = ()) -> Got:
    """What a request gets when all goes well, but for the agents to ``skip``."""
    agents = [agent for agent in request.target.agents if agent not in skip]
    headers = {"x-request-id": TOKEN, "x-token": TOKEN}
    body = request.plain
    for phase in ("request", "response") if request.echoes else ("response",):
        for agent in agents:
            body = SEALS[agent].wrap(token, phase, body)
    for agent in agents:
        headers[f"x-seen-{agent}"] = SEALS[agent].stamp(token, "request")
        headers[f"x-response-{agent}"] = SEALS[agent].stamp(token, "response", b"200")
    return Got(Ending.COMPLETE, 200, headers, body)


def failed(status: int, body: bytes) -> Got:
    return Got(Ending.COMPLETE, status, {"x-request-id": TOKEN}, body)


def blocked(agent: str = "waf", token: str = TOKEN) -> Got:
    stamp = SEALS[agent].stamp(token, "blocked")
    return Got(Ending.COMPLETE, 403, {"x-request-id": TOKEN, f"x-blocked-{agent}": stamp}, b"poison")


def without(got: Got, *names: str) -> Got:
    return got._replace(headers={name: value for name, value in got.headers.items() if name not in names})


def found(request: Sent, got: Got) -> set[str]:
    return {violation.promise for violation in CHECKER.response(request, got)}


# What may be


@TARGETS
@pytest.mark.parametrize("echoes", [True, False])
def test_a_response_that_everybody_has_inspected_is_fine(target: Target, echoes: bool) -> None:
    request = sent(target, echoes=echoes)
    assert found(request, good(request)) == set()


def test_a_failure_may_stop_a_request_where_it_fails_closed() -> None:
    for target in (CLOSED, CHAIN, MIXED):
        assert found(sent(target), failed(503, b"Agent unavailable")) == set()
        assert found(sent(target), failed(503, b"Service unavailable")) == set()
        assert found(sent(target), failed(504, b"Gateway timeout")) == set()


def test_an_agent_that_fails_open_need_not_have_inspected_anything() -> None:
    assert found(sent(OPEN), good(sent(OPEN), skip=("waf",))) == set()
    assert found(sent(MIXED), good(sent(MIXED), skip=("auth",))) == set()
    forged = good(sent(OPEN), skip=("waf",))
    assert found(sent(OPEN), forged._replace(headers={**forged.headers, "x-seen-waf": "forged"})) == set()


@TARGETS
@pytest.mark.parametrize("poison", ["head", "body", "response"])
def test_agents_may_block_what_is_poisoned(target: Target, poison: str) -> None:
    assert found(sent(target, poison), blocked()) == set()


def test_a_response_may_be_cut_where_a_failure_or_poison_can_do_that() -> None:
    for request in (sent(CLOSED), sent(OPEN, "response")):
        got = good(request)
        for size in range(len(got.body)):
            assert found(request, got._replace(ending=Ending.CUT, body=got.body[:size])) == set()


def test_an_event_stream_may_end_with_an_error() -> None:
    told = b'event: error\ndata: {"type":"error","error":{"message":"x","type":"error","code":"503"}}\n\n'
    request = sent(CLOSED, events=True)
    piece = SEALS["waf"].wrap(TOKEN, "response", request.plain[: request.plain.index(b"\n\n") + 2])
    assert found(request, good(request)._replace(body=piece + told)) == set()


# Breaches


@pytest.mark.parametrize("header", ["x-seen-waf", "x-response-waf"])
def test_a_head_that_lacks_a_stamp_is_found(header: str) -> None:
    for target in (CLOSED, CHAIN, MIXED):
        assert found(sent(target), without(good(sent(target)), header)) == {checks.UNINSPECTED}


def test_a_forged_stamp_is_found() -> None:
    got = good(sent(CLOSED))
    assert found(sent(CLOSED), got._replace(headers={**got.headers, "x-seen-waf": "forged"})) == {checks.UNINSPECTED}


@pytest.mark.parametrize("echoes", [True, False])
def test_a_body_that_nobody_has_wrapped_is_found(echoes: bool) -> None:
    request = sent(CLOSED, echoes=echoes)
    assert found(request, good(request)._replace(body=request.plain)) == {checks.UNINSPECTED}


def test_a_piece_of_a_body_that_nobody_has_wrapped_is_found() -> None:
    request = sent(CLOSED)
    body = SEALS["waf"].wrap(TOKEN, "response", request.plain[:-1]) + request.plain[-1:]
    assert found(request, good(request)._replace(body=body)) == {checks.UNINSPECTED}


def test_a_body_that_was_changed_within_its_wrapping_is_found() -> None:
    got = good(sent(CLOSED))
    assert checks.UNINSPECTED in found(sent(CLOSED), got._replace(body=got.body[:-1] + b"?"))


def test_each_agent_of_a_chain_has_to_have_inspected() -> None:
    for skipped in CHAIN.agents:
        assert found(sent(CHAIN), good(sent(CHAIN), skip=(skipped,))) == {checks.UNINSPECTED}
    assert found(sent(MIXED), good(sent(MIXED), skip=("waf",))) == {checks.UNINSPECTED}


@pytest.mark.parametrize("poison", ["head", "body"])
def test_poison_that_is_served_is_found(poison: str) -> None:
    request = sent(CLOSED, poison, echoes=True)
    assert checks.POISONED in found(request, good(request))


def test_poison_in_a_response_is_found() -> None:
    request = sent(CLOSED, "response")
    assert checks.POISONED in found(request, good(request))
    assert checks.POISONED in found(request, good(request)._replace(ending=Ending.CUT))


def test_poison_past_an_agent_that_has_seen_it_is_found_where_it_fails_open() -> None:
    assert found(sent(OPEN, "head"), good(sent(OPEN, "head"))) == {checks.POISONED}
    assert found(sent(OPEN, "response"), good(sent(OPEN, "response"))) == {checks.POISONED}
    assert found(sent(OPEN, "response"), good(sent(OPEN, "response"), skip=("waf",))) == set()


def test_poison_that_has_reached_the_app_is_found() -> None:
    statistics = {"poisoned": [("/closed/pool/echo", "t"), ("/open/pool/echo", "t"), ("/mixed/chain/socket", "t")]}
    assert [violation.path for violation in reached(statistics, CHECKER)] == [
        "/closed/pool/echo",
        "/mixed/chain/socket",
    ]


@pytest.mark.parametrize("got", [failed(503, b"Agent unavailable"), failed(504, b"Gateway timeout"), blocked()])
def test_a_request_that_is_stopped_where_it_fails_open_is_found(got: Got) -> None:
    assert found(sent(OPEN), got) == {checks.BLOCKED}


def test_a_failure_that_stops_a_poisoned_request_where_it_fails_open_is_found() -> None:
    assert found(sent(OPEN, "head"), failed(503, b"Agent unavailable")) == {checks.BLOCKED}


def test_a_response_that_is_cut_where_it_fails_open_is_found() -> None:
    got = good(sent(OPEN))
    assert found(sent(OPEN), got._replace(ending=Ending.CUT, body=got.body[:-10])) == {checks.BLOCKED}


@TARGETS
def test_a_part_that_looks_complete_is_found(target: Target) -> None:
    request = sent(target)
    part = good(request._replace(plain=request.plain[:-5]))
    assert found(request, part) == {checks.NOT_WHOLE}


@TARGETS
def test_a_wrapping_without_end_in_a_complete_response_is_found(target: Target) -> None:
    got = good(sent(target))
    assert checks.NOT_WHOLE in found(sent(target), got._replace(body=got.body[:-1]))


@TARGETS
def test_a_response_whose_framing_says_nothing_of_its_end_is_found(target: Target) -> None:
    assert checks.NOT_WHOLE in found(sent(target), good(sent(target))._replace(ending=Ending.UNFRAMED))


@TARGETS
def test_what_belongs_to_another_request_is_found(target: Target) -> None:
    request = sent(target)
    got = good(request)
    for name in ("x-request-id", "x-token"):
        assert found(request, got._replace(headers={**got.headers, name: "c2-1"})) == {checks.FOREIGN}
    assert found(request, good(request, token="c2-1")) == {checks.FOREIGN}
    assert found(sent(target, "head"), blocked(token="c2-1")) == {checks.FOREIGN}


@pytest.mark.parametrize("status", [201, 400, 413, 500, 502])
def test_any_other_status_is_found(status: int) -> None:
    assert found(sent(CLOSED), failed(status, b"")) == {checks.STATUS}
    assert found(sent(OPEN), failed(status, b"")) == {checks.BLOCKED}


def test_a_block_of_what_is_not_poisoned_or_by_nobody_is_found() -> None:
    assert found(sent(CLOSED), blocked()) == {checks.STATUS}
    assert found(sent(CLOSED, "head"), without(blocked(), "x-blocked-waf")) == {checks.STATUS}
    assert found(sent(CLOSED, "head"), blocked("auth")) == {checks.STATUS}


def test_a_failure_in_other_words_is_found() -> None:
    assert found(sent(CLOSED), failed(503, b"Gateway timeout")) == {checks.STATUS}
    assert found(sent(CLOSED), failed(504, b"Traceback")) == {checks.STATUS}


@TARGETS
@pytest.mark.parametrize("ending", [Ending.NOTHING, Ending.HUNG])
def test_no_answer_is_found(target: Target, ending: Ending) -> None:
    assert found(sent(target), Got(ending)) == {checks.NO_ANSWER}


# Websockets


def session(target: Target, **changes: Any) -> Session:
    headers = {f"x-accepted-{agent}": SEALS[agent].stamp(TOKEN, "accept") for agent in target.agents}
    said = [f"{TOKEN} 0", f"{TOKEN} 1"]
    heard = [f"echo {message}" for message in said]
    whole = Session(target, TOKEN, f"{target.path}/socket", 101, headers, "", said, heard, None)
    return whole._replace(**changes)


def found_in(talk: Session) -> set[str]:
    return {violation.promise for violation in CHECKER.session(talk)}


@TARGETS
def test_a_websocket_may_be_closed_by_us_or_for_poison(target: Target) -> None:
    assert found_in(session(target)) == set()
    for last in (f"{POISON.decode()} {TOKEN}", f"leak {TOKEN}"):
        said = [f"{TOKEN} 0", last]
        assert found_in(session(target, sent=said, received=[f"echo {TOKEN} 0"], close=(1008, "poison"))) == set()


def test_a_failure_may_close_or_refuse_a_websocket_where_it_fails_closed() -> None:
    for reason in ("Service unavailable", "Agent error", "Gateway timeout"):
        assert found_in(session(CLOSED, close=(1011, reason), received=[])) == set()
        assert found_in(session(OPEN, close=(1011, reason), received=[])) == {checks.BLOCKED}
    refused = {"status": 503, "body": "Agent unavailable", "headers": {}, "sent": [], "received": []}
    assert found_in(session(CLOSED, **refused)) == set()
    assert found_in(session(OPEN, **refused)) == {checks.BLOCKED}
    assert found_in(session(CLOSED, **{**refused, "status": 500})) == {checks.STATUS}


@pytest.mark.parametrize("close", [(1006, ""), (1000, ""), (1011, ""), (1011, "Other"), (1012, ""), (1008, "poison")])
def test_any_other_close_is_found(close: tuple[int, str]) -> None:
    assert found_in(session(CLOSED, close=close)) == {checks.CLOSE}
    assert found_in(session(OPEN, close=close)) == {checks.BLOCKED}


def test_a_handshake_that_lacks_a_stamp_is_found() -> None:
    assert found_in(session(CLOSED, headers={})) == {checks.UNINSPECTED}
    assert found_in(session(OPEN, headers={})) == set()


def test_poison_in_a_message_is_found() -> None:
    heard = [f"echo {TOKEN} 0", POISON.decode()]
    assert checks.POISONED in found_in(session(CLOSED, received=heard, close=(1011, "Agent error")))


@pytest.mark.parametrize(
    ("heard", "promise"),
    [
        (["echo c2-1 0"], checks.FOREIGN),
        ([f"echo {TOKEN} 1", f"echo {TOKEN} 0"], checks.NOT_WHOLE),
        ([f"echo {TOKEN} 0"], checks.NOT_WHOLE),
        ([f"echo {TOKEN} 0", f"echo {TOKEN} 1", f"echo {TOKEN} 1"], checks.NOT_WHOLE),
    ],
    ids=["another's", "out of order", "missing", "twice"],
)
def test_messages_that_are_not_the_echo_of_what_was_said_are_found(heard: list[str], promise: str) -> None:
    assert found_in(session(CLOSED, received=heard)) == {promise}


def test_a_websocket_that_hangs_is_found() -> None:
    assert checks.NO_ANSWER in found_in(session(OPEN, ending=Ending.HUNG))


# Afterwards


def _statistics() -> dict[str, Any]:
    endpoint = {"in_flight": 0, "state": "up"}
    agent = {"in_flight": 0, "waiting": 0, "breaker": "closed", "endpoints": [endpoint]}
    return {"open": 0, "agents": {"waf": agent}}


def _spoil(*path: Any, value: Any) -> Callable[[], dict[str, Any]]:
    def spoilt() -> dict[str, Any]:
        statistics: Any = _statistics()
        inner = statistics
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return statistics  # type: ignore[no-any-return]

    return spoilt


@pytest.mark.parametrize(
    "spoilt",
    [
        _spoil("open", value=1),
        _spoil("agents", "waf", "in_flight", value=1),
        _spoil("agents", "waf", "waiting", value=1),
        _spoil("agents", "waf", "breaker", value="open"),
        _spoil("agents", "waf", "endpoints", 0, "in_flight", value=1),
        _spoil("agents", "waf", "endpoints", 0, "state", value="down"),
    ],
)
def test_what_is_left_afterwards_is_found(spoilt: Callable[[], dict[str, Any]]) -> None:
    assert left(_statistics()) == []
    assert len(left(spoilt())) == 1


TRACEBACK = 'ERROR: it said\nTraceback (most recent call last):\n  File "app.py", line 1\n    x\n'


@pytest.mark.parametrize("error", ["Task exception was never retrieved\n", f"{TRACEBACK}KeyError: 'x'\n"])
def test_an_error_in_the_log_is_found(error: str) -> None:
    fine = f"INFO: all is well\n{TRACEBACK}asgi_agents.errors.ResponseAborted: response broken off\n"
    assert logged(fine) == []
    assert [violation.promise for violation in logged(fine + error)] == [checks.LOGGED]


def test_violations_are_counted_by_promise() -> None:
    counts = checks.by_promise(CHECKER.response(sent(CLOSED), Got(Ending.HUNG)))
    assert counts[checks.NO_ANSWER] == sum(counts.values()) == 1
