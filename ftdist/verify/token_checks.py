"""Checks of the prepared data: which tokens the model receives, and which of them are trained."""

from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, FrozenSet, Iterator, List, Optional, Tuple

import numpy as np

from ftdist.base.counts import count
from ftdist.config.data import Format, LongDocuments
from ftdist.config.schema import RunConfig
from ftdist.data.answers import Answer, answers_of
from ftdist.data.bad_records import read_good
from ftdist.data.chat_forms import USUAL
from ftdist.data.encode import STOP_WITHIN
from ftdist.data.loader import open_set
from ftdist.data.prepare import encode_settings, list_sources
from ftdist.data.records import Document, read_record
from ftdist.data.render import Renderer, render
from ftdist.data.sources import read_source
from ftdist.data.tokenise import tokenise
from ftdist.data.tokenizer import load_tokenizer
from ftdist.run.checks import Check, judge, not_run
from ftdist.run.prepared import read_meta
from ftdist.verify import text_checks
from ftdist.verify.reference import read_rows
from ftdist.verify.text_checks import Sample, check_texts

# Maximum shares of a source's documents. A larger share fails the check. A document that has nothing to train after
# truncation wastes computation. Most data has a few such documents, and their number is always shown.
MAX_MASKED, MAX_DROPPED, MAX_CUT = 0.1, 0.5, 0.9
MAX_DOCUMENTS = 200
"""Number of documents of each source that are read."""
MASKED = "nothing to train after truncation"
"""The reason for dropping such a document, as the preparation of data writes it."""
EXAMPLE_CHAT = {
    "messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
}
STOP, TRAINED, COMPLETE, PADDING, IDS = (
    "stop token is trained", "trained tokens", "documents are complete", "padding token",
    "token ids fit the embedding",
)  # fmt: skip
NO_ANSWERS = "there is no chat among the documents whose answers are trained"
FIELDS, ENDS = "each field is shown once", "nothing is trained after the stop"
NAMES = (*text_checks.NAMES, FIELDS, ENDS, STOP, TRAINED, COMPLETE, PADDING, IDS)


def check_tokens(config: RunConfig, folder: Path, vocab_rows: Optional[int], quick: bool) -> List[Check]:
    """Run all checks of tokenization: those of this module and those of ``text_checks``.

    Args:
        folder: The prepared data.
        vocab_rows: Number of rows of the model's embedding, None if it is not known.
        quick: Render one example chat instead of the records of the sources.
    """
    tokenizer = load_tokenizer(config)
    train = next(source for source in list_sources(config) if source.set_name == "train")
    settings = encode_settings(config, train, tokenizer)
    samples, answers = read_samples(config, settings.renderer, quick)
    return [
        *check_texts(settings.renderer, config.data.train_on, samples), *check_rules(answers),
        check_stop_tokens(config, folder, settings.stop_ids), _check_trained_tokens(folder),
        check_documents(config, folder), _check_padding(tokenizer, folder, vocab_rows),
        _check_ids(tokenizer, folder, vocab_rows),
    ]  # fmt: skip


def read_samples(config: RunConfig, renderer: Renderer, quick: bool) -> Tuple[List[Sample], List[Answer]]:
    """Return the first documents of each source as text and tokens, and the answers in them.

    With ``quick`` it is one example chat, or nothing if there is no chat template.
    """
    documents = [] if quick else read_documents(config)
    if quick and renderer.chats.default is not None:
        documents = [read_record("a chat", EXAMPLE_CHAT, Format.auto)]
    located = [(document.location, document) for document in documents]
    good, _ = read_good(located, lambda _, document: (document, render(document, renderer)), config.data.bad_records)
    rendered = [(document, one) for document, texts in good for one in texts]
    tokens = tokenise([one for _, one in rendered], renderer)
    samples = [
        Sample(d, r.text, t.ids, t.trained, r.answers, r.planned.form if r.planned else USUAL)
        for (d, r), t in zip(rendered, tokens, strict=True)
    ]
    limit = config.data.max_seq_len
    return samples, [answer for document, texts in good for answer in answers_of(document, texts, renderer, limit)]


def check_rules(answers: List[Answer]) -> List[Check]:
    """Check that each answer shows all fields of its record, and that nothing is trained after its stop.

    Whether a stop is trained is checked on the prepared rows.
    """
    answers = [one for one in answers if not one.in_whole]
    if not answers:
        return [not_run(name, NO_ANSWERS) for name in (FIELDS, ENDS)]
    lost = [
        f"{one.location}: the documents do not show {', '.join(one.lost)} exactly once" for one in answers if one.lost
    ]
    after = [f"{one.location}, message {one.message}" for one in answers if not one.ends]
    stripped = sum(bool(one.stripped) for one in answers)
    shown = f"{len(answers) - len(lost)} of {count(len(answers), 'answer')}"
    without = f", {stripped} of them without the reasoning of earlier answers" if stripped else ""
    return [
        judge(FIELDS, lost[:1], shown + without),
        judge(ENDS, [f"text is trained after the stop of {after[0]}"] if after else [],
              f"{len(answers) - len(after)} of {count(len(answers), 'answer')}"),
    ]  # fmt: skip


def read_documents(config: RunConfig, from_hub: bool = True) -> List[Document]:
    """Read the first documents of each source, of training and of held-out data.

    Args:
        from_hub: Also read the sources that are on the hub.

    Raises:
        DataError: A source does not exist, or one of its records is invalid and bad records are not dropped.
    """
    sources = [listed for listed in list_sources(config) if from_hub or not listed.source.hub]
    documents: List[Document] = []
    for _, _, config_key, source in sources:
        read = partial(read_record, format=source.format, fields=source.fields, reasoning=config.data.reasoning)
        located = islice(read_source(config_key, source), MAX_DOCUMENTS)
        documents += read_good(located, read, config.data.bad_records)[0]
    return documents


def _documents(folder: Path) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Return the training documents in the order of the rows: (token ids [n], trained [n])."""
    train = open_set(folder, "train")
    return (document for row in range(train.num_rows) for document in train.row(row))


def check_stop_tokens(config: RunConfig, folder: Path, stop_ids: FrozenSet[int]) -> Check:
    """Check that every complete answer ends with a trained stop token.

    An answer is a sequence of trained tokens. It is not complete if it reaches the end of a document that was cut.
    """
    split = config.data.long_documents is LongDocuments.split
    answers = without = 0
    for ids, trained in _documents(folder):
        edges = np.flatnonzero(np.diff(trained.astype(np.int8), prepend=0, append=0))
        for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            stops = bool(set(ids[begin:end][-STOP_WITHIN:].tolist()) & stop_ids)
            is_cut = end == len(ids) >= config.data.max_seq_len
            # A document may be split after the stop token. The next piece then starts with the tokens that follow it.
            is_remainder = split and not stops and begin <= 1 and end - begin < STOP_WITHIN
            if not is_cut and not is_remainder:
                answers, without = answers + 1, without + (not stops)
    if not answers:
        return judge(STOP, ["every answer is cut at data.max_seq_len, before its stop token"], "no complete answer")
    problems = [f"{without} of {answers} complete answers do not end with a stop token, so the model will not learn "
                "to stop. The template must write a special token after each answer, inside its generation "
                "block"]  # fmt: skip
    stop_token = read_meta(folder)["sets"]["train"]["stop_token"]
    measured = f"{stop_token}, in {answers - without} of {answers} complete answers"
    return judge(STOP, problems if without else [], measured)


def _check_trained_tokens(folder: Path) -> Check:
    """Check that few documents have nothing to train after truncation, and that most of each source is kept."""
    meta = read_meta(folder)
    stats, problems = meta["sets"]["train"], []
    dropped: Counter[str] = Counter()
    for name, source in meta["sources"].items():
        dropped.update(source["dropped"])
        documents, masked = max(source["documents"], 1), source["dropped"].get(MASKED, 0)
        if masked > MAX_MASKED * documents:
            problems.append(f"{masked} of {documents} documents of '{name}' have {MASKED}: raise data.max_seq_len")
        if sum(source["dropped"].values()) - masked > MAX_DROPPED * documents:
            problems.append(f"most documents of '{name}' are dropped: {source['dropped']}")
    share = stats["trained_tokens"] / max(stats["tokens"], 1)
    reasons = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none"
    return judge(TRAINED, problems, f"{share:.1%} of {stats['tokens']:,} tokens; documents dropped: {reasons}")


def check_documents(config: RunConfig, folder: Path) -> Check:
    """Check that few documents are cut, and that the rows hold every document once."""
    meta = read_meta(folder)
    sources, problems = meta["sources"], []
    for name, source in sources.items():
        if source["truncated"] > MAX_CUT * max(source["documents"], 1):
            problems.append(
                f"{source['truncated']} of {source['documents']} documents of '{name}' are cut at "
                f"data.max_seq_len={config.data.max_seq_len}: raise it, or set data.long_documents=split"
            )
    for name, stats in meta["sets"].items():
        packed = [document for row in read_rows(folder / name) for document in row]
        found = len(packed), sum(len(ids) for ids, _ in packed)
        if found != (stats["documents"], stats["tokens"]):
            contained = f"{count(found[0], 'document')} with {count(found[1], 'token')}"
            problems.append(f"the rows of '{name}' contain {contained}; expected "
                            f"{count(stats['documents'], 'document')} with {count(stats['tokens'], 'token')}",
                            )  # fmt: skip
    cut, split = (sum(source[what] for source in sources.values()) for what in ("truncated", "split"))
    total, rows = sum(source["documents"] for source in sources.values()), meta["sets"]["train"]
    measured = (f"documents: {cut} of {total} cut, {split} split, {rows['documents']} in "
                f"{count(rows['rows'], 'row')}")  # fmt: skip
    return judge(COMPLETE, problems, measured)


def _check_padding(tokenizer: Any, folder: Path, vocab_rows: Optional[int]) -> Check:
    """Check that the padding token is not part of documents, except as their stop token."""
    pad, problems = tokenizer.pad_token_id, []
    ends = (tokenizer.eos_token_id, read_meta(folder)["sets"]["train"]["stop_token_id"])
    if vocab_rows is not None and pad >= max(vocab_rows, len(tokenizer)):
        problems.append(f"its id {pad} is outside the embedding, which has {vocab_rows} rows")
    inside = sum(pad in ids for ids, _ in _documents(folder))
    if inside and pad not in ends:
        problems.append(
            f"the padding token {tokenizer.pad_token!r} also occurs as normal text in {count(inside, 'document')}. "
            "Programs that mask padding by token id will ignore these tokens. Set pad_token to a special token in "
            "tokenizer_config.json"
        )
    if pad == tokenizer.bos_token_id and pad != tokenizer.eos_token_id:
        problems.append(
            f"{tokenizer.pad_token!r} is also the BOS token. Programs that mask padding by token id will "
            "ignore the BOS tokens"
        )
    return judge(PADDING, problems, f"{tokenizer.pad_token} ({pad}); ftdist masks padding by position")


def _check_ids(tokenizer: Any, folder: Path, vocab_rows: Optional[int]) -> Check:
    """Check that the embedding has a row for every token of the tokenizer."""
    if vocab_rows is None:
        return not_run(IDS, "the model's config cannot be read on this machine")
    known, highest = tokenizer.num_known_tokens, max(int(ids.max()) for ids, _ in _documents(folder))
    problems = []
    if known > vocab_rows:
        problems.append(f"the tokenizer has {known} tokens, the embedding {vocab_rows} rows. It may be another model's "
                        "tokenizer: set model.tokenizer to the model's own")  # fmt: skip
    return judge(IDS, problems, f"highest id {highest}, {vocab_rows} rows of the embedding")
