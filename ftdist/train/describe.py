"""Lines of the log that describe a run before its first step."""

from typing import Any, List, Optional

import torch

from ftdist.base.counts import count
from ftdist.config.schema import Recompute, RunConfig
from ftdist.config.zero import ModelState
from ftdist.engine.engine import Engine
from ftdist.engine.gathered_views import fused_modules
from ftdist.model.attention_plan import AttentionPlan, Layout
from ftdist.model.compiled import Compiled
from ftdist.model.exactness import Choice
from ftdist.model.isolation import Isolation
from ftdist.model.parts import describe_other_parts, describe_unread_weights
from ftdist.model.recompute import keeps_attention
from ftdist.model.routers import has_experts
from ftdist.objective.coefficient import model_coefficient
from ftdist.objective.head import Head
from ftdist.plan.activations import kept_activations, layer_sizes, recomputes_all
from ftdist.plan.disk import size_text
from ftdist.plan.loss_head import chunk_size, head_bytes, most_tokens
from ftdist.plan.memory import eager_attention_bytes, gathered_bytes

INDENT, EXPERTS, ACTIVATIONS = " " * len("attention: "), " " * len("experts: "), "activations: "
COMPILED = " " * len("compiled: ")


def describe_attention(
    config: RunConfig, arch: Any, choice: Choice, proof: Isolation, one_document: bool
) -> List[str]:  # fmt: skip
    """Return the lines that say how documents run through the model, what was measured, and why no faster way is used.

    Args:
        arch: Config of the model.
        proof: What was measured on the model.
        one_document: A micro-batch never contains more than one document.
    """
    across = "" if one_document else f"changing one document changes the logits of the others by {proof.crossing:g}, "
    ahead = f"changing a token changes earlier logits by {proof.looking_ahead:g}"
    lines = [f"attention: {choice.plan.describe()}; {across}{ahead}"]
    lines += [f"{INDENT}not {reason}" for reason in choice.rejected]
    lines += [INDENT + choice.unproven] if choice.unproven else []
    if config.train.num_samples and not choice.plan.cached:
        why = (
            "it is not known whether its cache works"
            if choice.unproven
            else "with its cache the model gives other tokens"
        )
        lines.append(f"{INDENT}answers are sampled without a cache, which is slower: {why}")
    return lines + ([INDENT + _memory(config, arch, choice)] if choice.plan.implementation == "eager" else [])


def describe_experts(config: RunConfig, arch: Any, balance: float, counted: bool = True) -> List[str]:
    """Return the lines that say how the load of a mixture of experts is balanced; none for other models.

    Args:
        arch: Config of the model.
        balance: Coefficient of the balance loss. 0: there is none.
        counted: Whether the tokens of each expert are counted (``ftdist.model.expert_load``).
    """
    if not has_experts(arch):
        return []
    unknown = [] if counted else [f"{EXPERTS}the tokens of each expert of {arch.model_type} cannot be counted"]
    if not balance:
        own = model_coefficient(arch)
        add = f"objective.router_aux_loss={own:g} adds one" if own else f"transformers has none for {arch.model_type}"
        return [f"experts: no loss balances their load; {add}", *unknown]
    cost, steps = "", config.batch.grad_accum_steps or 1
    if steps > 1:  # a backward pass takes twice as long as a forward pass, and recomputation is another forward pass
        share = "a quarter" if recomputes_all(config.train) else "a third"
        cost = f". To count the tokens of each expert, a step runs its {steps} micro-batches once more without " \
               f"gradients, which takes about {share} more time"  # fmt: skip
    return [
        f"experts: their balance loss over the global batch, times {balance:g}, is added to the loss{cost}",
        *unknown,
    ]


def describe_gathered(config: RunConfig, model: torch.nn.Module) -> List[str]:
    """Return the line that says how much ZeRO-3 gathers for the experts of one layer; none without ZeRO-3 or
    experts."""
    modules = fused_modules(model) if ModelState.parameters.is_sharded(config.zero.stage) else []
    sizes = [[(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in m.parameters()] for m in modules]
    if not sizes:
        return []
    largest = max(sizes, key=lambda one: sum(number for number, _ in one))
    parameters, trained = sum(number for number, _ in largest), any(is_trained for _, is_trained in largest)
    weights, whole = (gathered_bytes(parameters, config.train.precision, more) / 2**30 for more in (False, trained))
    backward = f", {whole:,.1f} GiB with their gradients" if trained else ""
    one = config.zero.expert_groups == 1
    what = "one layer at once" if one else "one group of a layer at a time"
    less = "; zero.expert_groups divides them" if one else ""
    return [f"{EXPERTS}ZeRO-3 gathers those of {what}: {weights:,.1f} GiB{backward}{less}"]


def describe_layers(config: RunConfig, engine: Engine, arch: Any, plan: AttentionPlan) -> List[str]:
    """Return the lines that say which parts of a model are not trained, what its layers keep, and which are compiled.

    Args:
        arch: Config of the model.
        plan: How documents run through the model.
    """
    model = engine.module
    lines = [*describe_other_parts(model), *describe_unread_weights(model), *describe_activations(config, arch, plan)]
    return lines + (describe_compiled(engine.compiled) if engine.compiled else [])


def describe_compiled(compiled: Compiled) -> List[str]:
    """Return the lines that say which layers are compiled, and why others are not."""
    lines = [f"compiled: {count(len(compiled.layers), 'layer')}, on first use in training"]
    return lines + [f"{COMPILED}not {count(number, 'layer')}: {why}" for why, number in compiled.left_out.items()]


def describe_activations(config: RunConfig, arch: Any, plan: AttentionPlan) -> List[str]:
    """Return the lines that say what the layers keep for the backward pass; none if their sizes are not known.

    Args:
        arch: Config of the model.
        plan: How documents run through the model.
    """
    train, lines = config.train, []
    keeps = keeps_attention(train, plan)
    if train.gradient_checkpointing is Recompute.selective and not keeps:
        lines.append(
            f"{ACTIVATIONS}{plan.describe()} cannot keep the outputs of attention: whole layers are recomputed"
        )
    text = arch.get_text_config()
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    sizes, layers = layer_sizes(*(_field(text, name) for name in names)), _field(text, "num_hidden_layers")
    if sizes is None or not isinstance(layers, int) or has_experts(arch):
        return lines
    tokens = config.batch.micro_batch_size * config.data.max_seq_len
    kept = kept_activations(train, sizes, layers, tokens, keeps)
    device, host, working = map(size_text, (kept.device, kept.host, kept.working))
    if train.gradient_checkpointing is Recompute.none:
        keep = count(layers, "layer keeps", "layers keep")
        return [f"{ACTIVATIONS}{keep} about {device} for {tokens:,} tokens, and nothing is recomputed"]
    what = "their inputs and the outputs of attention" if keeps else "their inputs"
    every = f" (one in {train.recompute_every})" if train.recompute_every > 1 else ""
    where = f" and {host} of host memory" if kept.host else ""
    return [*lines, f"{ACTIVATIONS}recomputed layers{every} keep {what}. For {tokens:,} tokens all layers keep about "
                    f"{device}{where}, and the layer that is being recomputed takes {working} more"]  # fmt: skip


def _field(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # Dots 3 has a different number of heads in each layer, and raises an error
        return None


def describe_head(config: RunConfig, head: Optional[Head], vocab_size: int, reason: str) -> List[str]:
    """Return the line that says what memory the loss needs, or why it is not computed in chunks.

    There is none if the config asks for the model's own logits.

    Args:
        head: The head of the model; None if its own logits are used.
        vocab_size: Number of rows of the embedding that are real tokens.
        reason: Why the model's own logits are used.
    """
    if head is not None:
        most = most_tokens(head.device_type, vocab_size)
        tokens = config.batch.micro_batch_size * config.data.max_seq_len
        size = head_bytes(
            head.hidden_size, vocab_size, tokens, most, config.train.precision, head.device_type, head.trained
        )
        weight = ", with the gradient of its weight in fp32" if head.trained else ""
        return [f"loss: the head computes {count(chunk_size(tokens, most), 'token')} at a time and needs up to "
                f"{size_text(size)}{weight}"]  # fmt: skip
    return [f"loss: from the logits of all trained tokens of a row, because of the model: {reason}"] if reason else []


def _memory(config: RunConfig, arch: Any, choice: Choice) -> str:
    """Return how much memory eager attention needs."""
    size = eager_bytes(config, arch, choice.plan) / 2**30
    if not size:
        return "the memory of eager attention grows with the square of the row length"
    rows, length = config.batch.micro_batch_size, config.data.max_seq_len
    change = "data.max_seq_len or batch.micro_batch_size" + (
        "" if recomputes_all(config.train) else ", or set train.gradient_checkpointing=full train.recompute_every=1"
    )
    what = f"if {count(rows, 'document has', 'documents have')} {length:,} tokens"
    if choice.plan.layout in (Layout.row, Layout.masks):
        what = f"for a row of {rows * length:,} tokens"
    return f"eager attention keeps {size:,.1f} GiB of scores {what}; to reduce it, lower {change}"


def eager_bytes(config: RunConfig, arch: Any, plan: AttentionPlan) -> int:
    """Return the bytes of scores that eager attention keeps. 0: there are none, or the sizes are not known.

    Args:
        arch: Config of the model.
    """
    text, rows, length = arch.get_text_config(), config.batch.micro_batch_size, config.data.max_seq_len
    heads, layers = _field(text, "num_attention_heads"), _field(text, "num_hidden_layers")
    if plan.implementation != "eager" or not isinstance(heads, int) or not isinstance(layers, int):
        return 0
    one_row = plan.layout in (Layout.row, Layout.masks)
    tokens, count = (rows * length, 1) if one_row else (length, rows)
    return eager_attention_bytes(tokens, heads, layers, config.train.precision, recomputes_all(config.train), count)
