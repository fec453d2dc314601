"""Answers of Slurm's commands, between what a site's wrappers print."""

from typing import List, Optional

import pytest

from ftdist.launch.backends.slurm import answers

BANNER = "*** Welcome to HAL | 2026 ***\nYou have used 1234 of 5000 hours.\n\n"


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("123\n", "123"),
        ("123;alpha\n", "123"),
        (BANNER + "123\n", "123"),
        ("123\n" + BANNER, "123"),
        (BANNER + "Submitted batch job 123\n", "123"),
        ("Submitted batch job 123 on cluster alpha\n17\n", "123"),
        ("\r\n 123 \r\n", "123"),
        ("123\n123\n", "123"),
        ("17\n123\n", None),  # one of the two is a number of the site
        (BANNER, None),
        ("", None),
        ("sbatch: job 123 queued", None),
    ],
)
def test_the_id_of_a_job_is_found(printed: str, found: Optional[str]) -> None:
    assert answers.job_id(printed) == found


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("ftdist|7|RUNNING|/a b/c\n", [["7", "RUNNING", "/a b/c"]]),
        (BANNER + "ftdist|7|RUNNING|/a|b\nquota|a|b\n", [["7", "RUNNING", "/a|b"]]),
        ("no line break at the end: ftdist|7|PENDING|x\n", [["7", "PENDING", "x"]]),
        ("ftdist|7\n", []),
        (BANNER, []),
    ],
)
def test_only_the_lines_of_the_answer_are_read(printed: str, found: List[List[str]]) -> None:
    assert answers.line_format("%i", "%T", "%o") == "ftdist|%i|%T|%o"
    assert answers.rows(printed, 3) == found


@pytest.mark.parametrize(
    ("message", "late"),
    [
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        ("sbatch did not answer in 60 s", True),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", False),
    ],
)
def test_after_a_lost_answer_the_queue_is_searched(message: str, late: bool) -> None:
    assert bool(answers.LATE.search(message)) == late
