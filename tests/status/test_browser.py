"""The page as its readers have it, in a real browser."""

import concurrent.futures
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, FailureMode, Route, status_app
from asgi_agents.guardrails import Guardrail
from asgi_agents.status import app as app_module
from example_app.demo.servers import serving
from tests.support.asgi import App
from tests.support.servers import serve

from .browser import PATIENCE, Visit, sync_api
from .world import USUAL_ROUTES, Greetings, World, head_event, scripted, usual_agents

expect = sync_api().expect
expect.set_options(timeout=PATIENCE)

Open = Callable[..., Visit]
Start = Callable[..., World]
# Each opens pages in a browser and waits for what scripts do in them. test_app and test_snapshot test what they fetch.
pytestmark = pytest.mark.slow

# What Chromium itself says of requests that fail.
NETWORK = re.compile(r"Failed to load resource|net::ERR_")


@pytest.fixture
def world(start: Start) -> World:
    return start()


def open_breaker(world: World) -> None:
    """That of `flaky`: two failures, and one call that is turned away."""
    for number in (1, 2, 3):
        assert world.get("/flaky/", f"flaky-{number}", flaky="fail") == 503


def rows(visit: Visit) -> Any:
    return visit.page.locator("#incident-rows tr")


def card(visit: Visit, agent_id: str) -> Any:
    return visit.page.locator(f'.agent[data-agent="{agent_id}"]')


def is_live(visit: Visit) -> None:
    expect(visit.page.locator("#live")).to_have_attribute("data-state", "on")


def find(visit: Visit, text: str) -> None:
    visit.page.locator("#find").fill(text)


def until(visit: Visit, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline
        visit.page.wait_for_timeout(50)


# Loading


def test_the_page_loads_and_shows_all_agents(world: World, visit: Open) -> None:
    visited = visit(world.page)
    expect(visited.page).to_have_title("Agents")
    expect(visited.page.locator(".agent h3")).to_have_text(["waf", "shadow", "optional", "flaky"])
    expect(visited.page.locator("#summary")).to_have_text("4 agents, no trouble")
    expect(visited.page.locator("#route-rows tr")).to_have_count(4)
    expect(card(visited, "shadow").locator(".badge", has_text="shadow")).to_be_visible()
    is_live(visited)


def test_without_the_trailing_slash_it_loads_as_well(world: World, visit: Open) -> None:
    visited = visit(world.page.rstrip("/"))
    expect(visited.page.locator(".agent")).to_have_count(4)


def test_nothing_comes_from_another_origin(world: World, visit: Open) -> None:
    visited = visit(world.page)
    is_live(visited)
    assert {url.removeprefix(world.page) for url in visited.requests} >= {
        "",
        "page.css",
        "parts.js",
        "page.js",
        "events",
    }
    assert [url for url in visited.requests if not url.startswith(world.page)] == []


def test_without_agents_it_says_so(start: Start, visit: Open) -> None:
    world = start([], [])
    visited = visit(world.page)
    expect(visited.page.get_by_text("There are no agents.")).to_be_visible()
    expect(visited.page.locator("#summary")).to_have_text("0 agents, no trouble")
    expect(visited.page.locator("#found")).to_have_text("None so far.")


# Trouble first


def test_agents_in_trouble_come_first_are_outlined_and_named(visit: Open) -> None:
    snapshot = _snapshot()
    waf, shadow, optional, flaky = snapshot["agents"]
    optional["trouble"] = {"breaker_half_open": 1}
    flaky["trouble"], flaky["configured"] = {"not_configured": 1}, False
    shadow["trouble"] = {"down": 1, "breaker_open": 1}
    visited = visit_fake(visit, snapshot)
    expect(visited.page.locator(".agent h3")).to_have_text(["shadow", "flaky", "optional", "waf"])
    expect(visited.page.locator("#summary")).to_have_text(
        "2 of 4 agents in trouble: shadow (down, breaker open), flaky (not configured)"
    )
    expect(visited.page).to_have_title("(2) Agents")
    colours = visited.page.evaluate(
        "[...document.querySelectorAll('.agent')].map((each) => getComputedStyle(each).borderTopColor)"
    )
    bad, also_bad, minor, none = colours
    assert bad == also_bad
    assert len({bad, minor, none}) == 3
    expect(card(visited, "flaky").locator(".badge", has_text="not configured")).to_have_attribute("data-tone", "bad")
    assert waf["trouble"] == {}


def test_of_many_in_trouble_the_headline_names_the_worst(visit: Open) -> None:
    snapshot = _snapshot()
    first = snapshot["agents"][0]
    snapshot["agents"] = [{**first, "id": f"agent-{number}", "trouble": {"failing": 1}} for number in range(30)]
    snapshot["agents"][29]["trouble"] = {"down": 1}
    snapshot["agents"][28]["id"] = "x" * 128
    visited = visit_fake(visit, snapshot)
    expect(visited.page.locator("#summary")).to_have_text(
        re.compile(r"^30 of 30 agents in trouble: agent-29 \(down\), agent-0 \(all calls fail\), .* and 22 more$")
    )
    expect(visited.page.locator(".agent h3").first).to_have_text("agent-29")


def test_a_configuration_that_was_refused_is_said_on_top(visit: Open) -> None:
    snapshot = _snapshot()
    snapshot["source"] = {
        "path": "agents.toml",
        "loaded_at": snapshot["time"] - 100,
        "refused_at": snapshot["time"],
        "refusal": "agents.toml: agents[0].timeout: -1, expected seconds",
    }
    snapshot["unshared"] = "/run/shop may be written to by others"
    visited = visit_fake(visit, snapshot)
    expect(visited.page.locator("#summary")).to_have_text("4 agents, no trouble; the configuration file was refused")
    refused, unshared = visited.page.locator("#notices li").all()
    expect(refused).to_contain_text("agents.toml: agents[0].timeout: -1, expected seconds")
    expect(unshared).to_have_text("Other workers are not shown: /run/shop may be written to by others")


# Why


def test_the_row_of_a_denial_says_why_and_where(world: World, visit: Open) -> None:
    assert world.get("/shop/a%20b?key=secret", waf="block") == 403
    visited = visit(world.page)
    cells = rows(visited).locator("td")
    expect(cells.nth(7).locator(".reason")).to_have_text(["R-1", "told_to", "test"])
    expect(cells.nth(4).locator(".path")).to_have_text("/shop/a%20b")
    expect(cells.nth(4).locator(".route")).to_have_text("/shop/{rest:path}")
    for sought, number in {"r-1": 1, "told_to": 1, "/shop/a%20b": 1, "secret": 0}.items():
        find(visited, sought)
        expect(rows(visited)).to_have_count(number)
    assert "secret" not in (visited.page.locator("body").text_content() or "")


# What it draws


def _slots(values: dict[int, float]) -> list[dict[str, Any]]:
    """Ten minutes with one call in each of these slots, which took so long."""
    empty = {"calls": 0, "denials": 0, "failures": 0, "p50": None, "p99": None}
    return [{**empty, "calls": 1, "p50": values[n], "p99": values[n]} if n in values else empty for n in range(60)]


def test_there_is_no_line_across_a_gap(visit: Open) -> None:
    snapshot = _snapshot()
    snapshot["agents"][0]["slots"] = _slots({3: 0.1, 4: 0.2, 5: 0.1, 20: 0.3, 40: 0.1, 41: 0.1})
    visited = visit_fake(visit, snapshot)
    drawn = card(visited, "waf").locator("polyline.p50")
    expect(drawn).to_have_count(3)
    spans = []
    for line in drawn.all():
        places = [float(point.split(",")[0]) for point in (line.get_attribute("points") or "").split()]
        spans.append((min(places), max(places)))
    # Slots are 10 wide. A single one has a dash as wide as it is.
    assert spans == [(35, 55), (200, 210), (405, 415)]


def test_failed_calls_have_bars_and_no_latency(visit: Open) -> None:
    snapshot = _snapshot()
    failed = {"calls": 3, "denials": 0, "failures": 3, "p50": None, "p99": None}
    snapshot["agents"][0]["slots"][-1] = failed
    visited = visit_fake(visit, snapshot)
    expect(card(visited, "waf").locator("rect.failures")).to_have_count(1)
    expect(card(visited, "waf").locator("polyline")).to_have_count(0)
    assert "slowest" not in (card(visited, "waf").locator("svg").get_attribute("aria-label") or "").split(";")[0]


def test_there_is_one_legend(world: World, visit: Open) -> None:
    visited = visit(world.page)
    expect(visited.page.locator(".agent")).to_have_count(4)
    expect(visited.page.locator(".legend")).to_have_count(1)
    expect(visited.page.locator(".legend")).to_be_visible()


def test_old_failures_fade_with_their_age(visit: Open) -> None:
    snapshot = _snapshot()
    for agent, seconds in zip(snapshot["agents"], (5, 300, 7200, 200_000), strict=True):
        for incident in (*agent["failures"], *agent["denials"]):
            incident["time"] = snapshot["time"] - seconds
    visited = visit_fake(visit, snapshot)
    ids = [agent["id"] for agent in snapshot["agents"]]
    ages = ("new", "recent", "old", "old")
    for agent_id, age in zip(ids, ages, strict=True):
        expect(card(visited, agent_id).locator(".last")).to_have_attribute("data-age", age)
    said = [card(visited, agent_id).locator(".last").text_content() or "" for agent_id in ids]
    for text, when in zip(said, ("just now", "5 min ago", "2 h ago", "2 days ago"), strict=True):
        assert when in text
    colours = [card(visited, agent_id).locator(".last").evaluate("e => getComputedStyle(e).color") for agent_id in ids]
    dim = visited.page.locator("#found").evaluate("e => getComputedStyle(e).color")
    assert colours[0] == colours[1] != dim
    assert colours[2] == colours[3] == dim
    expect(rows(visited)).to_have_count(8)
    assert visited.page.evaluate("[...document.querySelectorAll('#incident-rows tr')].map((e) => e.dataset.age)") == [
        age for age in ages for _ in range(2)
    ]
    # Rows grow old without being made anew.
    visited.page.evaluate("window.marked = document.querySelector('#incident-rows td')")
    visited.page.evaluate("() => { status.time += 700; show(); }")
    expect(rows(visited).first).to_have_attribute("data-age", "old")
    assert visited.page.evaluate("window.marked.isConnected")


def test_what_there_is_of_all_connections_is_on_top(world: World, visit: Open) -> None:
    for _ in range(3):
        world.get("/shop/")
    world.get("/shop/", waf="block")
    visited = visit(world.page)
    figures = visited.page.locator("#total-facts dd")
    expect(figures.nth(1)).to_have_text("25 %")
    expect(figures.nth(2)).to_have_text("0 %")
    expect(figures.nth(3)).to_have_text("4")
    expect(figures.nth(0)).to_have_text(re.compile(r"^[\d.]+ / s$"))
    label = visited.page.locator("#total-plot").get_attribute("aria-label") or ""
    assert label.startswith("Last ten minutes: 4 requests, 1 denial, 0 failures")
    expect(visited.page.locator("#process")).to_have_text(re.compile(rf"^process {os.getpid()} on .+, up for \d+ s$"))


# Several workers


def _workers(snapshot: Any) -> Any:
    """The snapshot as that of three workers: one has an open breaker, of another nothing is heard."""
    rates = {"per_second": 2.0, "denied": 0.1, "failed": None}
    one = {**snapshot["worker"], "pid": 101, "rates": rates}
    other = {**one, "pid": 102, "trouble": 1}
    silent = {**one, "pid": 103, "silent": True, "heard_at": snapshot["time"] - 90}
    snapshot["worker"], snapshot["workers"] = one, [one, other, silent]
    snapshot["agents"][0] |= {"trouble": {"breaker_open": 1}, "breaker": "open", "retry_after": 12.0}
    for agent in snapshot["agents"]:
        for incident in (*agent["failures"], *agent["denials"]):
            incident["worker"] = 102
    return snapshot


def test_all_workers_are_shown_and_who_of_them_is_in_trouble(visit: Open) -> None:
    visited = visit_fake(visit, _workers(_snapshot()))
    found = visited.page.locator("#worker-rows tr")
    expect(found.locator("td:nth-child(1)")).to_have_text(["101, which answers", "102", "103"])
    expect(found.locator("td:nth-child(3)")).to_have_text(["2 / s"] * 3)
    expect(found.locator("td:nth-child(6)")).to_have_text(["none", "1", "nothing heard for 1 min"])
    expect(card(visited, "waf").locator(".breaker")).to_have_text("breaker OPEN in 1 of 3, 12 s")
    expect(visited.page.locator("#summary")).to_have_text(
        "1 of 4 agents in trouble: waf (breaker open in 1 of 3 workers); nothing heard of worker 103"
    )
    expect(rows(visited).first.locator("td.agent-id")).to_contain_text("worker 102")
    find(visited, "102")
    expect(rows(visited)).to_have_count(8)


def test_one_worker_by_itself_has_no_table_of_workers(world: World, visit: Open) -> None:
    visited = visit(world.page)
    is_live(visited)
    expect(visited.page.locator("#workers")).to_be_hidden()


# Pages


def _many(snapshot: Any, number: int) -> Any:
    """With so many agents, each with a failure and a denial."""
    first = snapshot["agents"][0]
    snapshot["agents"] = [{**first, "id": f"agent-{each:02}"} for each in range(number)]
    return snapshot


def test_rows_come_in_pages_that_are_turned_by_buttons(visit: Open) -> None:
    visited = visit_fake(visit, _many(_snapshot(), 30))
    pager = visited.page.locator("#incident-pages")
    back, on = pager.get_by_role("button", name="Previous"), pager.get_by_role("button", name="Next")
    expect(rows(visited)).to_have_count(25)
    expect(pager).to_contain_text("1 to 25 of 60")
    expect(back).to_have_attribute("aria-disabled", "true")
    # Playwright clicks no button that is said to be disabled, but readers may.
    back.click(force=True)
    expect(pager).to_contain_text("1 to 25 of 60")
    on.click()
    on.press("Enter")
    expect(pager).to_contain_text("51 to 60 of 60")
    expect(rows(visited)).to_have_count(10)
    expect(on).to_be_focused()
    on.click(force=True)
    expect(pager).to_contain_text("51 to 60 of 60")
    # Whoever looks for something begins at the beginning.
    find(visited, "agent-0")
    expect(rows(visited)).to_have_count(20)
    expect(pager).to_be_hidden()
    expect(visited.page.locator("#agent-pages")).to_be_hidden()


def test_on_a_phone_pages_are_short_and_can_be_turned_by_thumb(visit: Open) -> None:
    snapshot = _many(_snapshot(), 30)
    snapshot["agents"][29]["trouble"] = {"down": 1}
    visited = visit_fake(visit, snapshot, **PHONE)
    expect(visited.page.locator(".agent")).to_have_count(10)
    expect(visited.page.locator(".agent h3").first).to_have_text("agent-29")
    expect(rows(visited)).to_have_count(10)
    button = visited.page.locator("#agent-pages").get_by_role("button", name="Next")
    box = button.bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) >= 44
    button.tap()
    expect(visited.page.locator("#agent-pages")).to_contain_text("11 to 20 of 30")
    expect(visited.page.locator(".agent h3").first).to_have_text("agent-09")
    assert visited.page.evaluate(OVERFLOW) <= 0


# Live


def test_it_follows_traffic_without_being_loaded_again(world: World, visit: Open) -> None:
    visited = visit(world.page)
    calls = card(visited, "waf").locator(".facts div", has_text="calls").locator("dd")
    expect(calls).to_have_text("0")
    visited.page.evaluate("window.sameAsBefore = true")
    for number in range(3):
        world.get("/shop/")
        expect(calls).to_have_text(str(number + 1))
    assert visited.page.evaluate("window.sameAsBefore")
    label = card(visited, "waf").locator("svg").get_attribute("aria-label")
    assert label.startswith("Last ten minutes: 3 calls, 0 denials, 0 failures")


def test_an_open_breaker_is_seen_everywhere_and_so_is_its_end(world: World, visit: Open) -> None:
    visited = visit(world.page)
    flaky, badge = card(visited, "flaky"), card(visited, "flaky").locator(".breaker")
    expect(badge).to_have_text("breaker closed")
    open_breaker(world)

    expect(flaky).to_have_attribute("data-breaker", "open")
    expect(badge).to_have_attribute("data-tone", "bad")
    expect(badge).to_have_text(re.compile(r"breaker OPEN, (30|29) s"))
    expect(visited.page.locator("#summary")).to_have_text("1 of 4 agents in trouble: flaky (breaker open)")
    expect(visited.page).to_have_title("(1) Agents")
    world.let_pass(31)
    expect(flaky).to_have_attribute("data-breaker", "half_open")
    expect(badge).to_have_text("breaker half-open")
    assert world.get("/flaky/") == 200
    expect(flaky).to_have_attribute("data-breaker", "closed")
    expect(badge).to_have_attribute("data-tone", "good")
    expect(visited.page.locator("#summary")).to_have_text("4 agents, no trouble")
    expect(visited.page).to_have_title("Agents")


def test_agents_that_come_and_go_are_shown_and_taken_away(world: World, visit: Open) -> None:
    visited = visit(world.page)
    expect(visited.page.locator(".agent")).to_have_count(4)
    _run(lambda: world.manager.add_agent(scripted("late")))
    expect(visited.page.locator(".agent h3")).to_have_text(["waf", "shadow", "optional", "flaky", "late"])
    _run(lambda: world.manager.remove_agent("shadow"))
    expect(visited.page.locator(".agent h3")).to_have_text(["waf", "optional", "flaky", "late"])
    expect(visited.page.locator("#route-rows tr").nth(1).locator("b")).to_have_text(["waf", "optional"])


def test_what_a_guardrail_has_found_and_how_long_it_held_text_is_in_its_details(start: Start, visit: Open) -> None:
    routes = [Route("/-/{rest:path}", agents=[], guardrails=[]), Route("/shop/{rest:path}", agents=["waf"])]
    greetings = Guardrail("greetings", on={"output", "tool_call"})
    world = start([scripted("waf"), AgentConfig("greetings", Greetings())], routes, guardrails=[greetings])
    visited = visit(world.page)
    is_live(visited)
    for agent_id in ("waf", "greetings"):
        card(visited, agent_id).locator("summary").click()
    details = card(visited, "greetings").locator("details")
    expect(details.get_by_text("hears guardrail inspect")).to_be_visible()
    expect(details.get_by_text("text now:")).to_have_count(0)
    for _ in range(3):
        assert world.get("/shop/") == 200

    expect(details.locator(".finds .badge")).to_have_text(["output: redact 3"])
    expect(details.get_by_text("text now: 0 characters held, 0 windows being judged")).to_be_visible()
    expect(
        details.get_by_text(re.compile(r"longest wait in each of 3 streams: p50 \S+ .?s, .*longest \S+ .?s"))
    ).to_be_visible()
    expect(card(visited, "waf").locator("details").get_by_text("text now:")).to_have_count(0)
    expect(rows(visited).first.locator("td").nth(2)).to_have_text("detected in text")
    guardrails = visited.page.locator("#route-rows td.guardrails")
    rules = "greetings redact, block or flag, fail-closed: output, tool call"
    expect(guardrails).to_have_text(["none", rules, rules])


def test_a_stream_that_ends_is_taken_up_again(world: World, visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_STREAM_SECONDS", 0.2)
    visited = visit(world.page)
    until(visited, lambda: sum(url.endswith("/events") for url in visited.requests) >= 3)
    is_live(visited)


@pytest.mark.parametrize("interval", [0.1, 10.0, 20.0])
def test_it_says_live_as_long_as_the_server_is_there(start: Start, visit: Open, interval: float) -> None:
    world = start(interval=interval)
    visited = visit(world.page, clock=True)
    is_live(visited)
    for _ in range(9):
        visited.page.clock.fast_forward(1000)
        if interval < 1:
            # The page's clock is fast. The server's is not.
            until(visited, lambda: visited.page.evaluate("Date.now() - heardAt") < 1000)
        assert visited.page.locator("#live").get_attribute("data-state") == "on"


def test_a_server_that_is_gone_is_noticed_and_so_is_its_return(visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_STREAM_SECONDS", 0.3)
    first, second = World(usual_agents(), USUAL_ROUTES), World(usual_agents(), USUAL_ROUTES)
    with serving(first.app) as first.url:
        port = httpx.URL(first.url).port
        visited = visit(f"{first.url}/-/agents/", clock=True)
        is_live(visited)
    visited.page.clock.fast_forward(6500)
    expect(visited.page.locator("#live")).to_have_attribute("data-state", "off")
    expect(visited.page.locator("#live")).to_contain_text("nothing heard since")
    # What was heard last is still there to be read.
    expect(visited.page.locator(".agent")).to_have_count(4)
    with serving(second.app, port or 0) as second.url:
        second.url += "/"
        assert second.get("/shop/") == 200
        is_live(visited)
        expect(card(visited, "waf").locator(".facts div", has_text="calls").locator("dd")).to_have_text("1")
        visited.page.context.close()
    visited.complaints[:] = [text for text in visited.complaints if not NETWORK.search(text)]


def test_who_may_not_see_it_any_more_is_told_and_can_come_back(
    start: Start, visit: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "_STREAM_SECONDS", 0.2)
    allowed = [True]
    world = start(authorize=lambda request: allowed[0])
    visited = visit(world.page, clock=True)
    is_live(visited)
    allowed[0] = False
    with visited.page.expect_response(lambda response: response.status == 403):
        pass
    visited.page.clock.fast_forward(6500)
    expect(visited.page.locator("#live")).to_have_attribute("data-state", "off")
    allowed[0] = True
    visited.page.clock.fast_forward(6500)
    is_live(visited)
    visited.complaints[:] = [text for text in visited.complaints if not NETWORK.search(text)]


def test_a_page_that_never_hears_anything_says_that_something_is_wrong(world: World, visit: Open) -> None:
    # A proxy that holds back or refuses the stream, say.
    context_page = visit(world.page).page.context.new_page()
    context_page.route("**/events", lambda route: route.fulfill(status=403, body="Forbidden"))
    context_page.clock.install()
    context_page.goto(world.page)
    context_page.clock.fast_forward(30_000)
    expect(context_page.locator("#live")).to_have_attribute("data-state", "off")


# Finding things


@pytest.fixture
def eventful(world: World) -> World:
    """With a denial, a block by a shadow agent, a failure that was let through, and an open breaker."""
    assert world.get("/shop/a", "0197a1b2-denied", waf="block") == 403
    assert world.get("/shop/b", "0197a1b2-shadow", shadow="block") == 200
    assert world.get("/shop/c", "0197a1b2-opened", optional="fail") == 200
    open_breaker(world)
    return world


FOUND = {
    "0197a1b2-denied": ("waf", "block stopped", "/shop/{rest:path}"),
    "0197a1b2-shadow": ("shadow", "block shadow, passed", "/shop/{rest:path}"),
    "0197a1b2-opened": ("optional", "error passed, fail-open", "/shop/{rest:path}"),
    "flaky-1": ("flaky", "error stopped", "/flaky/{rest:path}"),
    "flaky-3": ("flaky", "breaker open stopped", "/flaky/{rest:path}"),
}


def test_what_happened_to_a_request_is_found_by_its_correlation_id_alone(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    expect(rows(visited)).to_have_count(6)
    for correlation_id, (agent, what, route) in FOUND.items():
        find(visited, "")
        visited.page.locator("#find").press_sequentially(correlation_id)
        expect(rows(visited)).to_have_count(1)
        expect(visited.page.locator("#found")).to_have_text("1 of 6")
        cells = rows(visited).locator("td")
        expect(cells.nth(1)).to_have_text(agent)
        expect(cells.nth(2)).to_have_text(what)
        expect(cells.nth(4).locator(".route")).to_have_text(route)
        expect(cells.nth(5)).to_have_text(correlation_id)
        expect(rows(visited)).to_be_visible()


def test_it_is_found_by_agent_outcome_and_route_in_any_spelling(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    for sought, number in {"FLAKY": 3, "breaker open": 1, "/shop/": 3, " 0197 ": 3, "nonsense": 0, "": 6}.items():
        find(visited, sought)
        expect(rows(visited)).to_have_count(number)


@pytest.mark.parametrize(("sought", "number"), [("breaker_open", 1), ("request_headers", 6)])
def test_it_is_found_by_what_logs_and_metrics_call_it(eventful: World, visit: Open, sought: str, number: int) -> None:
    visited = visit(eventful.page)
    find(visited, sought)
    expect(rows(visited)).to_have_count(number)


def test_hold_still_keeps_the_rows_until_it_is_let_go(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    expect(rows(visited)).to_have_count(6)
    visited.page.get_by_label("Hold still").check()
    eventful.get("/shop/", "later", waf="block")
    expect(card(visited, "waf").locator(".outcomes")).to_contain_text("block 2")
    expect(rows(visited)).to_have_count(6)
    visited.page.get_by_label("Hold still").uncheck()
    expect(rows(visited)).to_have_count(7)
    expect(rows(visited).first.locator("td").nth(5)).to_have_text("later")


def test_what_is_held_still_can_be_searched(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    expect(rows(visited)).to_have_count(6)
    visited.page.get_by_label("Hold still").check()
    eventful.get("/shop/", "later-denied", waf="block")
    find(visited, "denied")
    expect(rows(visited)).to_have_count(1)


def test_what_its_reader_does_survives_updates(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    page = visited.page
    card(visited, "waf").locator("summary").click()
    find(visited, "0197")
    page.locator("#find").evaluate("field => field.setSelectionRange(1, 3)")
    expect(rows(visited)).to_have_count(3)
    page.evaluate("window.marked = document.querySelector('#incident-rows td.id')")
    for number in range(3):
        eventful.get("/shop/", f"other-{number}", waf="block")
        expect(card(visited, "waf").locator(".outcomes")).to_contain_text(f"block {number + 2}")
    assert card(visited, "waf").locator("details").get_attribute("open") is not None
    expect(page.locator("#find")).to_have_value("0197")
    expect(page.locator("#find")).to_be_focused()
    place = page.locator("#find").evaluate("field => [field.selectionStart, field.selectionEnd]")
    assert place == [1, 3]
    # Rows that stay the same are not made anew: somebody may be copying from them.
    assert page.evaluate("window.marked.isConnected")


def test_focus_and_open_details_survive_agents_that_come_and_go(visit: Open) -> None:
    snapshot = _snapshot()
    visited = visit_fake(visit, snapshot)
    expect(visited.page.locator(".agent")).to_have_count(4)
    card(visited, "optional").locator("summary").click()
    expect(card(visited, "optional").locator("summary")).to_be_focused()
    # The first is removed and comes back as the last.
    visited.page.evaluate("() => { status.agents = [...status.agents.slice(1), status.agents[0]]; show(); }")
    expect(visited.page.locator(".agent h3")).to_have_text(["shadow", "optional", "flaky", "waf"])
    assert card(visited, "optional").locator("details").get_attribute("open") is not None
    expect(card(visited, "optional").locator("summary")).to_be_focused(timeout=1000)
    visited.page.evaluate("() => { status.agents = status.agents.slice(1); show(); }")
    expect(visited.page.locator(".agent h3")).to_have_text(["optional", "flaky", "waf"])
    expect(card(visited, "optional").locator("summary")).to_be_focused(timeout=1000)


# By keyboard


FOCUSED = """() => {
    const focused = document.activeElement, style = getComputedStyle(focused);
    const box = focused.getBoundingClientRect();
    return {
        name: focused.id || focused.className || focused.tagName.toLowerCase(),
        outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
        visible: box.width > 0 && box.height > 0 && box.right > 0 && box.left < innerWidth,
    };
}"""


def test_everything_can_be_reached_by_keyboard_and_is_seen_to_be(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    expect(rows(visited)).to_have_count(6)
    names = []
    for _ in range(10):
        visited.page.keyboard.press("Tab")
        focused = visited.page.evaluate(FOCUSED)
        names.append(focused["name"])
        assert focused["outline"] >= 2, focused
        assert focused["visible"], focused
    assert names == ["skip", *["summary"] * 4, "find", "hold", "scroll", "scroll", "a"]


def test_the_skip_link_leads_past_the_cards(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    expect(rows(visited)).to_have_count(6)
    visited.page.keyboard.press("Tab")
    visited.page.keyboard.press("Enter")
    expect(visited.page.locator("#incidents")).to_be_focused()
    visited.page.keyboard.press("Tab")
    expect(visited.page.locator("#find")).to_be_focused()


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_details_open_and_close_by_keyboard(eventful: World, visit: Open, key: str) -> None:
    visited = visit(eventful.page)
    # The breaker of `flaky` is open, so that it is the first.
    details = card(visited, "flaky").locator("details")
    expect(visited.page.locator(".agent")).to_have_count(4)
    visited.page.keyboard.press("Tab")
    visited.page.keyboard.press("Tab")
    visited.page.keyboard.press(key)
    expect(details).to_have_attribute("open", "")
    expect(details.get_by_text("hears request headers")).to_be_visible()
    visited.page.keyboard.press(key)
    expect(details).not_to_have_attribute("open", "")


def test_a_slash_leads_to_the_search_and_can_be_typed_there(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    expect(rows(visited)).to_have_count(6)
    visited.page.keyboard.press("/")
    expect(visited.page.locator("#find")).to_be_focused()
    visited.page.keyboard.type("/shop")
    expect(visited.page.locator("#find")).to_have_value("/shop")
    expect(rows(visited)).to_have_count(3)


def test_a_slash_leads_to_the_search_from_the_checkbox_too(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    visited.page.locator("#hold").focus()
    visited.page.keyboard.press("/")
    expect(visited.page.locator("#find")).to_be_focused(timeout=1000)


def test_shortcuts_of_the_browser_are_left_alone(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    visited.page.keyboard.press("Control+/")
    expect(visited.page.locator("#find")).not_to_be_focused(timeout=1000)


def test_all_that_can_be_operated_has_a_name(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page)
    expect(visited.page.get_by_role("searchbox", name=re.compile("Find"))).to_be_visible()
    expect(visited.page.get_by_role("checkbox", name="Hold still")).to_be_visible()
    expect(visited.page.get_by_role("region", name="Failures and denials")).to_have_count(2)
    expect(visited.page.get_by_role("heading", name="waf")).to_be_visible()
    expect(visited.page.get_by_role("img")).to_have_count(5)
    expect(visited.page.get_by_role("listitem").filter(has=visited.page.get_by_role("heading"))).to_have_count(4)


# How it looks


CONTRASTS = """() => {
    const parse = (text) => { const parts = text.match(/[\\d.]+/g).map(Number); return [...parts, 1].slice(0, 4); };
    const over = (top, below) => below.map((value, index) => top[index] * top[3] + value * (1 - top[3]));
    const background = (element) => {
        const layers = [];
        for (; element; element = element.parentElement) layers.push(parse(getComputedStyle(element).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const luminance = (colour) => {
        const [r, g, b] = colour.map((value) => value / 255)
            .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (one, other) => {
        const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
        return (light + 0.05) / (dark + 0.05);
    };
    const found = [];
    const add = (what, colour, element, least) => {
        const behind = background(element);
        found.push({ what, least, ratio: contrast(over(parse(colour), behind), behind) });
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const element = node.parentElement;
        if (!node.data.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
        const style = getComputedStyle(element);
        const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        add(`${element.className || element.tagName}: ${node.data.trim()}`, style.color, element, large ? 3 : 4.5);
    }
    const search = document.getElementById("find");
    add("what is typed", getComputedStyle(search).color, search, 4.5);
    add("placeholder", getComputedStyle(search, "::placeholder").color, search, 4.5);
    add("border of the search", getComputedStyle(search).borderTopColor, search.parentElement, 3);
    for (const name of ["calls", "denials", "failures"]) {
        const bar = document.querySelector(`.legend i.${name}`);
        add(`bars of ${name}`, getComputedStyle(bar).backgroundColor, bar.parentElement, 3);
    }
    for (const line of document.querySelectorAll(".plot polyline")) {
        add(`line of ${line.getAttribute("class")}`, getComputedStyle(line).stroke, line.closest(".agent"), 3);
    }
    const card = document.querySelector(".agent[data-breaker=open]");
    add("border of an open breaker", getComputedStyle(card).borderTopColor, card.parentElement, 3);
    return found;
}"""


def details_open(visited: Visit) -> None:
    visited.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_the_contrast_that_wcag_aa_asks_for(eventful: World, visit: Open, scheme: str) -> None:
    visited = visit(eventful.page, color_scheme=scheme, reduced_motion="reduce")
    expect(rows(visited)).to_have_count(6)
    details_open(visited)
    found = visited.page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert {f"{each['what']} {each['ratio']:.2f}" for each in found if each["ratio"] < each["least"]} == set()


def test_what_says_that_it_is_not_live_has_contrast_as_well(eventful: World, visit: Open) -> None:
    for scheme in ("light", "dark"):
        visited = visit(eventful.page, color_scheme=scheme)
        expect(rows(visited)).to_have_count(6)
        visited.page.evaluate("document.getElementById('live').dataset.state = 'off'")
        found = visited.page.evaluate(CONTRASTS)
        assert [each for each in found if each["what"].startswith("B: live") and each["ratio"] < 4.5] == []


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_it_is_as_dark_as_its_reader_wants_it(world: World, visit: Open, scheme: str, dark: bool) -> None:
    visited = visit(world.page, color_scheme=scheme)
    colour = visited.page.evaluate("getComputedStyle(document.body).backgroundColor")
    values = [int(value) for value in re.findall(r"\d+", colour)[:3]]
    assert (max(values) < 64) is dark
    assert (min(values) > 192) is not dark


@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_nothing_moves_for_those_who_asked_for_less_of_it(world: World, visit: Open, motion: str, moves: bool) -> None:
    visited = visit(world.page, reduced_motion=motion)
    expect(visited.page.locator(".agent")).to_have_count(4)
    durations = visited.page.evaluate(
        "[...document.querySelectorAll('*')].flatMap((each) => [getComputedStyle(each).transitionDuration,"
        " getComputedStyle(each).animationDuration])"
    )
    assert (set(durations) != {"0s"}) is moves


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


def test_on_a_phone_nothing_is_wider_than_the_screen(eventful: World, visit: Open) -> None:
    visited = visit(eventful.page, **PHONE)
    expect(rows(visited)).to_have_count(6)
    details_open(visited)
    assert visited.page.evaluate(OVERFLOW) <= 0
    # Rows become blocks, of which everything can be read without scrolling sideways.
    for scrolled in visited.page.locator(".scroll").all():
        assert scrolled.evaluate("box => box.scrollWidth - box.clientWidth") <= 0


@pytest.mark.parametrize("width", [390, 320, 1280])
def test_long_names_do_not_make_the_page_wider_than_the_screen(start: Start, visit: Open, width: int) -> None:
    long = "a" * 128
    socket = f"unix:///tmp/{'s' * 90}"
    agents = [scripted(long, "m" * 500), AgentConfig("stream", socket, timeout=0.05)]
    routes = [Route("/-/{rest:path}", agents=[]), Route(f"/{'r' * 300}", agents=[long, "stream"])]
    world = start(agents, routes)
    for _ in range(6):
        world.get(f"/{'r' * 300}", "c" * 128, **{long: "fail"})
    visited = visit(world.page, viewport={"width": width, "height": 844})
    expect(card(visited, long)).to_have_attribute("data-breaker", "open")
    expect(card(visited, "stream").locator(".badge", has_text=f"{socket} down")).to_be_visible()
    details_open(visited)
    wide = visited.page.evaluate(
        "[...document.querySelectorAll('body *')].filter((each) => !each.closest('.scroll') &&"
        " each.getBoundingClientRect().right > document.documentElement.clientWidth + 1)"
        ".map((each) => each.id || each.className || each.tagName)"
    )
    assert (visited.page.evaluate(OVERFLOW), wide) == (0, [])
    for table in visited.page.locator(".scroll").all():
        assert table.evaluate("box => box.scrollWidth - box.clientWidth") <= 0
    # All of a correlation id can be read and copied; of what is cut short, all is there to be found and copied.
    assert rows(visited).first.locator("td").nth(5).inner_text() == "c" * 128
    for cut, whole in ((".path", f"/{'r' * 255}…"), (".route", f"/{'r' * 299}")):
        text, lines = (
            rows(visited)
            .first.locator(cut)
            .evaluate("cut => [cut.textContent, cut.clientHeight / parseFloat(getComputedStyle(cut).lineHeight)]")
        )
        assert text == whole
        assert round(lines) == 3


def test_it_can_be_zoomed_to_twice_its_size(eventful: World, visit: Open) -> None:
    # WCAG 1.4.10: 1280 px wide at 400 % is 320.
    visited = visit(eventful.page, viewport={"width": 320, "height": 640})
    expect(rows(visited)).to_have_count(6)
    assert visited.page.evaluate(OVERFLOW) <= 0


def test_it_looks_as_it_should(eventful: World, visit: Open, tmp_path: Path) -> None:
    """For eyes: the pictures are in pytest's directory."""
    looks: dict[str, dict[str, Any]] = {
        "light": {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "phone": PHONE,
    }
    for _ in range(50):
        eventful.get("/shop/")
    for name, options in looks.items():
        visited = visit(eventful.page, **options)
        expect(rows(visited)).to_have_count(6)
        card(visited, "waf").locator("summary").click()
        picture = visited.page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert len(picture) > 10_000


# Hostile text


IMAGE = '<img src=x onerror="window.pwned = 1; alert(1)">'
HOSTILE = f"{IMAGE}</script><script>window.pwned = 1</script>\u202egnp.exe\u2066\x07\x1b[31m\ufeff&lt;b&gt;{{{{7*7}}}}"


def _snapshot() -> Any:
    """What the page gets of four agents to which something has happened."""
    manager = AgentManager(usual_agents())
    AgentMiddleware(App(), manager=manager, routes=USUAL_ROUTES)

    async def happen() -> None:
        for agent_id in manager.agent_ids:
            for what in ("block", "fail"):
                await manager.process_request_headers(head_event("c", **{f"x_{agent_id}": what}), [agent_id])

    _run(happen)
    return json.loads(_run(lambda: _status(manager)))


async def _status(manager: AgentManager) -> bytes:
    transport = httpx.ASGITransport(status_app(manager))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return (await client.get("/status.json")).content


def _run(function: Any) -> Any:
    """In a thread: an event loop can't run beside playwright's."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(anyio.run, function).result()


def visit_fake(visit: Open, snapshot: Any, **options: Any) -> Visit:
    """The page with a stream that says ``snapshot``, once."""
    with serve(status_app(AgentManager())) as url:
        visited = visit(url, **options)
        page = visited.page
        stream = f"retry: 1000000\ndata: {json.dumps(snapshot)}\n\n"
        headers = {"content-type": "text/event-stream"}
        page.route("**/events", lambda route: route.fulfill(body=stream, headers=headers))
        page.reload()
        expect(page.locator("#version")).not_to_be_empty()
    return visited


def poisoned(value: Any, key: str = "") -> Any:
    """With every text in it hostile, but those that the server chooses from a few."""
    match value:
        case dict():
            return {
                (HOSTILE + name if key == "outcomes" else name): poisoned(inner, name) for name, inner in value.items()
            }
        case list():
            return [poisoned(inner, key) for inner in value]
        case str() if key not in ("breaker",):
            return f"{value} {HOSTILE}"
        case _:
            return value


def assert_harmless(visited: Visit) -> None:
    visited.page.wait_for_timeout(50)
    assert visited.page.evaluate("window.pwned") is None
    assert visited.page.locator("img, script:not([src]), iframe, b b").count() == 0
    assert visited.dialogs == []
    origins = {httpx.URL(url).host for url in visited.requests}
    assert origins == {"127.0.0.1"}


def test_hostile_text_of_every_kind_is_shown_as_text(visit: Open) -> None:
    snapshot = poisoned(_snapshot())
    snapshot["agents"][0]["endpoints"] = [
        {
            "address": HOSTILE,
            "state": HOSTILE,
            "connections": 1,
            "in_flight": 0,
            "late_answers": 0,
            "unmatched_answers": 0,
            "fault": HOSTILE,
        }
    ]
    snapshot["agents"][0]["failures"][0]["route"] = HOSTILE
    snapshot["agents"][0]["trouble"] = {"down": 1}
    snapshot["workers"] = [snapshot["worker"], {**snapshot["worker"], "pid": 2, "silent": True}]
    snapshot["source"] = {"path": HOSTILE, "loaded_at": 1.0, "refused_at": 2.0, "refusal": HOSTILE}
    snapshot["unshared"] = HOSTILE
    hold = {"p50": None, "p90": None, "p99": None, "longest": None}
    finds = {HOSTILE: {HOSTILE: 1}}
    snapshot["agents"][0]["text"] = {"finds": finds, "windows": 0, "held": 0, "streams": 0, "hold": hold}
    rules = {"action": HOSTILE, "conditional": True, "failure_mode": HOSTILE, "enforced": True}
    snapshot["routes"][0]["guardrails"] = [{"id": HOSTILE, "on": [HOSTILE], **rules}]
    visited = visit_fake(visit, snapshot)
    details_open(visited)
    expect(rows(visited)).to_have_count(8)
    places = ["#agents", "#incident-rows", "#route-rows", "#version", ".finds >> nth=0", "td.guardrails >> nth=0"]
    places += ["#process", "#notices", "#total-facts"]
    places += [f"#incident-rows {each} >> nth=0" for each in (".path", ".route", ".rule", ".tag", ".agent-id")]
    # The headline has the beginnings of ids.
    assert IMAGE[:30] in (visited.page.locator("#summary").text_content() or "")
    for place in places:
        assert IMAGE in (visited.page.locator(place).text_content() or ""), place
    find(visited, IMAGE)
    expect(rows(visited)).to_have_count(8)
    assert_harmless(visited)


def test_hostile_text_that_agents_callers_and_routes_can_bring_in_is_shown_as_text(start: Start, visit: Open) -> None:
    # A pattern has no '<' in it. What would be markup if it were decoded, or end an attribute, it may have.
    pattern = "/x/" + IMAGE.replace("<", "&lt;").replace(">", "&gt;") + "' onmouseover='window.pwned = 1"
    routes = [Route("/-/{rest:path}", agents=[]), Route(pattern, agents=["waf"])]
    world = start([scripted("waf", HOSTILE)], routes)
    # The middleware takes no such ids from clients; who calls the manager may.
    event = head_event(f"id {HOSTILE}", x_waf="fail")
    _run(lambda: world.manager.process_request_headers(event))
    visited = visit(world.page)
    expect(rows(visited)).to_have_count(1)
    assert IMAGE in rows(visited).locator("td").nth(5).text_content()
    assert IMAGE in rows(visited).locator("td").nth(7).text_content()
    assert IMAGE in card(visited, "waf").locator(".last").text_content()
    assert pattern in (visited.page.locator("#route-rows").text_content() or "")
    find(visited, 'src=x onerror="window')
    expect(rows(visited)).to_have_count(1)
    assert_harmless(visited)


def test_text_that_runs_from_right_to_left_does_not_turn_its_neighbours_around(visit: Open) -> None:
    snapshot = _snapshot()
    snapshot["agents"][0]["failures"][0]["correlation_id"] = "\u202eabc"
    snapshot["agents"][0]["failures"][0]["message"] = "\u202eabc"
    snapshot["routes"][0]["path"] = "\u202eabc"
    visited = visit_fake(visit, snapshot)
    directions = visited.page.evaluate(
        "[...document.querySelectorAll('td, .last')].map((each) => getComputedStyle(each).unicodeBidi)"
    )
    # A block is a paragraph of its own to the algorithm; an inline block is isolated too.
    assert set(directions) <= {"isolate", "normal", "plaintext"}
    displays = visited.page.evaluate(
        "[...document.querySelectorAll('td, .last')].map((each) => getComputedStyle(each).display)"
    )
    assert "inline" not in displays


# Much


def test_fifty_agents_and_two_hundred_routes_stay_usable(start: Start, visit: Open) -> None:
    agents = [scripted(f"agent-{number}", circuit_breaker=None) for number in range(50)]
    ids = [agent.id for agent in agents]
    routes = [Route("/-/{rest:path}", agents=[])]
    first_five = [(each, FailureMode.OPEN) for each in ids[:5]]
    routes += [Route(f"/{number}/{{rest:path}}", agents=first_five) for number in range(200)]
    world = start(agents, routes, interval=1.0)

    async def happen() -> None:
        for agent_id in ids:
            for what in ("fail", "block"):
                for number in range(50):
                    event = head_event(f"{agent_id}-{what}-{number}", **{f"x_{agent_id}": what})
                    await world.manager.process_request_headers(event, [agent_id])

    _run(happen)
    visited = visit(world.page)
    expect(visited.page.locator(".agent")).to_have_count(50)
    expect(visited.page.locator("#route-rows tr")).to_have_count(202)
    took = []
    for number in (17, 18, 19):
        began = time.monotonic()
        find(visited, f"agent-{number}-fail-49")
        expect(rows(visited).filter(has_text=f"agent-{number}-fail-49")).to_have_count(1)
        expect(visited.page.locator("#found")).to_have_text(re.compile("^1 of 5,?000$"))
        took.append(time.monotonic() - began)
    # Whatever else the machine does, it does not do it all the time: the quickest counts.
    assert min(took) < 2
    find(visited, "")
    world.get("/3/")
    show = "() => { const from = performance.now(); show(); return performance.now() - from; }"
    took = [visited.page.evaluate(show) for _ in range(10)]
    print(f"{min(took):.0f} ms")
    assert min(took) < 300
    is_live(visited)
    assert visited.page.evaluate(OVERFLOW) <= 0
