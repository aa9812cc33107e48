"""The metrics of several processes in one answer for Prometheus: what they tell one another, and all of it together.

Each series has the label ``worker``. It is the place that the process has among those that live, and not its id, so
that a process that takes the place of one that has ended goes on with its series: a counter begins at 0 again, as
``rate`` knows it from any process that is restarted, and there are never more series than places.

Pure. Needs the ``prometheus`` extra.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from .prometheus import REPORTED_PREFIX, WORKER, names_of
from .worker_directory import MAX_BYTES, MAX_PLACES, FileKind

_Type = Literal["counter", "gauge", "histogram"]

_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: How many workers there are, by whether they have answered in time.
WORKERS: Final = "asgi_agents_workers"
_SUFFIXES: Final = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


class ExemplarShare(Struct, frozen=True, array_like=True):
    """The exemplar of a sample."""

    labels: dict[str, str]
    value: float
    time: float | None


class SampleShare(Struct, frozen=True, array_like=True):
    """A value. ``suffix`` is what its name has more than that of its family."""

    suffix: str
    labels: dict[str, str]
    value: float
    exemplar: ExemplarShare | None = None


class FamilyShare(Struct, frozen=True, array_like=True):
    """All values of one metric."""

    name: str
    type: _Type
    help: str
    unit: str
    samples: Sequence[SampleShare]


class MetricsShare(Struct, frozen=True, kw_only=True):
    """What a process tells the others: all its metrics.

    :ivar at: of when they are, in nanoseconds of the machine's monotonic clock; 0: of :data:`NOTHING`.
    :ivar place: see :meth:`~asgi_agents.observability.worker_directory.WorkerDirectory.place`.
    """

    format: Literal[1] = 1
    at: int
    place: int
    families: Sequence[FamilyShare]


#: Of a process that lives, and can't tell what it has: so it counts as one that does not answer.
NOTHING: Final = MetricsShare(at=0, place=0, families=())


def take(collector: Collector, *, at: int, place: int) -> MetricsShare:
    """The metrics of this process, as they are now: no sooner than ``at``."""
    families = [_shared(family) for family in collector.collect()]
    return MetricsShare(at=at, place=place, families=families)


def encoded(share: MetricsShare) -> tuple[bytes, str]:
    """The share for a file, and what of it does not fit: what agents report, or else all of it; empty if it is whole.

    Where nothing fits it is :data:`NOTHING`.
    """
    data = msgspec.msgpack.encode(share)
    if len(data) <= MAX_BYTES:
        return data, ""
    data = msgspec.msgpack.encode(without_reports(share))
    if len(data) <= MAX_BYTES:
        return data, "what its agents report of themselves"
    return msgspec.msgpack.encode(NOTHING), "all of it"


def without_reports(share: MetricsShare) -> MetricsShare:
    """The share without what agents report of themselves."""
    return replace(share, families=[family for family in share.families if not family.name.startswith(REPORTED_PREFIX)])


def _decoded(data: bytes) -> MetricsShare:
    """A share that makes sense. Raises ValueError."""
    share = _decoder.decode(data)
    if not 0 <= share.place < MAX_PLACES:
        raise ValueError("expected the metrics of a process")
    taken: set[str] = set()
    for family in share.families:
        names = names_of(family.name)
        if not _NAME.fullmatch(family.name) or not taken.isdisjoint(names) or not _makes_sense(family):
            raise ValueError("expected metrics that Prometheus takes")
        taken |= names
    return share


def _makes_sense(family: FamilyShare) -> bool:
    if family.unit and not family.name.endswith(f"_{family.unit}"):
        return False
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for sample in family.samples:
        series = (sample.suffix, frozenset(sample.labels.items()))
        exemplar = sample.exemplar
        if (
            sample.suffix not in _SUFFIXES[family.type]
            or series in seen
            or WORKER in sample.labels
            or not all(map(_NAME.fullmatch, sample.labels))
            or (exemplar is not None and not (_has_exemplars(sample) and all(map(_NAME.fullmatch, exemplar.labels))))
        ):
            return False
        seen.add(series)
    return True


def _has_exemplars(sample: SampleShare) -> bool:
    return sample.suffix in ("_total", "_bucket")


_decoder: Final = msgspec.msgpack.Decoder(MetricsShare)
#: The files of the metrics.
METRICS_FILES: Final = FileKind("scraped", "metrics", _decoded)


def merge(shares: Sequence[MetricsShare], silent: int) -> Collector:
    """The metrics of all ``shares``, each metric with its type and help once.

    Where they don't agree on the type of one that agents report, the worker with the smallest place decides. Of several
    that have one place, as for a moment after somebody has removed the files, the first counts, and the others as
    silent.

    :param silent: how many workers there are beside them.
    """
    by_place: dict[int, MetricsShare] = {}
    for share in shares:
        by_place.setdefault(share.place, share)
    families: dict[str, Family] = {}
    types: dict[str, str] = {}
    taken: set[str] = set()
    for place, share in sorted(by_place.items()):
        for given in share.families:
            family = families.get(given.name)
            if family is None:
                names = names_of(given.name)
                if not taken.isdisjoint(names):
                    continue
                taken |= names
                family = families[given.name] = Family(given.name, given.help, given.type, given.unit)
                types[given.name] = given.type
            if types[given.name] == given.type:
                _add(family, given.samples, str(place))
    workers = families[WORKERS] = Family(WORKERS, "Workers of the app, by whether they have answered in time.", "gauge")
    workers.add_sample(WORKERS, {"state": "up"}, len(by_place))
    workers.add_sample(WORKERS, {"state": "silent"}, silent + len(shares) - len(by_place))
    return _Collected(families)


class _Collected(Collector):
    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        yield from self._families.values()


def _add(family: Family, samples: Iterable[SampleShare], worker: str) -> None:
    for sample in samples:
        exemplar = sample.exemplar
        family.add_sample(
            family.name + sample.suffix,
            {WORKER: worker, **sample.labels},
            sample.value,
            exemplar=None if exemplar is None else Exemplar(exemplar.labels, exemplar.value, exemplar.time),
        )


def _shared(family: Family) -> FamilyShare:
    samples = [
        SampleShare(sample.name.removeprefix(family.name), sample.labels, float(sample.value), _exemplar(sample))
        for sample in family.samples
    ]
    return FamilyShare(family.name, cast(_Type, family.type), family.documentation, family.unit, samples)


def _exemplar(sample: Sample) -> ExemplarShare | None:
    given = sample.exemplar
    if given is None:
        return None
    return ExemplarShare(given.labels, given.value, None if given.timestamp is None else float(given.timestamp))
