"""What the audit record says of guardrails: where something was found, in at most 1 KB, and never the text."""

import json
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asgi_agents import AgentConfig, AgentMiddleware, AuditGuardrail, AuditRecord
from asgi_agents.audit import Audit, Auditor
from asgi_agents.exchange.guardrail_report import MAX_SPANS, FoundSpan, GuardrailReport
from asgi_agents.guardrails import Guardrail
from asgi_agents.guardrails.slots import Kind
from tests.observability.judged_text import MARKER, Chat, Obedient, asking
from tests.support.asgi import Client

MOST = 1024
LONGEST_ID = "i" * 128
KINDS: tuple[Kind, ...] = get_args(Kind)
WHATS = ("redact", "block", "flag", "failure", "unreadable")
BIG = 2**63 - 1
# What takes most room, written down: a character beyond the BMP that is not printable.
WIDE = "\U000e0001"


def entry_of(report: GuardrailReport, **options: Any) -> AuditGuardrail:
    audit = Audit.__new__(Audit)
    audit._auditor = Auditor(**options)
    return audit._guardrail(report)


def line_of(entry: AuditGuardrail) -> str:
    """As it is in the line of the log."""
    fields = dict.fromkeys(AuditRecord.__struct_fields__)
    line = str(AuditRecord(**{**fields, "guardrails": [entry]}))  # type: ignore[arg-type]
    written = line.partition('"guardrails":[')[2].partition('],"headers"')[0]
    assert json.loads(written) == json.loads(line)["guardrails"][0]
    return written


def report_of(
    *spans: FoundSpan, number: int = 1, dialect: str = "chat", delay: float = 0.5, agent_id: str = "judge"
) -> GuardrailReport:
    report = GuardrailReport(agent_id, dialect)
    report.counts = dict.fromkeys(WHATS, number)
    report.found = dict.fromkeys(KINDS, number)
    report.spans += spans
    report.held, report.delay = number, delay
    return report


SPANS = st.builds(
    FoundSpan,
    st.sampled_from(KINDS),
    st.integers(0, BIG),
    st.integers(0, BIG),
    st.one_of(st.just(""), st.text(max_size=64), st.sampled_from([WIDE * 64, '"' * 64, "\0" * 64, "x" * 64, "é" * 64])),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    spans=st.lists(SPANS, max_size=MAX_SPANS),
    number=st.integers(0, BIG),
    dialect=st.one_of(st.text(max_size=200), st.just(WIDE * 200)),
    delay=st.floats(0, 1e9),
    agent_id=st.sampled_from(["judge", LONGEST_ID]),
)
@example(
    spans=[FoundSpan("tool_result", BIG, BIG, WIDE * 64)] * MAX_SPANS,
    number=BIG,
    dialect=WIDE * 200,
    delay=999999999.999999,
    agent_id=LONGEST_ID,
)
def test_an_entry_takes_a_kilobyte_at_most(
    spans: list[FoundSpan], number: int, dialect: str, delay: float, agent_id: str
) -> None:
    report = report_of(*spans, number=number, dialect=dialect, delay=delay, agent_id=agent_id)
    entry = entry_of(report)

    assert len(line_of(entry).encode()) <= MOST
    # What there is no room for is left out at the end, and no more than that.
    whole = [(span.kind, span.start, span.end) for span in spans]
    assert [span[:3] for span in entry.spans] == whole[: len(entry.spans)]
    assert (entry.agent, entry.counts, entry.found, entry.held) == (agent_id, report.counts, report.found, number)


def test_no_span_is_left_out_that_there_is_room_for() -> None:
    spans = [FoundSpan("tool_result", 123_456, 123_460, "personal_data")] * MAX_SPANS
    entry = entry_of(report_of(*spans))

    line = line_of(entry)
    assert 0 < len(entry.spans) < MAX_SPANS
    assert len(line) <= MOST < len(line) + len(',["tool_result",123456,123460,"personal_data"]')


def test_the_usual_twenty_have_room() -> None:
    for category in ("", "card"):
        spans = [FoundSpan("output", 1_000 + number, 1_016 + number, category) for number in range(MAX_SPANS)]
        assert len(entry_of(report_of(*spans)).spans) == MAX_SPANS


def test_long_words_of_agents_and_dialects_are_cut() -> None:
    entry = entry_of(report_of(FoundSpan("output", 1, 2, "c" * 64), dialect="d" * 64))

    assert entry.spans == [("output", 1, 2, "c" * 32 + "…")]
    assert entry.dialect == "d" * 32 + "…"


def test_categories_are_redacted_as_all_words_of_agents_are() -> None:
    entry = entry_of(report_of(FoundSpan("output", 1, 2, "secret")), redact=lambda text: text.replace("secret", "***"))

    assert entry.spans == [("output", 1, 2, "***")]


# Of whole connections


async def record_of(app: Any, client: Client, *guardrails: Guardrail, **agents: Any) -> AuditRecord:
    records: list[AuditRecord] = []
    configs = [AgentConfig(agent_id, agent) for agent_id, agent in agents.items()]
    middleware = AgentMiddleware(app, agents=configs, default_agents=[], guardrails=guardrails, on_audit=records.append)
    await client.call(middleware)
    (record,) = records
    return record


async def test_each_guardrail_has_one_entry_that_says_what_it_did_where() -> None:
    app = Chat("one two ", f"redact:{MARKER}", f" flag:{MARKER}")
    client = asking(f"a flag:{MARKER}")
    record = await record_of(
        app,
        client,
        Guardrail("both", on={"input", "output"}),
        Guardrail("answers", on={"output"}),
        both=Obedient(),
        answers=Obedient(),
    )

    first, second = record.guardrails
    length = len(MARKER)
    assert (first.agent, first.dialect, first.counts, first.found) == (
        "both",
        "openai.chat",
        {"flag": 2, "redact": 1},
        {"input": 1, "output": 2},
    )
    # Within a window flags come first.
    assert sorted(first.spans) == [
        ("input", 2, 7 + length, "suspicious"),
        ("output", 8, 15 + length, ""),
        ("output", 16 + length, 21 + 2 * length, "suspicious"),
    ]
    # It was shown what the first one has left of the text.
    assert (second.agent, second.counts, second.found) == ("answers", {"flag": 1}, {"output": 1})
    assert second.spans == [("output", 15, 20 + length, "suspicious")]
    for entry in record.guardrails:
        assert entry.held >= 0
        assert entry.delay >= 0
    assert MARKER not in str(record)
    assert MARKER not in repr(record)


async def test_the_first_twenty_finds_of_many_are_there_and_all_are_counted() -> None:
    app = Chat(*[f"redact:{MARKER} "] * 50)
    record = await record_of(app, asking(), Guardrail("judge", on={"output"}), judge=Obedient())

    (entry,) = record.guardrails
    assert (entry.counts, entry.found) == ({"redact": 50}, {"output": 50})
    width = len(f"redact:{MARKER} ")
    assert entry.spans == [("output", number * width, (number + 1) * width - 1, "") for number in range(MAX_SPANS)]


@pytest.mark.parametrize(
    ("text", "counts", "decision"),
    [
        (f"block:{MARKER}", {"block": 1}, "block"),
        (f"fail:{MARKER}", {"failure": 1}, "error"),
        ("harmless", {}, "allow"),
    ],
)
async def test_what_comes_of_it_is_counted(text: str, counts: dict[str, int], decision: str) -> None:
    record = await record_of(Chat(text), asking(), Guardrail("judge", on={"output"}), judge=Obedient())

    assert record.decision == decision
    assert [(entry.agent, entry.counts, entry.spans) for entry in record.guardrails] == [("judge", counts, [])]


async def test_a_guardrail_that_does_not_judge_the_call_has_no_entry() -> None:
    guardrail = Guardrail("judge", on={"output"}, when=lambda call: False)
    record = await record_of(Chat("hello"), asking(), guardrail, judge=Obedient())

    assert record.guardrails == []
