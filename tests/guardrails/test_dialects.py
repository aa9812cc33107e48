"""What every dialect promises, for any cutting of text into events and of events into bytes."""

import json
import os
import random
import re
from typing import Any

import pytest

from tests.guardrails.detectors import CARD, EMAIL, Detector, detector, redacted
from tests.guardrails.driving import EVERYTHING, passed
from tests.guardrails.samples import SAMPLES, Cut, Sample, Texts
from tests.support.examples import examples

_ENTITIES = ("alice.smith@example.com", "bob@mail.example.org", "4111 1111 1111 1111", "5500-0000-0000-0004")
_WORDS = (
    "the",
    "answer",
    "is",
    "\u00fcber",
    "42,",
    "no.",
    "\n",
    "caf\u00e9",
    '"quoted"',
    "\\",
    "\U0001f600",
    "a@b",
    "<b>",
    "1 2 3",
)


def some_text(rng: random.Random, words: int = 30) -> str:
    """Words, with entities among them, some of them right after another."""
    text = []
    for _ in range(rng.randrange(words)):
        text.append(rng.choice(_ENTITIES if rng.random() < 0.2 else _WORDS))
        text.append(rng.choice([" ", " ", " ", "\n", ", ", ""]))
    return "".join(text)


def some_json(rng: random.Random) -> str:
    value: dict[str, Any] = {
        "to": some_text(rng, 6),
        "n": [1.50, {"body\u2028": some_text(rng, 12)}, None],
        "empty": "",
    }
    return json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))


def some_texts(sample: Sample, rng: random.Random) -> dict[str, str]:
    return {name: some_json(rng) if name.startswith("json") else some_text(rng) for name in sample.texts}


def redacted_json(text: str, detect: Detector = EVERYTHING) -> Any:
    def inside(value: Any) -> Any:
        match value:
            case str():
                return redacted(value, detect)
            case dict():
                return {key: inside(member) for key, member in value.items()}
            case list():
                return [inside(element) for element in value]
            case _:
                return value

    return inside(json.loads(text))


def check(sample: Sample, texts: Texts, sent: bytes, detect: Detector = EVERYTHING) -> None:
    read = sample.read(sent)
    assert set(read) <= set(sample.texts)
    expected: list[str] = []
    for name, text in texts.items():
        if name.startswith("json"):
            expected.append(json.dumps(redacted_json(text, detect)))
            for said in read[name]:
                assert json.loads(said) == json.loads(expected[-1])
        elif name.startswith("signed") and redacted(text, detect) != text:
            assert name not in read
        else:
            expected.append(redacted(text, detect))
            assert read.get(name, {""}) == {expected[-1]}
    for entity in _ENTITIES:
        assert entity.encode() not in sent or any(entity in text for text in expected)


def cuttings() -> int:
    """How many of each dialect are tried. The full check takes a thousand."""
    return int(os.environ.get("GUARDRAIL_CUTTINGS") or examples(40))


@pytest.mark.hypothesis
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_any_cutting_gives_what_redacting_the_whole_text_gives(sample: Sample) -> None:
    for seed in range(cuttings()):
        rng = random.Random(f"{sample.name} {seed}")  # noqa: S311
        texts = some_texts(sample, rng)
        cut = Cut(rng, longest=rng.choice([3, 9, 30]))
        data = b"".join(sample.stream(texts, cut))
        pieces = cut.bytes(data, longest=rng.choice([3, 200, 5000]))
        sent = passed(sample.dialect, sample.media_type, pieces, EVERYTHING, rng if seed % 4 else None)
        check(sample, texts, sent)


@pytest.mark.hypothesis
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_an_unchanged_stream_is_the_same_to_the_byte(sample: Sample) -> None:
    for seed in range(cuttings() // 4):
        rng = random.Random(f"{sample.name} {seed}")  # noqa: S311
        cut = Cut(rng)
        data = b"".join(sample.stream(some_texts(sample, rng), cut))
        nothing = detector(re.compile(r"(?!)"))
        assert passed(sample.dialect, sample.media_type, cut.bytes(data), nothing, rng if seed % 2 else None) == data


def test_the_texts_have_entities_in_them() -> None:
    text = "".join(some_text(random.Random(seed)) for seed in range(20))  # noqa: S311
    assert len(EMAIL.findall(text)) > 10
    assert len(CARD.findall(text)) > 10
