"""General texts: sets whose loss shows what a model forgets. They are evaluated, and never trained on.

Each set of ``data.general``, and the built-in one, is prepared like a held-out set, with these differences. A document
that is also a training document is left out. The stop token at the end of a document does not count, because it does
not show what a model knows. ``data.train_on`` and ``data.max_heldout_documents`` do not apply, and no answers are
sampled.
"""

from functools import partial
from typing import Any, Dict, List

import numpy as np

from ftdist.base.counts import count
from ftdist.config.data import TrainOn
from ftdist.config.schema import RunConfig
from ftdist.data.encode import STOP_WITHIN, Encoded
from ftdist.data.meta import set_stats
from ftdist.data.pack import one_per_row, pack
from ftdist.data.set_writer import SetWriter
from ftdist.run.prepared import GENERAL

TRAINED = TrainOn.auto
"""The value of ``data.train_on`` for general texts: the answers of chats, completions, and all of plain texts."""


def general_set(name: str) -> str:
    """Return the name of the folder of a general set. No held-out set can have it."""
    return f"{GENERAL}/{name}"


def is_general(set_name: str) -> bool:
    return set_name.startswith(f"{GENERAL}/")


def without_stops(encoded: Encoded) -> Encoded:
    """Return documents whose stop tokens do not count. The arrays are changed in place."""
    ends = np.cumsum(encoded.lengths)
    for document, (end, length, stop) in enumerate(zip(ends, encoded.lengths, encoded.stops, strict=True)):
        places = end - length + np.flatnonzero(encoded.trained[end - length : end])[-STOP_WITHIN:]
        stops = places[encoded.ids[places] == stop] if stop >= 0 else places[:0]
        encoded.trained[stops] = 0
        encoded.num_trained[document] -= len(stops)
        encoded.stops[document] = -1
    return encoded


def finish_general(
    config: RunConfig, writers: Dict[str, SetWriter], train: SetWriter, tokenizer: Any
) -> Dict[str, Dict[str, Any]]:
    """Pack the documents of each general set into rows.

    Args:
        writers: The writers of all sets.
        train: The writer of the training set. Its documents are left out of the general sets.

    Returns:
        The statistics of each set, by its name in the config. ``rows`` is 0 if no document is left.
    """
    found = {}
    for set_name, writer in writers.items():
        if is_general(set_name):
            trained = np.flatnonzero(np.isin(writer.column("hashes"), train.column("hashes")))
            writer.exclude(trained)
            items = writer.kept()
            lengths = writer.column("lengths")[items]
            rows_of = partial(pack, max_seq_len=config.data.max_seq_len) if config.data.packing else one_per_row
            order, rows = rows_of(lengths) if len(items) else (items, np.zeros(1, dtype=np.int64))
            writer.finish(items[order], rows)
            stats = set_stats(writer, items, len(rows) - 1, config.data.max_seq_len, tokenizer)
            found[set_name.split("/", 1)[1]] = {**stats, "left_out": len(trained)}
    return found


def general_warnings(sets: Dict[str, Dict[str, Any]]) -> List[str]:
    """Return what the user should know about the general sets. See ``finish_general`` for the argument."""
    found = []
    for name, stats in sets.items():
        if stats["left_out"]:
            found.append(f"{count(stats['left_out'], 'document')} of the training data left out of the general set "
                         f"'{name}'")  # fmt: skip
        if not stats["trained_tokens"]:
            found.append(f"no token of the general set '{name}' would be evaluated, so its loss is not measured")
    return found
