"""Checks of tokenisation: what the model is given, and what of it is trained."""

import unicodedata
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, List, Optional, Tuple

import numpy as np

from ftdist.config import Format, LongDocuments, RunConfig
from ftdist.data.cache import read_meta
from ftdist.data.encode import STOP_WITHIN
from ftdist.data.loader import open_set
from ftdist.data.prepare import list_parts, make_task
from ftdist.data.records import Document, read_record
from ftdist.data.render import Renderer, render, tokenise
from ftdist.data.sources import read_source
from ftdist.data.tokenizer import load_tokenizer
from ftdist.verify.checks import Check, judge, not_run

MOST_DROPPED, MOST_CUT = 0.5, 0.9  # a larger share of a source's documents is a failure
CANNED = {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]}
NAMES = ("text survives tokenisation", "training prompt = chat prompt", "exactly one BOS", "stop token is trained",
         "tokens are trained", "documents are whole", "padding token", "ids fit the embedding")  # fmt: skip

Sample = Tuple[Document, str, np.ndarray]
"""A document, its rendered text, its token ids."""


def token_checks(config: RunConfig, folder: Path, vocab_rows: Optional[int], quick: bool) -> List[Check]:
    """All checks of tokenisation, on prepared data in ``folder``.

    Args:
        vocab_rows: rows of the model's embedding, None where it is not known.
        quick: render one canned chat and not the sources' records.
    """
    tokenizer = load_tokenizer(config)
    part = next(part for part in list_parts(config) if part.set_name == "train")
    task = make_task(config, part, tokenizer)
    samples = _samples(config, task.renderer, quick)
    return [
        _text_survives(tokenizer, samples), _prompt_is_the_same(tokenizer, samples), _one_bos(task.renderer, samples),
        _stop_is_trained(config, folder, task.stop_ids), _is_trained(folder), _is_whole(config, folder),
        _padding(tokenizer, folder, vocab_rows), _ids_fit(tokenizer, folder, vocab_rows),
    ]  # fmt: skip


def _samples(config: RunConfig, renderer: Renderer, quick: bool) -> List[Sample]:
    documents = []
    for part in list_parts(config):
        records = read_source(part.where, part.source)
        documents += [read_record(where, record, part.source.format) for where, record in islice(records, 200)] \
            if not quick else []  # fmt: skip
    if quick and renderer.template is not None:
        documents = [read_record("a chat", CANNED, Format.auto)]
    rendered = [render(document, renderer) for document in documents]
    tokens = tokenise(rendered, renderer)
    return [(d, r.text, t.ids) for d, r, t in zip(documents, rendered, tokens, strict=True)]


def _plain(text: str) -> str:
    """Without white space, which some decoders add, and with characters in one form."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _text_survives(tokenizer: Any, samples: List[Sample]) -> Check:
    if not samples:
        return not_run(NAMES[0], "--quick, and there is no chat template")
    lost = [d.location for d, text, ids in samples
            if _plain(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) != _plain(text)]  # fmt: skip
    problems = [f"{len(lost)} documents ({lost[0]} …) decode to another text: the tokenizer lacks characters of it"
                ] if lost else []  # fmt: skip
    return judge(NAMES[0], problems, f"{len(samples) - len(lost)} of {len(samples)} documents")


def _prompt_is_the_same(tokenizer: Any, samples: List[Sample]) -> Check:
    """What a chat program gives the model before an answer is what came before the answer in training."""
    chats = [s for s in samples if s[0].messages and s[0].messages[-1]["role"] == "assistant"]
    if not chats:
        return not_run(NAMES[1], "no chat among the documents")
    different: List[str] = []
    for document, _, ids in chats:
        prompt = tokenizer.apply_chat_template(
            document.messages[:-1], tools=document.tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        if ids[: len(prompt)].tolist() != list(prompt):
            at = int(next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), len(ids)))
            trained, given = (tokenizer.decode(list(tokens[at : at + 6])) for tokens in (ids, prompt))
            different.append(f"{document.location}: trained with {trained!r}, a chat program gives {given!r}")
    problems = [f"{len(different)} of {len(chats)} prompts differ; {different[0]} at token {at}: mend the chat template"
                ] if different else []  # fmt: skip
    return judge(NAMES[1], problems, f"{len(chats) - len(different)} of {len(chats)} chats")


def _one_bos(renderer: Renderer, samples: List[Sample]) -> Check:
    tokenizer, bos = renderer.tokenizer, renderer.tokenizer.bos_token_id
    if not renderer.bos:
        return judge(NAMES[2], [], "none, the tokenizer puts none")
    problems = []
    if (alone := list(tokenizer("a").input_ids)).count(bos) > 1:
        problems.append(f"the tokenizer puts {alone.count(bos)} before a text ({alone[:3]}), and so will programs "
                        "that use it: mend its post_processor in tokenizer.json")  # fmt: skip
    wrong = [d.location for d, _, ids in samples if list(ids[:2]).count(bos) != 1 or ids[0] != bos]
    if wrong:
        problems.append(f"{len(wrong)} documents ({wrong[0]} …) do not begin with exactly one")
    return judge(NAMES[2], problems, f"{tokenizer.bos_token} before {len(samples) - len(wrong)} documents")


def _documents(folder: Path) -> Any:
    train = open_set(folder, "train")
    return (document for row in range(train.num_rows) for document in train.row(row))


def _stop_is_trained(config: RunConfig, folder: Path, stop_ids: Any) -> Check:
    stats = read_meta(folder)["sets"]["train"]
    whole = without = 0
    for ids, trained in _documents(folder):
        if len(ids) >= config.data.max_seq_len:
            continue  # cut off, perhaps
        whole += 1
        ending = ids[np.flatnonzero(trained)[-STOP_WITHIN:]]
        without += not set(ending.tolist()) & stop_ids
    if not whole:
        return judge(NAMES[3], ["every document is cut at data.max_seq_len, before its stop token"], "0 documents")
    split = config.data.long_documents is LongDocuments.split
    problems = [f"{without} of {whole} whole documents end without one: the model will not learn to stop. The template "
                "must write a special token after each answer, inside its generation block"]  # fmt: skip
    return judge(NAMES[3], problems if without and not (split and without < whole) else [],
                 f"{stats['stop_token']}, in {whole - without} of {whole} whole documents")  # fmt: skip


def _is_trained(folder: Path) -> Check:
    meta = read_meta(folder)
    stats, problems = meta["sets"]["train"], []
    dropped: Counter[str] = Counter()
    for name, source in meta["sources"].items():
        dropped.update(source["dropped"])
        if sum(source["dropped"].values()) > MOST_DROPPED * max(source["documents"], 1):
            problems.append(f"most of the source '{name}' is dropped: {source['dropped']}")
    share = stats["trained_tokens"] / max(stats["tokens"], 1)
    lost = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none dropped"
    return judge(NAMES[4], problems, f"{share:.1%} of {stats['tokens']:,} tokens; {lost}")


def _is_whole(config: RunConfig, folder: Path) -> Check:
    sources, problems = read_meta(folder)["sources"], []
    for name, source in sources.items():
        if source["truncated"] > MOST_CUT * max(source["documents"], 1):
            problems.append(
                f"{source['truncated']} of {source['documents']} documents of '{name}' are cut at "
                f"data.max_seq_len={config.data.max_seq_len}: raise it, or data.long_documents=split"
            )
    cut, split = (sum(source[what] for source in sources.values()) for what in ("truncated", "split"))
    return judge(NAMES[5], problems, f"{cut} cut, {split} split, of {sum(s['documents'] for s in sources.values())}")


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
    return judge(NAMES[6], problems, f"{tokenizer.pad_token} ({pad}); masked by position")


def _ids_fit(tokenizer: Any, folder: Path, vocab_rows: Optional[int]) -> Check:
    if vocab_rows is None:
        return not_run(NAMES[7], "the model's config cannot be read here")
    known, highest = tokenizer.num_known_tokens, max(int(ids.max()) for ids, _ in _documents(folder))
    problems = []
    if known > vocab_rows:
        problems.append(f"the tokenizer has {known} tokens, the embedding {vocab_rows} rows: another model's "
                        "tokenizer? Set model.tokenizer to the model's own")  # fmt: skip
    return judge(NAMES[7], problems, f"highest id {highest}, {vocab_rows} rows")
