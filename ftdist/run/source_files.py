"""Find the local files of a data source. The key of prepared data depends on them, see ``run/prepared.py``."""

import glob
import os
import re
from pathlib import Path
from typing import Dict, List, Optional

from ftdist.base.errors import DataError
from ftdist.base.names import near_paths, nearest, require_utf8
from ftdist.base.shell import override_word
from ftdist.run.split_names import (
    contradicting_folder,
    is_for_training,
    is_split_name,
    missing_split,
    same_split,
    split_kind,
    split_of,
)

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
NOT_COMPRESSED = (".parquet", ".arrow")
"""Binary formats, which compress their content themselves."""
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json",
            "metadata.json", "package.json", "requirements.txt", "license.txt", "readme.txt")  # fmt: skip
"""Names of files that can be beside data files but are not data, in lower case."""


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
        DataError: There is no file, a suffix is unknown, a file is empty, two files are probably copies, or the folder
            has no such split.
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
        require_utf8(f"{where}.path: the name of a file", file)
        if data_suffix(file) not in SUFFIXES:
            raise DataError(
                f"{where}.path: {file} has the suffix '{file.suffix}'",
                f"one of {' '.join(SUFFIXES)}, compressed or not ({' '.join(COMPRESSED)})",
                "convert the file, or rename it if its content is one of these",
            )
        if file.stat().st_size == 0:
            raise DataError(f"{where}.path: {file} is empty", "at least one record", "remove the file or fill it")
    _check_copies(where, path, files)
    return files


def _check_copies(where: str, path: str, files: List[Path]) -> None:
    """Check that no two files differ only in their suffix: ``train.jsonl`` and ``train.jsonl.gz`` hold the same."""
    first: Dict[Path, Path] = {}
    for file in files:
        first.setdefault(file.with_name(_stem(file)), file)
    copies = [file for file in files if file not in first.values()]
    if copies:
        folder = Path(os.path.commonpath([file.parent for file in files]))
        original = first[copies[0].with_name(_stem(copies[0]))]
        raise DataError(
            f"{where}.path={path} reads {original} and {copies[0].name}, which probably hold the same records",
            "each record once",
            _reads(where, folder, list(first.values())),
        )


def _stem(file: Path) -> str:
    return file.name[: file.name.lower().rfind(data_suffix(file))]


def _expand(pattern: Path) -> List[Path]:
    return [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (absolute patterns)


def _nothing_found(where: str, path: str, found: Path) -> DataError:
    if not glob.has_magic(path):
        near = [name for name in near_paths(path) if _may_be_meant(where, split_kind(found.name), Path(name))]
        return DataError(
            f"{where}.path={path} does not exist",
            f"a {' '.join(SUFFIXES)} file, a glob of them or a folder (looked in {Path.cwd()})",
            override_word(f"{where}.path", near[0]) if near else f"correct {where}.path",
        )
    parts = found.parts
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    folder = Path(*parts[:fixed])
    if not folder.is_dir():
        return DataError(f"{where}.path={path} matches no file: there is no folder {folder}",
                         f"a folder that exists (looked in {Path.cwd()})", f"correct {where}.path")  # fmt: skip
    splits = _splits_in(folder)
    splits = {file: name for file, name in splits.items() if not contradicting_folder(file.relative_to(folder))}
    start = re.split(r"[*?[]", found.name)[0]
    files = _of_use(where, {file: split for file, split in splits.items() if file.name.startswith(start)})
    files = files or _of_use(where, splits)
    if files:
        kind = nearest(data_suffix(found), {data_suffix(file) for file in files}, cutoff=0)[0]
        files = [file for file in files if data_suffix(file) == kind]
    return DataError(
        f"{where}.path={path} matches no file; {folder} holds {_inside(folder)}",
        f"a pattern of {' '.join(SUFFIXES)} files (looked in {Path.cwd()})",
        _reads(where, folder, files) if files else f"correct {where}.path",
    )


def _may_be_meant(where: str, typed: Optional[str], near: Path) -> bool:
    """Return whether a path may be suggested for one that does not exist: never ``test_sft`` for ``train_sft``."""
    kind = split_kind(near.name)
    return kind in (None, typed) or (typed is None and (kind == "train") == is_for_training(where))


def _of_use(where: str, splits: Dict[Path, Optional[str]]) -> List[Path]:
    """Return the files that a message may suggest: never files of a test or validation split for training."""
    for_training = is_for_training(where)
    names = sorted({name for name in splits.values() if name and (split_kind(name) == "train") == for_training})
    return [file for file, name in splits.items() if name == (names[0] if names else None)]


def _reads(where: str, folder: Path, files: List[Path]) -> str:
    """Return overrides that read exactly these files of one format: one pattern if possible. A pattern that also
    matches another file is not suggested, because that file may belong to the test split.
    """
    kind = data_suffix(files[0])
    place = Path(os.path.commonpath([file.parent for file in files]))
    stems = [_stem(file) for file in files]
    ends = {file.name[len(stem) :] for file, stem in zip(files, stems, strict=True)}
    end = ends.pop() if len(ends) == 1 else f"{kind}*"
    same = os.path.commonprefix(stems)  # noqa: RUF071 (of characters, as wanted)
    patterns = [folder / f"*{end}", folder / "**" / f"*{end}", place / f"*{end}", place / "**" / f"*{end}"]
    patterns += [files[0], place / f"{same}*{end}", place / "**" / f"{same}*{end}"]
    for pattern in patterns:
        if {file for file in _expand(pattern) if file.is_file()} == set(files) or [pattern] == files:
            return override_word(f"{where}.path", str(pattern))
    names = [f"{where}{f'_{number}' if number > 1 else ''}.path" for number in range(1, len(files) + 1)]
    return " ".join(override_word(name, str(file)) for name, file in zip(names, files, strict=True))


def _inside(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _is_data(file: Path) -> bool:
    return file.is_file() and data_suffix(file) in SUFFIXES and file.name.lower() not in NOT_DATA


def _files_of_folder(where: str, path: str, folder: Path, split: str) -> List[Path]:
    """Return the data files in a folder and its subfolders that belong to the split, or all of them if no file name
    says a split. If only other splits have names, such as ``test.jsonl``, the files without a split are for training.
    """
    splits = _splits_in(folder)
    if not splits:
        raise DataError(
            f"{where}.path={path} is a folder without data files; it holds {_inside(folder)}",
            f"{' '.join(SUFFIXES)} files, or a folder made by datasets.save_to_disk",
            f"set {where}.path to a file or folder with data",
        )
    names = sorted({name for name in splits.values() if name})
    files = [file for file, name in splits.items() if name and same_split(name, split)]
    files = (files or _without_split(where, path, folder, split, splits)) if names else list(splits)
    if not files:
        raise missing_split(where, path, split, names)
    doubtful = {file: name for file in files if (name := contradicting_folder(file.relative_to(folder)))}
    if doubtful:
        file, name = next(iter(doubtful.items()))
        others = [other for other in files if other not in doubtful and data_suffix(other) == data_suffix(file)]
        raise DataError(
            f"{where}.path={path}: the name of {file.relative_to(folder)} says that it is for training, but the folder "
            f"'{name}' says that it is not",
            "names that say one split",
            _reads(where, folder, others) if others else "rename the folder, or the file",
        )
    kinds = sorted({data_suffix(file) for file in files})
    if len(kinds) > 1:
        of_kind = [[file for file in files if data_suffix(file) == kind] for kind in kinds]
        raise DataError(
            f"{where}.path={path} is a folder with files of several kinds: {' '.join(kinds)}",
            "files of one kind",
            _reads(where, folder, max(of_kind, key=lambda held: sum(file.stat().st_size for file in held))),
        )
    return files


def _without_split(where: str, path: str, folder: Path, split: str, splits: Dict[Path, Optional[str]]) -> List[Path]:
    """Return the files for training in a folder where only the other splits have names, such as ``test.jsonl``."""
    files = [file for file, name in splits.items() if not name]
    for_training = same_split("train", split) and is_for_training(where)
    if not files or not for_training or "train" in map(split_kind, filter(None, splits.values())):
        return []
    doubtful = [(file, name) for file, name in splits.items() if name and not is_split_name(file.relative_to(folder))]
    if doubtful:
        file, name = doubtful[0]
        kind = data_suffix(files[0])
        raise DataError(
            f"{where}.path={path} has no split '{split}', and it is not clear whether {file.relative_to(folder)} is "
            f"of the split '{name}' or for training",
            "file names that say the split, or the path of the training files only",
            _reads(where, folder, [file for file in files if data_suffix(file) == kind]),
        )
    return files


def _splits_in(folder: Path) -> Dict[Path, Optional[str]]:
    """Return the data files in a folder and its subfolders, each with the split that its name says."""
    splits: Dict[Path, Optional[str]] = {}
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        if _is_data(file) and not any(part.startswith((".", "_")) for part in inner.parts):
            splits[file] = split_of(inner)
    return splits
