"""Checks of tokenisation: what the model is given, and what of it is trained."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, FrozenSet, Iterator, List, Optional, Tuple

import numpy as np

from ftdist.config.schema import Format, LongDocuments, RunConfig
from ftdist.data.encode import STOP_WITHIN
from ftdist.data.loader import open_set
from ftdist.data.prepare import encode_settings, list_sources
from ftdist.data.records import Document, read_record
from ftdist.data.render import Renderer, render, tokenise
from ftdist.data.sources import read_source
from ftdist.data.tokenizer import load_tokenizer
from ftdist.run.checks import Check, judge, not_run
from ftdist.run.prepared import read_meta
from ftdist.verify import texts
from ftdist.verify.reference import read_rows
from ftdist.verify.texts import Sample, text_checks

# Larger shares of a source's documents are a failure. What is masked by truncation costs steps and teaches nothing,
# which is seldom meant; but a few such documents are found in most data, and the number of them is always shown.
MOST_MASKED, MOST_DROPPED, MOST_CUT = 0.1, 0.5, 0.9
MOST_DOCUMENTS = 200  # of a source
MASKED = "nothing to train after truncation"
CANNED = {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]}
STOP, TRAINED, WHOLE, PADDING, FIT = (
    "stop token is trained", "tokens are trained", "documents are whole", "padding token", "ids fit the embedding",
)  # fmt: skip
NAMES = (*texts.NAMES, STOP, TRAINED, WHOLE, PADDING, FIT)


def token_checks(config: RunConfig, folder: Path, vocab_rows: Optional[int], quick: bool) -> List[Check]:
    """All checks of tokenisation, on prepared data in ``folder``.

    Args:
        vocab_rows: rows of the model's embedding, None where it is not known.
        quick: render one canned chat and not the sources' records.
    """
    tokenizer = load_tokenizer(config)
    train = next(source for source in list_sources(config) if source.set_name == "train")
    settings = encode_settings(config, train, tokenizer)
    return [
        *text_checks(settings.renderer, config.data.train_on, samples(config, settings.renderer, quick)),
        stop_is_trained(config, folder, settings.stop_ids), _is_trained(folder), is_whole(config, folder),
        _padding(tokenizer, folder, vocab_rows), _ids_fit(tokenizer, folder, vocab_rows),
    ]  # fmt: skip


def samples(config: RunConfig, renderer: Renderer, quick: bool) -> List[Sample]:
    documents = [] if quick else read_documents(config)
    if quick and renderer.template is not None:
        documents = [read_record("a chat", CANNED, Format.auto)]
    rendered = [render(document, renderer) for document in documents]
    tokens = tokenise(rendered, renderer)
    return [Sample(d, r.text, t.ids, t.trained) for d, r, t in zip(documents, rendered, tokens, strict=True)]


def read_documents(config: RunConfig, from_hub: bool = True) -> List[Document]:
    """The first documents of each source, held-out ones too.

    Raises:
        DataError: a source is not there, or one of its records is wrong.
    """
    sources = [listed for listed in list_sources(config) if from_hub or not listed.source.hub]
    return [read_record(location, record, listed.source.format) for listed in sources
            for location, record in islice(read_source(listed.config_key, listed.source), MOST_DOCUMENTS)]  # fmt: skip


def _documents(folder: Path) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    train = open_set(folder, "train")
    return (document for row in range(train.num_rows) for document in train.row(row))


def stop_is_trained(config: RunConfig, folder: Path, stop_ids: FrozenSet[int]) -> Check:
    """At the end of every answer: of each run of trained tokens that the end of a cut document does not end."""
    split = config.data.long_documents is LongDocuments.split
    answers = without = 0
    for ids, trained in _documents(folder):
        edges = np.flatnonzero(np.diff(trained.astype(np.int8), prepend=0, append=0))
        for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            stops = bool(set(ids[begin:end][-STOP_WITHIN:].tolist()) & stop_ids)
            is_cut = end == len(ids) >= config.data.max_seq_len
            # The stop token may stand in the piece before, and what is written after it begin this one.
            is_rest = split and not stops and begin <= 1 and end - begin < STOP_WITHIN
            if not is_cut and not is_rest:
                answers, without = answers + 1, without + (not stops)
    if not answers:
        return judge(STOP, ["every answer is cut at data.max_seq_len, before its stop token"], "0 answers")
    problems = [f"{without} of {answers} whole answers end without one: the model will not learn to stop. The template "
                "must write a special token after each answer, inside its generation block"]  # fmt: skip
    stop_token = read_meta(folder)["sets"]["train"]["stop_token"]
    measured = f"{stop_token}, in {answers - without} of {answers} whole answers"
    return judge(STOP, problems if without else [], measured)


def _is_trained(folder: Path) -> Check:
    meta = read_meta(folder)
    stats, problems = meta["sets"]["train"], []
    dropped: Counter[str] = Counter()
    for name, source in meta["sources"].items():
        dropped.update(source["dropped"])
        documents, masked = max(source["documents"], 1), source["dropped"].get(MASKED, 0)
        if masked > MOST_MASKED * documents:
            problems.append(f"{masked} of {documents} documents of '{name}' have {MASKED}: raise data.max_seq_len")
        if sum(source["dropped"].values()) - masked > MOST_DROPPED * documents:
            problems.append(f"most of the source '{name}' is dropped: {source['dropped']}")
    share = stats["trained_tokens"] / max(stats["tokens"], 1)
    lost = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none dropped"
    return judge(TRAINED, problems, f"{share:.1%} of {stats['tokens']:,} tokens; {lost}")


def is_whole(config: RunConfig, folder: Path) -> Check:
    meta = read_meta(folder)
    sources, problems = meta["sources"], []
    for name, source in sources.items():
        if source["truncated"] > MOST_CUT * max(source["documents"], 1):
            problems.append(
                f"{source['truncated']} of {source['documents']} documents of '{name}' are cut at "
                f"data.max_seq_len={config.data.max_seq_len}: raise it, or data.long_documents=split"
            )
    for name, stats in meta["sets"].items():
        packed = [document for row in read_rows(folder / name) for document in row]
        found = len(packed), sum(len(ids) for ids, _ in packed)
        if found != (stats["documents"], stats["tokens"]):
            problems.append(f"the rows of '{name}' hold {found[0]} documents of {found[1]} tokens, and should hold "
                            f"{stats['documents']} of {stats['tokens']}")  # fmt: skip
    cut, split = (sum(source[what] for source in sources.values()) for what in ("truncated", "split"))
    total, rows = sum(source["documents"] for source in sources.values()), meta["sets"]["train"]
    return judge(WHOLE, problems,
                 f"{cut} cut, {split} split, of {total}; {rows['rows']} rows hold {rows['documents']}")  # fmt: skip


def _padding(tokenizer: Any, folder: Path, vocab_rows: Optional[int]) -> Check:
    pad, problems = tokenizer.pad_token_id, []
    ends = (tokenizer.eos_token_id, read_meta(folder)["sets"]["train"]["stop_token_id"])
    if vocab_rows is not None and pad >= max(vocab_rows, len(tokenizer)):
        problems.append(f"id {pad} is beyond the embedding's {vocab_rows} rows")
    inside = sum(pad in ids for ids, _ in _documents(folder))
    if inside and pad not in ends:
        problems.append(f"{tokenizer.pad_token!r} stands in {inside} documents as ordinary text: programs that mask by "
                        "its id leave it out. Set pad_token to a special token in tokenizer_config.json")  # fmt: skip
    if pad == tokenizer.bos_token_id and pad != tokenizer.eos_token_id:
        problems.append(f"{tokenizer.pad_token!r} is the BOS too: programs that mask by its id lose it")
    return judge(PADDING, problems, f"{tokenizer.pad_token} ({pad}); masked by position")


def _ids_fit(tokenizer: Any, folder: Path, vocab_rows: Optional[int]) -> Check:
    if vocab_rows is None:
        return not_run(FIT, "the model's config cannot be read here")
    known, highest = tokenizer.num_known_tokens, max(int(ids.max()) for ids, _ in _documents(folder))
    problems = []
    if known > vocab_rows:
        problems.append(f"the tokenizer has {known} tokens, the embedding {vocab_rows} rows: another model's "
                        "tokenizer? Set model.tokenizer to the model's own")  # fmt: skip
    return judge(FIT, problems, f"highest id {highest}, {vocab_rows} rows")
