"""What the tables of README and documentation say is what the code has."""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import asgi_agents
from asgi_agents import (
    Agent,
    AgentConfig,
    CircuitBreakerConfig,
    EventType,
    RequestHeadersEvent,
    RequestMetadata,
    StreamTransport,
)
from asgi_agents.agent import HOOKS
from asgi_agents.observability.instruments import HISTOGRAMS, METRICS, RELOADS, Kind
from asgi_agents.observability.prometheus import prometheus_name
from asgi_agents.protocol.applicability import APPLIES_TO
from asgi_agents.protocol.events import EVENT_CLASSES
from asgi_agents.ray import __main__ as ray_command
from asgi_agents.serve import options as serve_options
from tests.test_extras import EXTRAS, FOR_DEVELOPERS

from .pages import DOCS, README, ROOT

GUIDE = DOCS / "guide"


def table(page: Path, head: str) -> list[list[str]]:
    """The rows of the table whose first line is ``head``, as cells."""
    lines = iter(page.read_text().splitlines())
    assert any(line == head for line in lines), f"{page.name} has no table {head}"
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" |")])
    return rows


def codes(cell: str) -> list[str]:
    """What is written as code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def fields_of(event_type: EventType) -> set[str]:
    return {field.name for field in msgspec.structs.fields(EVENT_CLASSES[event_type])}


FAILURES = (
    "| what went wrong | `error.type` | counts for the breaker "
    "| fail-closed, http | fail-closed, websocket | fail-open |"
)


def test_the_failure_table_is_the_same_in_readme_and_guide() -> None:
    assert table(README, FAILURES) == table(GUIDE / "failures.md", FAILURES)
    assert len(table(README, FAILURES)) == 10


def test_the_readme_has_every_hook_with_all_fields_of_its_event() -> None:
    rows = table(README, "| hook | when | fields of the event |")
    assert [codes(hook) for hook, _, _ in rows] == [[hook] for hook in sorted(HOOKS.values(), key=_order(rows))]
    for hook, _, fields in rows:
        event_type = next(event_type for event_type, name in HOOKS.items() if name == codes(hook)[0])
        named = {code for code in codes(fields) if code.isidentifier()}
        assert named == fields_of(event_type) - {"correlation_id"}, hook


def test_the_guide_has_every_metric() -> None:
    rows = table(GUIDE / "observability.md", "| OpenTelemetry | unit | Prometheus | labels, beside `agent_id` |")
    numbers = {
        (metric.name, metric.unit, prometheus_name(metric.name, metric.unit) + _TOTAL[metric.kind])
        for metric in METRICS
    }
    histograms = {(metric.name, metric.unit, prometheus_name(metric.name, metric.unit)) for metric in HISTOGRAMS}
    numbers.add((RELOADS.name, RELOADS.unit, prometheus_name(RELOADS.name, RELOADS.unit) + _TOTAL[Kind.COUNTER]))
    assert {tuple(codes("".join(cells[:3]))) for cells in rows} == numbers | histograms


_TOTAL = {Kind.COUNTER: "_total", Kind.UP_DOWN_COUNTER: ""}


def _order(rows: list[list[str]]) -> "dict[str, int].__getitem__":  # type: ignore[valid-type]
    return {codes(row[0])[0]: number for number, row in enumerate(rows)}.__getitem__


def test_the_readme_has_all_fields_of_the_metadata() -> None:
    sentence = README.read_text().partition("`event.metadata` of a request has")[2].partition("\n\n")[0]
    assert set(codes(sentence)) == {field.name for field in msgspec.structs.fields(RequestMetadata)}


def test_the_guide_has_all_fields_of_all_events() -> None:
    found: dict[str, set[str]] = {}
    event = ""
    for name, fields, _ in table(GUIDE / "agents.md", "| event | field | |"):
        event = codes(name)[0] if name else event
        found.setdefault(event, set()).update(codes(fields))
    assert found == {
        kind.__name__: fields_of(event_type) - {"correlation_id"} for event_type, kind in EVENT_CLASSES.items()
    }


def test_the_guide_has_all_fields_of_the_metadata() -> None:
    rows = table(GUIDE / "agents.md", "| `RequestMetadata` | |")
    named = [code for row in rows for code in codes(row[0])]
    assert sorted(named) == sorted(field.name for field in msgspec.structs.fields(RequestMetadata))


def test_the_guide_says_which_parts_of_an_answer_apply_to_which_event() -> None:
    rows = table(GUIDE / "agents.md", "| part of an allowing answer | may be in an answer to |")
    assert {codes(part)[0]: set(codes(events)) for part, events in rows} == {
        part: {str(event) for event in events} for part, events in APPLIES_TO.items()
    }


class Silent(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None: ...


def configured() -> dict[str, object]:
    """The fields of AgentConfig, with their defaults."""
    made = AgentConfig("any", Silent())
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if field.kw_only}


def value_of(code: str) -> object:
    """What is written in a table, as a value."""
    return eval(code, vars(asgi_agents).copy())  # noqa: S307 - our own page


def test_the_guide_has_every_field_of_the_configuration_with_its_default() -> None:
    rows = table(GUIDE / "configuration.md", "| field | default | |")
    named = {name: default for names, default, _ in rows for name in codes(names)}
    expected = configured()
    assert set(named) == set(expected)
    for name, default in named.items():
        if default != "the agent's own":
            assert value_of(codes(default)[0] if "`" in default else default) == expected[name], name


def test_the_readme_names_fields_of_the_configuration() -> None:
    rows = table(README, "| field | default | |")
    assert {name for names, _, _ in rows for name in codes(names)} <= set(configured())


def test_the_guide_shows_the_defaults_of_the_breaker() -> None:
    shown = re.search(
        r"circuit_breaker=(CircuitBreakerConfig\(.*?\n    \))", (GUIDE / "failures.md").read_text(), re.DOTALL
    )
    assert shown is not None
    assert value_of(shown[1].replace("\n", " ")) == CircuitBreakerConfig()
    named = re.findall(r"(\w+)=", shown[1])
    assert named == [field.name for field in dataclasses.fields(CircuitBreakerConfig)]


def test_the_guide_has_every_argument_of_the_stream_transport_with_its_default() -> None:
    rows = table(GUIDE / "remote-agents.md", "| argument | default | |")
    parameters = inspect.signature(StreamTransport).parameters
    found: dict[str, str] = {}
    for names, defaults, _ in rows:
        given = [default.strip().strip("`") for default in defaults.split(",")]
        found.update(zip(codes(names), given, strict=True))
    assert set(found) == set(parameters) - {"endpoints"}
    for name, default in found.items():
        assert value_of(default) == parameters[name].default, name


def test_the_guide_has_every_argument_of_protect() -> None:
    rows = table(GUIDE / "configuration.md", "| argument | default | |")
    named = {name for names, _, _ in rows for name in codes(names)}
    assert named == set(inspect.signature(asgi_agents.protect).parameters) - {"app"}


def test_the_first_page_has_every_extra_for_users() -> None:
    rows = table(DOCS / "index.md", "| extra | what it is for |")
    named = [extra for names, _ in rows for extra in codes(names)]
    assert sorted(named) == sorted(EXTRAS.keys() - (FOR_DEVELOPERS - {"example"}))


@pytest.mark.parametrize(
    ("page", "parser"),
    [("remote-agents.md", serve_options.make_parser), ("ray.md", ray_command._parser)],
    ids=["serve", "ray"],
)
def test_the_guide_has_the_options_of_a_command_with_their_defaults(
    page: str, parser: Callable[[], argparse.ArgumentParser]
) -> None:
    expected = {
        option: "" if action.default in (None, []) or action.nargs == 0 else str(action.default).removesuffix(".0")
        for action in parser()._actions
        for option in action.option_strings
        if action.help != argparse.SUPPRESS and option not in ("-h", "--help")
    }
    # Where none is given, and what that means is more than nothing.
    said = {"--judges": "all"}
    rows = table(GUIDE / page, "| option | default | |")
    assert {codes(name)[0]: default.strip("`") for name, default, _ in rows} == {
        option: said.get(option, default) for option, default in expected.items()
    }


def test_the_changelog_has_one_list_of_each_kind() -> None:
    """Two branches that each begin one are merged without a conflict."""
    for version in re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (\w+)$", version, flags=re.MULTILINE)
        kept = [kind for kind in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security") if kind in kinds]
        assert kinds == kept, version.partition("\n")[0]
