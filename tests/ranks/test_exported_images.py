"""The export of a model with images works in ``ftdist eval`` and ``ftdist chat``."""

import contextlib
import io
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from tests.helpers.families import OTHER_FAMILIES, QWEN3_VL
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import each_training

QUESTION = "How are you?"
TOKENS = 12


def _served(configs: List[Any], folder: Path) -> Dict[str, Tuple[float, float, str, str]]:
    """Train, export and open each config. Returns the last held-out loss of the run and that of ``ftdist eval``, and
    the answer of ``ftdist chat`` and the same answer without a cache."""
    from ftdist.checkpoint.export import export_checkpoint
    from ftdist.serve.chat import answer, load
    from ftdist.serve.evaluate import measure
    from ftdist.train.loop import train

    found = {}
    for config, training in zip(configs, each_training(configs, folder), strict=True):
        train(training)
        training.tracker.finish(0)
        run = training.run
        last = [record["eval/heldout/loss"] for record in run.read_metrics() if "eval/heldout/loss" in record][-1]
        export_checkpoint(run.find_checkpoint("last"), run.export, config)
        measured = measure(config, run.deepspeed, run.export, training.ranks)["heldout"]
        model, tokenizer = load(run.export)
        with contextlib.redirect_stdout(io.StringIO()):
            text = answer(model, tokenizer, [{"role": "user", "content": QUESTION}], TOKENS, 0.0)
        found[model.config.model_type] = last, measured.loss / measured.weight, text, _answer(model, tokenizer)
    return found


def _answer(model: Any, tokenizer: Any) -> str:
    """Return the most likely answer. The whole text runs again for each token."""
    import torch

    chat = [{"role": "user", "content": QUESTION}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = tokenizer.apply_chat_template(chat, **options)["input_ids"] if tokenizer.chat_template else None
    ids = tokenizer(QUESTION, return_tensors="pt")["input_ids"] if ids is None else ids
    start, stops = ids.shape[1], model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    with torch.no_grad():
        while ids.shape[1] < start + TOKENS and int(ids[0, -1]) not in stops:
            new = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, new[:, None]], dim=1)
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


def test_eval_and_chat_open_the_exports_of_models_with_images(tmp_path: Path) -> None:
    configs = []
    for name, fields in (("gemma3", OTHER_FAMILIES["gemma3_images"]), ("qwen3_vl", QWEN3_VL)):
        model = save_tiny_model(tmp_path / name, **fields)
        configs.append(
            tiny_config(
                tmp_path, f"model.path={model}", "train.max_steps=1", "train.num_samples=0", "train.export=false"
            )
        )
    freeze_tiny(configs[0], tmp_path / "prepared", 1)
    found = run_ranks(_served, 1, configs, tmp_path / "runs", timeout_s=300)[0]
    assert found.keys() == {"gemma3", "qwen3_vl"}
    for in_the_run, measured, answer, expected in found.values():
        assert measured == pytest.approx(in_the_run, rel=1e-6)
        assert answer == expected
