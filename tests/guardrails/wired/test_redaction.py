"""What a client receives of a stream is what redacting all of its text at once gives, whoever judges it."""

import json
import os
import random
import re
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import settings

from asgi_agents import Agent, AgentConfig
from asgi_agents.guardrails import Guardrail
from asgi_agents.guardrails.slots import KINDS
from tests.guardrails.detectors import CARD, EMAIL, HOLD, Detector, detector, redacted
from tests.guardrails.samples import SAMPLES, Cut, Sample, Texts
from tests.guardrails.test_dialects import some_texts
from tests.guardrails.wired.exchanging import (
    PATHS,
    Detecting,
    Finder,
    Guarded,
    Rewriting,
    Sending,
    SettlingFinder,
    SlowFinder,
    asking,
    seeded,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def cuttings(request: pytest.FixtureRequest) -> int:
    """How many of each stream are tried: one in the short run, else four."""
    few = request.node.get_closest_marker("slow") is None and settings().max_examples < 100
    return int(os.environ.get("GUARDRAIL_CUTTINGS") or (1 if few else 4))


_ENTITIES: Final = ("alice.smith@example.com", "bob@mail.example.org")
_BOTH: Final = detector(EMAIL, CARD)
_EMAILS: Final = detector(EMAIL)
_CARDS: Final = detector(CARD)
_NOTHING: Final = detector(re.compile(r"(?!)"))
_REQUESTS: Final[dict[str, Any]] = {"messages": [], "stream": True}

Transform = Callable[[str], str]


def by(find: Detector) -> Transform:
    return lambda text: redacted(text, find)


class DetectingLate(Detecting):
    async def on_guardrail_inspect(self, event: Any) -> Any:
        import anyio

        await anyio.sleep(0.003)
        return await super().on_guardrail_inspect(event)


def one_guardrail(agent: Agent, **options: Any) -> tuple[list[AgentConfig], list[Guardrail]]:
    return [AgentConfig("g", agent)], [Guardrail("g", on=KINDS, hold=HOLD, **options)]


def several(rng: random.Random) -> tuple[list[AgentConfig], list[Guardrail]]:
    """Two that redact in a row, one that only records and one that would block."""
    agents = [
        AgentConfig("flag", Detecting()),
        AgentConfig("emails", SlowFinder(_EMAILS, lambda: rng.random() / 50)),
        AgentConfig("block", Detecting(re.compile("never there"))),
        AgentConfig("cards", SettlingFinder(_CARDS)),
    ]
    guardrails = [
        Guardrail("flag", on=KINDS, action="flag"),
        Guardrail("emails", on=KINDS),
        Guardrail("block", on=KINDS, action="block"),
        Guardrail("cards", on=KINDS),
    ]
    return agents, guardrails


Judges = Callable[[random.Random], tuple[list[AgentConfig], list[Guardrail]]]

JUDGES: Final[dict[str, tuple[Judges, Transform]]] = {
    "at once": (lambda rng: one_guardrail(Finder(_BOTH)), by(_BOTH)),
    "settled": (lambda rng: one_guardrail(SettlingFinder(_BOTH)), by(_BOTH)),
    "late": (
        lambda rng: one_guardrail(
            SlowFinder(_BOTH, lambda: rng.random() / 10),
            window=rng.randrange(2 * HOLD + 1, 500),
            in_flight=rng.randrange(1, 4),
            max_hold=rng.choice([0.01, 0.5]),
        ),
        by(_BOTH),
    ),
    "detections": (lambda rng: one_guardrail(Detecting()), by(_EMAILS)),
    "late detections": (lambda rng: one_guardrail(DetectingLate(), window=200), by(_EMAILS)),
    "rewritten": (lambda rng: one_guardrail(Rewriting()), by(_EMAILS)),
    "several": (several, lambda text: redacted(redacted(text, _EMAILS), _CARDS)),
}


def inside(value: Any, transform: Transform) -> Any:
    match value:
        case str():
            return transform(value)
        case dict():
            return {key: inside(member, transform) for key, member in value.items()}
        case list():
            return [inside(element, transform) for element in value]
        case _:
            return value


def check(sample: Sample, texts: Texts, sent: bytes, transform: Transform) -> None:
    read = sample.read(sent)
    assert set(read) <= set(sample.texts)
    for name, text in texts.items():
        if name.startswith("json"):
            assert name in read
            for said in read[name]:
                assert json.loads(said) == inside(json.loads(text), transform)
        elif name.startswith("signed") and transform(text) != text:
            assert name not in read
        else:
            assert read.get(name, {""}) == {transform(text)}
    for entity in _ENTITIES:
        assert entity.encode() not in sent


def pieces_of(rng: random.Random, data: bytes, cut: Cut) -> list[bytes | float]:
    pieces: list[bytes | float] = []
    for piece in cut.bytes(data, longest=rng.choice([40, 400, 5000])):
        if rng.random() < 0.03:
            pieces.append(rng.random())
        pieces.append(piece)
    return pieces


def options_of(sample: Sample) -> dict[str, Any]:
    return {"dialects": [sample.dialect]} if sample.name == "pointers" else {}


@pytest.mark.hypothesis
@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
async def test_any_cutting_gives_what_redacting_the_whole_text_gives(sample: Sample, judge: str, cuttings: int) -> None:
    judges, transform = JUDGES[judge]
    for seed in range(cuttings):
        rng = seeded(sample.name, judge, seed)
        texts = some_texts(sample, rng)
        cut = Cut(rng, longest=rng.choice([3, 9, 30]))
        data = b"".join(sample.stream(texts, cut))
        app = Sending(pieces_of(rng, data, cut), sample.media_type)
        guarded = Guarded(app, *judges(rng), **options_of(sample))
        client = await guarded.call(asking(PATHS[sample.name], json.dumps(_REQUESTS).encode()))
        assert client.status == 200
        assert client.complete
        assert app.finished
        check(sample, texts, client.body, transform)


@pytest.mark.hypothesis
@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
async def test_an_unchanged_stream_is_the_same_to_the_byte(sample: Sample, judge: str, cuttings: int) -> None:
    judges, _ = JUDGES[judge]
    for seed in range(max(1, cuttings // 2)):
        rng = seeded("unchanged", sample.name, judge, seed)
        texts = {
            name: '{"to": "no one", "n": [1.50]}' if "json" in name else "no one, 42.\n" * 9 for name in sample.texts
        }
        cut = Cut(rng, longest=rng.choice([3, 9, 30]))
        data = b"".join(sample.stream(texts, cut))
        app = Sending(pieces_of(rng, data, cut), sample.media_type)
        guarded = Guarded(app, *judges(rng), **options_of(sample))
        client = await guarded.call(asking(PATHS[sample.name], json.dumps(_REQUESTS).encode()))
        assert client.body == data
        assert client.complete
        assert client.status == 200


@pytest.mark.hypothesis
@pytest.mark.parametrize("name", ["chat", "anthropic", "responses", "gemini", "ui message", "ollama"])
async def test_a_stream_is_known_by_its_shape_whatever_the_path(name: str, cuttings: int) -> None:
    sample = next(sample for sample in SAMPLES if sample.name == name)
    for seed in range(cuttings):
        rng = seeded("shape", name, seed)
        texts = some_texts(sample, rng)
        cut = Cut(rng, longest=rng.choice([3, 9, 30]))
        data = b"".join(sample.stream(texts, cut))
        guarded = Guarded(Sending(pieces_of(rng, data, cut), sample.media_type), *one_guardrail(Finder(_BOTH)))
        client = await guarded.call(asking("/proxy", json.dumps(_REQUESTS).encode()))
        check(sample, texts, client.body, by(_BOTH))
