"""Forgetting: the texts of the base model, and the divergence that is estimated on them."""

import itertools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, List, Tuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.config.data import DataConfig
from ftdist.config.report import ForgettingConfig, ReportConfig
from ftdist.config.schema import RunConfig
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.engine.engine import ForwardEngine
from ftdist.model.attention_plan import BY_DOCUMENT
from ftdist.model.forward import set_plan
from ftdist.objective.sft import SupervisedFineTuning
from ftdist.parallel.mesh import Mesh
from ftdist.parallel.ranks import Ranks
from ftdist.run.rundir import RunDir
from ftdist.track.gain import DocumentLosses
from ftdist.train.base_texts import OPENINGS, QUESTIONS, BaseTexts, as_set, draw_texts, prompts_of
from ftdist.train.evaluate import evaluate
from ftdist.train.forgetting import KL, KL_ERROR, Forgetting, divergence
from ftdist.train.state import TrainState
from tests.helpers.families import TINY

VOCAB, STOP, LENGTH, CPU = 6, 0, 4, torch.device("cpu")
SHIFT = [0.0, 0.9, -0.4, 0.3, -1.1, 0.2]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Mesh(0, 1, CPU)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def engine() -> ForwardEngine:
    """A model with six tokens, whose distribution differs much between contexts, and with a bias for each token."""
    torch.manual_seed(0)
    arch = AutoConfig.for_model("llama", **{**TINY, "vocab_size": VOCAB, "initializer_range": 0.4})
    model = AutoModelForCausalLM.from_config(arch, attn_implementation=BY_DOCUMENT.implementation)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCAB))
    set_plan(model, BY_DOCUMENT)
    return ForwardEngine(model, model)


def _losses(engine: ForwardEngine, mesh: Mesh, prompts: List[List[int]], texts: List[List[int]]) -> DocumentLosses:
    rows = as_set(prompts, texts, 64)
    found = evaluate(engine, SupervisedFineTuning(VOCAB), rows, mesh, 8, True, 0)
    assert found is not None
    return found


@torch.no_grad()
def _every_text(model: Any) -> Tuple[List[Tuple[int, ...]], np.ndarray]:
    """Return every text that can follow token 1, and the log-probability of each."""
    rows = torch.tensor([[1, *rest] for rest in itertools.product(range(VOCAB), repeat=LENGTH)])
    steps = model(input_ids=rows).logits[:, :-1].double().log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
    found = {}
    for row, logprobs in zip(rows[:, 1:].tolist(), steps, strict=True):
        length = row.index(STOP) + 1 if STOP in row else LENGTH
        found[tuple(row[:length])] = float(logprobs[:length].sum())
    return list(found), np.array(list(found.values()))


def test_the_estimate_is_the_enumerated_divergence(engine: ForwardEngine, mesh: Mesh) -> None:
    texts, before = _every_text(engine.module)
    engine.module.lm_head.bias.data = torch.tensor(SHIFT)
    _, now = _every_text(engine.module)
    engine.module.lm_head.bias.data.zero_()
    assert np.exp(before).sum() == pytest.approx(1)
    expected = np.exp(before) @ (before - now) / (np.exp(before) @ np.array(list(map(len, texts))))
    deviations = []
    for seed in range(4):
        prompts = [[1]] * 300
        drawn = draw_texts(engine, prompts, [LENGTH] * 300, [STOP], VOCAB, CPU, seed=seed)
        assert drawn is not None
        base = _losses(engine, mesh, prompts, drawn)
        assert divergence(base.losses, _losses(engine, mesh, prompts, drawn).losses, base.weights).kl == 0.0
        engine.module.lm_head.bias.data = torch.tensor(SHIFT)
        moved = _losses(engine, mesh, prompts, drawn)
        engine.module.lm_head.bias.data.zero_()
        assert base.weights.tolist() == list(map(len, drawn)) == moved.weights.tolist()
        found = divergence(base.losses, moved.losses, base.weights)
        assert 0 < found.error < expected / 4
        deviations.append((found.kl - expected) / found.error)
    assert max(map(abs, deviations)) < 3 and np.std(deviations) > 0.2, deviations


def test_each_token_is_drawn_from_the_distribution_after_its_text(engine: ForwardEngine) -> None:
    """The probability of all smaller tokens is below the random number, and with the token itself it is above."""
    prompts, limits = [[1], [3, 2, 5, 4], [2, 2], [1]], [9, 2, 7, 9]
    drawn = draw_texts(engine, prompts, limits, [STOP], VOCAB, CPU, seed=3)
    assert drawn is not None and drawn[0] != drawn[3] and draw_texts(engine, prompts, limits, [], VOCAB, CPU) != drawn
    for text, (prompt, tokens) in enumerate(zip(prompts, drawn, strict=True)):
        assert len(tokens) == limits[text] or tokens.index(STOP) == len(tokens) - 1
        for place, uniform in zip(range(len(tokens)), np.random.default_rng([3, text]).random(9), strict=False):
            with torch.no_grad():
                logits = engine(input_ids=torch.tensor([[*prompt, *tokens[:place]]])).logits[0, -1]
            below = [0.0, *logits.double().softmax(-1).cumsum(-1).tolist()]
            assert below[tokens[place]] - 1e-5 <= uniform < below[tokens[place] + 1] + 1e-5


def test_drawing_leaves_the_random_states_of_the_training_alone(engine: ForwardEngine) -> None:
    def states() -> List[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]

    before, training = states(), engine.module.training
    assert draw_texts(engine, [[1]] * 3, [5] * 3, [STOP], VOCAB, CPU) is not None
    assert states() == before and engine.module.training is training


def test_drawing_ends_when_the_run_is_asked_to_stop(engine: ForwardEngine) -> None:
    asked: List[int] = []

    def stopped(column: int) -> bool:
        asked.append(column)
        return column > 20

    assert draw_texts(engine, [[1]], [60], [], VOCAB, CPU, stopped) is None
    assert asked == [16, 32]


def test_the_divergence_is_a_ratio_of_sums_with_an_error_of_whole_texts() -> None:
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 40, 200).astype(float)
    of_text = draw.normal(0.3, 0.2, 200)  # texts differ, and the tokens of a text do not
    found = divergence(np.zeros(200), of_text * tokens, tokens)
    assert found.kl == pytest.approx((of_text * tokens).sum() / tokens.sum())
    again = [draw.integers(0, 200, 200) for _ in range(2000)]
    bootstrap = np.std([(of_text * tokens)[of].sum() / tokens[of].sum() for of in again])
    assert found.error == pytest.approx(bootstrap, rel=0.05)


def test_prompts_are_the_first_token_alone_and_general_questions() -> None:
    tokenizer = bytes_tokenizer()
    found = prompts_of(tokenizer, DataConfig(), 18, 400)
    assert found[::2] == [[tokenizer.eos_token_id]] * 9 and found[1] == found[17]
    assert tokenizer.decode(found[1]) == f"<|im_start|>user\n{QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n"
    assert prompts_of(tokenizer, DataConfig(), 3, 5) == [[tokenizer.eos_token_id]] * 3, "longer prompts are left out"
    tokenizer.chat_template = None
    assert tokenizer.decode(prompts_of(tokenizer, DataConfig(), 4, 400)[3]) == OPENINGS[1]


def test_rows_hold_whole_texts_in_order() -> None:
    rows = as_set([[1], [1, 2], [1]], [[3, 4], [5], [6, 7, 8]], 7)
    assert rows.row_offsets.tolist() == [0, 2, 3] and rows.trained.tolist() == [0, 1, 1, 0, 0, 1, 0, 1, 1, 1]
    assert [ids.tolist() for ids, _ in rows.row(0)] == [[1, 3, 4], [1, 2, 5]] and rows.num_rows == 2
    assert as_set([[1], [1]], [[2], [3]], 1).row_offsets.tolist() == [0, 1, 2]


def test_texts_are_kept_and_damage_is_found(tmp_path: Path) -> None:
    rows, path = as_set([[1], [1]], [[3, 4], [5]], 8), tmp_path / "texts.npz"
    texts = BaseTexts(rows.tokens, rows.trained, rows.offsets, np.array([1.5, 0.25]))
    texts.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["texts.npz"]
    kept = BaseTexts.load(path)
    for name, array in vars(texts).items():
        assert getattr(kept, name).dtype == array.dtype and (getattr(kept, name) == array).all()
    whole = path.read_bytes()
    at = whole.index(texts.losses.tobytes())
    for damaged in (whole[: len(whole) // 2], b"", b"text", whole[:at] + b"x" + whole[at + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="."):
            BaseTexts.load(path)


def test_a_resumed_run_measures_on_the_texts_that_the_base_model_wrote(mesh: Mesh, tmp_path: Path) -> None:
    tokenizer, notes = bytes_tokenizer(), []
    torch.manual_seed(0)
    arch = AutoConfig.for_model("llama", **{**TINY, "vocab_size": len(tokenizer), "initializer_range": 0.4})
    model = AutoModelForCausalLM.from_config(arch, attn_implementation=BY_DOCUMENT.implementation)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    set_plan(model, BY_DOCUMENT)
    config = RunConfig(report=ReportConfig(forgetting=ForgettingConfig(texts=4, tokens=6)))
    training = SimpleNamespace(
        config=config, run=RunDir(tmp_path), ranks=Ranks(0, 0, 1, 0, CPU), mesh=mesh,
        engine=ForwardEngine(model, model), objective=SupervisedFineTuning(len(tokenizer)), tokenizer=tokenizer,
        vocab_size=len(tokenizer),
        plan=SimpleNamespace(micro_batch_size=2), preemption=SimpleNamespace(requested=lambda: False),
        progress=SimpleNamespace(note=notes.append), state=TrainState(),
    )  # fmt: skip
    first = Forgetting(training)
    assert first.measure(lambda label: None) == {KL: 0.0, KL_ERROR: 0.0}
    (said,) = notes
    assert "the base model wrote the 4 texts" in said and "report.forgetting.texts=0" in said
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    training.state.step = 5
    now = first.measure(lambda label: None)
    assert now is not None and now[KL] != 0.0
    assert Forgetting(training).measure(lambda label: None) == now, "another process, which resumes the run"
    training.run.base_texts.unlink()
    training.config.train.stop_when.max_forgetting = 1.0
    assert Forgetting(training).measure(lambda label: None) == {} and "max_forgetting has no effect" in notes[-1]
