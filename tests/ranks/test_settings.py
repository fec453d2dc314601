"""Every setting of a run has its documented effect, on real ranks."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch

from ftdist.config.frozen import load_config
from ftdist.run.rundir import RunDir
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import LLAMA, NONE_WHOLE, freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import assemble, gathers_of_a_step, start

BASE = ("train.max_steps=3", "train.num_samples=0", "train.export=false", "optim.lr=1e-3")


def _run(run_dir: Path, look: Callable[[Any], Any]) -> Any:
    """Run to the end on one rank. Returns what ``look`` returns for the Training then."""
    from ftdist.train.loop import train

    config = load_config(RunDir(run_dir).config)
    training = assemble(config, run_dir, start(config))
    train(training)
    training.tracker.finish(0)
    return look(training)


def _losses(training: Any) -> List[float]:
    return [r["train/loss"] for r in training.run.read_metrics() if "train/loss" in r]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    save_tiny_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def known() -> Dict[Any, List[float]]:
    """Losses of runs that several tests compare with, by number of ranks and overrides."""
    return {}


@pytest.fixture
def outcome(folder: Path, tmp_path: Path, known: Dict[Any, List[float]]) -> Callable[..., Any]:
    numbers = iter(range(100))

    def run(*overrides: str, look: Callable[[Any], Any] = _losses, world: int = 2) -> Any:
        if look is _losses and (world, overrides) in known:
            return known[world, overrides]
        config = tiny_config(folder, *BASE, *overrides)
        frozen = freeze_tiny(config, tmp_path / f"run-{next(numbers)}", world)
        found = run_ranks(_run, world, frozen.path, look)[0]
        if look is _losses:
            known[world, overrides] = found
        return found

    return run


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_keeps_the_numbers(outcome: Callable[..., Any], stage: int) -> None:
    def look(training: Any) -> Any:
        zero = training.engine._wrapped.config["zero_optimization"]
        return _losses(training), zero["offload_optimizer"]["device"], "offload_param" in zero

    plain = outcome(f"zero.stage={stage}")
    more = ("zero.offload_param=cpu",) if stage == 3 else ()
    offloaded, device, params = outcome(f"zero.stage={stage}", "zero.offload_optimizer=cpu", *more, look=look)
    assert (device, params) == ("cpu", stage == 3)
    assert offloaded == pytest.approx(plain, rel=1e-6)


def test_gradient_checkpointing_recomputes(outcome: Callable[..., Any]) -> None:
    """Each layer runs twice as often; the losses stay the same."""

    def look(training: Any) -> Any:
        from ftdist.train.loop import train_step

        calls: List[int] = []
        layer = training.engine.module.model.layers[0].self_attn
        handle = layer.register_forward_hook(lambda *_: calls.append(1))
        train_step(training, 3)
        handle.remove()
        return _losses(training), len(calls)

    kept, once = outcome("train.gradient_checkpointing=none", look=look)
    recomputed, twice = outcome("train.gradient_checkpointing=full", look=look)
    assert twice == 2 * once
    assert recomputed == pytest.approx(kept, rel=1e-6)


READS = ("item", "tolist", "__float__", "__int__", "__bool__", "numpy", "cpu")
"""Methods of a tensor for which the host waits for the device."""


def test_a_step_reads_two_results_from_the_device(outcome: Callable[..., Any]) -> None:
    """The sums over all ranks (loss, stop, and the counts of the next step), and the norm of the gradient."""

    def look(training: Any) -> List[str]:
        from ftdist.train.loop import train_step

        found: List[str] = []

        def watched(name: str, plain: Any) -> Any:
            def read(*args: Any, **kwargs: Any) -> Any:
                caller = sys._getframe(1)
                if "/ftdist/" in caller.f_code.co_filename:
                    found.append(f"{caller.f_code.co_name}: {name}")
                return plain(*args, **kwargs)

            return read

        training.max_steps = 8
        train_step(training, 3)  # it sums the counts of step 4
        with pytest.MonkeyPatch.context() as patch:
            for name in READS:
                patch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
            train_step(training, 4)
        return found

    found = outcome("zero.stage=2", "train.gradient_checkpointing=full", look=look)
    assert found == ["sum: tolist", "_number: __float__"]


def test_weight_decay_does_not_apply_to_norms_and_biases(outcome: Callable[..., Any], tmp_path: Path) -> None:
    """By name, from the sharded optimizer: under ZeRO-3 the parameters themselves are empty."""

    def look(training: Any) -> Any:
        engine, optimizer = training.engine, training.engine.zero_optimizer
        names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
        return {
            names[id(parameter)]: optimizer.param_groups[optimizer.sub_group_to_group_id[number]]["weight_decay"]
            for number, parameters in enumerate(optimizer.fp16_groups)
            for parameter in parameters
        }

    save_tiny_model(tmp_path / "biased", attention_bias=True, num_hidden_layers=1)
    decays = outcome("optim.weight_decay=0.3", "zero.stage=3", f"model.path={tmp_path / 'biased'}", look=look)
    layer = "model.layers.0."
    projections = [f"{layer}self_attn.{name}_proj" for name in "qkvo"]
    matrices = [*projections, *(f"{layer}mlp.{name}_proj" for name in ("gate", "up", "down"))]
    spared = [*(f"{name}.bias" for name in projections), f"{layer}input_layernorm.weight",
              f"{layer}post_attention_layernorm.weight", "model.norm.weight"]  # fmt: skip
    decayed = [*(f"{name}.weight" for name in matrices), "model.embed_tokens.weight", "lm_head.weight"]
    assert decays == {**dict.fromkeys(decayed, 0.3), **dict.fromkeys(spared, 0.0)}


def test_weight_decay_changes_the_weights(outcome: Callable[..., Any]) -> None:
    assert outcome("optim.weight_decay=0")[-1] != outcome("optim.weight_decay=10.0")[-1]


def test_clipping_changes_the_update(outcome: Callable[..., Any]) -> None:
    free, clipped = (outcome(f"optim.max_grad_norm={norm}", "optim.eps=1e-3") for norm in ("0", "1e-6"))
    assert clipped[0] == free[0]
    assert clipped[-1] > free[-1]  # hardly moves


@pytest.mark.parametrize("setting", ["optim.beta1=0.5", "optim.beta2=0.5", "optim.eps=1e-2"])
def test_adam_settings_change_the_update(outcome: Callable[..., Any], setting: str) -> None:
    assert outcome(setting)[-1] != outcome()[-1]


def test_the_seed_changes_the_order(outcome: Callable[..., Any]) -> None:
    assert outcome("seed=1")[0] != outcome("seed=2")[0]


def test_new_tokens_and_padding(outcome: Callable[..., Any], tmp_path: Path) -> None:
    """New rows start as the mean of the old ones, with and without ZeRO-3. Padding is not exported."""

    def look(training: Any) -> Any:
        from ftdist.checkpoint.export import export_checkpoint

        out = tmp_path / f"export-{training.config.zero.stage}"
        if training.ranks.first:
            export_checkpoint(training.run.find_checkpoint("last"), out, training.config)
        return _losses(training), training.vocab_size, training.engine.module.config.vocab_size, str(out)

    more = ("model.new_special_tokens=[<a>,<b>]", "model.pad_vocab_to_multiple_of=64")
    results = [outcome(f"zero.stage={stage}", "optim.lr=1e-9", *more, look=look) for stage in (0, 3)]
    for losses, real, padded, out in results:
        assert (real, padded) == (261, 320)
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        embedding = _exported(Path(out))["model.embed_tokens.weight"]
        assert embedding.shape[0] == 261
        mean = embedding[:259].mean(0)
        assert torch.allclose(embedding[259:], mean.expand(2, -1), atol=1e-6)
        tokenizer = json.loads((Path(out) / "tokenizer.json").read_text())
        assert {"<a>", "<b>"} <= {token["content"] for token in tokenizer["added_tokens"]}


def _exported(folder: Path) -> Dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_deterministic_and_anomaly_modes(outcome: Callable[..., Any]) -> None:
    def look(_: Any) -> Any:
        return torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()

    # One step on one rank: with detect_anomaly, each operation keeps its traceback, which takes seconds a step.
    short = ("train.max_steps=1", "batch.global_batch_size=2", "data.heldout_share=0",
             "data.max_heldout_documents=null")  # fmt: skip
    assert outcome(*short, "debug.deterministic=true", "debug.detect_anomaly=true", look=look, world=1) == (True, True)
    assert outcome(*short, look=look, world=1) == (False, False)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_follows_fp32(outcome: Callable[..., Any], stage: int) -> None:
    """bf16 has 8 bits of mantissa: each loss is within 0.1 % of the fp32 run. Moments are fp32."""

    def look(training: Any) -> Any:
        states = training.engine.optimizer.state.values()
        moments = {state[name].dtype for state in states for name in ("exp_avg", "exp_avg_sq")}
        weights = {p.dtype for p in training.engine.module.parameters()}
        return _losses(training), moments == {torch.float32}, weights == {torch.bfloat16}

    losses, moments, weights = outcome("train.precision=bf16", f"zero.stage={stage}", "train.max_steps=8", look=look)
    assert moments and weights
    assert losses == pytest.approx(outcome("train.max_steps=8"), rel=1e-3)


SHARDED = ("zero.stage=3", NONE_WHOLE)


def test_passes_before_training_do_not_make_zero3_gather_twice(outcome: Callable[..., Any]) -> None:
    """The isolation check and the first evaluation only run forward. ZeRO-3 must not record its gathers from them."""
    plain = outcome(*SHARDED, "data.packing=false", "data.heldout_share=0", "data.max_heldout_documents=null",
                    look=gathers_of_a_step)  # fmt: skip
    proven = outcome(*SHARDED, look=gathers_of_a_step)
    assert len(plain) == len(proven) > 0


def test_zero3_gathers_a_tied_weight_once_in_a_micro_step(folder: Path, outcome: Callable[..., Any]) -> None:
    """The embedding and the head of a model with tied embeddings are one parameter, which stays gathered between its
    four uses in the forward and the backward pass."""
    save_tiny_model(folder / "tied", tie_word_embeddings=True)

    def look(training: Any) -> Tuple[int, int]:
        return sum(map(sum, gathers_of_a_step(training))), training.plan.grad_accum_steps

    gathers, micro_steps = outcome(*SHARDED, f"model.path={folder / 'tied'}", look=look)
    assert gathers == micro_steps > 1


RANDOM = ("model.path=null", *(f"model.config.{key}={value}" for key, value in {**LLAMA, "vocab_size": 320}.items()))


@pytest.mark.parametrize("stage", [0, 3])
def test_random_weights_are_the_same_however_they_are_sharded(outcome: Callable[..., Any], stage: int) -> None:
    whole = outcome(*RANDOM, "zero.stage=2", world=1)
    assert outcome(*RANDOM, f"zero.stage={stage}") == pytest.approx(whole, rel=1e-5)
    assert outcome(*RANDOM, f"zero.stage={stage}", "seed=5") != pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("stage", [0, 3])
def test_new_tokens_in_spare_rows_start_as_the_mean(outcome: Callable[..., Any], stage: int) -> None:
    """The model has 320 rows for 259 known tokens, so the new token uses row 259."""

    def look(training: Any) -> Any:
        import deepspeed

        weight = training.engine.module.get_input_embeddings().weight
        with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
            mean = weight[:259].float().mean(0)
            return weight.shape[0], bool(torch.allclose(weight[259].float(), mean, atol=1e-6)), training.vocab_size

    more = ("optim.lr=1e-12", "model.new_special_tokens=[<tool>]", f"zero.stage={stage}")
    assert outcome(*RANDOM, *more, look=look) == (320, True, 320)


def test_zero3_starts_no_program_when_gradients_are_reduced(
    outcome: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed would run numactl to count the ranks of a machine without GPUs."""
    asked = tmp_path / "asked"
    (tmp_path / "numactl").write_text(f"#!/bin/sh\ntouch {asked}\nexit 1\n")
    (tmp_path / "numactl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    # An override of its own, so that the run is not that of another test.
    assert len(outcome("zero.stage=3", "seed=7")) == 3 and not asked.exists()


def test_an_answer_cut_at_sample_tokens_is_marked(outcome: Callable[..., Any]) -> None:
    def look(training: Any) -> List[str]:
        from ftdist.train.evaluate import answer_prompts

        said: List[str] = []
        cut = answer_prompts(training, said.append)
        training.engine.module.generation_config.eos_token_id = list(range(training.vocab_size))
        ended = answer_prompts(training, said.append)
        return [*(row["answer"] for row in cut), *(row["answer"] for row in ended), *said]

    answers = outcome("train.num_samples=1", "train.sample_tokens=4", look=look, world=1)
    assert answers[0].endswith("…") and 1 <= len(answers[0]) <= 5 and answers[1] == ""
    assert answers[2:] == ["answering 1/1", "answering 1/1"]


SMALL = ("model.path=null", "model.config.vocab_size=259", "model.config.hidden_size=32",
         "model.config.num_hidden_layers=1", "train.max_steps=1", "train.gradient_checkpointing=none")  # fmt: skip
GPT2 = ("model.config.model_type=gpt2", "model.config.n_head=2", "model.config.n_positions=128")


def test_an_answer_ends_with_the_table_of_positions(outcome: Callable[..., Any]) -> None:
    def look(training: Any) -> List[int]:
        from ftdist.model.check import check_model
        from ftdist.run.model_facts import longest_text, write_facts
        from ftdist.train.evaluate import answer_prompts

        write_facts(training.config, check_model(training.config))
        prompts = [{"prompt_ids": [65] * n, "question": "", "prompt_text": "", "reference": ""} for n in (5, 126, 128)]
        training.prompts, training.longest_text = {"test": prompts}, longest_text(training.config)
        return [len(row["answer"].encode()) for row in answer_prompts(training, lambda _: None)]

    whole, cut, none = outcome(*SMALL, *GPT2, "train.num_samples=3", "train.sample_tokens=4", look=look, world=1)
    assert len("…".encode()) == none < cut < whole


def test_isolation_is_proven_without_packing(outcome: Callable[..., Any]) -> None:
    """No token may see a later one, and the rows of a micro-batch, joined end to end, may not see each other."""
    bert = (*SMALL, "model.config.model_type=bert", "model.config.num_attention_heads=2", "model.attention=mask")
    with pytest.raises(AssertionError, match="tokens of bert can see later tokens"):
        outcome(*bert, "data.packing=false", world=1)
    mamba = (*SMALL, "model.config.model_type=mamba", "model.config.state_size=4", "data.packing=false")
    with pytest.raises(AssertionError, match="does not isolate documents|gives other numbers for packed documents"):
        outcome(*mamba, "model.attention=documents", "batch.micro_batch_size=2", world=1)
    assert len(outcome(*mamba, "batch.micro_batch_size=1", "batch.global_batch_size=1", world=1)) == 1


@pytest.mark.parametrize("setting", ["warmup_ratio", "shorten_warmup"])
def test_ranks_fit_the_warm_up_when_only_they_know_the_steps(outcome: Callable[..., Any], setting: str) -> None:
    """A Slurm job with train.epochs is frozen before its data is packed."""

    def look(training: Any) -> Any:
        rates = [record["train/lr"] for record in training.run.read_metrics() if "train/lr" in record]
        return rates, training.max_steps

    warmup = {"warmup_ratio": ("optim.warmup_ratio=0.5",),
              "shorten_warmup": ("optim.warmup_steps=1000", "optim.shorten_warmup=true")}[setting]  # fmt: skip
    length = ("train.max_steps=null", "train.epochs=0.5", "optim.schedule=constant", "batch.global_batch_size=2",
              "batch.micro_batch_size=1")  # fmt: skip
    rates, steps = outcome(*length, *warmup, look=look)
    expected = -(-steps // 2) if setting == "warmup_ratio" else steps // 10
    assert steps >= 10 and rates == pytest.approx([1e-3 * min(1, (step + 1) / expected) for step in range(steps)])
