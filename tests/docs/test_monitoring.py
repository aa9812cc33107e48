"""The dashboard and the alert rules ask for metrics, labels and values that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse_text

from asgi_agents import AgentConfig, AgentManager, AgentResponse, CircuitBreakerConfig
from asgi_agents.breaker import BreakerState
from asgi_agents.decision import Verdict
from asgi_agents.failures import Failure, FailureKind
from asgi_agents.manager import registry_of
from asgi_agents.observability.metrics import Tally
from asgi_agents.observability.worker_metrics import merge
from asgi_agents.protocol import EventType
from tests.test_manager import Fake

from .pages import DOCS

DASHBOARD: Final = DOCS / "monitoring" / "grafana-dashboard.json"
ALERTS: Final = DOCS / "monitoring" / "alerts.yml"
PAGE: Final = DOCS / "guide" / "monitoring.md"

ANSWERS: Final = {
    "allow": AgentResponse.allow(),
    "block": AgentResponse.block(),
    "needs_more": AgentResponse.block(needs_more=True),
    "redirect": AgentResponse.redirect("/"),
    "challenge": AgentResponse.challenge("bearer"),
    "drop": AgentResponse.websocket_drop(),
    "close": AgentResponse.websocket_close(1008, "no"),
}
# Added by who scrapes.
SCRAPED: Final = {"job", "instance"}

_SELECTOR: Final = re.compile(r"\b(?P<name>asgi_agents_\w+)\s*(?:\{(?P<matchers>[^}]*)\})?")
_MATCHER: Final = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,|\Z)')
_GROUPING: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def output() -> Mapping[str, Mapping[str, set[str]]]:
    """All that Prometheus gets: by the name of a series its labels, and by these their values."""
    configs = [AgentConfig("waf", Fake(), circuit_breaker=CircuitBreakerConfig())]
    manager = AgentManager([*configs, AgentConfig("shadow", Fake(), enforce=False)])
    for agent_id in manager.agent_ids:
        tally = registry_of(manager).guard(agent_id).tally
        _fill(tally, agent_id, enforced=agent_id == "waf")
    found: dict[str, dict[str, set[str]]] = {}
    for family in parse_text(manager.export_prometheus()):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    return found


def _fill(tally: Tally, agent_id: str, *, enforced: bool) -> None:
    """Everything has happened once."""
    for event in EventType:
        for closed in (True, False):
            for answer in ANSWERS.values():
                tally.count(Verdict(agent_id, event, answer, None, closed, enforced, 0.1), 0.0, size=1)
            for kind in FailureKind:
                tally.count(Verdict(agent_id, event, None, Failure(kind, "…"), closed, enforced, 0.1), 0.0)
        tally.count(Verdict(agent_id, event, ANSWERS["allow"], None, True, enforced, 0.1, detected=True), 0.0)
    for state in BreakerState:
        tally.transitions[state.value] += 1
    for what in ("redact", "block", "flag"):
        for text in ("input", "reasoning", "output", "tool_call", "tool_result"):
            tally.text.count(what, text)
    for what in ("unreadable", "dropped"):
        tally.text.count(what, "")
    tally.queue_waits.add(0.1)
    tally.text.add_delay(0.1)


OUTPUT: Final = output()
#: What there is beside, where workers are scraped together.
OF_WORKERS: Final = {
    sample.name: {"state": {"up", "silent"}} for family in merge((), 0).collect() for sample in family.samples
}


def faults_in(expression: str) -> Iterator[str]:
    """What an expression asks for that there is not."""
    asked: set[str] = set()
    named = list(_SELECTOR.finditer(expression))
    if not named:
        yield "it names no metric of ours"
    for selector in named:
        name, matchers = selector["name"], selector["matchers"] or ""
        labels = OUTPUT.get(name) or OF_WORKERS.get(name)
        if labels is None:
            yield f"there is no {name}"
            continue
        asked |= set(labels) | SCRAPED
        if _MATCHER.sub("", matchers):
            yield f"{name}: unreadable matchers {matchers!r}"
        for label, operator, value in _MATCHER.findall(matchers):
            if label not in labels and label not in SCRAPED:
                yield f"{name} has no label {label}"
            elif label in labels and value and "$" not in value:
                there = labels[label]
                pattern = value if "~" in operator else re.escape(value)
                for alternative in pattern.split("|") if "(" not in pattern else [pattern]:
                    if not any(re.fullmatch(alternative, each) for each in there):
                        yield f"no {label} of {name} is {alternative}; there are {sorted(there)}"
    for labels_given in _GROUPING.findall(expression):
        for label in filter(None, map(str.strip, labels_given.split(","))):
            if label not in asked:
                yield f"none of its metrics has the label {label}"


def kept_by(expression: str) -> list[set[str]]:
    """The labels that each ``by (...)`` of an expression keeps."""
    return [{label.strip() for label in labels.split(",")} for labels in re.findall(r"\bby \(([^)]*)\)", expression)]


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def panels() -> list[Any]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[Any]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    assert group["name"] == "asgi-agents"
    rules: list[Any] = group["rules"]
    return rules


# That the check finds what it is for


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("up", "it names no metric of ours"),
        ("rate(asgi_agents_decisions[5m])", "there is no asgi_agents_decisions"),
        ('asgi_agents_breaker_state{state="open"}', "asgi_agents_breaker_state has no label state"),
        (
            'asgi_agents_breaker_state{breaker_state="ajar"}',
            "no breaker_state of asgi_agents_breaker_state is ajar",
        ),
        ('asgi_agents_decisions_total{decision!~"allow|blok"}', "no decision of asgi_agents_decisions_total is blok"),
        ("asgi_agents_decisions_total{decision=block}", "asgi_agents_decisions_total: unreadable matchers"),
        ("sum by (agent) (asgi_agents_call_active)", "none of its metrics has the label agent"),
        ("sum by (le) (asgi_agents_call_active)", "none of its metrics has the label le"),
    ],
)
def test_what_there_is_not_is_found(expression: str, fault: str) -> None:
    (found,) = faults_in(expression)
    assert found.startswith(fault)


def test_what_there_is_is_not() -> None:
    fine = 'sum by (job, agent_id) (rate(asgi_agents_failures_total{error_type!~"(request|response)_.*",job="a"}[5m]))'
    assert list(faults_in(fine)) == []


# One address, and one for all workers


def aggregated(expression: str) -> bool:
    """Whether each series in an expression is within an aggregation, none of which keeps the worker."""
    if any("worker" in kept for kept in kept_by(expression)) or re.search(r"\bwithout\b", expression):
        return False
    for selector in _SELECTOR.finditer(expression):
        depth, around = 0, []
        before = re.sub(r"\bby \([^)]*\) ?", "", expression[: selector.start()])
        for place in range(len(before) - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(before[place], 0)
            if depth < 0:
                depth = 0
                around.append(re.findall(r"\w*\Z", before[:place].rstrip())[0])
        if not {"sum", "max", "absent"} & set(around):
            return False
    return True


def test_what_is_not_aggregated_is_found() -> None:
    rate = "rate(asgi_agents_decisions_total[5m])"
    assert aggregated(f"sum by (job) ({rate}) / sum({rate}) > 0")
    for expression in (
        rate,
        f"sum({rate}) / {rate}",
        f"sum by (job, worker) ({rate})",
        f"sum without (job) ({rate})",
    ):
        assert not aggregated(expression)


def test_every_query_and_alert_is_the_same_for_one_process_and_for_workers_that_are_scraped_together() -> None:
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert [query for query in [*queries, *(rule["expr"] for rule in rules())] if not aggregated(query)] == []


# The dashboard


def test_every_query_of_the_dashboard_asks_for_what_there_is() -> None:
    faults = {
        f"{panel['title']}: {target['expr']}": found
        for panel in panels()
        for target in panel["targets"]
        if (found := list(faults_in(target["expr"])))
    }
    assert faults == {}


def test_every_name_in_a_legend_is_a_label_that_its_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            kept = {
                label.strip()
                for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"])
                for label in labels.split(",")
            }
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]


def test_every_metric_is_on_the_dashboard() -> None:
    queries = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    shown, there = (
        {re.sub(r"_(bucket|count|sum)\Z", "", name) for name in names}
        for names in (re.findall(r"asgi_agents_\w+", queries), OUTPUT)
    )
    assert shown == there


def test_the_dashboard_can_be_imported_anywhere() -> None:
    made = dashboard()
    assert made["uid"] == "asgi-agents"
    assert "id" not in made
    ids = [panel["id"] for panel in made["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"]: variable for variable in made["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "agent"]
    for name in ("job", "agent"):
        assert list(faults_in(variables[name]["definition"])) == []
    # Each data source is the one that is chosen, and each query is of the agents that are chosen.
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count("asgi_agents_") == target["expr"].count('{job=~"$job",agent_id=~"$agent"')


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


# The alerts


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_asks_for_what_there_is_and_says_what_is_wrong(rule: Any) -> None:
    assert list(faults_in(rule["expr"])) == []
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+m", rule["for"])
    assert set(rule["annotations"]) == {"summary", "description"}
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert all(named <= labels for labels in kept_by(rule["expr"]))


def test_the_page_has_each_alert_and_links_to_both_files() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [rule["alert"] for rule in rules()]
    for file in (DASHBOARD, ALERTS):
        assert f"](../monitoring/{file.name})" in page


def promtool(*arguments: str | Path) -> str:
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("no `promtool` on the PATH: apt-get install prometheus")
    done = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", ALERTS)


def test_each_alert_fires_when_it_should_and_not_when_all_is_well(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "alerts_test.yml")


def test_prometheus_takes_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    chosen = {"$__rate_interval": "5m", "$job": ".*", "$agent": ".*"}
    found = []
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in chosen.items():
                expression = expression.replace(name, value)
            found.append({"record": f"panel:{panel['id']}:{target['refId']}", "expr": expression})
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": found}]}))
    assert f"SUCCESS: {len(found)} rules found" in promtool("check", "rules", file)
