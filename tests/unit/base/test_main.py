"""How a program ends: what it prints, and its exit code."""

import errno

import pytest

from ftdist.base.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_USAGE, ConfigError, FtdistError
from ftdist.base.main import run_main


@pytest.mark.parametrize("raised, code, printed", [
    (ConfigError("a=1", "a number below 1", "a=0"), EXIT_USAGE,
     "error: a=1\n  expected: a number below 1\n  fix:      a=0\n"),
    (FtdistError(""), EXIT_FAILED, ""),
    (OSError(errno.ENOSPC, "No space left on device", "/data/file"), EXIT_FAILED, "error: /data/file: No space left"),
    (KeyboardInterrupt(), EXIT_FAILED, "stopped\n"),
])  # fmt: skip
def test_an_error_for_the_user_is_printed_without_a_traceback(
    raised: BaseException, code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> int:
        raise raised

    assert run_main(body) == code
    error = capsys.readouterr().err
    assert error.startswith(printed) and "Traceback" not in error and bool(error) == bool(printed)


def test_the_exit_code_of_the_body_is_returned_and_a_bug_keeps_its_traceback() -> None:
    assert run_main(lambda: EXIT_PREEMPTED) == EXIT_PREEMPTED
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)
