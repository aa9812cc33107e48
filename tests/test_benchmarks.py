import asyncio
import json
import sys
from collections import defaultdict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.benchmarks import chat, litellm_proxy, page, plots, report, targets, telemetry
from tests.benchmarks.client import LoadError, client_frame, request, response_length
from tests.benchmarks.driver import drive
from tests.benchmarks.envoy import configuration
from tests.benchmarks.fleet import ROOT
from tests.benchmarks.handwritten import InProcess
from tests.benchmarks.load import Job, Measurement, percentiles
from tests.benchmarks.loader import in_rounds
from tests.benchmarks.parts import PARTS, direct, envoy, growth, guardrails, ray
from tests.benchmarks.parts.server import requests_table
from tests.benchmarks.plan import QUICK
from tests.benchmarks.ratios import Spread, added, added_over, fastest, over, spread
from tests.benchmarks.turns import take_turns
from tests.benchmarks.variant import Peer, Variant
from tests.benchmarks.variants import RAYS, REQUESTS, UPLOADS, VARIANTS, WEBSOCKETS
from tests.benchmarks.waiting import Passage

# It runs parts of the benchmark.
pytestmark = pytest.mark.slow

BARE = Variant("bare", "no middleware", lambda directory: _nothing)
GUARDED = Variant("guarded", "an agent", lambda directory: InProcess(_nothing))
SMOKE = replace(QUICK, turns=2, turn_seconds=0.0001)
CURVE = report.Curve(
    "agents", "Agents", "agents", "time, of one", (1, 2), {"all": ((1.0, 1.0), (1.5, 1.7)), "none": ((1.0,), (2.0,))}
)


async def _nothing(scope: object, receive: object, send: object) -> None:
    pass


def measurement(requests: int, *cpu: float | None) -> Measurement:
    return Measurement(requests, seconds=2.0, p50=0.001, p99=0.0025, cpu=cpu)


def test_a_ratio_is_of_what_was_measured_in_the_same_round() -> None:
    assert over((2.0, 3.0), (1.0, 2.0)) == (2.0, 1.5)


def test_added_is_a_share_of_the_bare_time() -> None:
    assert added((3.0, 2.0), (2.0, 2.0)) == (0.5, 0.0)


def test_added_time_is_a_multiple_of_what_something_else_adds() -> None:
    assert added_over((3.0, 2.5), (6.0, 4.0), (2.0, 2.0)) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [((5.0, 1.0, 4.0, 2.0, 3.0), Spread(3.0, 2.0, 4.0)), ((7.0,), Spread(7.0, 7.0, 7.0))],
)
def test_a_spread_is_the_median_and_the_middle_half(rounds: tuple[float, ...], expected: Spread) -> None:
    assert spread(rounds) == expected


@pytest.mark.parametrize(("count", "expected"), [(1, 5.0), (9, 1.0), (20, 1.5), (100, 5.5)])
def test_the_fastest_are_a_tenth_of_the_rounds(count: int, expected: float) -> None:
    rounds = [5.0] if count == 1 else [float(number) for number in range(count, 0, -1)]
    assert fastest(rounds) == expected


def test_a_table_of_requests_shows_shares_of_the_first_in_the_same_round() -> None:
    found = {
        "bare": [measurement(1000, 1.0, 0.5), measurement(2000, 1.0, 0.5), measurement(1000, 1.0, 0.5)],
        "guarded": [
            measurement(500, 1.0, 0.1, 0.3),
            measurement(500, 0.9, 0.1, 0.3),
            measurement(900, 0.8, 0.1, 0.3),
        ],
    }
    table = requests_table("Requests", (BARE, GUARDED), found)
    assert table.rows == (
        ("no middleware", "1.00", "1.00 to 1.00", "500", "1.00", "2.50", "100%", "", "50%"),
        ("an agent", "0.50", "0.38 to 0.70", "250", "1.00", "2.50", "90%", "10%", "30%"),
    )


def test_cpu_that_is_not_known_is_left_blank() -> None:
    table = requests_table("Requests", (BARE,), {"bare": [measurement(1000, None, 0.5)]})
    assert table.rows[0][-3:] == ("", "", "50%")


def test_a_table_becomes_markdown() -> None:
    table = report.Table("Title", ("one", "two"), (("row", "1", "2"),))
    assert report.markdown(table).splitlines() == [
        "Title",
        "",
        "|  | one | two |",
        "| --- | --: | --: |",
        "| row | 1 | 2 |",
    ]


def test_what_is_left_out_is_said() -> None:
    part = report.Part("envoy", (), {}, left_out=("Envoy: needs it",))
    assert report.text(part) == "Left out: Envoy: needs it."


def test_the_json_has_every_round() -> None:
    part = report.Part("direct", (), {"one": (1.0, 2.0)}, (CURVE,))
    written = json.loads(report.json([part], {"plan": {"rounds": 2}}))
    assert written["plan"] == {"rounds": 2}
    assert written["parts"][0]["figures"] == {"one": [1.0, 2.0]}
    assert written["parts"][0]["curves"][0]["lines"]["all"] == [[1.0, 1.0], [1.5, 1.7]]


def test_sizes_are_written_with_their_unit() -> None:
    curve = report.Curve("bodies", "Bodies", "bytes", "time", (10, 16 * 1024, 64 * 1024 * 1024), {})
    assert curve.x_names == ("10 B", "16 KiB", "64 MiB")
    assert CURVE.x_names == ("1", "2")


@pytest.mark.parametrize(
    ("direction", "rounds", "cells"),
    [
        ("at most", (0.5, 0.4, 0.9), ("0.5", "0.45 to 0.7", "met")),
        ("at most", (0.6,), ("0.6", "0.6 to 0.6", "**not met**")),
        ("at least", (0.6,), ("0.6", "0.6 to 0.6", "met")),
        ("at least", (0.4,), ("0.4", "0.4 to 0.4", "**not met**")),
    ],
)
def test_a_target_is_judged_by_the_median(
    direction: targets.Direction, rounds: tuple[float, ...], cells: tuple[str, ...]
) -> None:
    target = targets.Target("a thing", "figure", direction, 0.5, "of another")
    [row] = targets.judge({"figure": rounds}, [target]).rows
    assert row == ("a thing", f"{'≤' if direction == 'at most' else '≥'} 0.5 of another", *cells)


def test_a_target_without_a_measurement_is_neither_met_nor_missed() -> None:
    for row in targets.judge({}).rows:
        assert row[2:] == ("not measured", "", "")


def test_every_target_is_of_a_figure_that_is_measured() -> None:
    rounds = (1.0,)
    known = {f"direct.headers.{name}" for name in _direct_figures("headers")}
    known |= {f"server.{variant.name}.share" for variant in REQUESTS}
    known |= {"direct.headers.1.calls", "direct.events.1.microseconds"}
    known |= {"server.http.over-httpx", "server.http.over-aiohttp", "server.grpc.over-unix-json"}
    known |= {"server.in-process.over-by-hand", "server.unix-json.over-by-hand", "server.upload.cpu"}
    known |= {"server.upload.time", "server.websocket.added-per-message"}
    known |= set(envoy.processor_figures([measurement(1, 0.1, 0.1, 0.1)], [measurement(1, 0.1, 0.1, 0.1)]))
    known |= {"envoy.unix-json.over-ext-authz", "envoy.http.over-ext-authz", "growth.websocket-memory.added.5000"}
    known |= set(growth.figures(growth.agents_curve([rounds] * 7)))
    known |= set(growth.figures(growth.routes_curve([rounds] * 7, [rounds] * 7)))
    known |= set(guardrails.judge_cpu(dict.fromkeys(guardrails.apps(), rounds))[1])
    known |= {f"guardrails.waiting.{name}" for name in ("5.share", "300.longer")}
    assert {target.figure for target in targets.TARGETS} <= known


def _direct_figures(name: str) -> set[str]:
    [scenario] = [scenario for scenario in direct.scenarios() if scenario.name == name]
    seconds = {"bare": (1.0,), "base-http": (3.0,), "none": (1.1,), "1": (2.0,), "3": (2.5,), "8": (4.0,)}
    seconds |= dict.fromkeys(scenario.also, (2.0,))
    _, figures = direct.judge(scenario, seconds)
    return {figure.removeprefix(f"direct.{name}.") for figure in figures}


def test_results_go_between_the_marks_of_the_page() -> None:
    given = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    once = page.rewritten(given, "new\n")
    assert once == f"before\n{page.BEGIN}\nnew\n{page.END}\nafter\n"
    assert page.rewritten(once, "new") == once


@pytest.mark.parametrize(
    "given",
    ["", page.BEGIN, page.END + page.BEGIN, page.BEGIN + page.END + page.BEGIN, page.END * 2],
)
def test_a_page_without_marks_in_order_is_not_touched(given: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        page.rewritten(given, "new")


def test_the_page_has_the_marks_and_every_target_between_them() -> None:
    _, _, rest = (ROOT / "docs/pages/performance.md").read_text().partition(page.BEGIN)
    shown, end, _ = rest.partition(page.END)
    assert end
    for target in targets.TARGETS:
        assert f"| {target.what} | {target.wanted} |" in shown


@pytest.mark.skipif(not plots.available(), reason="matplotlib is in the benchmark extra")
def test_plots_are_svg_and_the_same_for_the_same_numbers() -> None:
    drawn = plots.svg(CURVE)
    assert ElementTree.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - we have drawn it
    assert plots.svg(CURVE) == drawn


def test_the_plots_in_the_repository_are_those_that_the_page_shows() -> None:
    text = (ROOT / "docs/pages/performance.md").read_text()
    for path in (ROOT / "docs/pages/plots").iterdir():
        assert ElementTree.fromstring(path.read_bytes()).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - ours
        assert f"(plots/{path.name})" in text


async def _wait(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_everything_takes_its_turn_in_every_round() -> None:
    calls: list[str] = []

    async def one(times: int) -> None:
        calls.append("one")
        await _wait(times)

    async def other(times: int) -> None:
        calls.append("other")
        await _wait(times)

    taken = await take_turns([one, other], rounds=4, seconds=1e-9)
    assert [len(seconds) for seconds in taken] == [4, 4]
    for number in range(4):
        assert {*calls[-8:][2 * number : 2 * number + 2]} == {"one", "other"}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_is_made_the_first_time_makes_no_turn_shorter() -> None:
    now = 0.0
    counts: list[int] = []

    async def slow_at_first(times: int) -> None:
        nonlocal now
        now += 0.001 * times if counts else 5.0
        counts.append(times)

    await take_turns([slow_at_first], rounds=2, seconds=1.0, clock=lambda: now)
    assert counts[-2:] == [1000, 1000]


def test_every_job_is_done_once_in_every_round() -> None:
    jobs = {"one": Job(1, 1, 0.1, 0.1), "other": Job(2, 1, 0.1, 0.1)}
    loaded: list[int] = []

    def load(job: Job) -> Measurement:
        loaded.append(job.port)
        return measurement(job.port)

    found = in_rounds(load, jobs, 3, lambda line: None)
    assert [one.requests for one in found["other"]] == [2, 2, 2]
    assert [{*loaded[at : at + 2]} for at in (0, 2, 4)] == [{1, 2}] * 3


def test_a_job_that_fails_is_named() -> None:
    def load(job: Job) -> Measurement:
        raise LoadError("no answer")

    with pytest.raises(LoadError, match="one: no answer"):
        in_rounds(load, {"one": Job(1, 1, 0.1, 0.1)}, 1, lambda line: None)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("scenario", direct.scenarios(), ids=lambda scenario: scenario.name)
async def test_what_is_driven_directly_answers_alike_with_and_without_agents(scenario: direct.Scenario) -> None:
    (_, _, bare), *others = scenario.rows
    expected = await drive(bare, scenario.scope, scenario.messages, 1)
    for name, _, app in others:
        sent = await drive(app, scenario.scope, scenario.messages, 1)
        # BaseHTTPMiddleware ends the body with a message of its own.
        assert [{**message, "more_body": False} for message in sent if message.get("body") != b""] == [
            {**message, "more_body": False} for message in expected if message.get("body") != b""
        ], name


def test_the_direct_part_runs() -> None:
    part = PARTS["direct"](SMOKE, lambda line: None)
    assert len(part.tables) == len(direct.scenarios())
    assert len(part.figures["direct.headers.1.added"]) == SMOKE.turns
    assert "| no agent on the route |" in report.text(part)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_routes_grow_to_the_last_one() -> None:
    finding, requests = await growth.measure_routes((1, 3), SMOKE)
    assert [len(seconds) for seconds in (*finding, *requests)] == [SMOKE.turns] * 4
    assert [route.path for route in growth.routes(2)] == ["/api/resource0/{id:int}", "/api/resource1/{id:int}"]


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


def test_an_upload_says_how_long_it_is() -> None:
    head, body = request(3)
    assert head.startswith(b"POST /uploads HTTP/1.1\r\n")
    assert b"\r\ncontent-length: 3\r\n\r\n" in head
    assert body == b"xxx"


def test_a_frame_of_a_client_is_masked() -> None:
    # RFC 6455, section 5.1.
    assert client_frame(0x81, b"hi") == b"\x81\x82\x00\x00\x00\x00hi"


def test_a_peer_is_told_where_to_listen() -> None:
    peer = Peer("agent", ("-m", "agent", "--bind", "unix://{socket}"))
    assert peer.command(Path("/run/x"))[1:] == ["-m", "agent", "--bind", "unix:///run/x/agent.sock"]


def test_a_variant_that_needs_what_is_not_there_is_not_available() -> None:
    assert BARE.available
    assert not Variant("x", "x", BARE.serves, needs=("json", "benchmark_that_is_missing")).available


def test_variants_and_peers_have_names_of_their_own() -> None:
    names = [variant.name for variant in VARIANTS]
    peers = {peer for variant in VARIANTS for peer in variant.peers}
    assert len(set(names)) == len(names)
    assert len({peer.name for peer in peers}) == len(peers)
    assert {*REQUESTS, *UPLOADS, *WEBSOCKETS} <= set(VARIANTS)


def test_envoy_asks_before_it_routes() -> None:
    listener = configuration("/admin", "/app", "ext_authz", "/check")["static_resources"]["listeners"][0]
    filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    assert [one["name"] for one in filters] == ["ext_authz", "router"]


def test_envoy_that_only_passes_on_knows_nobody_to_ask() -> None:
    resources = configuration("/admin", "/app", None, None)["static_resources"]
    assert [cluster["name"] for cluster in resources["clusters"]] == ["app"]


def test_rows_of_envoy_need_the_extra() -> None:
    part = [variant for variant in VARIANTS if variant.name.startswith(("envoy-", "ext-"))]
    assert len(part) == 6
    if find_spec("envoy") is None:
        assert not any(variant.available for variant in part)


def test_a_served_processor_is_compared_by_its_rate_and_by_the_cpu_of_its_fastest_rounds() -> None:
    # CPU of Envoy, of the app, of the processor, of the load.
    bare = [measurement(1000 + number, 1.0, 1.0, 0.5, 1.0) for number in range(10)]
    served = [measurement(500, 1.0, 1.0, 0.5 if number else 0.4, 1.0) for number in range(10)]
    figures = envoy.processor_figures(bare, served)
    assert figures["envoy.served-ext-proc.over-bare"][0] == pytest.approx(0.5)
    assert figures["envoy.served-ext-proc.cpu"] == pytest.approx((0.5 / 1009 / (0.4 / 500),))
    untold = [measurement(1000, 1.0, 1.0, None, 1.0)]
    assert set(envoy.processor_figures(untold, untold)) == {"envoy.served-ext-proc.over-bare"}


def test_where_ray_is_missing_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tuple(replace(variant, needs=("ray_that_is_missing",)) for variant in RAYS)
    monkeypatch.setattr(ray, "RAYS", missing)
    part = PARTS["ray"](SMOKE, lambda line: None)
    assert part.figures == {}
    assert "by its handle: needs the modules ray_that_is_missing, of the `ray` extra" in report.text(part)


def test_the_cost_of_telemetry_is_told_as_a_share() -> None:
    cases = telemetry.cases()
    table = telemetry.markdown(cases, telemetry.measure(cases, rounds=2, seconds=0.0001))
    lines = table.splitlines()
    assert lines[2] == "| nothing counted, nothing traced | 1.000 | 1.000-1.000 |"
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| no SDK", "| an SDK that collects metrics", "| and spans"]


def test_what_guardrails_add_is_told_in_microseconds_over_what_is_bare() -> None:
    seconds = {"bare": (1e-6, 9e-6), "plain": (2e-6, 2e-6), "by-hand": (10e-6, 20e-6)}
    seconds |= {"settled": (41e-6, 60e-6), "unsettled": (51e-6, 51e-6), "two": (61e-6, 61e-6)}
    table, figures = guardrails.judge_cpu({**seconds, "plain-settled": (32e-6, 32e-6)})
    assert figures["guardrails.settled.added"] == pytest.approx((40.0,))
    assert figures["guardrails.settled.over-by-hand"] == pytest.approx((4.1, 3.0))
    assert [row[1] for row in table.rows] == ["40.0", "50.0", "60.0", "9.0", "30.0"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_guarded_streams_are_driven_redacted_and_timed() -> None:
    seconds = await guardrails.measure_cpu(SMOKE)
    assert [*map(len, seconds.values())] == [SMOKE.turns] * len(guardrails.apps())


async def calls(tokens: int) -> float:
    """How many functions are called for a token of a guarded stream, of Python and of C."""
    app = chat.guarded(chat.Streaming(chat.chat_events(tokens)), chat.Settled())
    await drive(app, chat.CHAT, chat.ASKED, 1)
    called = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal called
        called += event in ("call", "c_call")

    profile = sys.getprofile()
    sys.setprofile(count)
    try:
        await drive(app, chat.CHAT, chat.ASKED, 1)
    finally:
        sys.setprofile(profile)
    return called / tokens


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_token_past_a_guardrail_takes_so_many_calls_however_long_the_stream_is() -> None:
    short, long = await calls(300), await calls(900)
    assert long < 1.1 * short
    assert short < 400


# It takes 6 times as long as what is written by hand, which leaks what is cut over two events.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_guarded_token_takes_a_bounded_multiple_of_one_that_is_redacted_by_hand() -> None:
    seconds = await guardrails.measure_cpu(replace(QUICK, turns=5, turn_seconds=0.005))
    assert fastest(seconds["settled"]) < 20 * fastest(seconds["by-hand"])


def test_without_litellm_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = Passage(["x"], came=[0.0, 1.0], left=[0.5, 1.0])
    monkeypatch.setattr(litellm_proxy, "available", lambda: False)
    monkeypatch.setattr(guardrails, "measure_waiting", lambda: defaultdict(lambda: passed))
    part = guardrails.run(replace(SMOKE, events=10, streams=1), lambda line: None)
    assert "Left out: LiteLLM's proxy: needs the extra `bench-litellm`." in report.text(part)
    assert part.figures["guardrails.waiting.5.first"] == (0.5,)


@pytest.mark.parametrize(
    ("last", "seen"),
    [
        (chat.chunk(None, "content_filter"), "`content_filter`"),
        (b'data: {"error": {"message": "no", "code": 500}}\n\n', "`error`: no, 500"),
        (b"", "cut off"),
    ],
)
def test_how_a_stream_ends_for_its_client(last: bytes, seen: str) -> None:
    assert litellm_proxy.ending(chat.chunk("x") + last) == seen
