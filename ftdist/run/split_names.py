"""The names of splits: in the names of files, and in messages about a split that does not exist."""

import re
from pathlib import Path
from typing import Iterable, List, Optional

from ftdist.base.errors import DataError
from ftdist.base.shell import override_word

SPLITS = {
    **dict.fromkeys(("train", "training", "trainset", "trainingset"), "train"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "holdout"), "validation"),
    **dict.fromkeys(("validationset", "validset", "valset", "devset", "evalset"), "validation"),
}
SHARD = re.compile(r"^(?:.*\.)?(?P<split>[^.]+)-\d+-of-\d+(?=\.|$)")
"""The name of a shard, as on the Hugging Face hub: ``train_sft-00000-of-00003.parquet``."""
BESIDE_A_SPLIT = ("data", "of", "part", "set", "shard", "split", "v")
"""Words that may stand beside the name of a split without changing its meaning: ``test_set_v2``."""


def split_of(file: Path) -> Optional[str]:
    """Return the split that the name of a file contains. If it contains none, the names of its folders are used.

    Args:
        file: Path of the file inside the data set.

    Returns:
        ``train``, ``test`` or ``validation`` for a name with a word such as ``dev``; for a shard the whole name before
        the number (``train_sft``); None if no name has such a word.
    """
    shard = SHARD.match(file.name)
    if shard and split_kind(shard["split"]):
        return SPLITS.get(shard["split"].lower(), shard["split"])
    return next((kind for name in reversed(file.parts) if (kind := split_kind(name))), None)


def split_kind(name: str) -> Optional[str]:
    """Return ``train``, ``test`` or ``validation`` if one of the words in a name means this, or None.

    As in the ``datasets`` library, words end at underscores, dashes, spaces, dots and digits. A name with words for
    both training and another split (``train_test``) names no split.
    """
    kinds = [SPLITS[word] for word in _words(name) if word in SPLITS]
    return kinds[0] if kinds and ("train" not in kinds or len(set(kinds)) == 1) else None


def is_split_name(file: Path) -> bool:
    """Return whether the name of a file, or of a folder around it, is a split and nothing else.

    ``test.jsonl``, ``test-2.csv`` and ``dev/a.csv`` are. ``unit_test_generation.jsonl`` may be about tests.
    """
    return any(_kind_of_whole(name) for name in (file.name.split(".")[0], *file.parts[:-1]))


def contradicting_folder(file: Path) -> Optional[str]:
    """Return the folder that says that a file is not for training, although the file's own name says that it is.

    For ``test/train.jsonl`` it is ``test``. ``test_generation/train.jsonl`` has no such folder.

    Args:
        file: Path of the file inside the data set.
    """
    if split_kind(split_of(file) or "") != "train":
        return None
    return next((name for name in file.parts[:-1] if _kind_of_whole(name) in ("test", "validation")), None)


def _kind_of_whole(name: str) -> Optional[str]:
    """Return the split that a name means, if it has no other words."""
    words = _words(name)
    return split_kind(" ".join(words)) if set(words) <= {*SPLITS, *BESIDE_A_SPLIT} else None


def _words(name: str) -> List[str]:
    return re.findall(r"[^\W\d_]+", name.lower())


def same_split(name: str, wanted: str) -> bool:
    """Return whether two names mean the same split: ``dev`` is ``validation``, but ``train_sft`` is not ``train``."""
    return SPLITS.get(name.lower(), name) == SPLITS.get(wanted.lower(), wanted)


def is_for_training(where: str) -> bool:
    """Return whether a source is for training, by its name in the config, such as ``data.sources.mine``."""
    return not where.startswith(("data.heldout.", "data.general."))


def missing_split(where: str, place: str, split: str, names: Iterable[str]) -> DataError:
    """Return the error about a split that a data set does not have.

    Its fix never offers a test or validation split for training.

    Args:
        where: Name of the source in the config, such as ``data.sources.mine``.
        place: Path of the data set.
        split: The requested split.
        names: The splits that it has.
    """
    found = sorted(names)
    for_training = is_for_training(where)
    fitting = [name for name in found if (split_kind(name) in (None, "train")) == for_training]
    fitting.sort(key=lambda name: split_kind(name) != split_kind(split))
    if fitting:
        fix = f"{where}.split={fitting[0]}"
    elif for_training:
        evaluated = f"{override_word('data.heldout.NAME.path', place)} data.heldout.NAME.split={found[0]}"
        fix = f"use data with a split for training; evaluate this one: {evaluated}"
    else:
        fix = "use data with a split for evaluation, or data.heldout_share=0.05"
    return DataError(f"{where}.path={place} has no split '{split}'", f"one of {', '.join(found)}", fix)
