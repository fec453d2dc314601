"""Bugs that other frameworks have had, put into a copy of the code one at a time: the tests must fail on each.

Ten are in the loss and the data, six in the adapters; others are in the loss head and in evaluation. Importing torch
and transformers takes longer than most tests, so all tests of a bug run in one process.

``make mutations`` runs all of them, ``JOBS`` at the same time, and writes the tables into docs/correctness.md.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from ftdist.config.schema import Precision
from tests import invariance
from tests.helpers.correctness_page import write_table

ROOT = Path(__file__).resolve().parents[1]
INVARIANCE = "tests/ranks/test_invariance.py::test_every_pair_of_choices"


def a_case(**choices: object) -> str:
    """Return the first test of the invariance suite in fp32 with these choices. The suite is drawn again when it gets
    an axis, so tests are not named here.

    Raises:
        StopIteration: There is none.
    """
    wanted = {**choices, "precision": Precision.fp32}
    found = next(case for case in invariance.covering() if wanted.items() <= case._asdict().items())
    return f"{INVARIANCE}[{invariance.name(found)}]"


ONE_RANK = a_case(world_size=1, accum=4, packing=False)
CASES = [ONE_RANK, a_case(world_size=2, packing=True), a_case(world_size=1, family="gpt2")]
"""Packed and padded, on one rank and on two. Only GPT-2 adds its positions to the embeddings; the others use
differences of positions."""
SUITES = {
    "invariance suite": CASES,
    "unit tests": [
        "tests/unit/objective/test_sft.py", "tests/unit/data/test_loader.py", "tests/unit/model/test_attention.py",
    ],
}  # fmt: skip
METHOD_SUITES = {"tests": ["tests/unit/method/test_lora.py"]}


NOTICED_BY_RUNS = "attention across documents"
"""A bug that each run notices before its first step. It then uses a mask, so that no case of the invariance suite
fails. Unit tests must."""


@dataclass(frozen=True)
class Mutation:
    bug: str
    file: str
    found: str
    put: str


LOOP, LOADER, LOSS, ENGINE = (
    "ftdist/train/loop.py",
    "ftdist/data/loader.py",
    "ftdist/objective/token_loss.py",
    "ftdist/engine/engine.py",
)
MUTATIONS = [
    Mutation("no token weighting: the mean of the micro-batches' means", LOOP,
             "share = found.loss / weight",
             "share = found.loss / max(batch.num_trained, 1) / plan.grad_accum_steps / mesh.data_size"),
    Mutation("divided by the accumulation steps twice", ENGINE, "scale_wrt_gas=False",
             "scale_wrt_gas=True"),
    Mutation("labels not shifted", LOSS, "targets = batch.labels[0, 1:]", "targets = batch.labels[0]"),
    Mutation("mask one position off", LOADER, "np.where(trained == 1,", "np.where(np.roll(trained, 1) == 1,"),
    Mutation(NOTICED_BY_RUNS, "ftdist/model/attention.py",
             "pairwise(documents.limits)", "pairwise([0, query.shape[2]])"),
    Mutation("position ids not restarted", LOADER,
             "np.concatenate([np.arange(length) for length in lengths])", "np.arange(sum(lengths))"),
    Mutation("padding masked by its id, which is the stop token's", LOADER, "label[0] = IGNORED",
             "label[0] = IGNORED; label[ids[-1] == pad_id] = IGNORED"),
    Mutation("averaged over ranks instead of summed", ENGINE, "loss_share * self._world_size", "loss_share"),
    Mutation("the last partial round of an evaluation skipped", "ftdist/train/evaluate.py",
             "range(0, dataset.num_rows, rows_per_round)",
             "range(0, dataset.num_rows - rows_per_round + 1, rows_per_round)"),
    Mutation("the schedule stepped twice", LOOP, "learning_rate(config.optim, index,",
             "learning_rate(config.optim, 2 * index + 1,"),
]  # fmt: skip

ADAPTERS, LORA = "ftdist/method/adapters.py", "ftdist/method/lora.py"
METHOD_MUTATIONS = [
    Mutation("alpha / r applied twice", ADAPTERS, "lora_alpha=method.lora_alpha,",
             "lora_alpha=method.lora_alpha * method.lora_alpha / method.r,"),
    Mutation("dropout in evaluation", "ftdist/model/forward.py", "    model.eval()\n    try:",
             "    model.train()\n    try:"),
    Mutation("base not frozen", ADAPTERS, "    _draw_adapters(model, config.seed)\n",
             "    _draw_adapters(model, config.seed)\n    model.requires_grad_(True)\n"),
    Mutation("adapter saved from an empty shard", LORA, "get_peft_model_state_dict(model, weights,",
             "get_peft_model_state_dict(model, {name: tensor[:0] for name, tensor in weights.items()},"),
    Mutation("merged in bf16", ADAPTERS, "module.float().merge(safe_merge=True)", "module.merge(safe_merge=True)"),
    Mutation("signature of the model hidden, so that it returns all logits", LORA,
             "        add_adapters(model, config)\n        if",
             "        add_adapters(model, config)\n        inner = model.forward\n"
             "        model.forward = lambda *args, **kwargs: inner(*args, **kwargs)\n        if"),
]  # fmt: skip

CHUNKED, RECOMPUTE = "ftdist/objective/chunked.py", "ftdist/model/recompute.py"
HEAD_MUTATIONS = [
    Mutation("scale of the logits forgotten", CHUNKED,
             "return outputs if self.scale == 1.0 else outputs.mul_(self.scale)", "return outputs"),
    Mutation("soft cap forgotten", CHUNKED, "outputs.mul_(self.scale / self.cap).tanh_().mul_(self.cap)",
             "outputs.mul_(self.scale)"),
    Mutation("padded rows of the vocabulary counted", CHUNKED,
             "weights[0][:vocab_size], None if bias is None else bias[:vocab_size]).to(dtype)",
             "weights[0], bias).to(dtype)"),
    Mutation("gradient of the head summed in bf16", CHUNKED, "torch.zeros(w.shape, dtype=dtype,",
             "torch.zeros(w.shape, dtype=w.dtype,"),
    Mutation("chunk border off by one", CHUNKED, "pairwise([*range(0, tokens, size), tokens])",
             "pairwise([*range(0, tokens, size), tokens - 1])"),
    Mutation("a recomputed layer with other dropout", RECOMPUTE, 'return not given.get("dropout_p")', "return True"),
    Mutation("kept attention returned in another order", RECOMPUTE, "self._kept.popleft()", "self._kept.pop()"),
    Mutation("tied weight gathered twice", ENGINE, "        _leave_forwards_untraced(engine)\n", ""),
]  # fmt: skip
EVALUATION_MUTATIONS = [
    Mutation("token accuracy as a mean of the documents' means", "ftdist/track/gain.py",
             "float(sums.sum()) / self.weight", "float((sums / self.weights).mean())"),
    Mutation("the last rows of a padded head used instead of the first ones", CHUNKED,
             "F.linear(own, weight[:vocab_size])", "F.linear(own, weight[-vocab_size:])"),
    Mutation("the change of a set as the change of two independent samples", "ftdist/track/gain.py",
             '"change": after - before}', '"change": after[::-1] - before}'),
    Mutation("the general set leaks into training", "ftdist/data/prepare.py",
             "writers[source.set_name].append(kept, number)",
             "writers[source.set_name if source.set_name in result.prompts else TRAIN].append(kept, number)"),
    Mutation("training documents stay in the general set", "ftdist/data/general.py",
             "writer.exclude(trained)", "writer.exclude(trained[:0])"),
]  # fmt: skip
REPORT_MUTATIONS = [
    Mutation("the texts of the base model drawn again after a resume", "ftdist/train/forgetting.py",
             "if self._texts is None and training.state.step > 0:",
             "self._texts = None\n        if False:"),
    Mutation("KL(base ‖ now) as a mean of the texts' means", "ftdist/train/forgetting.py",
             "kl = float(ratios.sum()) / total", "kl = float((ratios / tokens).mean())"),
    Mutation("what moved, against the base model in fp32 and not as it was loaded", "ftdist/report/moved.py",
             "model, tokenizer = load_whole(config), load_tokenizer(config)",
             "config.train.precision = type(config.train.precision).fp32\n"
             "    model, tokenizer = load_whole(config), load_tokenizer(config)"),
    Mutation("losses of words taken from the tokens before them", "ftdist/report/words.py",
             "[before[begin + trained], after[begin + trained]]",
             "[before[begin + trained - 1], after[begin + trained - 1]]"),
    Mutation("the first documents of the data read, not those of the rows", "ftdist/report/words.py",
             "for one in dataset.row_docs[: len(limits) - 1]]", "for one in range(len(limits) - 1)]"),
    Mutation("tokens that are not trained counted in the losses by role", "ftdist/report/roles.py",
             " & (dataset.trained[places] == 1)", ""),
    Mutation("calls of tools counted as answers", "ftdist/data/roles.py", "yield place, end, CALL",
             "yield place, end, ASSISTANT"),
    Mutation("energy of a counter that two groups of ranks read counted twice", "ftdist/plan/energy.py",
             "max(joules, largest.get((attempt, counter), 0.0))", "joules + largest.get((attempt, counter), 0.0)"),
    Mutation("energy lost when a counter wraps around", "ftdist/parallel/energy.py",
             "self.joules += now + limit - self._last", "pass"),
    Mutation("energy between two readings counted again at the next one", "ftdist/parallel/energy.py",
             "            self._last = now", "            pass"),
    Mutation("energy of the idle machine before the attempt counted too", "ftdist/parallel/energy.py",
             "        self.joules = 0.0", "        self.joules = self._last"),
]  # fmt: skip
REPORT_SUITES = {
    "tests": [
        "tests/unit/train/test_forgetting.py", "tests/unit/report/test_moved.py",
        "tests/unit/report/test_words.py", "tests/unit/report/test_roles.py", "tests/unit/data/test_roles.py",
        "tests/unit/plan/test_energy.py", "tests/unit/parallel/test_energy.py",
    ],
}  # fmt: skip
EVALUATION_SUITES = {
    "tests": [
        "tests/unit/track/test_gain.py", "tests/unit/objective/test_chunked.py", "tests/unit/data/test_general.py",
    ],
}  # fmt: skip
TIED = "tests/ranks/test_settings.py::test_zero3_gathers_a_tied_weight_once_in_a_micro_step"
HEAD_SUITES = {
    "tests": [
        TIED,
        "tests/unit/objective/test_chunked.py", "tests/unit/objective/test_head.py",
        "tests/unit/model/test_recompute.py",
    ],
}  # fmt: skip


def copy_code(to: Path) -> None:
    """Copy the code as one tree, as in the wheel, so that nothing is imported from the checkout."""
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ftdist", to / "ftdist", ignore=leave)
    for name in ("launch", "conf", "slurm"):
        shutil.copytree(ROOT / name, to / "ftdist" / name, ignore=leave)
    shutil.copytree(ROOT / "tests", to / "tests", ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", to)


def mutate(root: Path, mutation: Mutation) -> None:
    path = root / mutation.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutation.found) == 1, f"{mutation.file} holds {text.count(mutation.found)} of: {mutation.found}"
    path.write_text(text.replace(mutation.found, mutation.put), encoding="utf-8")


def failures(root: Path, suites: Dict[str, List[str]]) -> Dict[str, List[str]]:
    """Run tests in a copy of the code, slow ones too. Returns the names of those that fail, by suite."""
    tests = [test for suite in suites.values() for test in suite]  # those that fork ranks come first
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--slow", "--tb=no", "-rfE", *tests]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=3600,
                          env={**os.environ, "PYTHONPATH": str(root)})  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    files = {suite: {test.split("::")[0] for test in suites[suite]} for suite in suites}
    return {
        suite: [test.split("::", 1)[1] for test in failed if test.split("::")[0] in files[suite]] for suite in suites
    }


def prove(mutation: Optional[Mutation], suites: Dict[str, List[str]]) -> Dict[str, List[str]]:
    """Return the tests of each suite that fail with a bug in the code (None: without a bug)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "copy"
        copy_code(root)
        if mutation:
            mutate(root, mutation)
        return failures(root, suites)


def is_caught(mutation: Mutation, failed: Dict[str, List[str]]) -> bool:
    """Return whether the tests that must fail on a bug did: those of the first suite."""
    first, *others = failed.values()
    return any(others) if mutation.bug == NOTICED_BY_RUNS else bool(first)


def main(jobs: int) -> int:
    with ThreadPoolExecutor(jobs) as pool:  # each thread waits for a process
        return sum(
            run_all(table, mutations, suites, pool)
            for table, mutations, suites in (
                ("mutations", MUTATIONS, SUITES), ("method mutations", METHOD_MUTATIONS, METHOD_SUITES),
                ("head mutations", HEAD_MUTATIONS, HEAD_SUITES),
                ("evaluation mutations", EVALUATION_MUTATIONS, EVALUATION_SUITES),
                ("report mutations", REPORT_MUTATIONS, REPORT_SUITES),
            )
        )  # fmt: skip


def run_all(table: str, mutations: List[Mutation], suites: Dict[str, List[str]], pool: ThreadPoolExecutor) -> int:
    """Write the table ``table`` of the page. Returns how many bugs are not caught."""
    rows, missed = [], 0
    found = pool.map(lambda mutation: prove(mutation, suites), [None, *mutations])
    unchanged = next(found)
    assert not any(unchanged.values()), f"tests fail without a bug: {unchanged}"
    for mutation, caught in zip(mutations, found, strict=True):
        missed += not is_caught(mutation, caught)
        rows.append(
            [
                mutation.bug,
                *(f"{len(names)}: `{names[0].split('[')[0]}`" if names else "–" for names in caught.values()),
            ]
        )
        print(f"{mutation.bug}: {', '.join(f'{len(names)} of {suite}' for suite, names in caught.items())}", flush=True)
    write_table(table, ["bug", *suites], rows)
    return missed


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
