"""What the snapshot says of guardrails."""

import math
from typing import Any

from asgi_agents import Agent, AgentConfig, AgentManager, AgentMiddleware, FailureMode, GuardrailInspectEvent, Route
from asgi_agents.guardrails import Guardrail
from asgi_agents.manager import registry_of
from tests.observability.judged_text import MARKER, Chat, Obedient, asking
from tests.support.asgi import App

from .test_snapshot import agent_shown, shown


class Detecting(Agent):
    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None: ...


def guardrails_shown(manager: AgentManager) -> Any:
    """Path to what there is about its guardrails."""
    return {route["path"]: route["guardrails"] for route in shown(manager)["routes"]}


# An agent


async def test_an_agent_that_never_judged_text_has_nothing_to_say_of_it() -> None:
    manager = AgentManager([AgentConfig("waf", Obedient())])

    assert agent_shown(manager)["text"] is None


async def test_an_agent_that_judges_text_says_what_it_has_found_and_how_long_it_held_text() -> None:
    manager = AgentManager([AgentConfig("waf", Obedient())])
    app = AgentMiddleware(
        Chat(f"redact:{MARKER} ", f"redact:{MARKER} flag:{MARKER}"),
        manager=manager,
        guardrails=[Guardrail("waf", on={"input", "output"})],
    )
    await asking(f"redact:{MARKER}").call(app)
    await asking(f"block:{MARKER}").call(app)

    text = agent_shown(manager)["text"]

    hold = text.pop("hold")
    assert text == {
        "finds": {"redact": {"input": 1, "output": 2}, "flag": {"output": 1}, "block": {"input": 1}},
        "windows": 0,
        "held": 0,
        "streams": 1,
    }
    assert 0 < hold["p50"] <= hold["p90"] <= hold["p99"] <= hold["longest"] < 60


async def test_what_is_judged_and_held_now_is_shown() -> None:
    manager = AgentManager([AgentConfig("waf", Obedient())])
    tally = registry_of(manager).guard("waf").tally.text
    tally.begin_window()
    tally.hold(12)
    tally.count("unreadable", "")

    assert agent_shown(manager)["text"] == {
        "finds": {"unreadable": {"": 1}},
        "windows": 1,
        "held": 12,
        "streams": 0,
        "hold": {"p50": None, "p90": None, "p99": None, "longest": None},
    }


async def test_no_percentile_is_beyond_the_longest_there_was() -> None:
    manager = AgentManager([AgentConfig("waf", Obedient())])
    guard = registry_of(manager).guard("waf")
    guard.tally.text.hold(0)
    for seconds in [0.01] * 98 + [0.0201, 0.0201]:
        guard.recorder.held(seconds)

    hold = agent_shown(manager)["text"]["hold"]

    assert hold["longest"] == 0.0201
    assert hold["p99"] <= 0.0201
    assert math.isclose(hold["p50"], 0.01, rel_tol=0.3)


async def test_an_incident_says_that_a_guardrail_has_asked() -> None:
    manager = AgentManager([AgentConfig("waf", Obedient())])
    app = AgentMiddleware(
        Chat(f"redact:{MARKER}", f"fail:{MARKER}"), manager=manager, guardrails=[Guardrail("waf", on={"output"})]
    )
    await asking().call(app)
    await asking().call(app)

    agent = agent_shown(manager)

    assert {(incident["outcome"], incident["window"]) for incident in agent["failures"]} == {("error", True)}
    assert MARKER not in str(shown(manager))


# Routes


async def test_routes_say_which_guardrails_judge_which_text_and_what_they_do_about_it() -> None:
    agents = [
        AgentConfig("emails", Obedient()),
        AgentConfig("judge", Detecting(), failure_mode=FailureMode.OPEN),
        AgentConfig("shadow", Detecting(), enforce=False),
    ]
    manager = AgentManager(agents)
    AgentMiddleware(
        App(),
        manager=manager,
        routes=[
            Route("/healthz", agents=[], guardrails=[]),
            Route(
                "/chat",
                agents=[("judge", FailureMode.CLOSED)],
                guardrails=[
                    Guardrail("judge", on={"tool_call", "input"}, action="block", when=lambda call: call.stream),
                    Guardrail("shadow", on={"reasoning"}, action="flag"),
                ],
            ),
        ],
        default_agents=[],
        guardrails=[Guardrail("emails", on={"output", "tool_result"}), Guardrail("judge", on={"input"})],
    )

    emails = {
        "id": "emails",
        "on": ["output", "tool_result"],
        "action": None,
        "conditional": False,
        "failure_mode": "closed",
        "enforced": True,
    }
    judge = {"id": "judge", "on": ["input"], "action": "redact", "conditional": False, "enforced": True}
    assert guardrails_shown(manager) == {
        "/healthz": [],
        "/chat": [
            {
                **judge,
                "on": ["input", "tool_call"],
                "action": "block",
                "conditional": True,
                "failure_mode": "closed",
            },
            {
                "id": "shadow",
                "on": ["reasoning"],
                "action": "flag",
                "conditional": False,
                "failure_mode": "closed",
                "enforced": False,
            },
        ],
        None: [emails, {**judge, "failure_mode": "open"}],
    }


async def test_a_guardrail_whose_agent_was_removed_is_not_shown() -> None:
    manager = AgentManager([AgentConfig("emails", Obedient())])
    AgentMiddleware(App(), manager=manager, guardrails=[Guardrail("emails", on={"output"})])
    assert [guardrail["id"] for guardrail in guardrails_shown(manager)[None]] == ["emails"]

    await manager.remove_agent("emails")

    assert guardrails_shown(manager) == {None: []}
