"""Speed and memory of packed chats beside TRL's SFTTrainer with DeepSpeed, at the same ZeRO stage and in bf16.

``TRL_PYTHON=PATH make bench ARGS="--only trl"``. PATH is the Python of an environment of its own with TRL, because
ftdist's environment has none: ``python -m venv NAME``, then
``NAME/bin/pip install -c constraints.txt torch deepspeed trl==1.16.0``.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List

from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.command import ranks_env
from tests.bench.figures import Section, Spread, spread
from tests.bench.methods import ROOT, in_a_process, smollm_config
from tests.bench.one_method import STEPS, WARMUP_STEPS
from tests.helpers.ranks import free_port

RANKS = 2
ROUNDS = 2
DOCUMENTS_A_BATCH = 4
"""Of TRL without packing, on each rank."""
SAME_LOSS = 0.03
LOOPS = {"ftdist": "ftdist, documents isolated", "packed": "TRL, packed: documents see each other",
         "padded": "TRL, padded"}  # fmt: skip
ABOUT = """\
SmolLM2-135M-Instruct on the demo's chats in bf16 with fp32 masters, ZeRO-{stage}, {ranks} ranks of 1 thread, rows
of at most {length} tokens, {rows} rows a step in micro-batches of 1, AdamW, gradient checkpointing. TRL {trl} and
the same torch, transformers and DeepSpeed run in an environment of their own. Both get the same tokenized
documents. TRL's packing needs a varlen kernel to keep documents apart, which a CPU lacks: it warns, and documents
see each other. Without packing it pads {batch} documents in a micro-batch, with about as many tokens a step. The
mean loss of ftdist and of padded TRL differs by {difference:.1%}: they train on the same documents, in steps that
do not end at the same document.

Each measurement is {ranks} new processes: {rounds} rounds of all variants in changing order, {steps} steps each
after {warmup}. `tokens/s` are those of all ranks, without padding. `relative` is the ratio to ftdist of the same
round. Memory is the peak of the larger process (resident pages); `of it libraries` is the peak before the model is
loaded. The load of the machine was {load:.1f} before; an idle machine has 0."""


def measure(folder: Path, quick: bool) -> Section:
    """Run all variants in turns. See ``ABOUT``.

    Raises:
        RuntimeError: A variant ended with an error, or ``TRL_PYTHON`` is not set.
    """
    python = os.environ.get("TRL_PYTHON")
    if not python:
        raise RuntimeError("TRL_PYTHON is not set. It names the Python of an environment with TRL: see beside_trl.py.")
    load = os.getloadavg()[0]
    config = _config(folder, quick)
    prepared = in_a_process(folder, "documents", config, folder / "prepared.json")
    found: Dict[str, List[Dict[str, Any]]] = {name: [] for name in LOOPS}
    for number in range(1 if quick else ROUNDS):
        for name in list(found) if number % 2 == 0 else list(found)[::-1]:
            out = folder / f"{number}-{name}"
            ranks = _ftdist(config, folder, out) if name == "ftdist" else _trl(python, config, folder, out, prepared)
            found[name].append(_totals(ranks, prepared["tokens"] if name == "ftdist" else None))
    losses = {name: statistics.fmean(runs[0]["losses"]) for name, runs in found.items()}
    difference = abs(losses["padded"] / losses["ftdist"] - 1)
    assert difference < SAME_LOSS, f"the loops do not do the same: mean losses are {losses}"
    version = subprocess.run([python, "-c", "import importlib.metadata as m; print(m.version('trl'))"],
                             capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    about = ABOUT.format(
        stage=config.zero.stage, ranks=RANKS, length=config.data.max_seq_len, rows=config.batch.global_batch_size,
        trl=version, batch=DOCUMENTS_A_BATCH, difference=difference, rounds=len(found["ftdist"]), steps=STEPS,
        warmup=WARMUP_STEPS, load=load,
    )  # fmt: skip
    figures = {name: _figures(runs, found["ftdist"]) for name, runs in found.items()}
    header = ["", "tokens/s", "relative", "CPU time for 1,000 tokens", "peak memory of a rank", "of it libraries"]
    return Section("trl", "Beside TRL", about, header, [_row(name, figures[name]) for name in LOOPS], figures)


def _config(folder: Path, quick: bool) -> RunConfig:
    return smollm_config(
        folder, "full", "1e-5", f"data.max_seq_len={128 if quick else 1024}", "data.heldout_share=0",
        "data.max_heldout_documents=null", "data.sources.chats.max_documents=2000", "optim.schedule=constant",
        "optim.weight_decay=0", "train.precision=bf16", "train.gradient_checkpointing=full", "zero.stage=2",
        f"batch.global_batch_size={2 * RANKS}", "batch.micro_batch_size=1",
    )  # fmt: skip


def _ftdist(config: RunConfig, folder: Path, out: Path) -> List[Dict[str, Any]]:
    written = out.with_suffix(".yaml")
    written.write_text(dump_config(config), encoding="utf-8")
    argv = [sys.executable, "-m", "tests.bench.one_method", "ftdist", str(written), str(folder)]
    return _on_ranks(argv, out, {**ranks_env(config), "PYTHONSAFEPATH": "", "PYTHONPATH": str(ROOT)})


def _trl(python: str, config: RunConfig, folder: Path, out: Path, prepared: Dict[str, Any]) -> List[Dict[str, Any]]:
    packed = out.name.endswith("packed")
    steps = WARMUP_STEPS + STEPS
    batches = math.ceil(prepared["documents"] / steps / (DOCUMENTS_A_BATCH * RANKS))
    settings = {
        "model": str(folder / "model"), "documents": str(folder / "documents.json"), "folder": str(folder / "trl"),
        "stage": config.zero.stage, "lr": config.optim.lr, "steps": steps, "packing": packed,
        "max_length": config.data.max_seq_len, "recompute": True, "batch": 1 if packed else DOCUMENTS_A_BATCH,
        "accumulation": config.batch.global_batch_size // RANKS if packed else batches,
    }  # fmt: skip
    written = out.with_suffix(".json")
    written.write_text(json.dumps(settings), encoding="utf-8")
    argv = [python, str(Path(__file__).with_name("trl_rank.py")), str(written)]
    # The script's own folder is not searched: it holds modules with the names of others.
    return _on_ranks(argv, out, {**ranks_env(config), "PYTHONSAFEPATH": "1"})


def _on_ranks(argv: List[str], out: Path, environment: Dict[str, str]) -> List[Dict[str, Any]]:
    """Run a command as each rank at the same time, with a file for its result as the last word. Returns the results."""
    port = str(free_port())
    outs = [out.with_name(f"{out.name}-{rank}.json") for rank in range(RANKS)]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS),
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in range(RANKS)]  # fmt: skip
    output = out.with_suffix(".txt")
    with output.open("wb") as file:
        children = [
            subprocess.Popen([*argv, str(to)], cwd=ROOT, env={**os.environ, **environment, **rank},
                             stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
            for to, rank in zip(outs, ranks, strict=True)
        ]  # fmt: skip
        try:
            while None in (codes := [child.poll() for child in children]) and not any(codes):
                time.sleep(0.2)  # a rank that waits for one that failed never ends
        finally:
            for child in children:
                child.kill()
                child.wait()
    found = [json.loads(to.read_text(encoding="utf-8")) if to.is_file() else {"error": "no result"} for to in outs]
    for one in found:
        if "error" in one:
            raise RuntimeError(f"{out.name}: {one['error'][-4000:]}\n{output.read_text(errors='replace')[-4000:]}")
    return found


def _totals(ranks: List[Dict[str, Any]], tokens: List[int] | None) -> Dict[str, Any]:
    """Return the seconds, CPU seconds and tokens of the measured steps of all ranks, and the larger peak of memory."""
    if tokens is None:  # TRL's processes count them
        measured = [rank["steps"][WARMUP_STEPS:] for rank in ranks]
        wall = sum(step["wall"] for step in measured[0])
        cpu = sum(step["cpu"] for steps in measured for step in steps)
        count = sum(step["tokens"] for steps in measured for step in steps)
    else:
        wall, cpu = sum(ranks[0]["wall"]), sum(sum(rank["cpu"]) for rank in ranks)
        count = sum(tokens[WARMUP_STEPS:])
    return {"speed": count / wall, "cpu": cpu / count * 1000, "peak": max(rank["peak"] for rank in ranks),
            "libraries": max(rank["libraries"] for rank in ranks), "losses": ranks[0]["losses"]}  # fmt: skip


def _figures(runs: List[Dict[str, Any]], ours: List[Dict[str, Any]]) -> Dict[str, Any]:
    relative = spread([run["speed"] / own["speed"] for run, own in zip(runs, ours, strict=True)])
    spreads = {name: asdict(spread([run[name] for run in runs])) for name in ("speed", "cpu", "peak", "libraries")}
    return {**spreads, "relative": asdict(relative)}


def _row(name: str, figures: Dict[str, Any]) -> List[str]:
    speed, relative = Spread(**figures["speed"]).show("", 1, 0), Spread(**figures["relative"]).show("×")
    cpu, peak, libraries = (Spread(**figures[key]) for key in ("cpu", "peak", "libraries"))
    return [LOOPS[name], speed, "" if name == "ftdist" else relative, cpu.show("s"), peak.show("GiB", 2**-30),
            libraries.show("GiB", 2**-30)]  # fmt: skip
