"""The errors a user can meet. Each says what was found, what was expected, and the one change that mends it.

Exit codes of every verb: 0 done, 1 failed, 2 wrong config, data or command line (nothing was started),
75 stopped for preemption and resumable (75 is ``EX_TEMPFAIL`` of sysexits.h).
"""

from ftdist.base.redact import redact

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PREEMPTED = 75


class FtdistError(Exception):
    """Anything that ftdist reports to the user as one message, without a stack trace and without secrets: what a
    library says may quote them, and the message ends in logs and in status.json."""

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


class ConfigError(FtdistError):
    """The config or the command line is wrong. Raised before anything is started."""

    exit_code = EXIT_USAGE


class DataError(FtdistError):
    """A data source cannot be read, or nothing in it would be trained. Raised before ranks are started."""

    exit_code = EXIT_USAGE


class LaunchError(FtdistError):
    """Ranks could not be started, or one of them failed."""


class CheckpointError(FtdistError):
    """A checkpoint cannot be written, or none that can be trusted was found."""


class TrainError(FtdistError):
    """Training cannot go on: losses or gradients that are not finite, a rank that stands still, memory that is full."""
