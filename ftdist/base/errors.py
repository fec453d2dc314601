"""Errors that are reported to the user. Each says what was found and, where known, what was expected and the fix.

Exit codes of every command: 0 done, 1 failed, 2 wrong config, data or command line, 75 stopped for preemption and
resumable (75 is ``EX_TEMPFAIL`` in ``sysexits.h``). If the exit code is 2, usually nothing was started. Only the ranks
can find some errors of the config or the data. These errors also give exit code 2.
"""

from pathlib import Path

from ftdist.base.redact import redact

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PREEMPTED = 75
EXIT_UNREACHABLE = 69
"""Exit code of ``ftdist.model.fetch`` if the hub does not answer (``EX_UNAVAILABLE``). No verb returns it."""


USE_SAME_VERSIONS = "use the versions of the libraries that provenance.json in the run directory names"
"""Fix of an error that only another version of ftdist, transformers or peft can cause."""


class FtdistError(Exception):
    """An error that is reported to the user as one message, without a stack trace and without secrets.

    Secrets are removed because the message may quote the error of a library, and is written to logs and status.json.

    Args:
        found: What is wrong.
        expected: What would be right.
        fix: The change or command that fixes it.
    """

    exit_code = EXIT_FAILED

    def __init__(self, found: str, expected: str = "", fix: str = "") -> None:
        self.found, self.expected, self.fix = redact(found), redact(expected), redact(fix)
        super().__init__(self.found)

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.fix:
            lines.append(f"  fix:      {self.fix}")
        return "\n".join(lines)


def error_text(error: BaseException) -> str:
    """Return an error as one line, for a message that already says where it happened."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f" ({Path(error.filename).name})" if error.filename else "")
    return error.found if isinstance(error, FtdistError) else f"{type(error).__name__}: {error}"


class ConfigError(FtdistError):
    """The config or the command line is wrong.

    Most of these errors are raised before anything is started. Ranks raise those that only they can find, for example
    that an attention backend does not run on their device.
    """

    exit_code = EXIT_USAGE


class DataError(FtdistError):
    """A data source cannot be read, or none of its tokens would be trained.

    Most of these errors are raised before ranks are started. Ranks raise them if prepared data is missing or damaged.

    Args:
        found: What is wrong.
        expected: What would be right.
        fix: The change or command that fixes it.
        reason: For an error in one record: what is wrong, without the location and the values of the record, for
            example ``an empty answer``. Dropped records are counted by reason.
    """

    exit_code = EXIT_USAGE

    def __init__(self, found: str, expected: str = "", fix: str = "", reason: str = "") -> None:
        super().__init__(found, expected, fix)
        self.reason = reason


class LaunchError(FtdistError):
    """Ranks could not be started, a rank failed, or a rank made no progress."""


class CheckpointError(FtdistError):
    """A checkpoint cannot be written, or no checkpoint passes verification."""


class TrainError(FtdistError):
    """Training cannot continue: losses or gradients are not finite, or memory is full."""
