"""Labels of long tasks, and formats of numbers and times."""

import re

import pytest

from ftdist.base.terminal import format_clock, format_compact, format_seconds, task


def test_a_task_that_fails_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), task("loading"):
        raise ValueError("no")
    assert capsys.readouterr().out == ""


def test_a_short_task_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with task("loading") as say:
        say("loading more")
    assert re.fullmatch(r"loading: 0\.\d s\n", capsys.readouterr().out)


def test_numbers_and_times_are_formatted() -> None:
    numbers = (0, 871.4, 5210, 9960, 48_300, 1.3e6)
    assert [format_compact(number) for number in numbers] == ["0", "871", "5.2k", "10k", "48k", "1.3M"]
    assert [format_clock(s) for s in (None, 7, 750, 11_100, 190_000)] == ["?", "0:07", "12:30", "3:05:00", "2 d 4 h"]
    assert [format_seconds(s) for s in (3.21, 75)] == ["3.2 s", "1:15"]
