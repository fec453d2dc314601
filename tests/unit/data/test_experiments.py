"""Each ready-made experiment prepares chats with three turns, tool calls and reasoning, with a tokenizer and a chat
template in its model's form."""

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import SourceConfig
from ftdist.config.schema import RunConfig
from ftdist.data.loader import open_set
from ftdist.data.prepare import prepare
from tests.unit.config.test_conf_tree import composed
from tests.unit.data.test_families import CONVERSATIONS, FAMILIES, renderer_of

EXPERIMENTS = {  # the family of each model
    "demo": "smollm2",
    "llama31_8b": "llama3_1",
    "llama31_70b": "llama3_1",
    "qwen3_8b": "qwen3",
    "smollm2_135m": "smollm2",
}
KINDS = ("multi", "reasoning_multi", "tool_call")


def experiment(name: str, family: str, folder: Path, kinds: tuple[str, ...]) -> RunConfig:
    """Return the config of an experiment, but with a few chats and with a tokenizer of a family of models."""
    config = composed(f"experiment={name}")
    renderer_of(family).tokenizer.save_pretrained(folder / "tokenizer")
    config.model.tokenizer = str(folder / "tokenizer")
    config.cache_dir = str(folder / "cache")
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(CONVERSATIONS[kind]) + "\n" for kind in kinds), encoding="utf-8")
    config.data.sources = {"chats": SourceConfig(path=str(path))}
    config.data.heldout, config.data.heldout_share, config.data.num_workers = {}, 0.0, 1
    return config


def documents(folder: Path, tokenizer: Any) -> list[str]:
    """Return the text of each document up to its last trained token, with trained text in ``[[ ]]``."""
    dataset, texts = open_set(folder, "train"), []
    for row in range(dataset.num_rows):
        for ids, trained in dataset.row(row):
            runs = [
                (flag, tokenizer.decode([token for token, _ in run]))
                for flag, run in groupby(zip(ids.tolist(), trained.tolist(), strict=True), key=lambda pair: pair[1])
            ]
            while runs and not runs[-1][0]:
                runs.pop()
            texts.append("".join(f"[[{text}]]" if flag else text for flag, text in runs))
    return texts


def expected_documents(family: str, kinds: tuple[str, ...]) -> list[str]:
    return [document for kind in kinds for document in FAMILIES[family].expected[kind].split("\n--\n")]


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.thorough
def test_an_experiment_prepares_turns_reasoning_and_tool_calls_as_its_model_writes_them(
    name: str, tmp_path: Path
) -> None:
    family = EXPERIMENTS[name]
    kinds = tuple(kind for kind in KINDS if not FAMILIES[family].expected[kind].startswith("refused"))
    folder = prepare(experiment(name, family, tmp_path, kinds))
    found = documents(folder, renderer_of(family).tokenizer)
    assert sorted(found) == sorted(expected_documents(family, kinds))


@pytest.mark.parametrize("name", [name for name, family in EXPERIMENTS.items() if family == "smollm2"])
def test_tool_calls_that_the_template_cannot_show_are_refused_with_a_fix_that_works(name: str, tmp_path: Path) -> None:
    config = experiment(name, "smollm2", tmp_path, ("tool_call",))
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert "does not show the tool calls of message 2" in caught.value.found
    assert "data.chat_template=chatml" in caught.value.fix
    config.data.chat_template = "chatml"
    [text] = documents(prepare(config), renderer_of("smollm2").tokenizer)
    assert text.count("[[") == 2
    assert '"arguments": {"x": 1}' in text.split("[[")[1].split("]]")[0]


@pytest.mark.parametrize("name", ["continued_pretraining", "smoke"])
def test_the_experiments_without_a_chat_template_of_a_model_prepare_the_same_chats(name: str, tmp_path: Path) -> None:
    config = experiment(name, "smollm2", tmp_path, KINDS)
    config.data.chat_template = "chatml"
    found = documents(prepare(config), renderer_of("smollm2").tokenizer)
    answers = {"continued_pretraining": 0, "smoke": 8}[name]  # continued pretraining trains every token but the first
    assert len(found) == 3
    assert sum(text.count("[[") for text in found) == (answers or 3)
    for said in ("a1", "a2", "a3", "r1", "r2", "r3", '"arguments": {"x": 1}'):
        assert any(said in part.split("]]")[0] for text in found for part in text.split("[[")[1:]), said


def test_every_experiment_is_here() -> None:
    names = [path.stem for path in (Path(__file__).parents[3] / "conf" / "experiment").glob("*.yaml")]
    tested = [*EXPERIMENTS, "continued_pretraining", "smoke"]
    pairs = [(f"{name}_{kind}", name) for name in tested for kind in ("lora", "qlora", "lora_sweep")]
    with_adapters = [pair for pair in pairs if pair[0] in names]
    assert sorted(names) == sorted([*tested, *(name for name, _ in with_adapters)])
    for name, base in with_adapters:  # they prepare what the experiment without an adapter does
        found, like = composed(f"experiment={name}"), composed(f"experiment={base}")
        assert found.model == like.model
        assert replace(found.data, max_seq_len=like.data.max_seq_len) == like.data
