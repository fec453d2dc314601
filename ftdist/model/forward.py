"""Run a causal language model over a micro-batch of documents, in training or in evaluation."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Protocol, Tuple, Union

import torch
import torch.distributed as dist
from transformers.masking_utils import create_masks_for_generate

from ftdist.model.attention import document_kwargs
from ftdist.model.attention_plan import AttentionPlan, Layout
from ftdist.model.expert_load import ExpertLoad
from ftdist.model.routers import RouterLogits, without_balance_loss


class Batch(Protocol):
    """The fields of ``ftdist.data.loader.MicroBatch`` that forward and loss read."""

    @property
    def input_ids(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def position_ids(self) -> torch.Tensor: ...
    @property
    def cu_seqlens(self) -> torch.Tensor: ...
    @property
    def max_seqlen(self) -> int: ...
    @property
    def limits(self) -> List[int]: ...
    @property
    def real(self) -> Optional[torch.Tensor]: ...


def set_plan(causal_lm: torch.nn.Module, plan: AttentionPlan) -> None:
    """Store a plan on a model. The model must already have the attention implementation of the plan."""
    if not hasattr(causal_lm, "ftdist_plan"):
        forget_lengths(causal_lm)
    causal_lm.ftdist_plan = plan  # type: ignore[assignment]
    causal_lm.ftdist_position_padding = position_padding(causal_lm)  # type: ignore[assignment]
    if not hasattr(causal_lm, "ftdist_expert_load"):
        causal_lm.ftdist_expert_load = ExpertLoad(causal_lm)  # type: ignore[assignment]


def forget_lengths(causal_lm: torch.nn.Module) -> None:
    """Make dynamic rotary embeddings depend on the text of the forward pass only.

    transformers keeps the frequencies of the longest text so far, so the logits of a document would depend on the
    documents before it, and an exported model would compute others.
    """

    def forget(module: torch.nn.Module, args: Any) -> None:
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)

    for module in causal_lm.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            module.register_forward_pre_hook(forget)


def plan_of(model: Any) -> AttentionPlan:
    """Return how documents run through a model or an engine."""
    plan: AttentionPlan = without_engine(model).ftdist_plan
    return plan


def expert_load(model: Any) -> ExpertLoad:
    """Return the counts of the tokens of each expert of a model or an engine. The result is false if the model has no
    such experts."""
    load: ExpertLoad = without_engine(model).ftdist_expert_load
    return load


def position_padding(causal_lm: torch.nn.Module) -> Optional[int]:
    """Return the padding id of a model that counts positions as RoBERTa does, else None.

    The first token of a text has the position ``padding id + 1``. Padding tokens have the position ``padding id``, and
    are not counted.
    """
    counting = (m for m in causal_lm.modules() if hasattr(m, "create_position_ids_from_input_ids"))
    padding = getattr(next(counting, None), "padding_idx", None)
    return padding if isinstance(padding, int) else None


Index = Union[slice, torch.Tensor]
Read = Callable[[Callable[[], Any], Tuple[Index, Index], Index], torch.Tensor]
"""Runs the model once, and reads something at the requested positions.

Called as ``read(run, place, which)``. ``run`` runs the model and returns its outputs. ``place`` selects positions in
the inputs and the outputs of the head, [rows, length, …]. ``which`` says which of the requested positions they are.
Returns what was read, [number of positions, …]."""


def read_logits(run: Callable[[], Any], place: Tuple[Index, Index], which: Index) -> torch.Tensor:
    """Read the logits. See ``Read``."""
    logits: torch.Tensor = run().logits[place]
    return logits


def forward_logits(
    model: Any, batch: Batch, positions: torch.Tensor, routers: Optional[RouterLogits] = None
) -> torch.Tensor:
    """Run the model, and return the logits at some positions, [n, rows of the embedding]. See ``forward``."""
    return forward(model, batch, positions, read_logits, routers)


def forward(
    model: Any, batch: Batch, positions: torch.Tensor, read: Read, routers: Optional[RouterLogits] = None
) -> torch.Tensor:
    """Run the model, and return what ``read`` reads at some positions.

    The plan of the model (``plan_of``) says how the documents are arranged. If they are in one row and the model
    supports ``logits_to_keep``, the head is computed at these positions only.

    Args:
        model: The model, or an engine.
        batch: The micro-batch of T tokens.
        positions: [n] positions between 0 and T - 1, in ascending order.
        read: Reads for instance the logits.
        routers: Collects the logits of the routers of a mixture of experts for every token of the micro-batch.

    Returns:
        [n, …].
    """
    layout = plan_of(model).layout
    if layout is Layout.padded:
        return _padded(model, batch, positions, read, routers)
    if layout is Layout.alone:
        return _alone(model, batch, positions, read, routers)
    causal_lm = without_engine(model)
    keep = {"logits_to_keep": positions} if keeps_logits(causal_lm) else {}
    run = partial(
        _run,
        model,
        _real(batch),
        routers,
        input_ids=batch.input_ids,
        position_ids=_positions(causal_lm, batch),
        **keep,
        **(_masks(causal_lm, batch) if layout is Layout.masks else {}),
        **document_kwargs(batch.cu_seqlens, batch.max_seqlen, batch.limits),
    )
    columns = torch.arange(len(positions), device=positions.device) if keep else positions
    return read(run, (torch.zeros_like(columns), columns), slice(None))


def _run(model: Any, real: torch.Tensor, routers: Optional[RouterLogits], **inputs: Any) -> Any:
    """Run one forward pass, and count the tokens of the experts.

    Args:
        real: [rows, length] bool: False for padding, whose tokens are not counted.
    """
    more = routers.arguments if routers else {}
    causal_lm = without_engine(model)
    computed = routers or getattr(causal_lm.config.get_text_config(), "output_router_logits", False)
    quiet = without_balance_loss(causal_lm) if computed else nullcontext()
    with expert_load(model).counting(real), quiet:
        # With a cache, transformers silently drops its own block mask.
        outputs = model(use_cache=False, **inputs, **more)
    if routers:
        routers.add(outputs, real)
    return outputs


def _positions(causal_lm: Any, batch: Batch) -> torch.Tensor:
    """Return the position ids of a row [1, T] as the model would count them in each document alone."""
    padding = causal_lm.ftdist_position_padding
    if padding is None:
        return batch.position_ids
    real = (batch.input_ids != padding).long()
    counted = real.cumsum(1)
    first = torch.arange(real.shape[1], device=real.device) - batch.position_ids  # where the document begins
    before = torch.gather(counted - real, 1, first)
    return (counted - before) * real + padding


def _masks(causal_lm: Any, batch: Batch) -> Dict[str, Any]:
    """Return the mask of each kind of layer as a keyword argument, as transformers builds it for generation."""
    weight = next(causal_lm.parameters())
    embeds = torch.empty(*batch.input_ids.shape, 0, dtype=weight.dtype, device=batch.input_ids.device)
    masks = create_masks_for_generate(causal_lm.config, embeds, None, None, batch.position_ids)
    return {"attention_mask": masks}


def _real(batch: Batch) -> torch.Tensor:
    """Return which tokens are not padding, [1, T] bool."""
    return torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.real is None else batch.real


def _documents_of(batch: Batch, positions: torch.Tensor) -> torch.Tensor:
    """Return the number of the document that each position is in, [n]."""
    return torch.searchsorted(batch.cu_seqlens[1:].to(positions.dtype), positions, right=True)


def _documents_to_run(batch: Batch, positions: torch.Tensor, routers: Optional[RouterLogits]) -> torch.Tensor:
    """Return the numbers of the documents that must run, in ascending order: all, if ``routers`` collects logits."""
    if routers:
        positions = _real(batch)[0].nonzero()[:, 0]
    return _documents_of(batch, positions).unique()


def _padded(
    model: Any, batch: Batch, positions: torch.Tensor, read: Read, routers: Optional[RouterLogits]
) -> torch.Tensor:
    """Run the documents that ``positions`` are in, each in a row of its own.

    The padding repeats the last token of the document. In a causal model no token of the document sees it.
    """
    documents = _documents_to_run(batch, positions, routers)
    row = torch.searchsorted(documents, _documents_of(batch, positions))
    starts = batch.cu_seqlens[documents].to(positions.dtype)
    ends = batch.cu_seqlens[documents + 1].to(positions.dtype)
    length = int((ends - starts).max())
    columns = torch.arange(length, device=positions.device)
    tokens = torch.minimum(starts[:, None] + columns, ends[:, None] - 1)  # [documents, length]: positions in the row
    run = partial(_run, model, columns < (ends - starts)[:, None], routers, input_ids=batch.input_ids[0][tokens])
    return read(run, (row, positions - starts[row]), slice(None))


def _alone(
    model: Any, batch: Batch, positions: torch.Tensor, read: Read, routers: Optional[RouterLogits]
) -> torch.Tensor:
    """Run one forward pass for each document that ``positions`` are in.

    With ZeRO-3 each forward pass gathers parameters, so all ranks must run the same number of passes. They agree on
    this number before the first pass, because collectives must come in the same order on all ranks. A rank with fewer
    documents repeats its last one, and the result is multiplied by 0.
    """
    documents, limits = _documents_of(batch, positions), batch.limits
    parts: List[torch.Tensor] = []
    numbers = _documents_to_run(batch, positions, routers).tolist()
    forwards = _most_forwards(model, len(numbers))
    for number in numbers:
        start, end = limits[number], limits[number + 1]
        row = batch.input_ids[:, start:end]
        here = documents == number
        columns = positions[here] - start
        place = torch.zeros_like(columns), columns
        run = partial(_run, model, torch.ones_like(row, dtype=torch.bool), routers, input_ids=row)
        parts.append(read(run, place, here))
    for _ in range(forwards - len(numbers)):
        run = partial(_run, model, torch.zeros_like(row, dtype=torch.bool), None, input_ids=row)
        repeated = read(run, place, here)
        parts[-1] = parts[-1] + repeated.sum() * 0.0
    return torch.cat(parts)


def _most_forwards(model: Any, mine: int) -> int:
    """Return the largest ``mine`` of all ranks if the model is sharded, else ``mine``."""
    weight = next(without_engine(model).parameters())
    if not hasattr(weight, "ds_id") or not dist.is_initialized():
        return mine
    most = torch.tensor(mine, device=weight.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def without_engine(model: Any) -> Any:
    """Return the model of an engine, or the model itself."""
    return getattr(model, "module", model)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and afterwards back into the mode and to the weights that it had before.

    RWKV halves the weights of later layers in place in evaluation mode, so that fp16 does not overflow, and doubles
    them in the next training step. The optimizer and checkpoints must not read halved weights.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for module in model.modules() if was_training else ():
            if hasattr(module, "_rescale_layers"):
                module._rescale_layers()  # type: ignore[operator]


def keeps_logits(causal_lm: torch.nn.Module) -> bool:
    """Return whether a model can leave out the logits of some positions."""
    return "logits_to_keep" in inspect.signature(causal_lm.forward).parameters
