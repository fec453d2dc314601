"""The invariance suite: the numbers of a run do not depend on how a batch is split or a model is sharded.

``make invariance`` runs the suite alone and writes what it measures into docs/correctness.md.

A case is one choice on each axis. Each case runs two steps through the real assembly and training loop and is
compared with the plain reference, which knows neither ranks nor packing. ``covering`` returns a small set of cases that
contains every pair of choices. ``AXES`` are those of full fine-tuning of all families, ``METHOD_AXES`` those of the
other methods, which plain PEFT applies in the reference. The product of all ``AXES`` has 41,472 cases. The slow tests
run the product of a few axes, and draw the others.
"""

import itertools
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from ftdist.config.data import SourceConfig
from ftdist.config.schema import Compile, LossHead, Precision
from ftdist.verify.compare import ALLOWED, Deviation
from tests.helpers.correctness_page import write_table
from tests.helpers.families import FAMILIES, OTHER_FAMILIES
from tests.helpers.plain_methods import METHODS, plain_model
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import NONE_WHOLE, freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import each_training

STEPS, ROWS = 2, 16
CLIP = 0.05  # below every gradient norm here
MOST_COMPILATIONS = 10
"""With ``train.compile=layers``: the parts of a layer, and once more for rows of one document."""
MORE_WITH_ADAPTERS = 3
"""Up to ZeRO-2 the input of the first layer needs no gradient if everything before it is frozen. The parts that read it
are compiled once more: the layer, its attention, and what follows attention."""
CHUNK = 7
"""Tokens of a chunk of the loss head: less than a row has."""

RECOMPUTE = {
    "": ("none", 1, False), "recompute": ("full", 1, False), "selective": ("selective", 1, False),
    "offloaded": ("selective", 2, True),
}  # fmt: skip
"""Values of ``train.gradient_checkpointing``, ``train.recompute_every`` and ``train.offload_activations``, by name."""

Axes = Dict[str, List[Any]]
AXES: Axes = {
    "family": list(FAMILIES),
    "stage": [0, 1, 2, 3],
    "world_size": [1, 2, 4],
    "accum": [1, 2, 4],
    "packing": [True, False],
    "recompute": list(RECOMPUTE),
    "precision": list(Precision),
    "clip": [False, True],
    "tied": [False, True],
    "head": list(LossHead),
}
METHOD_AXES: Axes = {
    "method": [method for method in METHODS if method != "full"],
    **{axis: AXES[axis] for axis in ("stage", "world_size", "accum", "packing", "recompute")},
}
SHARDED = "zero.deepspeed.zero_optimization.stage3_param_persistence_threshold=200"
"""DeepSpeed leaves parameters of up to 100,000 numbers whole on every rank: all of these models. With this setting, all
matrices and the larger adapters are sharded, and the smaller adapters are whole as in large models."""


class Case(NamedTuple):
    family: str
    stage: int
    world_size: int
    accum: int
    packing: bool
    recompute: str
    precision: Precision
    clip: bool
    tied: bool
    head: LossHead = LossHead.chunked
    compile: Compile = Compile.none
    """Not an axis of the suite, because it takes long."""
    method: str = "full"
    none_whole: bool = False
    """Whether ZeRO-3 shards every parameter, also the smallest. Not an axis: it changes nothing at the other stages."""

    @property
    def reference(self) -> Tuple[str, bool, Precision, bool, bool, str]:
        """The choices that the reference depends on."""
        return self.family, self.packing, self.precision, self.clip, self.tied, self.method


FIRST = Case("llama", 0, 1, 1, True, "", Precision.fp32, True, False)
"""The choices on axes that a set of cases does not have."""


def name(case: Case) -> str:
    """Return a name such as ``llama-stage3-2ranks-accum4-packed-bf16-clip``."""
    also = [word for word, on in ((case.recompute, case.recompute), ("clip", case.clip), ("tied", case.tied),
                                ("logits", case.head is LossHead.logits), (case.method, case.method != "full"),
                                ("compiled", case.compile is Compile.layers),
                                ("none-whole", case.none_whole)) if on]  # fmt: skip
    layout = "packed" if case.packing else "padded"
    sizes = [f"stage{case.stage}", f"{case.world_size}ranks", f"accum{case.accum}"]
    return "-".join([case.family, *sizes, layout, case.precision.name, *also])


def every_case(axes: Axes = AXES) -> List[Case]:
    """Return the product of the axes."""
    return [FIRST._replace(**dict(zip(axes, choice, strict=True))) for choice in itertools.product(*axes.values())]


def covering(axes: Axes = AXES, seed: int = 0, candidates: int = 50) -> List[Case]:
    """Return cases that contain every pair of choices of two axes.

    The algorithm is greedy: it draws ``candidates`` random cases, each with one pair that is still missing, and takes
    the case with the most missing pairs.
    """
    draw, names = random.Random(seed), list(axes)
    missing = {pair for case in _pairs_of_axes(axes) for pair in case}
    chosen: List[Case] = []
    while missing:
        tries, open_pairs = [], sorted(missing, key=str)
        for _ in range(candidates):
            (a, va), (b, vb) = draw.choice(open_pairs)
            fixed = {names[a]: va, names[b]: vb}
            tries.append(FIRST._replace(**{n: fixed.get(n, draw.choice(values)) for n, values in axes.items()}))
        best = max(tries, key=lambda case: len(missing & pairs(case, axes)))
        chosen.append(best)
        missing -= pairs(best, axes)
    return _on_fewer_ranks(chosen, axes)


def _on_fewer_ranks(cases: List[Case], axes: Axes) -> List[Case]:
    """Return the cases on as few ranks as leave every pair in one of them: each rank costs CPU time."""
    counts = Counter(pair for case in cases for pair in pairs(case, axes))
    fewer: List[Case] = []
    for case in cases:
        others = [case._replace(world_size=n) for n in AXES["world_size"] if n < case.world_size]
        own = pairs(case, axes)
        found = next((o for o in others if all(counts[pair] > 1 for pair in own - pairs(o, axes))), case)
        counts.subtract(own)
        counts.update(pairs(found, axes))
        fewer.append(found)
    return fewer


def other_families() -> List[Case]:
    """Return one case for each model that needs a slower way to run documents. ZeRO-3 on two ranks, because a rank with
    fewer documents must still run as many forward passes as the other. Parameters without a gradient: at each stage."""
    stages = {family: [0, 1, 2, 3] if family == "bart" else [3] for family in OTHER_FAMILIES}
    return [Case(family, stage, 2, 2, True, "", Precision.fp32, False, False)
            for family, all_stages in stages.items() for stage in all_stages] + [
            # The balance loss is over the global batch: the same for each way to split it, without padding.
            Case("mixtral_balanced", 0, 1, 1, True, "", Precision.fp32, False, False),
            Case("mixtral_balanced", 1, 4, 1, True, "recompute", Precision.fp32, False, False),
            Case("mixtral_balanced", 2, 2, 4, False, "recompute", Precision.fp32, False, False)]  # fmt: skip


def covering_methods() -> List[Case]:
    """Return cases that contain every pair of choices of ``METHOD_AXES``: 24, which is as few as possible."""
    return covering(METHOD_AXES, seed=24, candidates=150)


def crossed(names: Sequence[str], axes: Axes = AXES) -> List[Case]:
    """Return the product of the axes ``names``. The choices on the other axes are drawn."""
    draw = random.Random(0)
    return [case._replace(**{name: draw.choice(values) for name, values in axes.items() if name not in names})
            for case in every_case({name: axes[name] for name in names})]  # fmt: skip


def crossed_methods() -> List[Case]:
    """Return each method at each stage on each number of ranks, packed and padded, and at stage 3 once more with every
    parameter sharded."""
    cases = crossed(("method", "stage", "world_size", "packing"), METHOD_AXES)
    return cases + [case._replace(none_whole=True) for case in cases if case.stage == 3]


def pairs(case: Case, axes: Axes = AXES) -> set:
    """Return the pairs of choices of a case: ((axis, value), (axis, value)). Axes are numbers here."""
    return set(itertools.combinations(enumerate(getattr(case, axis) for axis in axes), 2))


def _pairs_of_axes(axes: Axes) -> Iterator[List[Any]]:
    for (a, left), (b, right) in itertools.combinations(enumerate(axes.values()), 2):
        yield [((a, x), (b, y)) for x in left for y in right]


def write_data(folder: Path) -> Dict[str, Path]:
    """Write short prompts and completions of very different lengths, and a tokenizer that pads with its stop token."""
    from ftdist.data.tokenizer import bytes_tokenizer

    tokenizer = bytes_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder / "tokenizer")
    draw, files = random.Random(5), {}
    for name, count in (("train", 120), ("test", 13)):
        files[name] = folder / f"{name}.jsonl"
        words = [
            ["".join(draw.choices("abcdefgh ", k=draw.choice((2, 9, 20)))) for _ in range(2)] for _ in range(count)
        ]
        records = [{"prompt": prompt, "completion": answer.strip() or "a"} for prompt, answer in words]
        files[name].write_text("".join(json.dumps(record) + "\n" for record in records))
    return files


def case_config(case: Case, folder: Path) -> Any:
    micro = ROWS // case.world_size // case.accum
    recompute, every, offload = RECOMPUTE[case.recompute]
    config = tiny_config(
        folder, f"model.path={_model(case, folder)}", f"model.tokenizer={folder / 'tokenizer'}",
        f"data.heldout.test.path={folder / 'test.jsonl'}", "data.heldout_share=0", "data.max_heldout_documents=null",
        "data.max_seq_len=64", f"data.packing={str(case.packing).lower()}", f"batch.global_batch_size={ROWS}",
        f"batch.micro_batch_size={micro}", f"train.precision={case.precision.name}", f"zero.stage={case.stage}",
        f"train.gradient_checkpointing={recompute}", f"train.recompute_every={every}",
        f"train.offload_activations={str(offload).lower()}", f"objective.loss_head={case.head.name}",
        f"train.compile={case.compile.name}",
        f"optim.max_grad_norm={CLIP if case.clip else 0}", "optim.lr=3e-3", "optim.weight_decay=0.1",
        "optim.warmup_steps=2", "optim.min_lr_ratio=0.1", "train.num_samples=0", "train.export=false",
        "train.max_steps=6", "launch.timeout_s=300", NONE_WHOLE if case.none_whole else SHARDED, *METHODS[case.method],
    )  # fmt: skip
    config.data.sources = {"mine": SourceConfig(path=str(folder / "train.jsonl"))}
    return config


def _model(case: Case, folder: Path) -> Path:
    return folder / f"model-{case.family}-{case.tied}"


def _reference_file(case: Case, folder: Path) -> Path:
    return folder / f"{'-'.join(map(str, case.reference))}.pt"


def run_cases(cases: List[Case], folder: Path) -> Dict[Case, Deviation]:
    """Run the references in one process, then the cases, grouped by their number of ranks."""
    if any(case.method != "full" for case in cases):
        import peft  # noqa: F401 - so that no forked rank has to import it
    write_data(folder)
    for family, tied in {(case.family, case.tied) for case in cases}:
        save_tiny_model(
            folder / f"model-{family}-{tied}", **{**FAMILIES, **OTHER_FAMILIES}[family], tie_word_embeddings=tied
        )
    for packing in {case.packing for case in cases}:
        first = next(case for case in cases if case.packing is packing)
        freeze_tiny(case_config(first, folder), folder / f"prepared-{packing}", first.world_size)
    run_ranks(_references, 1, cases, folder, timeout_s=900)
    found: Dict[Case, Deviation] = {}
    for world_size in AXES["world_size"]:
        here = [case for case in cases if case.world_size == world_size]
        if here:
            found.update(zip(here, run_ranks(_deviations, world_size, here, folder, timeout_s=900)[0], strict=True))
    return found


def _references(cases: List[Case], folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from ftdist.model.load import DTYPES
    from ftdist.parallel import rank_process
    from ftdist.run.prepared import data_folder
    from ftdist.verify.compare import run_reference
    from ftdist.verify.reference import read_rows, row_order

    rank_process.quiet_libraries()
    torch.set_num_threads(1)
    for case in {case.reference: case for case in cases}.values():
        config = case_config(case, folder)
        dtype = DTYPES[case.precision]
        model = plain_model(config) if case.method != "full" else AutoModelForCausalLM.from_pretrained(
            config.model.path, dtype=dtype, attn_implementation="eager")  # fmt: skip
        data = data_folder(config)
        rows, heldout = read_rows(data / "train"), [d for row in read_rows(data / "test") for d in row]
        order = row_order(config.seed, len(rows), STEPS * ROWS)
        for name, parameter in model.named_parameters():
            if ".vision_tower." in name or ".multi_modal_projector." in name:
                parameter.requires_grad_(False)
        asked = getattr(model.config, "output_router_logits", False)
        balance = model.config.router_aux_loss_coef if asked else 0.0
        expected = run_reference(model, config, rows, order, STEPS, heldout, None, balance)
        torch.save(expected, _reference_file(case, folder))


def _deviations(cases: List[Case], folder: Path) -> List[Deviation]:
    import torch

    from ftdist.model import compiled
    from ftdist.plan import loss_head
    from ftdist.verify.compare import measure_deviation

    loss_head.CHUNK_BYTES["cpu"] = 4 * 259 * CHUNK
    compiled.BACKEND = "aot_eager"  # graphs and gradients are those of inductor, but it compiles no C++
    expected = [torch.load(_reference_file(case, folder), weights_only=False) for case in cases]
    trainings = each_training([case_config(case, folder) for case in cases], folder)
    found = []
    for case, training, those in zip(cases, trainings, expected, strict=True):
        found.append(measure_deviation(training, those, STEPS))
        if case.compile is Compile.layers:
            most = MOST_COMPILATIONS + (MORE_WITH_ADAPTERS if case.method == "lora" and case.stage < 3 else 0)
            assert 0 < training.engine.compiled.count <= most, training.engine.compiled.count
    return found


def table(found: Dict[Case, Deviation]) -> List[List[str]]:
    """Return one row for each precision and family: the number of cases and the largest deviations."""
    rows = []
    for precision, family in itertools.product(Precision, AXES["family"]):
        here = [d for case, d in found.items() if (case.precision, case.family) == (precision, family)]
        if here:
            rows.append([precision.name, family, *_largest(here)])
    for precision, allowed in ALLOWED.items():
        rows.append([precision.name, "allowed", "", *_limits(allowed)])
    return rows


def method_table(found: Dict[Case, Deviation]) -> List[List[str]]:
    """Return one row for each method: the number of cases and the largest deviations."""
    rows = [[method, *_largest([d for case, d in found.items() if case.method == method])]
            for method in METHOD_AXES["method"]]  # fmt: skip
    return [*rows, ["allowed", "", *_limits(ALLOWED[Precision.fp32])]]


def _largest(deviations: List[Deviation]) -> List[str]:
    """Return the number of cases, and the largest deviation of each number."""
    numbers = vars(ALLOWED[Precision.fp32])
    return [str(len(deviations)), *(f"{max(getattr(d, number) for d in deviations):.1e}" for number in numbers)]


def _limits(allowed: Any) -> List[str]:
    return [f"{limit:.0e}" for limit in vars(allowed).values()]


def main() -> None:
    numbers = list(vars(ALLOWED[Precision.fp32]))
    with tempfile.TemporaryDirectory() as folder:
        found = run_cases([*covering(), *covering_methods()], Path(folder))
    full = {case: deviation for case, deviation in found.items() if case.method == "full"}
    write_table("suite", ["precision", "family", "cases", *numbers], table(full))
    write_table("methods", ["method", "cases", *numbers], method_table(found))


if __name__ == "__main__":
    main()
