"""Read the answers of Slurm's commands from output that may contain other lines too.

Sites wrap Slurm's commands: a banner before the answer, a line about the cost of a job after it, a quota in between.
squeue and sinfo print what their ``--format`` says, so every line of an answer begins with a mark. sbatch prints none.
"""

import contextlib
import re
import time
from typing import List, Optional

MARK = "ftdist|"
"""The text with which each line of an answer begins. It is part of ``--format``."""
PARSABLE = re.compile(r"^\s*(\d+)(?:;[\w.-]+)?\s*$", re.MULTILINE)
"""What ``sbatch --parsable`` prints: the job's id, on some sites with the name of the cluster."""
SENTENCE = re.compile(r"^\s*Submitted batch job (\d+)\b", re.MULTILINE)
"""What sbatch prints if a wrapper drops ``--parsable``."""
LATE = re.compile(r"timed? ?out|did not answer|unable to contact|connection (refused|reset|closed)", re.IGNORECASE)
"""Messages of sbatch after which the job may be in the queue although sbatch failed."""


def line_format(*fields: str) -> str:
    """Return the ``--format`` for squeue or sinfo that ``rows`` reads.

    Args:
        fields: the letters of the fields, such as ``%i``. Only the last one may hold a ``|``.
    """
    return MARK + "|".join(fields)


def rows(printed: str, fields: int) -> List[List[str]]:
    """Return the fields of every line of an answer. Other lines are left out.

    Args:
        printed: the standard output of squeue or sinfo with ``line_format``.
        fields: number of fields of a line.
    """
    found = []
    for line in printed.splitlines():
        _, mark, rest = line.partition(MARK)  # a banner may end without a line break
        values = [value.strip() for value in rest.split("|", fields - 1)]
        if mark and len(values) == fields:
            found.append(values)
    return found


def job_id(printed: str) -> Optional[str]:
    """Return the id of the job in the output of sbatch. None if there is none, or if several numbers could be the
    id."""
    found = set(SENTENCE.findall(printed)) or set(PARSABLE.findall(printed))
    return found.pop() if len(found) == 1 else None


def local_time(text: str) -> Optional[float]:
    """Return a time as Slurm writes it, ``2026-01-31T12:00:00``, in seconds since 1970. None for ``N/A``."""
    with contextlib.suppress(ValueError):
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    return None
