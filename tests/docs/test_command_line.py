"""What the guide says of the command line is what the code has."""

import re
from pathlib import Path

import msgspec
import pytest

from asgi_agents.commands import bench, call, check, replay, report
from asgi_agents.commands.command_line import make_parser
from asgi_agents.recording import Difference, FieldDifference, ReplayReport, ReplayTiming
from asgi_agents.routing.openness import OpenDeclaration

from .pages import DOCS
from .test_tables import codes, table

PAGE = DOCS / "guide" / "command-line.md"
COMMANDS = ("check", "call", "bench", "replay")


def section(name: str) -> str:
    return PAGE.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]


def options_of(command: str) -> set[str]:
    found = re.findall(r"^  (?:-\w, )?(--[\w-]+)", _help(command), re.MULTILINE)
    return set(found) - {"--help"}


def _help(command: str) -> str:
    [parsers] = [action.choices for action in make_parser()._actions if isinstance(action.choices, dict)]
    text: str = parsers[command].format_help()
    return text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_guide_has_every_option(command: str) -> None:
    told = section(command) + section("Exit codes, output and JSON")
    if command == "bench":
        told += section("call")  # the same request
    assert {option for option in options_of(command) if option not in told} == set()


ROWS: list[tuple[str, list[type[msgspec.Struct]]]] = [
    ("`check`", [report.CheckReport]),
    (
        "`check`, each of `endpoints`",
        [
            report.EndpointReport,
            OpenDeclaration,
            report.EndpointAgent,
            report.EndpointGuardrail,
            report.EndpointTools,
            report.EndpointToolRule,
        ],
    ),
    ("`check`, each of `agents`", [report.AgentReport]),
    ("`check`, each of `findings` and `notes`", [report.CheckFinding]),
    ("`call`", [call.CallReport, call.CalledEvent, call.UnaskedEvent]),
    ("`bench`", [bench.BenchReport, bench.Milliseconds]),
    ("`replay`", [replay.ReplayedRecording]),
    ("`replay`, `report`", [ReplayReport, ReplayTiming]),
    ("`replay`, each of `differences` in `report`", [Difference, FieldDifference]),
]


@pytest.mark.parametrize(("name", "structs"), ROWS)
def test_the_guide_has_every_member_of_the_json(name: str, structs: list[type[msgspec.Struct]]) -> None:
    [members] = [cell for what, cell in table(PAGE, "| command | members |") if what == name]
    there = {field for struct in structs for field in struct.__struct_fields__} - {"command", "format"}
    values = {"http", "websocket", "app", "unreadable", "endpoint", "route", "default", "option"}
    values |= {"ready", "failed", "not asked"}
    assert set(codes(members)) - values | (there & values) == there


@pytest.mark.parametrize("head", ["| `kind` of a finding | what it says |", "| `kind` of a note | what it says |"])
def test_the_guide_has_every_kind_of_finding(head: str) -> None:
    source = Path(check.__file__).read_text()
    told = {codes(kind)[0] for kind, _ in table(PAGE, head)}
    everything = {codes(kind)[0] for other in (head, _other(head)) for kind, _ in table(PAGE, other)}
    assert all(f'"{kind}"' in source for kind in told)
    assert set(re.findall(r'CheckFinding\(kind="(\w+)"', source)) <= everything


def _other(head: str) -> str:
    return head.replace("a finding", "a note") if "a finding" in head else head.replace("a note", "a finding")
