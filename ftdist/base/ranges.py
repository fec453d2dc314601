"""Lists of numbers as Slurm and the kernel write them: ``0-3,5``."""

from typing import Iterable, List, Set


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as text: ``0-3,5``."""
    parts: List[List[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def parse_ranges(text: str) -> Set[int]:
    """Return the numbers in a text such as ``0-3,5``."""
    found: Set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found
