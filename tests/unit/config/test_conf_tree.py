"""The config tree: every option composes, passes the checks, and repeats no default."""

import functools
from enum import Enum
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple, Type

import pytest
import yaml
from hydra.types import RunMode
from omegaconf import OmegaConf

from ftdist.config.checks import check_config
from ftdist.config.data import SourceConfig
from ftdist.config.frozen import dump_config, parse_config
from ftdist.config.launch import LaunchKind
from ftdist.config.method import MethodKind
from ftdist.config.schema import ObjectiveKind
from ftdist.launch.config import compose
from ftdist.launch.config.session import session
from ftdist.plan.batch import plan_batch
from tests.unit.compose_tools import composed

CONF = Path(__file__).resolve().parents[3] / "conf"
GROUPS = [
    "batch", "data", "debug", "experiment", "launch", "method", "model", "objective", "optim", "track", "train", "zero",
]  # fmt: skip
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
NEEDS = {  # options that need another setting
    ("model", "folder"): ["model.path=m"],
    ("model", "hub"): ["model.hub=org/name"],
    ("data", "file"): ["data.sources.file.path=x.jsonl"],
    ("data", "hub"): ["data.sources.hub.hub=org/name"],
    ("optim", "wsd"): ["train.epochs=1"],  # its 100 steps of decay do not fit into the smoke test
}


def test_the_tree_has_the_known_groups() -> None:
    assert sorted({group for group, _ in OPTIONS}) == GROUPS


@pytest.mark.parametrize(
    ("group", "choices"), [("method", MethodKind), ("objective", ObjectiveKind), ("launch", LaunchKind)]
)
@pytest.mark.thorough
def test_every_choice_of_a_seam_is_an_option(group: str, choices: Type[Enum]) -> None:
    for choice in choices:
        assert getattr(composed("experiment=smoke", f"{group}={choice.name}"), group).kind is choice


@pytest.mark.parametrize(("group", "option"), OPTIONS)
@pytest.mark.thorough
def test_every_option_composes_and_round_trips(group: str, option: str) -> None:
    base = [] if group == "experiment" else ["experiment=smoke"]
    config = composed(*base, f"{group}={option}", *NEEDS.get((group, option), []))
    check_config(config)
    assert parse_config(dump_config(config), "dump") == config


def leaves(node: Any, path: Tuple[str, ...] = ()) -> Iterator[Tuple[Tuple[str, ...], Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def before(group: str, overridden: List[Dict[str, str]]) -> Any:
    """Return the config without an option: the defaults, and for an experiment the groups that it selects."""
    chosen = [f"{key.removeprefix('override /')}={value}" for pair in overridden for key, value in pair.items()]
    return _loaded(*chosen, *([] if group == "experiment" else ["~train"]))


@functools.cache
def _loaded(*words: str) -> Any:
    with session(None, compose.schema()) as loader:
        tree = loader.load_configuration("run", list(words), RunMode.RUN)
        return yaml.safe_load(OmegaConf.to_yaml(OmegaConf.masked_copy(tree, [key for key in tree if key != "hydra"])))


def value_at(tree: Any, path: Tuple[str, ...]) -> Any:
    if path[:2] in (("data", "sources"), ("data", "heldout")):
        tree, path = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(SourceConfig))), path[3:]
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return "no default: the key is the user's own"
        tree = tree[key]
    return tree


@pytest.mark.parametrize(("group", "option"), OPTIONS)
@pytest.mark.thorough
def test_no_leaf_repeats_its_default(group: str, option: str) -> None:
    text = (CONF / group / f"{option}.yaml").read_text()
    content = yaml.safe_load(text) or {}
    tree = before(group, content.pop("defaults", []))
    for path, value in leaves(content, () if "@package _global_" in text else (group,)):
        assert value != value_at(tree, path), f"{'.'.join(path)}={value} repeats the default"


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_file_names_a_class_to_instantiate(path: Path) -> None:
    assert "_target_" not in path.read_text()


@pytest.mark.thorough
def test_experiments_have_the_expected_ranks_and_stages() -> None:
    demo = composed("experiment=demo")
    assert (demo.zero.stage, demo.launch.nproc_per_node, demo.model.builtin) == (2, 2, "smollm2-135m-instruct")
    large = composed("experiment=llama31_70b")
    assert (large.launch.nnodes, large.launch.nproc_per_node, large.zero.stage) == (4, 8, 3)
    assert composed("experiment=llama31_70b", "launch=slurm").launch.nnodes == 4
    smoke = composed("experiment=smoke")
    assert smoke.model.config and smoke.model.tokenizer == "bytes" and smoke.launch.device.name == "cpu"
    for name in ("smollm2_135m", "llama31_8b", "qwen3_8b", "continued_pretraining"):
        config = composed(f"experiment={name}")
        assert (config.launch.nnodes, config.launch.nproc_per_node) == (1, 8)
        rows = config.batch.micro_batch_size * 8
        assert config.batch.global_batch_size % rows == 0
    assert composed("experiment=llama31_8b", "zero=stage2").zero.stage == 2


@pytest.mark.parametrize(("gpus", "rows"), [(1, 4), (2, 4), (3, 6), (8, 16)])
def test_the_demo_uses_every_gpu(gpus: int, rows: int) -> None:
    """The batch is divisible by any number of GPUs. Without a GPU, the two ranks of the experiment are kept."""
    from ftdist.launch.verbs.train import _demo_on_gpus

    assert _demo_on_gpus(0) == []
    config = composed("experiment=demo", *_demo_on_gpus(gpus))
    assert (config.launch.nproc_per_node, config.batch.global_batch_size) == (gpus, rows)
    assert plan_batch(config.batch, gpus, config.data.max_seq_len).micro_batch_size == 2
