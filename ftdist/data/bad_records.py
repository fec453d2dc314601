"""Records that cannot be used: lines that are not records, invalid messages, empty answers, and chats that the chat
template cannot express. With ``data.bad_records=stop`` the first one stops the preparation. With ``drop`` they are left
out, counted and listed.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Tuple, TypeVar

from ftdist.base.counts import count
from ftdist.base.errors import DataError
from ftdist.config.data import BadRecords

DROPPED_BAD = "dropped: bad"
"""Prefix of the counts of bad records by reason."""
MAX_REASONS = 8
"""Maximum number of reasons that are counted separately for a source."""
ALL_BAD_AFTER = 1000
"""The preparation stops early if this many records of a source are bad and none is good."""
MAX_LENGTH = 80
"""Maximum length of a reason that is made from an error message."""

Made = TypeVar("Made")


class BadRecord(NamedTuple):
    location: str
    reason: str
    """What is wrong, without the location and the values of the record."""
    error: DataError


def read_good(
    located: Iterable[Tuple[str, Any]], read: Callable[[str, Any], Made], bad_records: BadRecords
) -> Tuple[List[Made], List[BadRecord]]:
    """Read records.

    Args:
        located: ``(location, record)``.
        read: Makes something from a location and a record. Raises DataError if the record is bad.
        bad_records: ``stop`` raises the first error. ``drop`` returns the errors.

    Returns:
        The results for the good records, and the bad records.
    """
    made: List[Made] = []
    bad: List[BadRecord] = []
    for location, record in located:
        try:
            made.append(read(location, record))
        except DataError as error:
            if bad_records is BadRecords.stop:
                raise
            bad.append(BadRecord(location, _reason(location, error), error.with_traceback(None)))
    return made, bad


def _reason(location: str, error: DataError) -> str:
    """Return the reason of an error, or else the beginning of its message."""
    if error.reason:
        return error.reason
    text = error.found.removeprefix(location).lstrip(":, ")
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1] + "…"


class BadRecordList:
    """The bad records of a preparation, which are written to a file as they are found.

    Each line of the file has the fields ``source``, ``location``, ``reason`` and ``error``. There is no file if there
    is no bad record.
    """

    def __init__(self, file: Path, max_share: float) -> None:
        self._file, self._max_share = file, max_share
        self._reasons: Dict[str, Counter[str]] = {}
        self._first: Dict[Tuple[str, str], DataError] = {}

    def add(self, source: str, bad: List[BadRecord]) -> Dict[str, int]:
        """Add bad records of a source, and return their number by outcome, as in ``Encoded.counts``.

        Args:
            source: The source's key in the config, such as ``data.sources.mine``.
        """
        if not bad:
            return {}
        reasons = self._reasons.setdefault(source, Counter())
        counts: Counter[str] = Counter()
        with self._file.open("a", encoding="utf-8") as file:
            for location, reason, error in bad:
                line = {"source": source, "location": location, "reason": reason, "error": error.found}
                file.write(json.dumps(line) + "\n")
                reason = reason if reason in reasons or len(reasons) < MAX_REASONS else "other"
                reasons[reason] += 1
                counts[f"{DROPPED_BAD} ({reason})"] += 1
                self._first.setdefault((source, reason), error)
        return dict(counts)

    def check(self, source: str, num_read: int, finished: bool) -> None:
        """Check that no more than ``data.max_bad_share`` of the records of a source are bad.

        One bad record is always allowed, unless the source has no other record.

        Args:
            source: The source's key in the config.
            num_read: Number of its records that were read.
            finished: Whether all of them were read. Before that, only a source whose records are all bad is refused.

        Raises:
            DataError: More records than that are bad. The message has the number by reason, and the first error of the
                most frequent reason.
        """
        reasons = self._reasons.get(source)
        num_bad = sum(reasons.values()) if reasons else 0
        all_bad = num_bad == num_read and num_bad > 0
        too_many = all_bad or num_bad > max(1, self._max_share * num_read)
        if not reasons or not too_many or not (finished or (all_bad and num_read >= ALL_BAD_AFTER)):
            return
        frequent = reasons.most_common()
        first = self._first[(source, frequent[0][0])]
        counted = ", ".join(f"{number:,} {reason}" for reason, number in frequent)
        share = -(-100 * num_bad // num_read) / 100  # rounded up to whole percents
        fix = f"correct the records, or data.max_bad_share={share:g}"
        raise DataError(
            f"{source}: {num_bad:,} of {count(num_read, 'record')} {'is' if num_bad == 1 else 'are'} bad "
            f"({counted}); for example {first.found}",
            first.expected if all_bad else f"at most {self._max_share:.0%} of the records (data.max_bad_share)",
            first.fix or "correct the records" if all_bad else fix,
        )
