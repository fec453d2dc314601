"""Warnings about a data set that is small for the settings of its run."""

from typing import Any, Dict, List

from ftdist.base.counts import count
from ftdist.config.schema import RunConfig

TINY_DOCUMENTS = 100
"""With fewer documents, the held-out share can differ a lot from ``data.heldout_share``, because a hash chooses the
documents that are held out."""
LARGE_SHARE = 0.25
"""Held-out share from which on a small data set gets a warning."""


def data_warnings(config: RunConfig, meta: Dict[str, Any]) -> List[str]:
    """Return one warning for each problem. It contains the numbers.

    Args:
        meta: what ``meta.json`` says about the prepared data.
    """
    found = []
    rows, wanted = meta["sets"]["train"]["rows"], config.batch.global_batch_size
    if rows < wanted:
        found.append(
            f"one epoch has {count(rows, 'row')}, fewer than batch.global_batch_size={wanted}: "
            "each step takes some rows more than once"
        )
    heldout = sum(source["heldout"] for source in meta["sources"].values())
    documents = heldout + sum(source["kept"] for source in meta["sources"].values())
    if documents < TINY_DOCUMENTS and heldout >= LARGE_SHARE * documents:
        found.append(
            f"{heldout} of {count(documents, 'document')} ({heldout / documents:.0%}) are held out because of "
            f"data.heldout_share={config.data.heldout_share:g}. Set data.max_heldout_documents to hold out fewer"
        )
    return found
