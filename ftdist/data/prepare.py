"""Sources → prepared data in the cache, once: ranks only read it."""

import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Set, Tuple

import numpy as np

from ftdist.base.errors import ConfigError, DataError
from ftdist.base.json_files import write_json
from ftdist.base.temporary import remove_leftovers, temporary_path
from ftdist.config.schema import RunConfig, SourceConfig
from ftdist.data.encode import Encoded, HashedPrompt, Task, content_hash, encode, smallest
from ftdist.data.order import permutation
from ftdist.data.pack import one_each, pack
from ftdist.data.progress import Report, show_progress
from ftdist.data.render import make_renderer
from ftdist.data.sources import Located, chunks, read_source
from ftdist.data.stats import check_not_empty, sample, set_stats, settings, source_stats, tokenizer_stats, warnings
from ftdist.data.store import SetWriter, split_encoded
from ftdist.data.tokenizer import load_tokenizer
from ftdist.data.workers import available_cores, ordered_map
from ftdist.run.prepared import FORMAT_VERSION, META, data_folder, is_ready

CHUNK_DOCUMENTS = 128
CHUNK_CHARACTERS = 1_000_000
ALL_HASHES = 2**64
TRAIN, HELDOUT = "train", "heldout"


class Part(NamedTuple):
    """A source and the set it goes to."""

    name: str
    set_name: str
    where: str
    source: SourceConfig


def prepare(config: RunConfig) -> Path:
    """Make sure that a config's prepared data is in the cache; return its folder.

    Any number of processes may do this at once: each works in a folder of its own, and the first to finish publishes.

    Raises:
        DataError: the data cannot be read, or nothing in it would be trained.
        ConfigError: the tokenizer or the template cannot be loaded.
    """
    folder = data_folder(config)
    if is_ready(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent / "*")
    unfinished = temporary_path(folder)
    try:
        build(config, unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not is_ready(folder):  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def build(config: RunConfig, folder: Path) -> None:
    """Write prepared data into a new folder."""
    tokenizer = load_tokenizer(config)
    parts = list_parts(config)
    tasks = [make_task(config, part, tokenizer) for part in parts]
    set_names = [TRAIN, *sorted(config.data.heldout), *([HELDOUT] if config.data.heldout_share else [])]
    writers = {name: SetWriter(folder / name) for name in set_names}
    try:
        with show_progress() as report:
            built = _encode_parts(config, parts, tasks, writers, report)
        if config.data.heldout_share and not len(writers[HELDOUT].column("hashes")):
            _hold_one_out(writers[TRAIN], writers[HELDOUT], built)
        if config.data.heldout_share and config.data.max_heldout_documents:
            _give_back(writers[HELDOUT], writers[TRAIN], config.data.max_heldout_documents, built)
        meta = _finish(config, tokenizer, parts, writers, built)
    finally:
        for writer in writers.values():
            writer.close()
    write_json(folder / META, meta)


def list_parts(config: RunConfig) -> List[Part]:
    """Held-out sources first; by name, so that the order of keys in a YAML file means nothing."""
    data = config.data
    for name in data.heldout:
        if name == TRAIN or "/" in name:
            raise ConfigError(f"data.heldout.{name} cannot be a set's name", f"another name than {TRAIN}, without /")
    heldout = [Part(name, name, f"data.heldout.{name}", source) for name, source in sorted(data.heldout.items())]
    sources = [Part(name, TRAIN, f"data.sources.{name}", source) for name, source in sorted(data.sources.items())]
    return heldout + sources


def make_task(config: RunConfig, part: Part, tokenizer: Any) -> Task:
    data = config.data
    stop_ids = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    share = int(data.heldout_share * ALL_HASHES) if part.set_name == TRAIN else ALL_HASHES
    return Task(
        format=part.source.format,
        renderer=make_renderer(tokenizer, data.train_on),
        max_seq_len=data.max_seq_len,
        long_documents=data.long_documents,
        stop_ids=frozenset(stop_ids | set(tokenizer.all_special_ids)),
        heldout_below=share,
    )


class _Built(NamedTuple):
    counts: List["Counter[str]"]
    """One for each part."""
    prompts: Dict[str, List[HashedPrompt]]
    hidden: int
    """Training documents that are in a held-out source too."""


def _encode_parts(
    config: RunConfig, parts: List[Part], tasks: List[Task], writers: Dict[str, SetWriter], report: Report
) -> _Built:
    built = _Built([Counter() for _ in parts], {name: [] for name in writers if name != TRAIN}, 0)
    heldout: Set[int] = set()
    hidden = documents = tokens = 0
    workers = config.data.num_workers or available_cores()
    for number, encoded in ordered_map(partial(_encode, tasks), _numbered_chunks(config, parts), workers):
        part, counts = parts[number], built.counts[number]
        counts.update(encoded.counts)
        kept = encoded
        if part.set_name != TRAIN:
            heldout.update(encoded.hashes.tolist())
        else:
            hidden += sum(digest in heldout for digest in encoded.hashes.tolist()) if heldout else 0
            out = encoded.hashes < np.uint64(tasks[number].heldout_below)
            if out.any():
                writers[HELDOUT].append(split_encoded(encoded, out), number)
                kept = split_encoded(encoded, ~out)
                counts["heldout"] += int(out.sum())
        writers[part.set_name].append(kept, number)
        prompt_set = HELDOUT if part.set_name == TRAIN else part.set_name
        if encoded.prompts:
            built.prompts[prompt_set] = smallest(built.prompts[prompt_set] + encoded.prompts)
        documents, tokens = documents + encoded.counts["read"], tokens + len(encoded.ids)
        report(part.name, documents, tokens)
    return built._replace(hidden=hidden)


def _encode(tasks: List[Task], item: Tuple[int, List[Located]]) -> Tuple[int, Encoded]:
    number, chunk = item
    return number, encode(tasks[number], chunk)


def _numbered_chunks(config: RunConfig, parts: List[Part]) -> Iterator[Tuple[int, List[Located]]]:
    for number, (_, set_name, where, source) in enumerate(parts):
        records = read_source(where, source)
        if set_name != TRAIN and config.data.max_heldout_documents:
            records = (located for located, _ in zip(records, range(config.data.max_heldout_documents), strict=False))
        for chunk in chunks(records, CHUNK_DOCUMENTS, CHUNK_CHARACTERS):
            yield number, chunk


def _give_back(heldout: SetWriter, train: SetWriter, limit: int, built: _Built) -> None:
    """Keep the held-out documents with the smallest hashes, train the others. Equal documents stay together, and so do
    the pieces of a split one: those of the smallest hash are kept also where they alone are more than ``limit``."""
    hashes = np.sort(heldout.column("hashes"))
    over = hashes[limit:][hashes[limit:] > hashes[0]] if len(hashes) > limit else hashes[:0]
    if not len(over):
        return
    hashes, first_over = heldout.column("hashes"), over[0]
    surplus = np.flatnonzero(hashes >= first_over)
    sources = heldout.column("source")
    for number, document in zip(surplus.tolist(), heldout.documents(surplus), strict=True):
        train.append(document, int(sources[number]))
        built.counts[sources[number]]["heldout"] -= 1
    heldout.leave_out(surplus)
    built.prompts[HELDOUT] = [prompt for prompt in built.prompts[HELDOUT] if prompt[0] < int(first_over)]


def _hold_one_out(train: SetWriter, heldout: SetWriter, built: _Built) -> None:
    """A share of few documents may be none: then the document with the smallest hash, and those equal to it."""
    hashes = train.column("hashes")
    chosen = np.flatnonzero(hashes == hashes.min()) if len(hashes) else hashes
    if not len(chosen) or len(chosen) == len(hashes):
        return
    sources = train.column("source")
    for number, document in zip(chosen.tolist(), train.documents(chosen), strict=True):
        heldout.append(document, int(sources[number]))
        built.counts[sources[number]]["heldout"] += 1
    train.leave_out(chosen)


def _finish(
    config: RunConfig, tokenizer: Any, parts: List[Part], writers: Dict[str, SetWriter], built: _Built
) -> Dict[str, Any]:
    data = config.data
    meta: Dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "settings": settings(config),
        "tokenizer": tokenizer_stats(tokenizer),
        "sources": {},
        "heldout_sources": {},
        "sets": {},
        "prompts": {name: [prompt for _, prompt in prompts] for name, prompts in built.prompts.items()},
    }
    for set_name, writer in writers.items():
        here = [number for number, part in enumerate(parts) if part.set_name == set_name]
        check_not_empty(set_name, writer, [built.counts[number] for number in here or range(len(parts))])
        items = _epoch_items(config, parts, writer) if set_name == TRAIN else writer.kept()
        if not len(items):
            weights = ", ".join(f"data.sources.{parts[number].name}.weight" for number in here)
            raise DataError("no document is left for an epoch of training", "a weight above 0", f"raise {weights}")
        lengths = writer.column("lengths")[items]
        order, row_offsets = pack(lengths, data.max_seq_len) if data.packing else one_each(lengths)
        writer.finish(items[order], row_offsets)
        meta["sets"][set_name] = set_stats(writer, items, len(row_offsets) - 1, data.max_seq_len, tokenizer)
        sources = meta["sources" if set_name == TRAIN else "heldout_sources"]
        for number in here:
            part = parts[number]
            sources[part.name] = source_stats(writer, number, built.counts[number], part.source.weight, items)
    meta["sample"] = sample(writers[TRAIN], tokenizer)
    meta["warnings"] = warnings(config, meta, built.hidden)
    return meta


def _epoch_items(config: RunConfig, parts: List[Part], writer: SetWriter) -> np.ndarray:
    """The documents of one epoch: each source as often as its weight says, the fraction a seeded choice of its own."""
    items, kept = [np.empty(0, dtype=np.int64)], writer.kept()
    for number, part in enumerate(parts):
        own = kept[writer.column("source")[kept] == number]
        whole, fraction = divmod(part.source.weight, 1)
        items += [own] * int(whole)
        chosen = permutation(config.seed, content_hash(part.name), len(own))[: round(fraction * len(own))]
        items.append(own[np.sort(chosen)])
    return np.concatenate(items)
