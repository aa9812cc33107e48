"""What can't work is refused when it is configured, in words that say what would."""

import re
from collections.abc import Callable
from typing import Any, Final

import pytest
from starlette.applications import Starlette

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentRoute,
    ConfigurationError,
    EventType,
    protect,
)
from asgi_agents.guardrails import Guardrail, Kind, TextGuardrail
from asgi_agents.guardrails.dialects.chat import Chat
from tests.guardrails.wired.exchanging import Detecting, Finder, Sending


class Deaf(Agent):
    async def on_request_headers(self, event: Any) -> None:
        return None


class Empty(TextGuardrail):
    pass


class Nothing:
    name = "nothing"


OUT: Final[set[Kind]] = {"output"}


def guarded(*guardrails: Any, agent: Any = None, **options: Any) -> Callable[[], object]:
    def make() -> object:
        agents = [AgentConfig("g", agent or Detecting())]
        return AgentMiddleware(Sending([]), agents=agents, guardrails=list(guardrails), **options)

    return make


#: What is given, and words that the message has in it.
WRONG: Final[dict[str, tuple[Callable[[], object], str]]] = {
    "no id": (lambda: Guardrail(None, on=OUT), r"agent_id=None"),  # type: ignore[arg-type]
    "on: empty": (lambda: Guardrail("g", on=set()), r"'g'.*on is empty.*output"),
    "on: str": (lambda: Guardrail("g", on="output"), r"'g'.*on='output'.*\{'output'\}"),  # type: ignore[arg-type]
    "on: unknown": (lambda: Guardrail("g", on={"outptu"}), r"'g'.*on.*'outptu'.*output"),  # type: ignore[arg-type]
    "on: None": (lambda: Guardrail("g", on=None), r"'g'.*on"),  # type: ignore[arg-type]
    "on: number": (lambda: Guardrail("g", on=[1]), r"'g'.*on.*1"),  # type: ignore[list-item]
    "action": (lambda: Guardrail("g", on=OUT, action="mask"), r"'g'.*action='mask'.*redact"),  # type: ignore[arg-type]
    "inspection_type": (lambda: Guardrail("g", on=OUT, inspection_type="a b"), r"'g'.*inspection_type='a b'"),
    "min_severity": (lambda: Guardrail("g", on=OUT, min_severity="worst"), r"'g'.*min_severity='worst'.*'high'"),  # type: ignore[arg-type]
    "min_severity: number": (lambda: Guardrail("g", on=OUT, min_severity=3), r"'g'.*min_severity=3"),  # type: ignore[arg-type]
    "window: 0": (lambda: Guardrail("g", on=OUT, window=0), r"'g'.*window=0"),
    "window: float": (lambda: Guardrail("g", on=OUT, window=4.5), r"'g'.*window=4.5"),  # type: ignore[arg-type]
    "window: bool": (lambda: Guardrail("g", on=OUT, window=True), r"'g'.*window=True"),
    "hold: negative": (lambda: Guardrail("g", on=OUT, hold=-1), r"'g'.*hold=-1"),
    "max_hold: 0": (lambda: Guardrail("g", on=OUT, max_hold=0), r"'g'.*max_hold=0"),
    "max_hold: nan": (lambda: Guardrail("g", on=OUT, max_hold=float("nan")), r"'g'.*max_hold=nan"),
    "max_hold: inf": (lambda: Guardrail("g", on=OUT, max_hold=float("inf")), r"'g'.*max_hold=inf"),
    "max_hold: str": (lambda: Guardrail("g", on=OUT, max_hold="1"), r"'g'.*max_hold='1'"),  # type: ignore[arg-type]
    "in_flight: 0": (lambda: Guardrail("g", on=OUT, in_flight=0), r"'g'.*in_flight=0"),
    "threshold: 2": (lambda: Guardrail("g", on=OUT, threshold=2), r"'g'.*threshold=2"),
    "threshold: nan": (lambda: Guardrail("g", on=OUT, threshold=float("nan")), r"'g'.*threshold=nan"),
    "categories: str": (lambda: Guardrail("g", on=OUT, categories="email"), r"'g'.*categories.*email"),
    "categories: number": (lambda: Guardrail("g", on=OUT, categories=[1]), r"'g'.*categories"),  # type: ignore[list-item]
    "categories: empty": (lambda: Guardrail("g", on=OUT, categories=[]), r"'g'.*categories is empty"),
    "overlap: 1": (lambda: Guardrail("g", on={"input"}, overlap=1), r"'g'.*overlap=1.*True or False"),  # type: ignore[arg-type]
    "overlap: redact": (
        guarded(Guardrail("g", on={"input"}, overlap=True)),
        r"'g'.*overlap=True with action='redact'.*'block' or 'flag'",
    ),
    "when: True": (lambda: Guardrail("g", on=OUT, when=True), r"'g'.*when=True"),  # type: ignore[arg-type]
    "unknown agent": (guarded(Guardrail("h", on=OUT)), r"'h'"),
    "deaf agent": (guarded(Guardrail("g", on=OUT), agent=Deaf()), r"'g'.*guardrail_inspect"),
    "deaf remote agent": (
        lambda: AgentMiddleware(
            Sending([]),
            agents=[AgentConfig("g", "http://127.0.0.1:1/", events={EventType.REQUEST_HEADERS})],
            guardrails=[Guardrail("g", on=OUT)],
        ),
        r"'g'.*guardrail_inspect",
    ),
    "action of a text guardrail": (
        guarded(Guardrail("g", on=OUT, action="block"), agent=Finder()),
        r"'g'.*action='block'.*Finder",
    ),
    "no check": (guarded(Guardrail("g", on=OUT), agent=Empty()), r"'g'.*Empty.*check"),
    "window not above hold": (guarded(Guardrail("g", on=OUT, window=80, hold=80)), r"'g'.*window.*80"),
    "window of the agent's hold": (guarded(Guardrail("g", on=OUT, window=90), agent=Finder()), r"'g'.*window.*90"),
    "guardrails: one": (
        lambda: AgentMiddleware(Sending([]), agents=[AgentConfig("g", Detecting())], guardrails=Guardrail("g", on=OUT)),  # type: ignore[arg-type]
        r"guardrails=.*list",
    ),
    "guardrails: id": (
        lambda: AgentMiddleware(Sending([]), agents=[AgentConfig("g", Detecting())], guardrails=["g"]),  # type: ignore[list-item]
        r"guardrails contains 'g'.*Guardrail\('g', on=",
    ),
    "guardrails: str": (
        lambda: AgentMiddleware(Sending([]), agents=[AgentConfig("g", Detecting())], guardrails="g"),  # type: ignore[arg-type]
        r"guardrails='g'",
    ),
    "guardrails: None": (
        lambda: AgentMiddleware(Sending([]), agents=[AgentConfig("g", Detecting())], guardrails=None),  # type: ignore[arg-type]
        r"guardrails=None",
    ),
    "route: one": (
        lambda: AgentRoute("/a", agents=["g"], guardrails=Guardrail("g", on=OUT)),  # type: ignore[arg-type]
        r"AgentRoute\('/a'\).*guardrails",
    ),
    "route: id": (lambda: AgentRoute("/a", agents=["g"], guardrails=["g"]), r"AgentRoute\('/a'\).*guardrails.*'g'"),  # type: ignore[list-item]
    "route: unknown agent": (guarded(routes=[AgentRoute("/a", agents=[], guardrails=[Guardrail("h", on=OUT)])]), "'h'"),
    "dialects: one": (guarded(dialects=Chat()), r"dialects=.*list"),
    "dialects: class": (guarded(dialects=[Chat]), r"dialects contains.*Chat"),
    "dialects: str": (guarded(dialects="openai.chat"), r"dialects='openai.chat'"),
    "dialects: name": (guarded(dialects=["openai.chat"]), r"dialects contains 'openai.chat'"),
    "dialects: lacking": (guarded(dialects=[Nothing()]), r"dialects contains.*Nothing.*reader"),
    "protect": (
        lambda: protect(Starlette(), agents=[AgentConfig("g", Deaf())], guardrails=[Guardrail("g", on=OUT)]),
        r"'g'.*guardrail_inspect",
    ),
    "manager": (
        lambda: AgentMiddleware(
            Sending([]), manager=AgentManager([AgentConfig("g", Detecting())]), guardrails=[Guardrail("h", on=OUT)]
        ),
        r"'h'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_can_not_work_is_refused(case: str) -> None:
    make, words = WRONG[case]
    with pytest.raises(ConfigurationError) as raised:
        make()
    assert re.search(words, str(raised.value)), str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "function",
    [
        lambda: type("Wrong", (TextGuardrail,), {"check": lambda self, window: []}),
        lambda: type("Wrong", (TextGuardrail,), {"settled": _async_settled}),
    ],
)
def test_hooks_of_the_wrong_kind_are_refused_with_the_class(function: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError, match="Wrong"):
        function()


async def _async_settled(self: object, text: str) -> int:
    return 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Guardrail("g", on=["output", "tool_call"]),
        lambda: Guardrail("g", on=(kind for kind in ("input", "reasoning", "tool_result"))),
        lambda: Guardrail("g", on=OUT, max_hold=1, threshold=0, hold=0, window=1, in_flight=9, categories=["a"]),
        guarded(Guardrail("g", on=OUT, action="flag")),
        guarded(Guardrail("g", on=OUT, hold=10, window=11)),
        guarded(Guardrail("g", on=OUT), agent=Finder()),
        guarded(Guardrail("g", on=OUT), Guardrail("g", on={"input"}, action="block")),
        guarded(dialects=[]),
        guarded(dialects=(Chat(),)),
        guarded(routes=[AgentRoute("/a", agents=["g"], guardrails=[]), AgentRoute("/b", agents=[], guardrails=None)]),
        lambda: protect(Starlette(), agents=[AgentConfig("g", Finder())], guardrails=[Guardrail("g", on=OUT)]),
    ],
)
def test_what_works_is_taken(make: Callable[[], object]) -> None:
    assert make()
