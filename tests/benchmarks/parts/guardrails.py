"""What guardrails cost a stream: CPU per token, waiting, and memory; and beside them LiteLLM's proxy."""

import asyncio
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio
import pytest
from starlette.types import ASGIApp, Message, Scope

from tests.support.virtual_time import in_virtual_time, nothing_comes_from_outside

from .. import litellm_proxy
from ..chat import (
    ADDRESS,
    ASKED,
    CHAT,
    ENTITY,
    PLAIN,
    REDACTED,
    Settled,
    Streaming,
    Unsettled,
    Waiting,
    WaitingSettled,
    chat_events,
    guarded,
    plain_parts,
)
from ..driver import drive
from ..fleet import ROOT
from ..handwritten import RedactEvents
from ..plan import Plan
from ..ratios import fastest, over
from ..report import Part, Table, ratio
from ..turns import take_turns
from ..waiting import RATE, TOKENS, Passage, passage

#: Of the streams that are driven directly. What a request costs beside its tokens is spread over them.
_TOKENS: Final = 500
_ROWS: Final[Sequence[tuple[str, str, str]]] = (
    # Name, title, and what is taken off.
    ("settled", "chat: one detector that says what is settled", "bare"),
    ("unsettled", "chat: one that doesn't", "bare"),
    ("two", "chat: two in a row that do", "bare"),
    ("by-hand", "chat, by hand: each event parsed, redacted and written again; leaks what is cut over two", "bare"),
    ("plain-settled", "plain text: one detector that says what is settled", "plain"),
)
_JUDGES: Final[Sequence[tuple[str, str, Callable[[], Waiting]]]] = (
    ("5", "5 ms", lambda: Waiting(0.005)),
    ("5-settled", "5 ms, and says what is settled", lambda: WaitingSettled(0.005)),
    ("300", "300 ms", lambda: Waiting(0.3)),
    ("300-settled", "300 ms, and says what is settled", lambda: WaitingSettled(0.3)),
)


def run(plan: Plan, progress: Callable[[str], None]) -> Part:
    """:raises StartError: when a server doesn't come up."""
    progress("guardrails: CPU per token")
    cpu, figures = judge_cpu(asyncio.run(measure_cpu(plan)))
    progress("guardrails: judges that take their time")
    waiting, found = judge_waiting(measure_waiting())
    figures |= found
    tables = [cpu, waiting]
    left_out: list[str] = []
    progress("guardrails: memory")
    if sys.platform == "linux":
        tables.append(_memory(plan))
    else:
        left_out.append("memory of guarded streams: measured by way of /proc")
    if litellm_proxy.available():
        tables.append(litellm_proxy.measure(plan, progress))
    else:
        left_out.append("LiteLLM's proxy: needs the extra `bench-litellm`")
    return Part("guardrails", tuple(tables), figures, left_out=tuple(left_out))


def apps() -> Mapping[str, tuple[ASGIApp, Scope]]:
    """What takes turns, by its name."""
    chat, plain = Streaming(chat_events(_TOKENS)), Streaming(plain_parts(_TOKENS), "text/plain")
    return {
        "bare": (chat, CHAT),
        "settled": (guarded(chat, Settled()), CHAT),
        "unsettled": (guarded(chat, Unsettled()), CHAT),
        "two": (guarded(chat, Settled(), Settled()), CHAT),
        "by-hand": (RedactEvents(chat, ENTITY, REDACTED), CHAT),
        "plain": (plain, PLAIN),
        "plain-settled": (guarded(plain, Settled()), PLAIN),
    }


async def measure_cpu(plan: Plan) -> dict[str, tuple[float, ...]]:
    """Seconds of CPU for each token, by the name of the row, in each round."""
    rows = apps()
    turns = [functools.partial(drive, app, scope, ASKED) for app, scope in rows.values()]
    for name, turn in zip(rows, turns, strict=True):
        _check(name, await turn(1))
    taken = await take_turns(turns, plan.turns, plan.turn_seconds, time.process_time)
    return {name: tuple(one / _TOKENS for one in seconds) for name, seconds in zip(rows, taken, strict=True)}


def _check(name: str, sent: Sequence[Message]) -> None:
    body = b"".join(message.get("body", b"") for message in sent)
    redacts = name not in ("bare", "plain", "by-hand")
    if (REDACTED.encode() in body) != redacts or (name.startswith("plain") and (ADDRESS.encode() in body) == redacts):
        raise RuntimeError(f"{name}: {sent[:3]!r} and so on")


def judge_cpu(seconds: Mapping[str, Sequence[float]]) -> tuple[Table, dict[str, tuple[float, ...]]]:
    """Figures are microseconds over the bare stream, and, of each round, multiples of what is written by hand."""
    rows: list[tuple[str, ...]] = []
    figures: dict[str, tuple[float, ...]] = {}
    for name, title, bare in _ROWS:
        added = (fastest(seconds[name]) - fastest(seconds[bare])) * 1e6
        figures[f"guardrails.{name}.added"] = (added,)
        cells = [f"{added:.1f}", f"{fastest(seconds[bare]) * 1e6:.2f}"]
        if bare == "bare" and name != "by-hand":
            figures[f"guardrails.{name}.over-by-hand"] = over(seconds[name], seconds["by-hand"])
            cells += ratio(figures[f"guardrails.{name}.over-by-hand"])
        rows.append((title, *cells, *[""] * (4 - len(cells))))
    columns = ("µs of CPU added to a token", "µs of the bare stream", "of what is written by hand", "middle half")
    title = (
        "Guardrails, driven directly: a stream of four characters a token, each an event and a message of its own "
        "(the mean of the fastest tenth of the rounds)"
    )
    return Table(title, columns, tuple(rows)), figures


def measure_waiting() -> dict[str, Passage]:
    """Streams of which each token comes at its time, in virtual time."""

    async def measure() -> dict[str, Passage]:
        nothing_comes_from_outside()
        found = {"bare": await passage(None), "settled": await passage(Settled())}
        for name, _, judge in _JUDGES:
            found[name] = await passage(judge())
        return found

    with pytest.MonkeyPatch.context() as patched:
        backend, options = in_virtual_time("asyncio", patched)
        return anyio.run(measure, backend=backend, backend_options=options)


def judge_waiting(found: Mapping[str, Passage]) -> tuple[Table, dict[str, tuple[float, ...]]]:
    bare = found["bare"]
    rows: list[tuple[str, ...]] = []
    figures: dict[str, tuple[float, ...]] = {}
    for name, title in (
        ("settled", "that does not wait, and says what is settled"),
        *((name, title) for name, title, _ in _JUDGES),
    ):
        passed = found[name]
        longer = passed.total - bare.total
        figures[f"guardrails.waiting.{name}.longer"] = (longer,)
        figures[f"guardrails.waiting.{name}.share"] = (longer / bare.total,)
        figures[f"guardrails.waiting.{name}.first"] = (passed.left[0] - passed.came[0],)
        rows.append(
            (
                title,
                f"{passed.left[0] - passed.came[0]:.3f}",
                str(passed.parts_before_the_first),
                f"{passed.longest:.3f}",
                f"{longer:.3f}",
                f"{longer / bare.total:.2%}",
            )
        )
    columns = (
        "first token later by, s",
        "tokens when it leaves",
        "any token later by, s",
        "the whole stream later by, s",
        "of its time",
    )
    title = f"Guardrails that take their time: {TOKENS:,} tokens at {RATE:g} a second, in virtual time; a detector of"
    return Table(title, columns, tuple(rows)), figures


def _memory(plan: Plan) -> Table:
    rows = (
        (f"one stream of {plan.events:,} events", _growth("events", plan.events), ""),
        (
            f"{plan.streams:,} streams at once, of guardrails that never answer",
            growth := _growth("streams", plan.streams),
            f"{growth / plan.streams / 1024:,.0f} KiB",
        ),
    )
    cells = tuple((title, f"{grown / 1024 / 1024:,.1f} MiB", each) for title, grown, each in rows)
    return Table("Guardrails: by how much memory grows at most", ("memory", "of each stream"), cells)


def _growth(load: str, amount: int) -> int:
    command = [sys.executable, "-m", "tests.bounds", load, str(amount)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return int(done.stdout)
