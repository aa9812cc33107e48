import json
from pathlib import Path

import pytest

from tests.benchmarks import report, telemetry
from tests.benchmarks.apps import VARIANTS
from tests.benchmarks.fleet import Server
from tests.benchmarks.handwritten import InProcess
from tests.benchmarks.load import LoadError, Measurement, percentiles, response_length
from tests.benchmarks.rounds import rotated
from tests.benchmarks.variant import Peer, Variant

BARE = Variant("bare", "no middleware", lambda directory: _nothing)
GUARDED = Variant("guarded", "an agent", lambda directory: InProcess(_nothing))


async def _nothing(scope: object, receive: object, send: object) -> None:
    pass


def measurement(requests: int, *cpu: float | None) -> Measurement:
    return Measurement(requests, seconds=2.0, p50=0.001, p99=0.0025, cpu=cpu)


def guarded_row() -> report.Row:
    bare = [measurement(1000, 1.0, 0.5), measurement(2000, 1.0, 0.5), measurement(1000, 1.0, 0.5)]
    guarded = [measurement(500, 1.0, 0.1, 0.3), measurement(500, 0.9, 0.1, 0.3), measurement(900, 0.8, 0.1, 0.3)]
    [_, row] = report.rows((BARE, GUARDED), {"bare": bare, "guarded": guarded}, "bare")
    return row


def test_a_share_is_of_the_reference_in_the_same_round() -> None:
    row = guarded_row()
    assert row.requests_per_second == (250.0, 250.0, 450.0)
    assert row.shares == (0.5, 0.25, 0.9)


def test_the_table_shows_medians_and_the_spread_of_the_shares() -> None:
    assert report.markdown([guarded_row()]).splitlines() == [
        "| | share | min-max | requests/s | p50 ms | p99 ms | CPU: server | peers | load |",
        "| --- | --: | :-: | --: | --: | --: | --: | --: | --: |",
        "| an agent | 0.50 | 0.25-0.90 | 250 | 1.00 | 2.50 | 90% | 10% | 30% |",
    ]


def test_cpu_that_is_not_known_is_left_blank() -> None:
    [row] = report.rows((BARE,), {"bare": [measurement(1000, None, 0.5)]}, "bare")
    assert report.markdown([row]).splitlines()[-1] == (
        "| no middleware | 1.00 | 1.00-1.00 | 500 | 1.00 | 2.50 |  |  | 50% |"
    )


def test_the_json_has_every_round() -> None:
    written = json.loads(report.json([guarded_row()], {"plan": {"rounds": 3}}))
    assert written["plan"] == {"rounds": 3}
    assert written["rows"][0]["name"] == "guarded"
    assert written["rows"][0]["shares"] == [0.5, 0.25, 0.9]


def test_every_round_begins_with_another_row() -> None:
    servers = [Server(BARE, port, 0, ()) for port in (1, 2, 3)]
    ports = [[server.port for server in rotated(servers, number)] for number in range(4)]
    assert ports == [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]


def test_percentiles_are_the_50th_and_the_99th() -> None:
    assert percentiles([float(number) for number in range(101)]) == (50.0, 99.0)


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\nHel", 52),
        (b"HTTP/1.1 200 OK\r\nContent-Length:0\r\ndate: today\r\n\r\n", 50),
    ],
)
def test_the_length_of_a_response_is_known_from_its_head(data: bytes, length: int | None) -> None:
    assert response_length(data) == length


def test_a_response_without_content_length_is_refused() -> None:
    with pytest.raises(LoadError, match="content-length"):
        response_length(b"HTTP/1.1 200 OK\r\n\r\ncontent-length: 3\r\n")


def test_a_peer_is_told_where_to_listen() -> None:
    peer = Peer("agent", ("-m", "agent", "--bind", "unix://{socket}"))
    assert peer.command(Path("/run/x"))[1:] == ["-m", "agent", "--bind", "unix:///run/x/agent.sock"]


def test_a_variant_that_needs_what_is_not_there_is_not_available() -> None:
    assert BARE.available
    assert not Variant("x", "x", BARE.app, needs="tests.benchmarks.missing").available


def test_variants_and_peers_have_names_of_their_own() -> None:
    names = [variant.name for variant in VARIANTS]
    peers = {peer for variant in VARIANTS for peer in variant.peers}
    assert len(set(names)) == len(names)
    assert len({peer.name for peer in peers}) == len(peers)


def test_the_cost_of_telemetry_is_told_as_a_share() -> None:
    cases = telemetry.cases()
    table = telemetry.markdown(cases, telemetry.measure(cases, rounds=2, requests=2))
    lines = table.splitlines()
    assert lines[2] == "| nothing counted, nothing traced | 1.000 | 1.000-1.000 |"
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| no SDK", "| an SDK that collects metrics", "| and spans"]
