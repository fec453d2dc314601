"""Sample answers of each type of model: those of plain transformers, with and without a cache of keys and values."""

from functools import partial
from pathlib import Path
from typing import Any, Dict, List

from tests.models.alone import Outcome, save_tiny
from tests.models.suite import examine_all, prepared_folder
from tests.models.whole_run import config_of

PROMPTS, TOKENS = (3, 20, 70), 40
"""Lengths of the prompts, and of each answer. They are shorter and longer than the limits of the tiny models."""
NO_STOP = -1


def run(types: List[str], jobs: int = 2) -> Dict[str, Outcome]:
    """Return whether the answers of each type are right, and in ``cache`` whether a cache is used."""
    with prepared_folder() as folder:
        return examine_all({name: partial(_compare, name) for name in types}, jobs, folder)


def _compare(model_type: str, folder: Path) -> Outcome:
    import torch

    from ftdist.engine.engine import ForwardEngine
    from ftdist.model.load import load_model, model_config
    from ftdist.model.plan_choice import choose_plan
    from ftdist.train.evaluate import generate_answer

    device, path = torch.device("cpu"), folder / "models" / model_type
    config = config_of(folder, path)
    config.train.num_samples, config.train.sample_tokens = 1, TOKENS
    save_tiny(model_type, path)
    arch = model_config(config)
    plan = choose_plan(config, arch, device, torch.float32).plan
    model = load_model(config, arch, plan, {"zero_optimization": {"stage": 0}})
    rows, draw = min(300, int(arch.get_text_config().vocab_size)), torch.Generator().manual_seed(5)
    wrong = []
    for length in PROMPTS:
        prompt = torch.randint(10, rows, (length,), generator=draw).tolist()
        found = generate_answer(ForwardEngine(model, model), prompt, TOKENS, [NO_STOP], rows, device)
        if found != _plain(model, prompt, rows):
            wrong.append(f"the answer to {length} tokens is another one")
    return Outcome("wrong" if wrong else "exact", cache="" if plan.cached else "not used", note="; ".join(wrong))


def _plain(model: Any, prompt: List[int], rows: int) -> List[int]:
    """Return the most likely answer, for which plain transformers reads the whole text for each token."""
    import torch

    from ftdist.model.parts import auto_class
    from ftdist.verify.reference import forget_longest

    reference = auto_class(model.config).from_config(model.config, dtype=torch.float32, attn_implementation="eager")
    reference.load_state_dict(model.state_dict())
    reference.eval()
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(TOKENS):
            forget_longest(reference)
            ids.append(int(reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, :rows].argmax()))
    return ids[len(prompt) :]
