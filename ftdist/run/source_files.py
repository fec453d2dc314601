"""Find the local files of a data source. The name of prepared data depends on them, see ``run/prepared.py``."""

import glob
from pathlib import Path
from typing import List

from ftdist.base.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".arrow")


def is_saved_dataset(path: Path) -> bool:
    """Return whether ``datasets.save_to_disk`` wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


def _expand(pattern: Path) -> List[Path]:
    return [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (absolute patterns)


def source_files(where: str, path: str) -> List[Path]:
    """Return the files of a source in the order in which they are read.

    Args:
        where: Name of the source in the config, for messages, such as ``data.sources.mine``.
        path: A file, a glob pattern, or a folder that ``datasets.save_to_disk`` wrote.

    Raises:
        DataError: There is no file, a suffix is unknown, or a file is empty.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        if not is_saved_dataset(found):
            inside = ", ".join(sorted(entry.name for entry in found.iterdir())[:8]) or "nothing"
            raise DataError(
                f"{where}.path={path} is a folder without dataset_info.json; it holds {inside}",
                "a file, a glob, or a folder made by datasets.save_to_disk",
                f"{where}.path='{path}/*.jsonl'",
            )
        return sorted(entry for entry in found.rglob("*") if entry.is_file())
    files = [found] if found.is_file() else _expand(found)
    files = [file for file in files if file.is_file()]
    if not files:
        is_glob = glob.has_magic(path)
        raise DataError(
            f"{where}.path={path} {'matches no file' if is_glob else 'does not exist'}",
            f"a {' '.join(SUFFIXES)} file or a glob of them (looked in {Path.cwd()})",
        )
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{where}.path: {file} has the suffix '{file.suffix}'",
                f"one of {' '.join(SUFFIXES)}",
                "convert the file, or rename it if its content is one of these",
            )
        if file.stat().st_size == 0:
            raise DataError(f"{where}.path: {file} is empty", "at least one record", "remove the file or fill it")
    return files
