"""Every causal language model of transformers: exact, or refused with the reason. ``make models`` runs all of them.

For each type a tiny random model goes through the check, the choice of how documents run, loading, and the proof of
isolation, as in a run. Then the loss and all gradients of a micro-batch are compared with those of the documents alone,
which this module computes with nothing but transformers. ``docs/models.md`` is generated from the outcomes.
"""

import dataclasses
import json
import os
import pickle
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from tests.helpers.ranks import fork

OUTCOMES = Path(__file__).with_name("outcomes.json")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
LENGTHS, VOCABULARY = (33, 5, 61, 18), 300
LOSS, GRADIENT, SMALL = 1e-5, 1e-3, 1e-3
LIMIT_S, MEMORY = 150, 10 << 30
TOO_LARGE = "the reduced model takes more than 10 GiB or 150 s"
CI = [
    "afmoe", "bloom", "doge", "flint", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt_neox_japanese",
    "gpt_oss", "granite", "granitemoe_swa", "jamba", "jetmoe", "lfm3", "llama", "llama4_text", "megatron-bert",
    "minimax", "mistral", "mixtral", "mpt", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "phi", "phi3",
    "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "stablelm", "starcoder2", "trocr", "vaultgemma", "xglm", "zaya",
]  # fmt: skip
"""Types that CI checks each time. They are small, and cover every way in which documents run."""


@dataclass(frozen=True)
class Outcome:
    """What the suite found out about a type."""

    result: str
    """``packed``: documents share a row; ``rows``: each document is a row of its own; ``refused``; ``unmeasured``: no
    tiny model of the type can be built; or ``wrong``."""
    attention: str = ""
    """How documents run, as the log of a run says it."""
    checkpointing: str = ""
    """``exact``, or why gradient checkpointing cannot be used."""
    note: str = ""
    """Why the type is refused or what is wrong with it."""


def all_types() -> List[str]:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING)


def tiny_fields(model_type: str) -> Dict[str, Any]:
    """Return the config of a tiny model of a type. Types that can be encoders or decoders become decoders."""
    from transformers import AutoConfig

    from ftdist.model.exactness import short_limits
    from ftdist.model.standin import default_model_config, standin_config

    arch = default_model_config(model_type)
    if getattr(arch, "is_decoder", None) is False:
        arch = AutoConfig.for_model(model_type, is_decoder=True)
    known = {field.name for field in dataclasses.fields(type(arch))} | set(arch.attribute_map) | {"model_type"}
    fields = short_limits(standin_config(arch, VOCABULARY), 10**9)
    return {name: value for name, value in fields.items() if name in known}


def examine(model_type: str, folder: Path) -> Outcome:
    """Take one type through the steps of a run."""
    import torch

    from ftdist.base.errors import FtdistError
    from ftdist.model.check import check_model
    from ftdist.model.exactness import choose_plan
    from ftdist.model.isolation import prove_isolation
    from ftdist.model.load import load_model, model_config
    from tests.helpers.tiny import tiny_config

    device, dtype = torch.device("cpu"), torch.float32
    config = tiny_config(folder, "model.path=null")
    config.data.max_seq_len, config.train.gradient_checkpointing = 10**6, False
    try:
        config.model.config = tiny_fields(model_type)
        facts = check_model(config)
    except Exception as error:  # the reduced sizes do not fit together
        return Outcome("unmeasured", note=str(getattr(error, "found", error)).splitlines()[0])
    try:
        arch = model_config(config)
        plan = choose_plan(config, arch, device, dtype).plan
        model = load_model(config, arch, plan, {"zero_optimization": {"stage": 0}})
        rows = min(VOCABULARY, int(arch.get_text_config().vocab_size))
        prove_isolation(model, rows, device, dtype, plan.describe())
    except FtdistError as error:
        return Outcome("refused", note=error.found)
    expected, names = plain(model, rows)
    wrong = deviation(packed(model, rows), expected, names)
    if wrong:
        return Outcome("wrong", plan.describe(), note=wrong)
    checkpointing = "not supported"
    if facts.recomputes:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            checkpointing = deviation(packed(model, rows), expected, names) or "exact"
        except Exception as error:
            checkpointing = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    one_row = plan.backend.name != "rows"
    return Outcome("packed" if one_row else "rows", plan.describe(), checkpointing)


Numbers = Tuple[float, Dict[str, Any]]


def documents(rows: int) -> List[Tuple[Any, Any]]:
    """Return the token ids of each document, and for each token whether it is trained."""
    import torch

    draw = torch.Generator().manual_seed(11)
    ids = [torch.randint(10, rows, (n,), generator=draw) for n in LENGTHS]
    return [(d, torch.rand(len(d), generator=draw) < 0.7) for d in ids]


def plain(model: Any, rows: int) -> Tuple[Numbers, List[str]]:
    """Return the loss and the gradients that plain transformers computes for the documents alone, with eager attention.

    The weights of ``model`` are first drawn again, so that its scores of attention are not close to 0.
    """
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    draw = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=draw) * weight.shape[-1] ** -0.5)
    arch = copy.deepcopy(model.config)
    reference = AutoModelForCausalLM.from_config(arch, dtype=torch.float32, attn_implementation="eager")
    reference.load_state_dict(model.state_dict())
    reference.train(_mode(model))
    loss = torch.zeros(())
    for ids, trained in documents(rows):
        logits = reference(input_ids=ids[None], use_cache=False).logits[0, :-1, :rows]
        each = torch.nn.functional.cross_entropy(logits.float(), ids[1:], reduction="none")
        loss = loss + each[trained[1:]].sum()
    loss.backward()
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    return (float(loss.detach()), gradients), list(gradients)


def packed(model: Any, rows: int) -> Numbers:
    """Return the loss and the gradients that a run computes for a micro-batch of the documents."""
    import torch

    from ftdist.data.loader import IGNORED, MicroBatch
    from ftdist.objective.token_loss import token_loss

    ids, labels = [], []
    for tokens, trained in documents(rows):
        ids.append(tokens)
        labels.append(torch.where(trained, tokens, IGNORED))
        labels[-1][0] = IGNORED
    limits = torch.tensor([0, *LENGTHS]).cumsum(0)
    batch = MicroBatch(
        torch.cat(ids)[None], torch.cat(labels)[None], torch.cat([torch.arange(n) for n in LENGTHS])[None],
        limits.to(torch.int32), max(LENGTHS), int((torch.cat(labels) != IGNORED).sum()), sum(LENGTHS),
    )  # fmt: skip
    model.train(_mode(model))
    model.zero_grad()
    loss = token_loss(model, batch, rows)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _mode(model: Any) -> bool:
    """Return whether to compare in training mode. The routers of PhiMoE draw random numbers in this mode."""
    return str(model.config.model_type) != "phimoe"


def deviation(found: Numbers, expected: Numbers, names: List[str]) -> str:
    """Return the largest deviation beyond what rounding explains, or an empty text."""
    off = abs(found[0] - expected[0]) / abs(expected[0])
    whole = sum(float(expected[1][name].norm()) ** 2 for name in names) ** 0.5
    if found[1].keys() != expected[1].keys():
        return f"{min(found[1].keys() ^ expected[1].keys())} gets a gradient in only one of the two"
    worst = {
        name: float((found[1][name] - expected[1][name]).norm()) / max(float(expected[1][name].norm()), SMALL * whole)
        for name in names
    }
    name = max(worst, key=lambda key: (worst[key] != worst[key], worst[key]))
    if off <= LOSS and worst[name] <= GRADIENT:
        return ""
    return f"loss off by {off:.1g}, gradient of {name} by {worst[name]:.1g}"


def run(types: List[str], jobs: int = 1) -> Dict[str, Outcome]:
    """Examine types in forked processes. This process has imported what they need, so each takes seconds."""
    import torch
    import transformers

    import ftdist.model.check
    import ftdist.train.main  # noqa: F401

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    found: Dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        running: Dict[int, Tuple[str, float]] = {}
        for model_type in types:
            while len(running) >= jobs:
                _collect(running, found, Path(folder))
            pid = fork()
            if pid == 0:
                _child(model_type, Path(folder))
            running[pid] = model_type, time.monotonic()
        while running:
            _collect(running, found, Path(folder))
    return dict(sorted(found.items()))


def _child(model_type: str, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        outcome = examine(model_type, folder / model_type)
    except BaseException as error:
        outcome = Outcome("wrong", note=f"traceback: {type(error).__name__}: {error}".splitlines()[0][:200])
        if "can't allocate memory" in outcome.note:
            outcome = Outcome("unmeasured", note=TOO_LARGE)
    (folder / f"{model_type}.pickle").write_bytes(pickle.dumps(outcome))
    os._exit(0)


def _collect(running: Dict[int, Tuple[str, float]], found: Dict[str, Outcome], folder: Path) -> None:
    for pid, (model_type, started) in list(running.items()):
        ended, _ = os.waitpid(pid, os.WNOHANG)
        late = time.monotonic() - started > LIMIT_S
        if late and not ended:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        if ended or late:
            file = folder / f"{model_type}.pickle"
            found[model_type] = (
                pickle.loads(file.read_bytes()) if file.exists() else Outcome("unmeasured", note=TOO_LARGE)
            )
            del running[pid]
    time.sleep(0.02)


def read_outcomes() -> Dict[str, Outcome]:
    return {name: Outcome(**fields) for name, fields in json.loads(OUTCOMES.read_text(encoding="utf-8")).items()}


def write_outcomes(found: Dict[str, Outcome]) -> None:
    short = {name: {k: v for k, v in asdict(outcome).items() if v} for name, outcome in found.items()}
    OUTCOMES.write_text(json.dumps(short, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


HEAD = """# Models

Every type of causal language model in transformers {version}, and what ftdist does with it. `make models` measures this
page with tiny random models, in fp32 on a CPU: the loss of a micro-batch is that of plain transformers with eager
attention, one document at a time, up to 1e-5, and the gradient of each parameter up to 1e-3.

- **packed**: several documents share a row ({packed} types).
- **rows**: each document is a row of its own, which is slower ({rows} types).
- **refused**: the run does not start, for the reason in the last column ({refused} types).
- **unmeasured**: no tiny model of the type could be built ({unmeasured} types). A run decides with the real config.

The column *attention* is what `model.attention=auto` chooses on a CPU, see [Packing](data.md#packing). On a GPU the
choice is made again. Encoders such as BERT need `model.config.is_decoder=true`; they are listed as decoders.

| type | documents | attention | gradient checkpointing | notes |
|---|---|---|---|---|
"""


def page(found: Dict[str, Outcome], version: str) -> str:
    """Return the text of docs/models.md."""
    counts = {
        kind: sum(o.result == kind for o in found.values()) for kind in ("packed", "rows", "refused", "unmeasured")
    }
    rows = [
        f"| `{name}` | {o.result} | {o.attention} | {o.checkpointing} | {_cell(o.note)} |" for name, o in found.items()
    ]
    return HEAD.format(version=version, **counts) + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def main(argv: Optional[List[str]] = None) -> int:
    import transformers

    chosen = sys.argv[1:] if argv is None else argv
    found = run(chosen or all_types(), jobs=2)
    for name, outcome in found.items():
        print(f"{name:26} {outcome.result:8} {outcome.attention:32} {outcome.checkpointing:14} {outcome.note[:140]}")
    if not chosen:
        write_outcomes(found)
        PAGE.write_text(page(found, transformers.__version__), encoding="utf-8")
    return int(any(outcome.result == "wrong" for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())
