from tests.chaos.fleet import INSTANCES
from tests.chaos.schedule import KINDS, can, schedule

SPEECHES = {name: speech for name, (_, speech) in INSTANCES.items()}


def test_a_seed_decides_what_happens() -> None:
    assert schedule(1, 60.0, SPEECHES) == schedule(1, 60.0, SPEECHES)
    assert schedule(1, 60.0, SPEECHES) != schedule(2, 60.0, SPEECHES)


def test_injections_come_in_order_and_end_in_time() -> None:
    times = [injection.at for injection in schedule(3, 30.0, SPEECHES)]
    assert times == sorted(times)
    assert times[-1] < 30.0


def test_even_a_short_run_has_every_kind() -> None:
    for seed in range(100):
        assert {injection.kind for injection in schedule(seed, 15.0, SPEECHES)} == set(KINDS)


def test_only_what_can_be_done_to_an_instance_is_done_to_it() -> None:
    for injection in schedule(4, 500.0, SPEECHES):
        assert can(injection.kind, SPEECHES[injection.instance])


def test_every_instance_gets_its_share() -> None:
    assert {injection.instance for injection in schedule(5, 60.0, SPEECHES)} == set(INSTANCES)
