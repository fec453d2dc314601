"""Every causal language model of transformers: exact, or refused with the reason. ``make models`` runs all of them.

A tiny random model of each type goes through the check, the choice of how documents run, loading and the proof of
isolation, as in a run, and is compared with plain transformers (``tests.models.alone``). Then two ranks train it with
ZeRO-3, save and export it (``tests.models.whole_run``). ``docs/models.md`` is generated from the outcomes.
"""

import collections
import json
import os
import pickle
import resource
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Callable, Collection, Dict, List, Optional, Tuple

from tests.helpers.ranks import fork, preload
from tests.models.alone import Outcome, examine, first_line
from tests.models.pair import Failed, Pair
from tests.models.whole_run import config_of, run_model

OUTCOMES = Path(__file__).with_name("outcomes.json")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
LIMIT_S, RUN_LIMIT_S, MEMORY = 100, 60, 8 << 30
TOO_LARGE = "the reduced model takes more than 8 GiB or 100 s"
CI = [
    "afmoe", "apertus", "bloom", "camembert", "dbrx", "deepseek_v3", "doge", "ernie4_5_moe", "flint", "gemma2",
    "gemma3", "gemma3_text", "gemma4_text", "glm4", "gpt_neox_japanese", "gpt_oss", "granitemoe_swa", "jamba", "jetmoe",
    "laguna", "lfm3", "llama", "llama4_text", "marian", "megatron-bert", "minimax", "mistral", "mixtral", "mllama",
    "mpt", "olmo3", "olmo_hybrid", "olmoe", "phi3", "qwen3", "qwen3_moe", "qwen3_next", "stablelm", "trocr", "xglm",
    "zaya",
]  # fmt: skip
"""Types that CI checks each time. They are small, and cover every way in which documents run."""
CI_RUNS = ["afmoe", "apertus", "camembert", "dbrx", "deepseek_v3", "doge", "gemma4_text", "gpt_oss", "laguna", "marian",
           "olmo_hybrid"]  # fmt: skip
"""Those that CI also takes through a whole run: every kind of tensor that an export once lacked.
tests/ranks/test_export.py exports others."""


Case = Callable[[Path], Outcome]
"""Examines a model in a folder that all cases share."""


def all_types() -> List[str]:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING)


def run(types: List[str], runs: Collection[str], jobs: int = 1) -> Dict[str, Outcome]:
    """Examine types in forked processes. This process has imported what they need, so each takes a second or two.

    Args:
        runs: Types that also go through a whole run.
        jobs: Number of processes.
    """
    with prepared_folder() as folder:
        found = examine_all({name: partial(examine, name) for name in types}, jobs, folder)
        with closing(Pair(run_model)) as pair:
            for model_type, outcome in found.items():
                if outcome.result in ("packed", "rows") and model_type in runs:
                    found[model_type] = whole_run(pair, model_type, outcome, folder)
    return dict(sorted(found.items()))


@contextmanager
def prepared_folder() -> Iterator[Path]:
    """Make a temporary folder with prepared data, and import what the cases need, so that each fork has it."""
    import torch
    import transformers

    from tests.helpers.tiny import freeze_tiny, save_tiny_model

    preload()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        freeze_tiny(config_of(folder, save_tiny_model(folder / "models" / "any")), folder / "prepared", 2)
        yield folder


def whole_run(pair: Pair, model_type: str, outcome: Outcome, folder: Path, stage: int = 3) -> Outcome:
    """Return the outcome of a type after a whole run. If ZeRO-3 is refused, ZeRO-2 is tried."""
    try:
        steps, export = pair.call(folder, model_type, stage, timeout_s=RUN_LIMIT_S)
    except Failed as failed:
        if failed.refused and stage == 3:
            refused = replace(outcome, zero3="refused", note=str(failed).replace(f"{folder}/models/", ""))
            return whole_run(pair, model_type, refused, folder, stage=2)
        return replace(outcome, result="wrong", zero3="wrong", note=f"traceback: {failed}")
    wrong = "; ".join(filter(None, [steps, export]))
    return replace(
        outcome, result="wrong" if wrong else outcome.result, zero3="wrong" if steps else outcome.zero3 or "exact",
        export="wrong" if export else "exact", note=wrong or outcome.note,
    )  # fmt: skip


def examine_all(cases: Dict[str, Case], jobs: int, folder: Path) -> Dict[str, Outcome]:
    """Return the outcome of each case. Each runs in a forked process."""
    found: Dict[str, Outcome] = {}
    running: Dict[int, Tuple[str, float]] = {}
    for name, case in cases.items():
        while len(running) >= jobs:
            _collect(running, found, folder)
        pid = fork()
        if pid == 0:
            _child(name, case, folder)
        running[pid] = name, time.monotonic()
    while running:
        _collect(running, found, folder)
    return dict(sorted(found.items()))


def _child(name: str, case: Case, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        outcome = case(folder)
    except BaseException as error:
        outcome = Outcome("wrong", note=f"traceback: {first_line(error)}")
        if "can't allocate memory" in outcome.note:
            outcome = Outcome("unmeasured", note=TOO_LARGE)
    (folder / f"{name}.pickle").write_bytes(pickle.dumps(outcome))
    os._exit(0)


def _collect(running: Dict[int, Tuple[str, float]], found: Dict[str, Outcome], folder: Path) -> None:
    for pid, (model_type, started) in list(running.items()):
        ended, _ = os.waitpid(pid, os.WNOHANG)
        late = time.monotonic() - started > LIMIT_S
        if late and not ended:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        if ended or late:
            file = folder / f"{model_type}.pickle"
            found[model_type] = (
                pickle.loads(file.read_bytes()) if file.exists() else Outcome("unmeasured", note=TOO_LARGE)
            )
            del running[pid]
    time.sleep(0.02)


def read_outcomes() -> Dict[str, Outcome]:
    return {name: Outcome(**fields) for name, fields in json.loads(OUTCOMES.read_text(encoding="utf-8")).items()}


def write_outcomes(found: Dict[str, Outcome]) -> None:
    short = {name: {k: v for k, v in asdict(outcome).items() if v} for name, outcome in found.items()}
    OUTCOMES.write_text(json.dumps(short, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


HEAD = """# Models

Every type of causal language model in transformers {version}, and what ftdist does with it. `make models` measures this
page with tiny random models, in fp32 on a CPU.

- *documents*: the loss of a micro-batch is that of plain transformers with eager attention, one document at a time, up
  to 1e-5, and the gradient of each parameter up to 1e-3. **packed**: several documents share a row ({packed} types).
  **rows**: each document is a row of its own, which is slower ({rows} types). **refused**: the run does not start, for
  the reason in the last column ({refused} types).{unmeasured}
- *attention*: what `model.attention=auto` chooses on a CPU, see [Packing](data.md#packing). On a GPU the choice is made
  again.
- *checkpointing*: the same comparison with `train.gradient_checkpointing=full` ({recompute} types).
- *ZeRO-3*: two steps on two ranks that share every parameter have the losses, gradients and updates of plain
  transformers ({zero3} types).
- *export*: a checkpoint of these two ranks was exported, and `from_pretrained` gives the logits of the run ({export}
  types). In bf16 the export of a stand-in has the same weights and logits.
- *samples*: the most likely answers of 40 tokens are those of plain transformers without a cache of keys and values
  ({exact} types, `tests/models/test_samples.py`). A run uses a cache, except for
{uncached}.

{trainable} types can be trained with ZeRO-3, {smaller} more with smaller stages. Encoders such as BERT need
`model.config.is_decoder=true` (XLM `causal=true`, XLNet `attn_type=uni`); they are listed as decoders. BigBird is
listed with `attention_type=original_full`: beyond 704 tokens its sparse attention sees later ones. The reasons name
what transformers or the model lacks.

| type | documents | attention | checkpointing | ZeRO-3 | export | notes |
|---|---|---|---|---|---|---|
"""
UNMEASURED = " **unmeasured**: no tiny model of the type could be built ({} types). A run decides with the real config."


def page(found: Dict[str, Outcome], version: str) -> str:
    """Return the text of docs/models.md."""
    kinds = collections.Counter(outcome.result for outcome in found.values())
    trained = [outcome for outcome in found.values() if outcome.result in ("packed", "rows")]
    rows = [
        f"| `{name}` | {o.result} | {o.attention} | {o.checkpointing} | {o.zero3} | {o.export} | {_cell(o.note)} |"
        for name, o in found.items()
    ]
    return HEAD.format(
        version=version, packed=kinds["packed"], rows=kinds["rows"], refused=kinds["refused"],
        unmeasured=UNMEASURED.format(kinds["unmeasured"]) if kinds["unmeasured"] else "",
        recompute=sum(o.checkpointing == "exact" for o in trained), zero3=sum(o.zero3 == "exact" for o in trained),
        export=sum(o.export == "exact" for o in trained), trainable=sum(o.zero3 == "exact" for o in trained),
        exact=len(trained), uncached=_wrapped(", ".join(f"`{name}`" for name, o in found.items() if o.cache)),
        smaller=sum(o.zero3 == "refused" for o in trained),
    ) + "\n".join(rows) + "\n"  # fmt: skip


def _wrapped(names: str) -> str:
    return textwrap.fill(names, 118, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def main(argv: Optional[List[str]] = None) -> int:
    import transformers

    chosen = sys.argv[1:] if argv is None else argv
    types = chosen or all_types()
    found = run(types, types, jobs=2)
    for name, outcome in found.items():
        columns = (
            f"{outcome.result:8} {outcome.attention:32} {outcome.checkpointing:14} {outcome.zero3:8} {outcome.export:6}"
        )
        print(f"{name:26} {columns} {outcome.note[:140]}")
    if not chosen:
        write_outcomes(found)
        PAGE.write_text(page(found, transformers.__version__), encoding="utf-8")
    return int(any(outcome.result == "wrong" for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())
