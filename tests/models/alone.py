"""One type of model in one process: a tiny model is checked as before a run, and a micro-batch of it is compared with
plain transformers, with eager attention and one document at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from tests.models.whole_run import RANDOM, config_of

LENGTHS, VOCABULARY = (33, 5, 61, 18), 300
LOSS, GRADIENT, SMALL = 1e-5, 1e-3, 1e-3


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
    zero3: str = ""
    """``exact``: two steps on two ranks are those of plain transformers; or what is wrong."""
    export: str = ""
    """``exact``: the export gives the logits of the run; or what is wrong."""
    cache: str = ""
    """``not used``: sample answers are generated without a cache of keys and values."""
    note: str = ""
    """Why the type is refused or what is wrong with it."""


GIVEN: Dict[str, Dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "emu3": {"vocabulary_map": {"<image>": 3, "<|extra_200|>": 4, "<|visual token 000000|>": 5}},
    "chameleon": {"vocabulary_map": {"<image>": 3, "IMGIMGAZ": 4}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"rope_theta": 5e5, "clip_qkv": 8.0, "kv_n_heads": 2}},
    "reformer": {"axial_pos_embds": False},
}
"""Fields that a published model of a type has, but the default config of the type has not. BigBird's sparse attention
sees later tokens in documents longer than its blocks."""


def tiny_config_of(model_type: str, **changed: Any) -> Any:
    """Return the transformers config of a tiny model of a type. Types that can be encoders become decoders.

    Args:
        changed: Fields that get other values.
    """
    from transformers import AutoConfig

    from ftdist.model.check import DIRECTIONS
    from ftdist.model.standin import default_model_config, whole_standin_config
    from ftdist.model.standin_sizes import short_limits

    arch = default_model_config(model_type)
    if decoder := {name: one for name, both, one in DIRECTIONS if getattr(arch, name, None) == both}:
        arch = AutoConfig.for_model(model_type, **decoder)
    fields = {**short_limits(whole_standin_config(arch, VOCABULARY), 10**9), **GIVEN.get(model_type, {}), **changed}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def save_tiny(model_type: str, folder: Path, **changed: Any) -> None:
    """Save a tiny model of a type as it would be published. Its scores of attention are not close to 0.

    Args:
        changed: Fields of its config that get other values.
    """
    import torch

    from ftdist.model.parts import auto_class

    arch = tiny_config_of(model_type, **changed)
    torch.manual_seed(1)
    model = auto_class(arch).from_config(arch, dtype=torch.float32)
    draw = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=draw) * weight.shape[-1] ** -0.5)
        model.eval()(input_ids=torch.zeros(1, 8, dtype=torch.long), use_cache=False)
    model.save_pretrained(folder)
    # The config of all parts, if the model is only one of them.
    tiny_config_of(model_type, **changed).save_pretrained(folder)


def examine(model_type: str, folder: Path, changed: Optional[Dict[str, Any]] = None) -> Outcome:
    """Take one type through the check, the choice of how documents run, loading, and the proof of isolation.

    Args:
        changed: Fields of its config that get other values.
    """
    import torch

    from ftdist.base.errors import FtdistError
    from ftdist.model.check import check_model
    from ftdist.model.export_trial import prove_export
    from ftdist.model.isolation import prove_isolation
    from ftdist.model.load import load_model, model_config
    from ftdist.model.plan_choice import choose_plan

    device, dtype, path = torch.device("cpu"), torch.float32, folder / "models" / model_type
    config = config_of(folder, path)
    try:
        save_tiny(model_type, path, **(changed or {}))
    except Exception as error:  # transformers cannot build the type, or the reduced sizes do not fit together
        return _not_saved(model_type, config, error)
    try:
        facts = check_model(config)
        arch = model_config(config)
        prove_export(config_of(folder, path, "bf16"), arch)  # nothing else of the check depends on the precision
        plan = choose_plan(config, arch, device, dtype).plan
        model = load_model(config, arch, plan, {"zero_optimization": {"stage": 0}})
        rows = min(VOCABULARY, int(arch.get_text_config().vocab_size))
        prove_isolation(model, rows, device, dtype, plan.describe())
    except FtdistError as error:
        return Outcome("refused", note=error.found.replace(config.model.path, model_type))
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
            checkpointing = first_line(error)
    one_row = plan.backend.name != "rows"
    cache = "" if plan.cached else "not used"
    return Outcome("packed" if one_row else "rows", plan.describe(), checkpointing, cache=cache)


def _not_saved(model_type: str, config: Any, error: Exception) -> Outcome:
    """Return the outcome of a type of which no tiny model could be saved. The check may refuse its default config."""
    from ftdist.base.errors import FtdistError
    from ftdist.model.check import check_model
    from ftdist.model.standin import default_model_config

    try:
        default_model_config(model_type).save_pretrained(config.model.path)
        check_model(config)
    except FtdistError as refused:
        return Outcome("refused", note=refused.found.replace(config.model.path, model_type))
    except Exception as refused:  # a default config that transformers itself refuses
        return Outcome("refused", note=first_line(refused))
    return Outcome("unmeasured", note=first_line(error))


def first_line(error: BaseException) -> str:
    """Return the kind of an error and its reason. The last line of a validation error is its reason."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[-1] if "validation" in lines[0] else lines[0]
    return f"{type(error).__name__}: {line.strip()}"[:160]


Numbers = Tuple[float, Dict[str, Any]]


def documents(rows: int) -> List[Tuple[Any, Any]]:
    """Return the token ids of each document, and for each token whether it is trained."""
    import torch

    draw = torch.Generator().manual_seed(11)
    ids = [torch.randint(10, rows, (n,), generator=draw) for n in LENGTHS]
    return [(d, torch.rand(len(d), generator=draw) < 0.7) for d in ids]


def plain(model: Any, rows: int) -> Tuple[Numbers, List[str]]:
    """Return the loss and the gradients that plain transformers computes for the documents alone, with eager
    attention."""
    import copy

    import torch

    from ftdist.model.parts import auto_class
    from ftdist.verify.reference import token_losses

    arch = copy.deepcopy(model.config)
    reference = auto_class(arch).from_config(arch, dtype=torch.float32, attn_implementation="eager")
    reference.load_state_dict(model.state_dict())
    reference.train(_mode(model))
    loss = torch.zeros(())
    for ids, trained in documents(rows):
        loss = loss + token_losses(reference, ids.numpy(), rows)[trained[1:]].sum()
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
        limits.to(torch.int32), limits.tolist(), max(LENGTHS), int((torch.cat(labels) != IGNORED).sum()), sum(LENGTHS),
        sum(n * n for n in LENGTHS),
    )  # fmt: skip
    model.train(_mode(model))
    model.zero_grad()
    loss = token_loss(model, batch, rows)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _mode(model: Any) -> bool:
    """Return whether to compare in training mode. The routers of PhiMoE draw random numbers in this mode."""
    return model.config.model_type not in RANDOM


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
