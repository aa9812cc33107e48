"""Defects in what worker processes tell one another: who lives, who is left out, and what is kept."""

from typing import Final

from .defect import Defect

WORKERS: Final = (
    Defect(
        "files-are-locked-once-others-can-see-them",
        "observability/worker_directory.py",
        "            if kept:\n                file.lock()\n            with open(descriptor",
        "            with open(descriptor",
        "Workers remove the files of others that live, and are missing on the status page and in the metrics.",
        (
            "tests/status/test_sharing.py::test_who_asks_whether_a_process_lives_takes_no_lock_away",
            "tests/observability/test_worker_scrapes.py::test_each_answer_has_the_series_of_all",
        ),
    ),
    Defect(
        "workers-keep-a-number-that-another-has-taken",
        "observability/worker_directory.py",
        "            if self._place is not None and not self._place.is_held(directory):\n"
        "                self._place = None\n",
        "",
        "After a script has tidied up, two workers have one number, and counters go back.",
        (
            "tests/observability/test_worker_metrics.py::test_no_two_that_live_have_one_place_when_somebody_has_removed_the_files",
        ),
    ),
)
