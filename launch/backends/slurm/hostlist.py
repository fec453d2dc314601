"""Lists of nodes as Slurm writes them: ``node[01-03,7],login``."""

import re
from typing import List

PART = re.compile(r"[^,\[]*(?:\[[^\]]*\][^,\[]*)*")


def expand(nodes: str) -> List[str]:
    """Return the names in a list of nodes, in its order."""
    return [name for part in PART.findall(nodes) if part for name in _expand_part(part)]


def _expand_part(part: str) -> List[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        return [before]
    inside, _, after = rest.partition("]")
    numbers: List[str] = []
    for item in inside.split(","):
        low, dash, high = item.partition("-")
        numbers += [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)] if dash else [low]
    return [before + number + end for number in numbers for end in _expand_part(after)]
