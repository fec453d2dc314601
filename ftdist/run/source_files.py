"""Find the local files of a data source. The name of prepared data depends on them, see ``run/prepared.py``."""

import glob
import shlex
from pathlib import Path
from typing import Dict, List, Optional

from ftdist.base.errors import DataError
from ftdist.base.names import near_paths
from ftdist.run.split_names import missing_split, same_split, split_of

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
NOT_COMPRESSED = (".parquet", ".arrow")
"""Binary formats, which are compressed inside."""
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json",
            "metadata.json", "package.json", "requirements.txt", "license.txt", "readme.txt")  # fmt: skip
"""Files beside data that are no data, in lower case."""


def is_saved_dataset(path: Path) -> bool:
    """Return whether ``datasets.save_to_disk`` wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


def data_suffix(file: Path) -> str:
    """Return the suffix that names the format of a file, in lower case. For ``a.jsonl.gz`` it is ``.jsonl``."""
    suffix = file.suffix.lower()
    inner = Path(file.stem).suffix.lower() if suffix in COMPRESSED else ""
    return inner if inner in SUFFIXES and inner not in NOT_COMPRESSED else suffix


def source_files(where: str, path: str, split: str = "train") -> List[Path]:
    """Return the files of a source in the order in which they are read.

    Args:
        where: Name of the source in the config, for messages, such as ``data.sources.mine``.
        path: A file, a glob pattern, a folder that ``datasets.save_to_disk`` wrote, or another folder with data files.
        split: The split that is read, if the files of a folder are named after splits.

    Raises:
        DataError: There is no file, a suffix is unknown, a file is empty, or the folder has no such split.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        if is_saved_dataset(found):
            return sorted(entry for entry in found.rglob("*") if entry.is_file())
        files = _files_of_folder(where, path, found, split)
    else:
        files = [found] if found.is_file() else _expand(found)
        files = [file for file in files if file.is_file()]
    if not files:
        raise _nothing_found(where, path, found)
    for file in files:
        if data_suffix(file) not in SUFFIXES:
            raise DataError(
                f"{where}.path: {file} has the suffix '{file.suffix}'",
                f"one of {' '.join(SUFFIXES)}, compressed or not ({' '.join(COMPRESSED)})",
                "convert the file, or rename it if its content is one of these",
            )
        if file.stat().st_size == 0:
            raise DataError(f"{where}.path: {file} is empty", "at least one record", "remove the file or fill it")
    return files


def _expand(pattern: Path) -> List[Path]:
    return [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (absolute patterns)


def _nothing_found(where: str, path: str, found: Path) -> DataError:
    if not glob.has_magic(path):
        near = near_paths(path)
        return DataError(
            f"{where}.path={path} does not exist",
            f"a {' '.join(SUFFIXES)} file, a glob of them or a folder (looked in {Path.cwd()})",
            shlex.quote(f"{where}.path={near[0]}") if near else f"correct {where}.path",
        )
    parts = found.parts
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    folder = Path(*parts[:fixed])
    if not folder.is_dir():
        return DataError(f"{where}.path={path} matches no file: there is no folder {folder}",
                         f"a folder that exists (looked in {Path.cwd()})", f"correct {where}.path")  # fmt: skip
    data = sorted({data_suffix(file) for file in folder.rglob("*") if data_suffix(file) in SUFFIXES and _is_data(file)})
    fix = f"use a pattern that {f'ends with *{data[0]}' if len(data) == 1 else 'matches some of its files'}"
    return DataError(f"{where}.path={path} matches no file; {folder} holds {_inside(folder)}",
                     f"a pattern of {' '.join(SUFFIXES)} files (looked in {Path.cwd()})", fix)  # fmt: skip


def _inside(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _is_data(file: Path) -> bool:
    return file.is_file() and data_suffix(file) in SUFFIXES and file.name.lower() not in NOT_DATA


def _files_of_folder(where: str, path: str, folder: Path, split: str) -> List[Path]:
    """Return the data files in a folder and the folders in it: those of the split, or all if no name has a split."""
    splits: Dict[Path, Optional[str]] = {}
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        if _is_data(file) and not any(part.startswith((".", "_")) for part in inner.parts):
            splits[file] = split_of(inner)
    if not splits:
        raise DataError(
            f"{where}.path={path} is a folder without data files; it holds {_inside(folder)}",
            f"{' '.join(SUFFIXES)} files, or a folder made by datasets.save_to_disk",
            f"set {where}.path to a file or folder with data",
        )
    names = sorted({name for name in splits.values() if name})
    files = [file for file, name in splits.items() if name and same_split(name, split)] if names else list(splits)
    if not files:
        raise missing_split(where, path, split, names)
    kinds = sorted({data_suffix(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{where}.path={path} is a folder with files of several kinds: {' '.join(kinds)}",
            "files of one kind",
            shlex.quote(f"{where}.path={path}/*{kinds[0]}"),
        )
    return files
