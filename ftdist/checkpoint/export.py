"""Export a checkpoint as an ordinary Hugging Face folder: ``python -m ftdist.checkpoint.export RUN_DIR``.

Works from the files of a checkpoint alone, in one process, whatever number of ranks wrote it. What was written is
opened again and compared, tensor by tensor.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ftdist.base.errors import CheckpointError, ConfigError, FtdistError
from ftdist.base.temporary import beside, remove_rests
from ftdist.base.terminal import task
from ftdist.checkpoint.protocol import HF, STATE, rank_file, verify_checkpoint
from ftdist.checkpoint.tensors import Stored
from ftdist.config.frozen import load_config
from ftdist.config.schema import Precision, RunConfig
from ftdist.engine.shards import BUFFER, MASTER
from ftdist.model.load import DTYPES, build_whole
from ftdist.run.rundir import MANIFEST, RunDir, read_json, read_manifest

State = Dict[str, torch.Tensor]
MARK = "ftdist_export.json"
SHARD_SIZE = "5GB"


def export_checkpoint(checkpoint: Path, out: Path, config: RunConfig) -> None:
    """Write weights (safetensors, the run's precision), configs, tokenizer, chat template and a model card to ``out``.

    An earlier export in ``out`` is replaced, once the new one is whole; anything else there is refused.

    Raises:
        CheckpointError: a file of the checkpoint is damaged, or what was written reads back differently.
        ConfigError: ``out`` holds something that is not an export, or is a link.
    """
    if out.is_symlink():
        raise ConfigError(f"{out} is a link to {out.resolve()}", "a folder", "give the folder itself with --out")
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise ConfigError(f"{out} exists and is not an export of ftdist", "a new folder", "give another one with --out")
    problem = verify_checkpoint(checkpoint)
    if problem:
        found = f"{checkpoint}: {problem}"
        raise CheckpointError(found, "a checkpoint as it was written", "export another: --checkpoint")
    build_whole()  # this process may have trained with ZeRO-3
    manifest, state = read_manifest(checkpoint), read_json(checkpoint / STATE)
    model_config = AutoConfig.from_pretrained(checkpoint / HF, trust_remote_code=config.model.trust_remote_code)
    weights = _unpad(_read_weights(checkpoint, manifest), model_config, state["vocab_size"])
    remove_rests(out)
    unfinished = beside(out)
    unfinished.mkdir(parents=True)
    _copy_hf(checkpoint, manifest, unfinished)
    _save_model(weights, model_config, unfinished, config)
    (unfinished / "README.md").write_text(_model_card(config, checkpoint, state), encoding="utf-8")
    (unfinished / MARK).write_text((checkpoint / MANIFEST).read_text(encoding="utf-8"), encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    unfinished.rename(out)


def _copy_hf(checkpoint: Path, manifest: Dict[str, Any], out: Path) -> None:
    """The files that were saved and verified, and no other that lies there."""
    for name in manifest["files"]:
        if name.startswith(f"{HF}/"):
            place = out / Path(name).relative_to(HF)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, place)


def _read_weights(checkpoint: Path, manifest: Dict[str, Any]) -> State:
    """Whole weights in the run's precision, put together from the masters of all ranks, one at a time."""
    stored = Stored([checkpoint / rank_file(rank) for rank in range(manifest["world_size"])])
    dtype = DTYPES[Precision[manifest["precision"]]]
    weights = {name: stored.whole(MASTER, name, shape).to(dtype) for name, shape in manifest["parameters"].items()}
    return weights | {name: stored.whole(BUFFER, name, shape) for name, shape in manifest["buffers"].items()}


def _unpad(weights: State, model_config: PretrainedConfig, vocab_size: int) -> State:
    """Without the rows that only padded the embedding."""
    text_config = model_config.get_text_config()
    padded, text_config.vocab_size = text_config.vocab_size, vocab_size
    if padded == vocab_size:
        return weights
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    names = {name for name, p in model.named_parameters(remove_duplicate=False) if p.shape[0] == vocab_size}
    cut = {n for n, t in weights.items() if n in names and t.shape[0] == padded}
    return {name: t[:vocab_size].clone() if name in cut else t for name, t in weights.items()}


def _save_model(weights: State, model_config: PretrainedConfig, out: Path, config: RunConfig) -> None:
    dtype = next(iter(weights.values())).dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            model_config, dtype=dtype, trust_remote_code=config.model.trust_remote_code
        )
    _, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    absent = [name for name, p in model.named_parameters() if p.is_meta]
    if absent or unexpected:
        raise CheckpointError(f"the checkpoint does not fit the model: lacks {absent[:3]}, has {unexpected[:3]}")
    generation_config = model.generation_config.from_pretrained(out)
    model.generation_config = generation_config
    model.config.use_cache = True
    model.save_pretrained(out, max_shard_size=SHARD_SIZE)
    written = _digests(model)
    weights.clear()
    del model
    _compare(written, out, config)


def _digests(model: torch.nn.Module) -> Dict[str, str]:
    """A hash of each tensor that a model saves, by its name in the model."""
    tensors = model.state_dict().items()
    return {name: hashlib.sha256(t.cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
            for name, t in tensors}  # fmt: skip


def _compare(written: Dict[str, str], out: Path, config: RunConfig) -> None:
    """By hashes, so that two models never lie in memory; as a user will open it, since transformers renames and splits
    some models' tensors when it writes them."""
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=config.model.trust_remote_code)
    read = _digests(model)
    for name, digest in written.items():
        if read.get(name) != digest:
            raise CheckpointError(f"{out}: '{name}' reads back differently from what was written", "equal tensors",
                                  "check the disk, then export again")  # fmt: skip


def _model_card(config: RunConfig, checkpoint: Path, state: Dict[str, Any]) -> str:
    evaluated = state["eval_loss"] is not None and state["evaluated_step"] == state["step"]
    base = config.model.hub or config.model.builtin or config.model.path or "random weights"
    rows = {
        "base model": base,
        "data": ", ".join(config.data.sources),
        "method": config.method.kind.name,
        "optimizer steps": f"{state['step']:,}",
        "trained tokens": f"{state['trained_tokens']:,}",
        "held-out loss (nats a token)": f"{state['eval_loss']:.4f}" if evaluated else "not evaluated at this step",
        "learning rate": f"{config.optim.lr:g} ({config.optim.schedule.name})",
        "rows per step × tokens per row": f"{config.batch.global_batch_size} × {config.data.max_seq_len}",
        "precision": config.train.precision.name,
        "ZeRO stage": str(config.zero.stage),
        "seed": str(config.seed),
        "checkpoint": checkpoint.name,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    tags = "library_name: transformers\ntags:\n- ftdist\n"
    if config.model.hub:
        tags += f"base_model: {config.model.hub}\n"
    return f"---\n{tags}---\n\n# {config.name}\n\nFine-tuned with ftdist.\n\n| | |\n|---|---|\n{table}\n"


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="ftdist export", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step")
    parser.add_argument("--out", help="default RUN_DIR/export")
    args = parser.parse_args(argv)
    try:
        run = RunDir.open(args.run_dir)
        out = Path(args.out) if args.out else run.export
        checkpoint = run.find_checkpoint(args.checkpoint)
        with task(f"exporting {checkpoint.name}"):
            export_checkpoint(checkpoint, out, load_config(run.config))
    except FtdistError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"exported to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
