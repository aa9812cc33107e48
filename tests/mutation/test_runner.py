"""The runner tells what was found, by which tests, and what was not; and the command line."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from . import __main__ as command
from . import runner
from .defect import ROOT, Defect
from .defects import DEFECTS
from .runner import AREAS, Result, RunnerError, area_of, check, check_sound, prepare

BREAKER = "tests/test_breaker.py"
HARMLESS = Defect("harmless", "breaker/breaker.py", '"""The call was answered."""', "pass", "Nothing.", (BREAKER,))


def planted(new: str, *tests: str) -> Defect:
    """A defect where :data:`HARMLESS` is none."""
    return Defect("planted", HARMLESS.file, HARMLESS.old, new, "Something.", tests)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mutation") / "base"
    prepare(made)
    return made


def tried(defect: Defect, base: Path, directory: Path, wider: Sequence[str] = ()) -> Result:
    result = check(defect, base, directory, wider)
    # The copy is gone, and the original is as it was.
    assert list(directory.iterdir()) == []
    assert (base / defect.path).read_text() == (ROOT / defect.path).read_text()
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one-trial-too-many", "retry-after-is-rounded-down", "paths-are-never-forgotten"])
def test_a_defect_is_found_by_the_tests_that_are_named(name: str, base: Path, tmp_path: Path) -> None:
    [defect] = [defect for defect in DEFECTS if defect.name == name]
    check_sound(base, [defect])
    result = tried(defect, base, tmp_path)
    assert result.expected
    assert result.found_by is not None
    assert result.found_by.split("::")[0] in [test.split("::")[0] for test in defect.tests]


@pytest.mark.slow
def test_a_harmless_edit_survives(base: Path, tmp_path: Path) -> None:
    result = tried(HARMLESS, base, tmp_path)
    assert result.found_by is None
    assert command.line(result).endswith("SURVIVED")


@pytest.mark.slow
def test_what_only_other_tests_find_is_not_found_as_expected(base: Path, tmp_path: Path) -> None:
    defect = planted("self.answered -= 1", "tests/test_limiter.py::test_only_so_many_permits_are_given")
    assert tried(defect, base, tmp_path).found_by is None
    result = tried(defect, base, tmp_path, [BREAKER])
    assert not result.expected
    assert result.found_by is not None
    assert result.found_by.startswith(f"{BREAKER}::")
    assert command.line(result).endswith(", not by the tests that are named")


@pytest.mark.slow
def test_tests_that_hang_have_found_it(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "NAMED_TIMEOUT", 5.0)
    result = tried(planted("__import__('time').sleep(3600)", BREAKER), base, tmp_path)
    assert result.found_by == "a timeout: the tests did not end within 5 s"


@pytest.mark.slow
def test_a_defect_with_which_the_package_cannot_be_imported_is_refused(base: Path, tmp_path: Path) -> None:
    """Every test would find it."""
    with pytest.raises(RunnerError, match="IndentationError"):
        tried(planted('"""The call was answered."""\n    undefined', BREAKER), base, tmp_path)


@pytest.mark.slow
def test_tests_that_are_not_there_find_nothing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="pytest ended with status 4"):
        tried(planted("pass", "tests/test_nothing.py"), base, tmp_path)
    with pytest.raises(RunnerError, match="pytest ended with status 4"):
        check_sound(base, [planted("pass", f"{BREAKER}::test_nothing")])


@pytest.mark.slow
def test_the_exit_code_is_1_where_a_defect_survives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planted("return", BREAKER)
    monkeypatch.setattr(command, "DEFECTS", (found, HARMLESS))
    assert command.main([found.name]) == 0
    assert capsys.readouterr().out.endswith("1 of 1 defects found\n")
    assert command.main(["--jobs", "2"]) == 1
    assert capsys.readouterr().out.endswith("1 of 2 defects found\n")


# The command line


def test_the_defects_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("\n    asgi_agents/") == len(DEFECTS)
    for defect in DEFECTS:
        assert f"{defect.name}\n    {defect.path}: {defect.notice}\n" in listed


def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["no-such-defect"])
    assert "no such defects: no-such-defect" in capsys.readouterr().err


def test_every_part_of_the_package_that_has_defects_has_tests_of_its_own() -> None:
    for tests in AREAS.values():
        assert all((ROOT / test).exists() for test in tests)
    assert BREAKER in area_of(HARMLESS)
