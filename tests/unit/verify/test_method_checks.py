"""``ftdist verify`` of a config that trains adapters or a part of the model: what it lists, fails on and warns of."""

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ftdist.run.checks import FAILED, NOTES, PASSED, Check, read_checks
from ftdist.run.file_names import EXPORT_MARK
from ftdist.verify.main import MODEL, TRAINED, check_before_ranks
from tests.helpers.adapters import save_peft_adapter
from tests.helpers.tiny import save_tiny_model, tiny_config

LORA = ("method.kind=lora", "method.r=4", "optim.lr=1e-4")
ADAPTER = ("method.lora_alpha=8", "method.target_modules=[q_proj,v_proj]")
"""Settings of the adapter that the fixture has saved."""
NEW_TOKENS = "model.new_special_tokens=[<new>]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and two adapters of it: one that says nothing of its base, and one of another base."""
    folder = tmp_path_factory.mktemp("methods")
    save_tiny_model(folder / "model")
    for name in ("adapter", "foreign"):
        save_peft_adapter(folder / "model", folder / name, target_modules=["q_proj", "v_proj"])
    (folder / "foreign" / EXPORT_MARK).write_text(json.dumps({"base": "another"}))
    return folder


def verified(folder: Path, scratch: Path, *overrides: str) -> Tuple[Dict[str, Check], List[str]]:
    """Return the checks of a config that come before the ranks, by name, and the notes."""
    check_before_ranks(tiny_config(folder, *overrides), scratch, 1, 1, quick=True)
    notes: Any = scratch / NOTES
    return {check.name: check for check in read_checks(scratch)}, json.loads(
        notes.read_text()
    ) if notes.exists() else []


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        ((*LORA, "method.target_modules=[q_proj]"), ["1,024 of ", "2 × q_proj.lora_A [4 × 64]"]),
        ((*LORA, *ADAPTER, "method.init_from={folder}/adapter"), ["1,792 of ", "2 × v_proj.lora_B [32 × 4]"]),
        (
            ("method.kind=partial", "method.trainable=[norms]"),
            ["320 of ", "2 × layers.input_layernorm [64]", "1 × model.norm [64]"],
        ),
    ],
    ids=["lora", "continued", "partial"],
)
@pytest.mark.thorough
def test_a_table_says_what_is_trained(overrides: Any, rows: List[str], folder: Path, tmp_path: Path) -> None:
    found, notes = verified(folder, tmp_path, *(word.format(folder=folder) for word in overrides))
    assert found[MODEL].outcome == found[TRAINED].outcome == PASSED, found
    assert all(row in found[TRAINED].measured for row in rows), found[TRAINED].measured
    assert not [note for note in notes if "warning" in note]


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        ((*LORA, "method.target_modules=[q_prj]"), "'q_prj' matches no linear layer"),
        ((*LORA, "method.layers_to_transform=[2]"), "there is no layer 2"),
        (("method.kind=partial", "method.trainable=[q_proj]"), "'q_proj' matches no parameter"),
        ((*LORA, NEW_TOKENS), "trains neither their embeddings nor their output weights"),
        (("method.kind=partial", "method.last_layers=1", NEW_TOKENS), "trains neither their embeddings"),
        ((*LORA, *ADAPTER, "method.init_from={folder}/foreign"), "was trained on a base model with other weights"),
        ((*LORA, "model.adapter={folder}/foreign"), "was trained on a base model with other weights"),
    ],
    ids=["targets", "layer", "patterns", "new tokens", "new tokens of partial", "continued", "folded"],
)  # fmt: skip
def test_a_method_that_does_not_fit_the_model_fails(overrides: Any, cause: str, folder: Path, tmp_path: Path) -> None:
    found, _ = verified(folder, tmp_path, *(word.format(folder=folder) for word in overrides))
    assert list(found) == [MODEL] and found[MODEL].outcome == FAILED and cause in found[MODEL].cause


def test_a_learning_rate_of_full_fine_tuning_is_a_warning_for_adapters(folder: Path, tmp_path: Path) -> None:
    found, notes = verified(folder, tmp_path, *LORA, "optim.lr=1e-5")
    assert found[MODEL].outcome == PASSED
    assert "warning: optim.lr=1e-05 is low for method=lora; usual values are 3e-05 to 0.005" in notes
