"""LoRA, DoRA, QLoRA and partial training: exact resumes, exports of what was trained, 20 steps of PEFT and the Trainer.

tests/invariance.py compares their gradients with plain PEFT. Here it is done for runs that start from an adapter.

All cases share one model and one group of ranks for each number of ranks, because starting ranks takes longer than a
case.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ftdist.config.schema import Precision
from ftdist.verify.compare import ALLOWED
from tests.helpers.adapters import save_peft_adapter
from tests.helpers.exports import open_plainly
from tests.helpers.plain_methods import METHODS, plain_model, trainer_losses
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import assemble, fingerprint, forgetting, save, start, steps

pytestmark = pytest.mark.timeout(900)
STEPS, ROWS, PARITY_STEPS, SAVED_AT, RESUMED = 3, 8, 20, 2, 3
SETTINGS = (
    f"train.max_steps={PARITY_STEPS}", f"batch.global_batch_size={ROWS}", "optim.lr=1e-2", "optim.weight_decay=0.1",
    "optim.schedule=constant", "optim.max_grad_norm=0.5", "train.num_samples=0", "data.heldout_share=0",
    "data.heldout.test.builtin=fake", "data.heldout.test.max_documents=5", "data.max_heldout_documents=null",
    "train.export=false", "train.gradient_checkpointing=none", "report.forgetting.texts=3",
    "report.forgetting.tokens=6",
)  # fmt: skip
RECOMPUTE, DROPOUT = "train.gradient_checkpointing=full", "method.lora_dropout=0.5"
SHARDED = "zero.deepspeed.zero_optimization.stage3_param_persistence_threshold=300"
"""By default DeepSpeed keeps parameters of up to 100,000 numbers whole on every rank: all of this model. With this
setting, adapters of 64 numbers wide stay whole, as those of large models do, and all matrices and other adapters are
sharded."""
CASES: List[Tuple[str, int, int, Tuple[str, ...]]] = [  # method, stage, accumulation steps, more settings
    ("lora", 0, 1, ()), ("dora", 3, 1, ("data.packing=false",)), ("last_layer", 3, 2, (RECOMPUTE, DROPOUT)),
    ("partial", 1, 2, (RECOMPUTE,)), ("qlora", 3, 2, (RECOMPUTE,)),
]  # fmt: skip
PARITY = {"lora": 0, "dora": 1}
"""Cases that run ``PARITY_STEPS`` steps, by method."""
ADAPTERS = {1: "method.init_from", 2: "model.adapter", 3: "model.adapter"}
"""Cases that start from an adapter that PEFT has written: they continue it, or add it to the base model."""
COMPARED = (1, 3)
"""Those of them without dropout are compared with the reference, the others in tests/ranks/test_invariance.py."""


def case_config(folder: Path, world_size: int, number: int, *changes: str) -> Any:
    """Return the config of a case. ``changes`` are settings that differ."""
    method, stage, accum, more = CASES[number]
    micro = ROWS // world_size // accum
    if key := ADAPTERS.get(number):
        more = (*more, f"{key}={folder / 'adapter'}")
    return tiny_config(folder, *SETTINGS, *METHODS[method], f"zero.stage={stage}", f"batch.micro_batch_size={micro}",
                       SHARDED, *more, *changes)  # fmt: skip


def _references(configs: Dict[int, Any], folder: Path) -> None:
    """Write what the reference gives for each config, by number."""
    import torch

    from ftdist.verify.compare import run_reference

    torch.set_num_threads(1)
    for number, config in configs.items():
        rows, heldout, order = _read(config)
        torch.save(run_reference(plain_model(config), config, rows, order, STEPS, heldout), folder / f"{number}.pt")


def _plainly(compared: Dict[int, Any], parity: Dict[str, Any], folder: Path) -> Dict[str, List[float]]:
    """Write the references. Returns the losses of transformers' ``Trainer`` by method."""
    _references(compared, folder)
    losses = {}
    for method, config in parity.items():
        rows, _, order = _read(config)
        losses[method] = trainer_losses(plain_model(config), config, rows, order, PARITY_STEPS, folder / "trainer")
    return losses


def _read(config: Any) -> Tuple[Any, List[Any], List[int]]:
    """Return the rows of the training set, the held-out documents, and the order of the rows."""
    from ftdist.run.prepared import data_folder
    from ftdist.verify.reference import read_rows, row_order

    data = data_folder(config)
    rows, heldout = read_rows(data / "train"), [d for row in read_rows(data / "test") for d in row]
    return rows, heldout, row_order(config.seed, len(rows), PARITY_STEPS * ROWS)


@dataclass(frozen=True)
class Found:
    """What one case gave on two ranks."""

    deviation: Any
    """From the reference; None for cases that are not compared."""
    losses: List[float]
    """Of a run that was saved after ``SAVED_AT`` steps and then went on."""
    exact: bool
    """Whether a resume gave the same losses and left the same state, bit for bit."""
    files: Dict[str, int]
    """Bytes of the tensors in the checkpoint, by state."""
    heldout: Tuple[float, float]
    """Held-out loss of the run at the checkpoint, and what ``ftdist eval`` computes."""
    forgetting: List[float]
    """Divergence from the base model before the first step, at the checkpoint, and there without the adapters."""
    quiz: Any
    """The answers of the base model and of the checkpoint to a question; None for cases that are not resumed later."""
    answers: List[List[int]]
    """Tokens that the export generates after a prompt, and the merged export of an adapter."""


def _cases(configs: List[Any], folder: Path) -> List[Found]:
    import torch

    from ftdist.verify.compare import measure_deviation

    found = []
    for number, config in enumerate(configs):
        reference, deviation = folder / f"{number}.pt", None
        ranks = start(config)
        if reference.is_file():
            training = assemble(config, folder / f"compared-{number}", ranks)
            deviation = measure_deviation(training, torch.load(reference, weights_only=False), STEPS)
            training.engine.destroy()
        count = PARITY_STEPS if number in PARITY.values() else SAVED_AT + RESUMED
        found.append(_saved_and_resumed(config, folder / f"run-{number}", ranks, deviation, count, number in MOVED))
    return found


def _quiz(config: Any, run: Any, ranks: Any) -> Any:
    """Let the base model and the checkpoint answer questions, as ``ftdist eval --tasks`` does. Rank 0 returns it."""
    import json

    from ftdist.serve.tasks import compare_on_tasks

    path, [checkpoint] = run.path.parent / "quiz.jsonl", run.published_checkpoints()
    if ranks.first:
        sizes = (3, 40, 12, 90, 7)  # in tokens: several rows
        questions = [{"question": "x" * size, "choices": ["yes", "it is not"], "answer": size % 2} for size in sizes]
        path.write_text("".join(json.dumps(one) + "\n" for one in questions))
    compare_on_tasks(config, run.deepspeed, run, checkpoint, checkpoint, ranks, {"quiz": str(path)})
    return json.loads((run.tasks / f"quiz-{checkpoint.name}.json").read_text()) if ranks.first else None


def _saved_and_resumed(config: Any, path: Path, ranks: Any, deviation: Any, count: int, quiz: bool) -> Found:
    from ftdist.checkpoint.tensors import Stored
    from ftdist.engine.shards import unsharded
    from ftdist.method.adapters import adapters_off
    from ftdist.serve.evaluate import measure
    from ftdist.verify.compare import _heldout_loss

    training = assemble(config, path, ranks)
    if config.zero.stage == 3:
        assert unsharded(training.engine) == []
    forgotten = [forgetting(training)]
    losses = steps(training, SAVED_AT)
    save(training)
    forgotten.append(forgetting(training))
    with adapters_off(training.engine.module):
        forgotten.append(forgetting(training))
    before, heldout = fingerprint(training.engine), _heldout_loss(training)
    losses += (next_steps := steps(training, RESUMED))
    after, checkpoint = fingerprint(training.engine), training.run.published_checkpoints()[-1]
    losses += steps(training, count - SAVED_AT - RESUMED)
    if config.zero.stage == 3:
        assert _made_whole(training.engine.module) == unsharded(training.engine)
    training.engine.destroy()
    resumed = assemble(config, path, ranks)
    exact = fingerprint(resumed.engine) == before
    exact &= steps(resumed, RESUMED) == next_steps and fingerprint(resumed.engine) == after
    resumed.engine.destroy()
    evaluated = measure(config, resumed.run.deepspeed, checkpoint, ranks)["test"].means()["loss"]
    answered = _quiz(config, resumed.run, ranks) if quiz else None
    answers = _exported_answers(config, resumed.run, checkpoint) if ranks.first else []
    stored = Stored(sorted(checkpoint.glob("rank-*.safetensors")))
    sizes: Dict[str, int] = {}
    for (state, _), parts in stored._parts.items():
        sizes[state] = sizes.get(state, 0) + sum(count for _, count, _ in parts)
    kl = [metrics["forgetting/kl"] for metrics in forgotten]
    return Found(deviation, [loss for loss, _ in losses], exact, sizes, (heldout, evaluated), kl, answered, answers)


def _made_whole(model: Any) -> List[str]:
    """Give this rank the whole of one trained parameter, as a library does that copies a module. Returns its name."""
    import torch

    name, parameter = next((n, p) for n, p in model.named_parameters() if p.requires_grad and not p.ds_persist)
    shard = parameter.ds_tensor
    parameter.ds_tensor = torch.zeros(parameter.ds_numel)
    parameter.ds_tensor.ds_numel = shard.ds_numel
    return [name]


def _exported_answers(config: Any, run: Any, checkpoint: Path) -> List[List[int]]:
    """Export a checkpoint, and let each export continue a prompt as ``ftdist chat`` does."""
    from ftdist.checkpoint.export import export_checkpoint
    from ftdist.serve.chat import load

    export_checkpoint(checkpoint, run.export, config)
    if config.method.kind.name in ("lora", "qlora"):
        line = export_checkpoint(checkpoint, run.merged, config, merged=True)
        library = "transformers" if config.model.adapter else "peft"  # the base with an adapter added is in no folder
        assert line in (run.merged / "README.md").read_text() and f"library_name: {library}" in (
            run.export / "README.md").read_text()  # fmt: skip
    answers = []
    for folder in (run.export, run.merged):
        if folder.is_dir():
            model, tokenizer = load(folder)
            prompt = tokenizer("hello", return_tensors="pt")
            answers.append(model.generate(**prompt, max_new_tokens=8, do_sample=False)[0].tolist())
            assert tokenizer.chat_template
    return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import peft  # noqa: F401 - so that no forked rank has to import it

    folder = tmp_path_factory.mktemp("methods")
    save_tiny_model(folder / "model")
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    save_peft_adapter(folder / "model", folder / "adapter", lora_alpha=32, use_dora=True, target_modules=linear)
    for packing in ("true", "false"):
        freeze_tiny(tiny_config(folder, *SETTINGS, f"data.packing={packing}"), folder / f"prepared-{packing}", 1)
    return folder


@pytest.fixture(scope="module")
def plain_losses(folder: Path) -> Dict[str, List[float]]:
    compared = {number: case_config(folder, 1, number) for number in COMPARED}
    parity = {method: case_config(folder, 1, number) for method, number in PARITY.items()}
    return run_ranks(_plainly, 1, compared, parity, folder, timeout_s=600)[0]


@pytest.fixture(scope="module")
def found(folder: Path, plain_losses: Dict[str, List[float]]) -> List[Found]:
    configs = [case_config(folder, 2, number) for number in range(len(CASES))]
    return run_ranks(_cases, 2, configs, folder, timeout_s=600)[0]


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case[:3])) for case in CASES])
def test_a_resume_is_exact_and_what_starts_from_an_adapter_equals_plain_peft(number: int, found: List[Found]) -> None:
    case = found[number]
    assert case.exact
    if number in COMPARED:
        assert not case.deviation.beyond(ALLOWED[Precision.fp32])
    trained, evaluated = case.heldout
    assert evaluated == pytest.approx(trained, rel=1e-6)
    assert len(case.answers) == (1 if CASES[number][0] == "partial" else 2)
    assert case.answers[0] == case.answers[-1] and len(case.answers[0]) > 5


def test_the_base_model_of_forgetting_is_the_model_without_new_adapters(found: List[Found]) -> None:
    for number, ((method, *_), case) in enumerate(zip(CASES, found, strict=True)):
        unchanged, moved, without = case.forgetting
        assert unchanged == 0 and abs(moved) > 1e-4, method  # of three texts, the estimate can be negative
        if ADAPTERS.get(number) == "method.init_from":
            assert abs(without) > 1e-4, "the base model is the model with the adapter that the run continues"
        elif method not in ("partial", "last_layer"):  # these also train weights of the model itself
            assert without == pytest.approx(0, abs=1e-6), method


def test_twenty_steps_equal_peft_with_the_trainer(found: List[Found], plain_losses: Dict[str, List[float]]) -> None:
    assert plain_losses.keys() == PARITY.keys()
    for method, losses in plain_losses.items():
        assert found[PARITY[method]].losses == pytest.approx(losses, rel=1e-4)
        assert losses[-1] < losses[0] - 0.3


def test_a_checkpoint_holds_what_is_trained_and_an_adapter_is_small(folder: Path, found: List[Found]) -> None:
    from safetensors import safe_open

    for number, case in enumerate(found):
        sizes = dict(case.files)
        sizes.pop("rng")
        whole = CASES[number][0] == "partial" or ADAPTERS.get(number) == "model.adapter"
        name = "model.safetensors" if whole else "adapter_model.safetensors"
        with safe_open(folder / f"run-{number}" / "export" / name, "pt") as file:
            exported = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
        assert set(sizes) == {"master", "exp_avg", "exp_avg_sq"} and len(set(sizes.values())) == 1
        if whole:
            assert sizes["master"] < exported / 2 + 64 * 259
        else:
            assert sizes["master"] == exported


def test_every_kind_of_export_opens_without_ftdist(folder: Path, found: List[Found]) -> None:
    exports = [folder / f"run-{n}" / name for n in range(len(CASES)) for name in ("export", "export-merged")]
    exports = [path for path in exports if path.is_dir()]
    for path, (adapter, answer, chat) in open_plainly(exports).items():
        number = int(path.parent.name.removeprefix("run-"))
        whole = CASES[number][0] == "partial" or ADAPTERS.get(number) == "model.adapter"
        assert adapter == (path.name == "export" and not whole)
        if CASES[number][0] != "qlora" or not adapter:  # opened so, its base is not quantized
            assert answer == found[number].answers[path.name == "export-merged"]
        assert chat == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def _elsewhere(configs: List[Any], changed: Any, folder: Path) -> Tuple[List[List[float]], List[Any], str]:
    """Resume runs on another number of ranks, at another stage.

    Returns:
        Their losses, their answers to questions, and the error of another base.
    """
    from ftdist.base.errors import CheckpointError

    ranks, losses, quizzes = start(configs[0]), [], []
    for config, number in zip(configs, MOVED, strict=True):
        training = assemble(config, folder / f"run-{number}", ranks)
        assert training.state.step == SAVED_AT
        losses.append([loss for loss, _ in steps(training, 3)])
        training.engine.destroy()
        quizzes.append(_quiz(config, training.run, ranks))
    try:
        assemble(changed, folder / "run-0", ranks)
    except CheckpointError as error:
        return losses, quizzes, str(error)
    return losses, quizzes, ""


MOVED = (0, 1, 3, 4)
"""Cases that are resumed on one rank instead of two, at the next stage."""


def test_a_resume_on_other_ranks_continues_and_another_base_is_refused(folder: Path, found: List[Found]) -> None:
    configs = [case_config(folder, 1, number) for number in MOVED]
    for config in configs:
        config.zero.stage = (config.zero.stage + 2) % 4
    other = shutil.copytree(folder / "model", folder / "other")
    save_tiny_model(other, initializer_range=0.03)
    changed = case_config(folder, 1, 0)
    changed.model.path = str(other)
    losses, quizzes, error = run_ranks(_elsewhere, 1, configs, changed, folder)[0]
    for number, continued in zip(MOVED, losses, strict=True):
        assert continued == pytest.approx(found[number].losses[SAVED_AT : SAVED_AT + 3], rel=1e-6)
    assert "the base model now has other weights" in error
    for number, quiz in zip(MOVED, quizzes, strict=True):
        assert [one["questions"] for one in (quiz, found[number].quiz)] == [5, 5]
        for one, other in zip(quiz["answers"], found[number].quiz["answers"], strict=True):
            assert one["base"] != pytest.approx(one["run"], rel=1e-3), "training has changed the model"
            for model in ("base", "run"):
                assert one[model] == pytest.approx(other[model], rel=1e-6)
