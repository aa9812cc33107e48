"""Recognisers of Presidio that need no model, or all of an engine. Needs the ``presidio`` extra."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from threading import Lock
from typing import Any, Final

from presidio_analyzer import AnalyzerEngine
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    CryptoRecognizer,
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    PhoneRecognizer,
    UsSsnRecognizer,
)
from tldextract import TLDExtract

from ..errors import ConfigurationError
from ..messages.naming import kind_of

Find = tuple[int, int, str, float]
Finder = Callable[[str], Sequence[Find]]

#: The list of top-level domains that comes with its package. Presidio's own recogniser would fetch a newer one from the
#: net when it is first asked.
_DOMAINS: Final = TLDExtract(cache_dir=None, suffix_list_urls=())


class _Email(EmailRecognizer):  # type: ignore[misc,unused-ignore]
    def validate_result(self, pattern_text: str) -> bool:
        return bool(_DOMAINS(pattern_text).top_domain_under_public_suffix)


@cache
def _by_entity() -> Mapping[str, Any]:
    kinds: list[Any] = [
        CreditCardRecognizer,
        CryptoRecognizer,
        _Email,
        IbanRecognizer,
        IpRecognizer,
        PhoneRecognizer,
        UsSsnRecognizer,
    ]
    return {entity: made for made in (kind() for kind in kinds) for entity in made.supported_entities}


def finder(entities: Sequence[str] | None) -> Finder:
    """Asks the recognisers of these entities, one after the other."""
    known = _by_entity()
    for entity in entities or ():
        if entity not in known:
            raise ConfigurationError(f"Presidio: entities has {entity!r}, expected some of {', '.join(known)}")
    asked = dict(known) if entities is None else {entity: known[entity] for entity in entities}

    def find(text: str) -> Sequence[Find]:
        return [_read(found) for entity, each in asked.items() for found in each.analyze(text, [entity], None) or ()]

    return find


def finder_of(analyzer: object, entities: Sequence[str] | None, language: str) -> Finder:
    """Asks an engine, one text at a time: nothing says that its models may be asked by several threads."""
    if not isinstance(analyzer, AnalyzerEngine):
        raise ConfigurationError(f"Presidio: analyzer is {kind_of(analyzer)}, expected an AnalyzerEngine")
    engine: Any = analyzer
    lock = Lock()

    def find(text: str) -> Sequence[Find]:
        with lock:
            return [_read(found) for found in engine.analyze(text, language, entities and list(entities))]

    return find


def _read(found: Any) -> Find:
    return found.start, found.end, found.entity_type, found.score
