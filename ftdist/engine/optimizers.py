"""Build the optimizer of a run, and its states. ``ftdist.config.optim`` says what it keeps for each parameter."""

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch

from ftdist.config.optim import OptimConfig, OptimizerKind, OptimizerSpec, values_of
from ftdist.engine.lion import Lion
from ftdist.engine.muon_adamw import MATRICES, MuonAdamW, embedding_ids
from ftdist.model.quantized import import_bitsandbytes
from ftdist.model.vocabulary import whole_shape

Groups = List[Dict[str, Any]]
LR_SCALE = "lr_scale"
"""Entry of a group: its learning rate as a multiple of that of the run."""


def build_optimizer(optim: OptimConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``optim.optimizer`` names, over the trained parameters. Its learning rate is 0."""
    build = _paged(optim.optimizer) if optim.paged else BUILDERS[optim.optimizer]
    return build(parameter_groups(model, optim), values_of(optim))


def parameter_groups(model: torch.nn.Module, optim: OptimConfig) -> Groups:
    """Return the trained parameters in groups of the same settings.

    Matrices have weight decay, norms and biases (one dim) have none. With LoRA+, B has another learning rate.
    """
    groups: Dict[Tuple[Any, ...], Dict[str, Any]] = {}
    not_muon = embedding_ids(model) if optim.optimizer is OptimizerKind.muon else set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            dims = len(whole_shape(parameter))
            scale = optim.lora_plus_ratio if optim.lora_plus_ratio and is_lora_b(name) else 1.0
            settings = {"weight_decay": optim.weight_decay if dims > 1 else 0.0, LR_SCALE: scale}
            if optim.optimizer is OptimizerKind.muon:
                settings[MATRICES] = dims == 2 and id(parameter) not in not_muon
            key = (dims <= 1, *settings.values())
            groups.setdefault(key, {"params": [], **settings})["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def is_lora_b(name: str) -> bool:
    """Return whether a parameter is the matrix B of an adapter. It has PEFT's name."""
    return ".lora_B." in name or ".lora_embedding_B." in name


def _adamw(groups: Groups, values: Dict[str, float]) -> torch.optim.Optimizer:
    """Build AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101)."""
    betas = (values["beta1"], values["beta2"])
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=values["eps"], fused=True)


def _lion(groups: Groups, values: Dict[str, float]) -> torch.optim.Optimizer:
    return Lion(groups, lr=0.0, betas=(values["beta1"], values["beta2"]))


def _sgd(groups: Groups, values: Dict[str, float]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=values["momentum"])


def _adamw_8bit(groups: Groups, values: Dict[str, float]) -> torch.optim.Optimizer:
    """Build AdamW with block-wise 8-bit states (Dettmers 2022, https://arxiv.org/abs/2110.02861)."""
    optim = import_bitsandbytes(f"optim.optimizer={OptimizerKind.adamw_8bit.name}", "optim.optimizer=adamw").optim
    betas = (values["beta1"], values["beta2"])
    built: torch.optim.Optimizer = optim.AdamW8bit(groups, lr=0.0, betas=betas, eps=values["eps"])
    return built


def _paged(kind: OptimizerKind) -> Callable[[Groups, Dict[str, float]], torch.optim.Optimizer]:
    """Return what builds the optimizer of bitsandbytes whose states can be moved between GPU and host memory."""

    def build(groups: Groups, values: Dict[str, float]) -> torch.optim.Optimizer:
        optim = import_bitsandbytes("optim.paged=true", "optim.paged=false").optim
        eps = {"eps": values["eps"]} if "eps" in values else {}
        built: torch.optim.Optimizer = getattr(optim, PAGED[kind])(
            groups, lr=0.0, betas=(values["beta1"], values["beta2"]), **eps
        )
        return built

    return build


PAGED = {OptimizerKind.adamw: "PagedAdamW32bit", OptimizerKind.adamw_8bit: "PagedAdamW8bit",
         OptimizerKind.lion: "PagedLion32bit"}  # fmt: skip
"""Names of the paged optimizers in bitsandbytes."""


@contextmanager
def without_pages(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Make plain states inside a ``with`` block. They are dropped afterwards, and bitsandbytes never frees pages."""
    paged = getattr(optimizer, "is_paged", False)
    if paged:
        optimizer.is_paged = False  # type: ignore[attr-defined]
    yield
    if paged:
        optimizer.is_paged = True  # type: ignore[attr-defined]
        optimizer.state.clear()


def _adafactor(groups: Groups, values: Dict[str, float]) -> torch.optim.Optimizer:
    """Build Adafactor (Shazeer 2018, https://arxiv.org/abs/1804.04235). Its steps are relative to the size of the
    weights; lr is the largest relative step."""
    return torch.optim.Adafactor(groups, lr=0.0)


BUILDERS: Dict[OptimizerKind, Callable[[Groups, Dict[str, float]], torch.optim.Optimizer]] = {
    OptimizerKind.adamw: _adamw, OptimizerKind.adamw_8bit: _adamw_8bit, OptimizerKind.adafactor: _adafactor,
    OptimizerKind.lion: _lion, OptimizerKind.muon: MuonAdamW, OptimizerKind.sgd: _sgd,
}  # fmt: skip


def empty_state(optimizer: Any, spec: OptimizerSpec, flat: torch.Tensor, step: int) -> Dict[str, Any]:
    """Return the states of a tensor that the optimizer has updated ``step`` times, with zeros in them.

    Args:
        spec: What the optimizer keeps.
        flat: The tensor that the optimizer updates.

    Raises:
        NotImplementedError: The optimizer keeps states of another shape, and this function does not know them.
    """
    count = {"step": torch.tensor(float(step), device=flat.device)}

    def like(*names: str) -> Dict[str, Any]:
        return {name: torch.zeros_like(flat) for name in names}

    if isinstance(optimizer, (Lion, torch.optim.SGD)):
        return like(*spec.states)
    if isinstance(optimizer, torch.optim.Adafactor):
        if flat.ndim <= 1:
            return {"step": torch.tensor(float(step)), **like("variance")}
        rows, columns = (*flat.shape[:-1], 1), (*flat.shape[:-2], 1, flat.shape[-1])
        return {"step": torch.tensor(float(step)), "row_var": flat.new_zeros(rows), "col_var": flat.new_zeros(columns)}
    if isinstance(optimizer, MuonAdamW):
        return like("momentum_buffer") if optimizer.is_matrix(flat) else {**count, **like("exp_avg", "exp_avg_sq")}
    if hasattr(optimizer, "name2qmap"):
        return {"step": step, **_states_of_bitsandbytes(optimizer, spec, flat)}
    if spec.others:
        raise NotImplementedError(f"{type(optimizer).__name__} keeps {', '.join(spec.others)}, which do not have the "
                                  "shape of the parameter: empty_state must say how they are made")  # fmt: skip
    return {**count, **like(*spec.states)}


BLOCK, SMALLEST = 256, 4096
"""Elements of a block of bitsandbytes, and of the smallest tensor whose states are in 8 bits."""


def _states_of_bitsandbytes(optimizer: Any, spec: OptimizerSpec, flat: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Return empty states as bitsandbytes makes them: numbers in fp32, or codes, the numbers that they mean, and the
    scale of each block. Those of a paged optimizer are in pages."""
    in_fp32 = optimizer.args.optim_bits == 32 or flat.numel() < SMALLEST
    kind = torch.float32 if in_fp32 else torch.uint8
    states = {name: optimizer.get_state_buffer(flat, dtype=kind) for name in spec.states}
    if flat.is_cuda:
        torch.cuda.synchronize()  # a kernel writes the zeros, and the host may write into pages
    if in_fp32:
        return states
    for number, codes in (("1", "dynamic"), ("2", "udynamic")):
        optimizer.name2qmap[codes] = optimizer.name2qmap[codes].to(flat.device)
        states[f"qmap{number}"] = optimizer.name2qmap[codes]
        states[f"absmax{number}"] = torch.zeros(-(-flat.numel() // BLOCK), device=flat.device)
    return states
