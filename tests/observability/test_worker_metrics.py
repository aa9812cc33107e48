"""The metrics of several processes as one answer: pure."""

import math
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from asgi_agents import AgentManager
from asgi_agents.manager import registry_of
from asgi_agents.observability import worker_metrics as under_test
from asgi_agents.observability.locked_files import LockedFile
from asgi_agents.observability.prometheus import AgentCollector, encode
from asgi_agents.observability.worker_directory import WorkerDirectory
from asgi_agents.observability.worker_metrics import METRICS_FILES, NOTHING, MetricsShare, encoded, merge, take
from asgi_agents.protocol import AgentResponse
from asgi_agents.protocol.stream import CounterMetric, GaugeMetric, HistogramBucket, HistogramMetric
from tests.test_prometheus import judged, managed, reported

BLOCK = AgentResponse.block()
NOTHING_AT_ALL = msgspec.msgpack.encode(NOTHING)
DECISIONS = "asgi_agents_decisions_total"


def share_of(manager: AgentManager, place: int = 0) -> MetricsShare:
    """As another process reads it."""
    made = take(AgentCollector(registry_of(manager)), at=1, place=place)
    data, left_out = encoded(made)
    assert not left_out
    return METRICS_FILES.decode(data)


def together(*shares: MetricsShare, silent: int = 0) -> list[Family]:
    """What comes of them can be read in both formats, and each series is there once."""
    collector = merge(shares, silent)
    text = encode(collector).decode()
    types = [line for line in text.splitlines() if line.startswith(("# TYPE", "# HELP"))]
    assert len(types) == len({tuple(line.split()[:3]) for line in types})
    families = list(parse_text(text))
    series = [(sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples]
    assert len(series) == len(set(series))
    openly = openmetrics_parser.text_string_to_metric_families(  # type: ignore[no-untyped-call]
        encode(collector, openmetrics=True).decode()
    )
    assert {family.name for family in openly} == {family.name for family in families}
    return families


def values(families: Iterable[Family], name: str, *labels: str) -> dict[Any, float]:
    return {
        tuple(sample.labels.get(label) for label in labels) if len(labels) > 1 else sample.labels.get(labels[0]): (
            sample.value
        )
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_each_worker_has_series_of_its_own_and_each_metric_is_described_once() -> None:
    managers = [managed(), managed(), managed()]
    for number, manager in enumerate(managers):
        for _ in range(number + 1):
            judged(manager, BLOCK)
    families = together(*(share_of(manager, place) for place, manager in enumerate(managers)))
    assert values(families, DECISIONS, "worker") == {"0": 1, "1": 2, "2": 3}
    assert values(families, "asgi_agents_call_active", "worker") == {"0": 0, "1": 0, "2": 0}
    alone = {family.name for family in parse_text(managers[0].export_prometheus())}
    assert {family.name for family in families} == {*alone, "asgi_agents_workers"}


def test_what_one_says_is_what_it_would_say_itself_but_for_the_label() -> None:
    manager = managed("waf", "pii")
    judged(manager, BLOCK, correlation_id="c-9")
    reported(
        manager,
        CounterMetric(name="seen", help="é\n", labels={"worker": "its own", "a": "\\"}, value=3),
        GaugeMetric(name="load", value=math.nan),
        GaugeMetric(name="most", value=math.inf),
        HistogramMetric(name="scan", sum=1.5, count=3, buckets=[HistogramBucket(0.5, 1), HistogramBucket("+Inf", 3)]),
    )
    own = AgentCollector(registry_of(manager))
    for openmetrics in (False, True):
        expected = encode(own, openmetrics=openmetrics).decode()
        found = encode(merge([share_of(manager, 7)], 0), openmetrics=openmetrics).decode()
        bare = found.replace(',worker="7"', "").replace('worker="7",', "")
        lines = [line for line in bare.splitlines() if "asgi_agents_workers" not in line]
        assert lines == expected.splitlines()
    assert 'exported_worker="its own"' in manager.export_prometheus()
    assert '# {correlation_id="c-9"}' in encode(merge([share_of(manager)], 0), openmetrics=True).decode()


def test_it_says_how_many_workers_there_are_and_how_many_are_silent() -> None:
    families = together(share_of(managed()), share_of(managed(), 1), silent=2)
    assert values(families, "asgi_agents_workers", "state") == {"up": 2, "silent": 2}


def test_the_worker_with_the_smallest_place_decides_on_a_type_whoever_asks() -> None:
    one, other = managed(), managed()
    reported(one, GaugeMetric(name="load", value=1), GaugeMetric(name="x_count", value=1))
    reported(other, CounterMetric(name="load", value=2), HistogramMetric(name="x", sum=1.0, count=1))
    for shares in ([share_of(one, 0), share_of(other, 1)], [share_of(other, 1), share_of(one, 0)]):
        families = together(*shares)
        assert values(families, "agent_reported_load", "worker") == {"0": 1}
        assert values(families, "agent_reported_x_count", "worker") == {"0": 1}
        assert not values(families, "agent_reported_x_sum", "worker")


def test_of_several_that_claim_one_place_the_first_counts_and_the_others_are_silent() -> None:
    one, other = managed(), managed()
    judged(one, BLOCK)
    families = together(share_of(one, 3), share_of(other, 3), share_of(other, 3), share_of(other, 4), silent=5)
    assert values(families, DECISIONS, "worker") == {"3": 1}
    assert values(families, "asgi_agents_workers", "state") == {"up": 2, "silent": 7}


def test_what_is_too_much_for_a_file_is_without_what_agents_report(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = managed()
    judged(manager, BLOCK)
    for number in range(100):
        reported(manager, GaugeMetric(name=f"m{number}", help="h" * 400, value=1))
    share = share_of(manager)
    monkeypatch.setattr(under_test, "MAX_BYTES", 20_000)
    data, left_out = encoded(share)
    assert left_out == "what its agents report of themselves"
    assert len(data) < 20_000
    families = together(METRICS_FILES.decode(data))
    assert values(families, DECISIONS, "worker") == {"0": 1}
    assert not any(family.name.startswith("agent_reported") for family in families)


# What lies in the directory


def rewritten(change: Callable[[Any], object]) -> bytes:
    manager = managed()
    judged(manager, BLOCK)
    made = msgspec.msgpack.decode(msgspec.msgpack.encode(share_of(manager)))
    change(made)
    return msgspec.msgpack.encode(made)


# A family is [name, type, help, unit, samples], a sample [suffix, labels, value, exemplar].
COUNTER = 2


def of_sample(place: int, value: Any) -> Callable[[Any], object]:
    return lambda made: made["families"][COUNTER][4][0].__setitem__(place, value)


def of_family(place: int, value: Any) -> Callable[[Any], object]:
    return lambda made: made["families"][COUNTER].__setitem__(place, value)


SPOILED: dict[str, bytes] = {
    "nothing": b"",
    "noise": b"\x00\xff" * 100,
    "cut short": rewritten(lambda made: None)[:-20],
    "nested": b"\x91" * 100_000,
    "of another format": rewritten(lambda made: made.update(format=2)),
    "a place too far": rewritten(lambda made: made.update(place=64)),
    "no place": rewritten(lambda made: made.pop("place")),
    "a family twice": rewritten(lambda made: made["families"].append(made["families"][0])),
    "a name with a line in it": rewritten(of_family(0, "a\nb 1")),
    "no name": rewritten(of_family(0, "")),
    "a type that there is not": rewritten(of_family(1, "summary")),
    "a unit that is not in the name": rewritten(of_family(3, "furlongs")),
    "a series twice": rewritten(lambda made: made["families"][COUNTER][4].append(made["families"][COUNTER][4][0])),
    "a suffix of another type": rewritten(of_sample(0, "_bucket")),
    "a suffix with a brace": rewritten(of_sample(0, "_total{")),
    "a label of the worker": rewritten(of_sample(1, {"worker": "9"})),
    "a label with a quote": rewritten(of_sample(1, {'a"': "9"})),
    "a label that is no text": rewritten(of_sample(1, {"a": 9})),
    "a value that is no number": rewritten(of_sample(2, "9")),
    "an exemplar with a bad label": rewritten(of_sample(3, [{"a b": "c"}, 1.0, None])),
}


def test_as_it_was_it_makes_sense() -> None:
    assert METRICS_FILES.decode(rewritten(lambda made: None)).families[COUNTER].name == "asgi_agents_decisions"


@pytest.mark.parametrize("kind", SPOILED)
def test_what_makes_no_sense_is_refused(kind: str) -> None:
    # Those of older msgspec are no ValueError.
    with pytest.raises((ValueError, msgspec.MsgspecError, RecursionError)):
        METRICS_FILES.decode(SPOILED[kind])


# What Prometheus makes of it


STEPS = ["start", "end", "count", "count", "count", "scrape", "scrape"]


class Series:
    """How much Prometheus thinks that a counter has grown: one that is smaller than before has begun anew."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.increase = 0.0

    def scrape(self, found: dict[str, float]) -> None:
        for worker, value in found.items():
            before = self.last.get(worker)
            # Of a series that is new, Prometheus does not count what it begins with.
            if before is not None:
                self.increase += value - before if value >= before else value
        self.last.update(found)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=40), st.data())
def test_whoever_ends_and_begins_the_sum_of_the_rates_is_never_more_than_what_was_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("shared")
    living: list[tuple[WorkerDirectory[MetricsShare], AgentManager]] = []
    counted, most, seen = 0, 1, Series()
    places: set[int] = set()
    for step in ["start", "start", *steps, "scrape"]:
        if step == "start":
            living.append((WorkerDirectory(path, 10.0, METRICS_FILES), managed()))
            most = max(most, len(living))
        elif step == "end" and living:
            directory, _ = living.pop(data.draw(st.integers(0, len(living) - 1)))
            directory.leave()
        elif step == "count" and living:
            judged(data.draw(st.sampled_from(living))[1], BLOCK)
            counted += 1
        elif step == "scrape":
            shares = [share_of(manager, directory.place()) for directory, manager in living]
            places.update(share.place for share in shares)
            seen.scrape(values(together(*shares), DECISIONS, "worker"))
            assert seen.increase <= counted
    # Never more series than workers at a time, however many there have been.
    assert len(places) <= most
    for directory, _ in living:
        directory.leave()


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "not removed"])
def test_who_joins_while_the_last_one_leaves_keeps_what_it_has_written(
    removed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loops of a process have threads of their own, which come in between at any time."""
    directory = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
    other = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
    share = encoded(take(AgentCollector(registry_of(managed())), at=1, place=0))[0]
    directory.join()
    directory.write(share)
    place = directory.place()
    unlink = os.unlink

    def joined_meanwhile(name: str, *, dir_fd: int) -> None:
        monkeypatch.undo()
        if not removed:
            raise PermissionError
        unlink(name, dir_fd=dir_fd)
        directory.join()
        directory.write(share)

    monkeypatch.setattr(os, "unlink", joined_meanwhile)
    if removed:
        directory.leave()
        assert directory.is_written()
        assert len(other.read().heard) == 1
        assert directory.place() == place
    else:
        with pytest.raises(PermissionError):
            directory.leave()
    directory.leave()
    assert not directory.is_written()
    assert other.read().heard == []
    assert other.place() == place


def test_a_place_is_free_again_when_a_process_is_killed(tmp_path: Path) -> None:
    held = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        other = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
        try:
            os.write(write, bytes([other.place()]))
            os.read(os.pipe()[0], 1)  # for ever
        finally:
            os._exit(1)
    try:
        assert os.read(read, 1) == b"\x00"
        assert held.place() == 1
        third = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert third.place() == 0
    assert held.place() == 1


def test_a_forked_process_has_another_place_and_does_not_give_up_that_of_its_parent(tmp_path: Path) -> None:
    parent = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
    assert parent.place() == 0
    child = os.fork()
    if child == 0:
        place = 99
        try:
            place = parent.place()
        finally:
            os._exit(place)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    other = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
    assert other.place() == 1
    assert parent.place() == 0


def test_a_process_that_was_forked_keeps_nothing_of_one_that_is_killed(tmp_path: Path) -> None:
    """As one of a pool of processes, which outlives the worker that has started it."""
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        of_worker = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
        try:
            of_worker.place()
            of_worker.write(NOTHING_AT_ALL)
            if os.fork() == 0:
                # It has begun by the time that the test goes on.
                os.write(write, str(os.getpid()).encode())
            os.read(os.pipe()[0], 1)  # for ever
        finally:
            os._exit(1)
    child = int(os.read(read, 20))
    try:
        other = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
        assert len(other.read().heard) == 1
        os.kill(worker, 9)
        os.waitpid(worker, 0)
        os.kill(child, 0)  # it is there
        assert other.read().heard == []
        assert list(tmp_path.glob("*.metrics")) == []
        assert other.place() == 0
    finally:
        os.kill(child, 9)


def test_a_process_that_was_forked_closes_also_what_a_thread_was_about_to_lock(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    file = LockedFile(descriptor)
    child = os.fork()
    if child == 0:
        try:
            os.fstat(descriptor)
        except OSError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    file.lock()
    file.close()
    file.close()


def test_a_process_that_is_forked_while_a_thread_writes_does_not_wait_for_that_thread(tmp_path: Path) -> None:
    parent = WorkerDirectory(tmp_path, 10.0, METRICS_FILES)
    parent.join()
    parent.write(NOTHING_AT_ALL)
    with parent._lock, parent._writing:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(30)
                assert not parent.joined
                parent.leave()
                assert parent.place() == 0
                parent.write(NOTHING_AT_ALL)
                assert [each.share.at for each in parent.read().heard] == [0]
                status = 0
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert parent.is_written()
    # The child's is of a dead process.
    assert parent.read().heard == []


@pytest.mark.parametrize("again", [False, True])
def test_no_two_that_live_have_one_place_when_somebody_has_removed_the_files(tmp_path: Path, again: bool) -> None:
    first, second, third = (WorkerDirectory(tmp_path, 10.0, METRICS_FILES) for _ in range(3))
    assert [first.place(), second.place()] == [0, 1]
    (tmp_path / "0.place").unlink()
    if again:
        # Another has made it.
        (tmp_path / "0.place").touch(0o600)
    assert third.place() == 0
    assert sorted(each.place() for each in (first, second, third)) == [0, 1, 2]
    assert third.place() == 0
    assert second.place() == 1


def test_a_place_that_is_removed_before_it_is_locked_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another would make it anew, and have it as well."""
    actual = LockedFile.lock
    removed: list[Path] = []

    def lock(self: LockedFile) -> None:
        if not removed:
            removed.append(tmp_path / "0.place")
            removed[0].unlink()
        actual(self)

    monkeypatch.setattr(LockedFile, "lock", lock)
    first, second = (WorkerDirectory(tmp_path, 10.0, METRICS_FILES) for _ in range(2))
    assert sorted([first.place(), second.place(), first.place(), second.place()]) == [0, 0, 1, 1]


def test_whatever_stands_in_a_place_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "0.place").mkdir()
    (tmp_path / "1.place").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "2.place")
    (tmp_path / "3.place").touch(0o666)
    (tmp_path / "3.place").chmod(0o666)
    assert WorkerDirectory(tmp_path, 10.0, METRICS_FILES).place() == 4


def test_a_share_that_was_taken_is_the_same_when_it_is_read() -> None:
    manager = managed()
    judged(manager, BLOCK)
    made = take(AgentCollector(registry_of(manager)), at=1, place=2)
    assert share_of(manager, 2) == msgspec.convert(msgspec.to_builtins(made), type(made), strict=True)
