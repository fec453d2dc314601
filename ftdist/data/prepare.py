"""Prepare the data of a run: read and encode all sources, pack them into rows, and publish the result in the cache.

This happens once, before ranks are started. Ranks only read the result.
"""

import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Set, Tuple

import numpy as np

from ftdist.base.errors import ConfigError, DataError
from ftdist.base.json_files import write_json
from ftdist.base.temporary import remove_leftovers, temporary_path
from ftdist.config.data import SourceConfig, general_sources
from ftdist.config.schema import RunConfig
from ftdist.data.bad_records import BadRecordList
from ftdist.data.encode import Encoded, EncodeSettings, HashedPrompt, content_hash, encode, smallest_prompts
from ftdist.data.general import (
    TRAINED,
    finish_general,
    general_set,
    general_warnings,
    is_general,
    without_stops,
)
from ftdist.data.meta import (
    check_not_empty,
    data_settings,
    preparation_warnings,
    sample_document,
    set_stats,
    source_stats,
    tokenizer_stats,
)
from ftdist.data.pack import one_per_row, pack
from ftdist.data.prepare_progress import ReportProgress, show_progress
from ftdist.data.render import make_renderer
from ftdist.data.row_order import permutation
from ftdist.data.set_writer import SetWriter, select_documents
from ftdist.data.sources import chunk_records, read_source
from ftdist.data.text_files import LocatedRecord
from ftdist.data.tokenizer import load_tokenizer
from ftdist.data.worker_pool import available_cores, ordered_map
from ftdist.run.locations import require_writable_cache
from ftdist.run.prepared import BAD_RECORDS, FORMAT_VERSION, GENERAL, META, data_folder, is_ready

CHUNK_DOCUMENTS = 128
CHUNK_CHARACTERS = 1_000_000
"""A chunk is what a worker encodes at a time. It ends when one of these two limits is reached."""
NUM_HASHES = 2**64
TRAIN, HELDOUT = "train", "heldout"


class SetSource(NamedTuple):
    """A source and the set that its documents belong to."""

    name: str
    set_name: str
    config_key: str
    """``data.sources.NAME`` or ``data.heldout.NAME``."""
    source: SourceConfig


def prepare(config: RunConfig) -> Path:
    """Prepare the data of a config, unless it is in the cache already.

    Several processes can do this at the same time. Each writes to a temporary folder of its own, and the first one that
    finishes publishes its result.

    Returns:
        Folder of the prepared data.

    Raises:
        DataError: The data cannot be read, or a set would be empty.
        ConfigError: The tokenizer or the chat template cannot be loaded, or the cache cannot be written.
    """
    folder = data_folder(config)
    if is_ready(folder):
        return folder
    require_writable_cache(config, "data")
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent / "*")
    unfinished = temporary_path(folder)
    try:
        build(config, unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not is_ready(folder):  # otherwise another process has published the same data
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def build(config: RunConfig, folder: Path) -> None:
    """Write the prepared data of a config to a new folder, without using the cache."""
    tokenizer = load_tokenizer(config)
    sources = list_sources(config) + list_general(config)
    settings = [encode_settings(config, source, tokenizer) for source in sources]
    set_names = [TRAIN, *sorted(config.data.heldout), *([HELDOUT] if config.data.heldout_share else []),
                 *(source.set_name for source in sources if is_general(source.set_name))]  # fmt: skip
    writers = {name: SetWriter(folder / name, name != TRAIN and not is_general(name)) for name in set_names}
    try:
        with show_progress() as report:
            bad = BadRecordList(folder / BAD_RECORDS, config.data.max_bad_share)
            encoded = _encode_sources(config, sources, settings, writers, report, bad)
        if config.data.heldout_share and not len(writers[HELDOUT].column("hashes")):
            _hold_one_out(config, sources, settings, writers, encoded)
        if config.data.heldout_share and config.data.max_heldout_documents:
            _move_surplus_to_train(writers[HELDOUT], writers[TRAIN], config.data.max_heldout_documents, encoded)
        meta = _finish(config, tokenizer, sources, writers, encoded)
    finally:
        for writer in writers.values():
            writer.close()
    write_json(folder / META, meta)


def list_sources(config: RunConfig) -> List[SetSource]:
    """Return all sources in the order in which they are read: held-out sources first, each group sorted by name.

    So the order of keys in a YAML file does not matter.

    Raises:
        ConfigError: The name of a held-out source cannot be the name of a set.
    """
    data = config.data
    for name in data.heldout:
        if name == TRAIN or "/" in name:
            raise ConfigError(
                f"data.heldout.{name} cannot be the name of a set",
                f"a name other than {TRAIN} and without /",
                f"rename data.heldout.{name}",
            )
    heldout = [SetSource(name, name, f"data.heldout.{name}", source) for name, source in sorted(data.heldout.items())]
    train = [SetSource(name, TRAIN, f"data.sources.{name}", source) for name, source in sorted(data.sources.items())]
    return heldout + train


def list_general(config: RunConfig) -> List[SetSource]:
    """Return the sources of the general sets."""
    return [SetSource(name, general_set(name), f"data.general.{name}", source)
            for name, source in sorted(general_sources(config.data).items())]  # fmt: skip


def encode_settings(config: RunConfig, source: SetSource, tokenizer: Any) -> EncodeSettings:
    data = config.data
    stop_ids = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    general = is_general(source.set_name)
    heldout_below = int(data.heldout_share * NUM_HASHES) if source.set_name == TRAIN else 0 if general else NUM_HASHES
    return EncodeSettings(
        format=source.source.format,
        fields=source.source.fields,
        reasoning=data.reasoning,
        bad_records=data.bad_records,
        heldout_by=data.heldout_by,
        renderer=make_renderer(
            tokenizer,
            TRAINED if general else data.train_on,
            data.turns,
            data.chat_template_kwargs,
            data.chat_template_date,
        ),
        max_seq_len=data.max_seq_len,
        long_documents=data.long_documents,
        stop_ids=frozenset(stop_ids | set(tokenizer.all_special_ids)),
        heldout_below=heldout_below,
    )


class _EncodingResult(NamedTuple):
    """What is known about the documents besides the content of the sets."""

    counts: List["Counter[str]"]
    """For each source: number of documents by outcome."""
    prompts: Dict[str, List[HashedPrompt]]
    """For each held-out set."""
    num_leaked: int
    """Number of training documents that are also in a held-out source."""


def _encode_sources(
    config: RunConfig, sources: List[SetSource], settings: List[EncodeSettings], writers: Dict[str, SetWriter],
    report: ReportProgress, bad: BadRecordList,
) -> _EncodingResult:  # fmt: skip
    with_prompts = [name for name in writers if name != TRAIN and not is_general(name)]
    result = _EncodingResult([Counter() for _ in sources], {name: [] for name in with_prompts}, 0)
    heldout: Set[int] = set()
    num_leaked = documents = tokens = 0
    workers = config.data.num_workers or available_cores()
    for number, encoded in ordered_map(partial(_encode, settings), _numbered_chunks(config, sources), workers):
        source, counts = sources[number], result.counts[number]
        counts.update(encoded.counts)
        counts.update(bad.add(source.config_key, encoded.bad))
        bad.check(source.config_key, counts["read"], finished=False)
        kept = encoded
        if is_general(source.set_name):
            kept = without_stops(encoded)
        elif source.set_name != TRAIN:
            heldout.update(encoded.hashes.tolist())
        else:
            num_leaked += sum(digest in heldout for digest in encoded.hashes.tolist()) if heldout else 0
            out = encoded.hashes < np.uint64(settings[number].heldout_below)
            if out.any():
                writers[HELDOUT].append(select_documents(encoded, out), number)
                kept = select_documents(encoded, ~out)
                counts["heldout"] += int(out.sum())
        writers[source.set_name].append(kept, number)
        prompt_set = HELDOUT if source.set_name == TRAIN else source.set_name
        if encoded.prompts:
            result.prompts[prompt_set] = smallest_prompts(result.prompts[prompt_set] + encoded.prompts)
        documents, tokens = documents + encoded.counts["read"], tokens + len(encoded.ids)
        report(source.name, documents, tokens)
    for source, counts in zip(sources, result.counts, strict=True):
        bad.check(source.config_key, counts["read"], finished=True)
    return result._replace(num_leaked=num_leaked)


def _encode(settings: List[EncodeSettings], item: Tuple[int, List[LocatedRecord]]) -> Tuple[int, Encoded]:
    number, chunk = item
    return number, encode(settings[number], chunk)


def _numbered_chunks(config: RunConfig, sources: List[SetSource]) -> Iterator[Tuple[int, List[LocatedRecord]]]:
    """Yield ``(number of the source, chunk of its records)``."""
    for number, (_, set_name, config_key, source) in enumerate(sources):
        records = read_source(config_key, source)
        if set_name != TRAIN and not is_general(set_name) and config.data.max_heldout_documents:
            records = (located for located, _ in zip(records, range(config.data.max_heldout_documents), strict=False))
        for chunk in chunk_records(records, CHUNK_DOCUMENTS, CHUNK_CHARACTERS):
            yield number, chunk


def _move_surplus_to_train(heldout: SetWriter, train: SetWriter, limit: int, result: _EncodingResult) -> None:
    """Keep the ``limit`` held-out documents with the smallest hashes, and train the others.

    Documents with equal hashes (equal documents, and the pieces of a split document) stay in the same set. Those with
    the smallest hash are always kept, even if there are more than ``limit``.
    """
    hashes = np.sort(heldout.column("hashes"))
    over = hashes[limit:][hashes[limit:] > hashes[0]] if len(hashes) > limit else hashes[:0]
    if not len(over):
        return
    hashes, first_over = heldout.column("hashes"), over[0]
    surplus = np.flatnonzero(hashes >= first_over)
    sources = heldout.column("source")
    for number, document in zip(surplus.tolist(), heldout.documents(surplus), strict=True):
        train.append(document, int(sources[number]))
        result.counts[sources[number]]["heldout"] -= 1
    heldout.exclude(surplus)
    result.prompts[HELDOUT] = [prompt for prompt in result.prompts[HELDOUT] if prompt[0] < int(first_over)]


def _hold_one_out(
    config: RunConfig, sources: List[SetSource], settings: List[EncodeSettings], writers: Dict[str, SetWriter],
    result: _EncodingResult,
) -> None:  # fmt: skip
    """Hold out the document with the smallest hash, and all documents equal to it.

    A small ``data.heldout_share`` of few documents can otherwise select none. Does nothing if all documents are equal.
    The sources are encoded once more, because only documents that are held out get roles.
    """
    hashes = writers[TRAIN].column("hashes")
    smallest = int(hashes.min()) if len(hashes) else 0
    if (hashes == smallest).all():
        return
    again = [replace(one, heldout_below=smallest + 1) for one in settings]
    chunks = (item for item in _numbered_chunks(config, sources) if sources[item[0]].set_name == TRAIN)
    for number, encoded in ordered_map(partial(_encode, again), chunks, config.data.num_workers or available_cores()):
        out = encoded.hashes == smallest
        if out.any():
            writers[HELDOUT].append(select_documents(encoded, out), number)
            result.counts[number]["heldout"] += int(out.sum())
            result.prompts[HELDOUT] = smallest_prompts(result.prompts[HELDOUT] + encoded.prompts)
    writers[TRAIN].exclude(np.flatnonzero(hashes == smallest))


def _finish(
    config: RunConfig, tokenizer: Any, sources: List[SetSource], writers: Dict[str, SetWriter], result: _EncodingResult
) -> Dict[str, Any]:
    """Pack the documents of each set into rows, and return the content of ``meta.json``."""
    data = config.data
    meta: Dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "settings": data_settings(config),
        "tokenizer": tokenizer_stats(tokenizer),
        "sources": {},
        "heldout_sources": {},
        "sets": {},
        "prompts": {name: [prompt for _, prompt in prompts] for name, prompts in result.prompts.items()},
    }
    for set_name, writer in writers.items():
        if is_general(set_name):
            continue
        numbers = [number for number, source in enumerate(sources) if source.set_name == set_name]
        check_not_empty(set_name, writer, [result.counts[number] for number in numbers or range(len(sources))])
        items = _epoch_items(config, sources, writer) if set_name == TRAIN else writer.kept()
        if not len(items):
            weights = ", ".join(f"{sources[number].config_key}.weight" for number in numbers)
            raise DataError("the weights leave no document to train", "a weight above 0", f"raise {weights}")
        lengths = writer.column("lengths")[items]
        order, row_offsets = pack(lengths, data.max_seq_len) if data.packing else one_per_row(lengths)
        writer.finish(items[order], row_offsets)
        meta["sets"][set_name] = set_stats(writer, items, len(row_offsets) - 1, data.max_seq_len, tokenizer)
        stats = meta["sources" if set_name == TRAIN else "heldout_sources"]
        for number in numbers:
            name, weight = sources[number].name, sources[number].source.weight
            stats[name] = source_stats(writer, number, result.counts[number], weight, items)
    meta["sample"] = sample_document(writers[TRAIN], tokenizer)
    meta[GENERAL] = finish_general(config, writers, writers[TRAIN], tokenizer)
    meta["warnings"] = preparation_warnings(config, meta, result.num_leaked) + general_warnings(meta[GENERAL])
    return meta


def _epoch_items(config: RunConfig, sources: List[SetSource], writer: SetWriter) -> np.ndarray:
    """Return the numbers of the documents of one epoch, [documents in rows] int64.

    A source with weight 2.5 contributes each document twice, and half of its documents once more. This half is a random
    choice that depends on the seed and the name of the source.
    """
    items, kept = [np.empty(0, dtype=np.int64)], writer.kept()
    for number, source in enumerate(sources):
        own = kept[writer.column("source")[kept] == number]
        whole, fraction = divmod(source.source.weight, 1)
        items += [own] * int(whole)
        chosen = permutation(config.seed, content_hash(source.name), len(own))[: round(fraction * len(own))]
        items.append(own[np.sort(chosen)])
    return np.concatenate(items)
