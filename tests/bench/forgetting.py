"""What full fine-tuning and LoRA learn with the same budget, and how much each forgets of what it was not trained on.

``make bench ARGS="--only forgetting"``: it takes long, so it does not run with the others.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List

from ftdist.config.schema import RunConfig
from tests.bench.figures import Section, Spread, spread
from tests.bench.methods import in_a_process, smollm_config

STEPS, SEEDS = 20, (1, 2, 3)
RATES = {"full": "1e-4", "lora": "1e-3"}
TITLES = {"full": "full", "lora": "LoRA, r=16"}
QUESTIONS = Path(__file__).with_name("general.jsonl")
SETS = {"heldout": "docstrings", "own": "own answers", "general": "everyday answers"}
ABOUT = """\
SmolLM2-135M-Instruct on the demo's data with the demo's learning rates, {steps} steps of {rows} rows of {length} tokens
in bf16, with {seeds} seeds, which draw the order of the rows and A of the adapters. Both methods see the same rows.
Losses are in nats a token, and changes are after the training minus before. Brackets hold the smallest and the largest
value of the seeds.

- `docstrings`: {heldout} trained tokens of held-out documents of the demo's data. The gain is how far this loss falls.
- `own answers`: {own} tokens of answers that the model itself wrote before the training to {questions} everyday
  questions (`tests/bench/general.jsonl`), drawn at temperature 1. Forgetting is how far this loss rises: it estimates
  the divergence KL(before ‖ after).
- `everyday answers`: {general} tokens of short answers to the same questions, written by hand. No run trains on
  them. This loss can fall, because short plain answers are nearer to docstrings than what the model writes itself.

A small model and a short training cannot tell which method is better for yours."""


def measure(folder: Path, quick: bool) -> Section:
    """Train each method with each seed, in a process of its own. See ``ABOUT``."""
    steps, seeds = (2, SEEDS[:1]) if quick else (STEPS, SEEDS)
    config = _config(folder, "full", SEEDS[0], steps)
    in_a_process(folder, "answers", config, folder / "answers.json")
    in_a_process(folder, "prepare", config, folder / "prepared.json")
    found: Dict[str, List[Dict[str, Any]]] = {kind: [] for kind in TITLES}
    for seed in seeds:
        for kind in found:
            own = _config(folder, kind, seed, steps)
            found[kind].append(in_a_process(folder, "train", own, folder / f"{kind}-{seed}.json"))
    first = found["full"][0]
    about = ABOUT.format(
        steps=steps, rows=config.batch.global_batch_size, length=config.data.max_seq_len, seeds=len(seeds),
        **first["tokens"], questions=len(QUESTIONS.read_text(encoding="utf-8").splitlines()),
    )  # fmt: skip
    figures = {kind: {name: asdict(spread([run["after"][name] - run["before"][name] for run in runs])) for name in SETS}
               for kind, runs in found.items()}  # fmt: skip
    header = ["", "learning rate", *(f"{title}: change of the loss" for title in SETS.values())]
    rows = [[TITLES[kind], RATES[kind], *(Spread(**figures[kind][name]).show("", 1, 3) for name in SETS)]
            for kind in TITLES]  # fmt: skip
    before = {name: first["before"][name] for name in SETS}
    rows.append(["before", "", *(f"{before[name]:.3f}" for name in SETS)])
    return Section("forgetting", "Gain and forgetting", about, header, rows, {"before": before, **figures})


def _config(folder: Path, kind: str, seed: int, steps: int) -> RunConfig:
    return smollm_config(
        folder, kind, RATES[kind], f"seed={seed}", f"train.max_steps={steps}", "data.heldout_share=0.05",
        "data.max_heldout_documents=64", f"data.heldout.general.path={QUESTIONS}",
        f"data.heldout.own.path={folder / 'own.jsonl'}", "data.max_seq_len=512",
        "data.sources.chats.max_documents=null", "batch.global_batch_size=4", "batch.micro_batch_size=2",
        "optim.schedule=linear", "optim.warmup_steps=2", "train.precision=bf16",
    )  # fmt: skip
