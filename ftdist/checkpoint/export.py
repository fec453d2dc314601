"""Export a checkpoint as an ordinary Hugging Face folder.

One process does this from the files of the checkpoint, whatever number of ranks wrote them. The exported weights are
read back and compared with the checkpoint, tensor by tensor.
"""

import shutil
from pathlib import Path
from typing import Any, Dict

import torch
from transformers import AutoConfig, PretrainedConfig

from ftdist.base.errors import CheckpointError, ConfigError
from ftdist.base.json_files import read_json, write_json
from ftdist.base.permissions import follow_umask, require_readable_folder
from ftdist.base.temporary import remove_leftovers, temporary_path
from ftdist.checkpoint.compatibility import write_old_fields
from ftdist.checkpoint.exported_template import template_facts, write_defaults
from ftdist.checkpoint.model_card import model_card
from ftdist.checkpoint.probes import check_exported
from ftdist.checkpoint.protocol import HF, STATE, rank_file, verify_checkpoint
from ftdist.checkpoint.saver import check_base
from ftdist.checkpoint.state import BUFFER, MASTER
from ftdist.checkpoint.tensors import Stored
from ftdist.config.frozen import load_config
from ftdist.config.schema import Precision, RunConfig
from ftdist.method.adapters import weight_of_rows
from ftdist.method.build import METHODS
from ftdist.method.lora import export_merged
from ftdist.method.qlora import export_merged_quantized
from ftdist.model.load import DTYPES, build_whole, identity_of_base
from ftdist.model.parts import auto_class
from ftdist.run.file_names import EXPORT_MARK
from ftdist.run.rundir import RunDir, read_manifest

State = Dict[str, torch.Tensor]


def export_checkpoint(checkpoint: Path, out: Path, config: RunConfig, merged: bool = False) -> str:
    """Write the weights, configs, tokenizer, chat template and a model card to ``out``.

    The weights are written in the run's precision as safetensors. An earlier export in ``out`` is replaced when the new
    one is complete.

    Args:
        merged: Fold the adapters of ``method=lora`` into the base model. Otherwise an adapter is written, with one
            exception: if the run has added ``model.adapter`` to its base model, the sum is stored nowhere, and a whole
            model is written.

    Returns:
        What was measured, for the user; an empty text if there is nothing to say.

    Raises:
        CheckpointError: A file of the checkpoint is damaged, or the exported weights, tokenizer, chat template or
            generation config differ when they are read back.
        ConfigError: ``out`` is a symbolic link, or holds something that is not an export, or there are no adapters.
    """
    if merged and not config.method.facts.adapters:
        raise ConfigError(f"--merged: method={config.method.kind.name} has no adapters; its export is a whole model",
                          "a run with method=lora", "leave out --merged")  # fmt: skip
    merged = merged or (config.method.facts.adapters and config.model.adapter is not None)
    check_out(out)
    check_trained(checkpoint, config)
    build_whole()  # this process may have trained with ZeRO-3, which would shard the model here too
    manifest, state = read_manifest(checkpoint), read_json(checkpoint / STATE)
    model_config = AutoConfig.from_pretrained(checkpoint / HF, trust_remote_code=config.model.trust_remote_code)
    trust = config.model.trust_remote_code
    weights = _remove_padding(_read_weights(checkpoint, manifest), model_config, state["vocab_size"], trust)
    remove_leftovers(out)
    unfinished = temporary_path(out)
    unfinished.mkdir(parents=True)
    _copy_hf_files(checkpoint, manifest, unfinished)
    measured = ""
    if merged:
        fold = export_merged_quantized if config.method.facts.quantized else export_merged
        measured = fold(weights, model_config, unfinished, config)
    else:
        METHODS[config.method.kind].export(weights, model_config, unfinished, config)
    write_old_fields(unfinished)
    facts = template_facts(unfinished, config)
    write_defaults(unfinished, config)
    check_exported(unfinished, checkpoint, config)
    card = model_card(config, checkpoint.name, state, model_config.model_type, facts, measured)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    write_json(unfinished / EXPORT_MARK, {**manifest, **facts})
    follow_umask(unfinished)
    if out.exists():
        shutil.rmtree(out)
    unfinished.rename(out)
    return measured


def check_out(out: Path) -> None:
    """Check that an export may be written to a folder.

    Raises:
        ConfigError: It is a symbolic link, or holds something that is not an export.
    """
    if out.is_symlink():
        raise ConfigError(f"{out} is a link to {out.resolve()}", "a folder", "pass the folder itself to --out")
    if out.exists() and any(out.iterdir()) and not (out / EXPORT_MARK).is_file():
        raise ConfigError(
            f"{out} exists and is not an export of ftdist", "a new folder", "pass another folder to --out"
        )


def check_trained(checkpoint: Path, config: RunConfig) -> None:
    """Check that the files of a checkpoint are unchanged, and that it was trained on the base model of the config.

    Raises:
        AccessError: This user may not read it.
        CheckpointError: A file is damaged, or the checkpoint holds only a part of the parameters and was trained on
            another base model.
    """
    require_readable_folder(checkpoint)
    problem = verify_checkpoint(checkpoint)
    if problem:
        found = f"{checkpoint}: {problem}"
        raise CheckpointError(found, "a checkpoint whose files are unchanged", "pass another one with --checkpoint")
    whole = config.method.facts.whole
    check_base(checkpoint.name, read_manifest(checkpoint), None if whole else identity_of_base(config), config)


def check_base_of_export(folder: Path) -> None:
    """Check that the base model of an exported adapter is the one that it was trained on.

    An export that is no longer in its run directory is not checked, because only the run knows where its base came
    from.

    Raises:
        CheckpointError: The base model has other weights.
    """
    mark, run = folder / EXPORT_MARK, RunDir(folder.parent)
    if mark.is_file() and run.config.is_file():
        config = load_config(run.config)
        check_base(str(folder), read_json(mark), identity_of_base(config), config)


def _copy_hf_files(checkpoint: Path, manifest: Dict[str, Any], out: Path) -> None:
    """Copy the configs and the tokenizer. Files that the manifest does not list were not verified and are left out."""
    for name in manifest["files"]:
        if name.startswith(f"{HF}/"):
            target = out / Path(name).relative_to(HF)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, target)


def _read_weights(checkpoint: Path, manifest: Dict[str, Any]) -> State:
    """Return the whole weights in the run's precision, assembled from the master weights of all ranks."""
    stored = Stored([checkpoint / rank_file(rank) for rank in range(manifest["world_size"])])
    dtype = DTYPES[Precision[manifest["precision"]]]
    weights = {name: stored.whole(MASTER, name, shape).to(dtype) for name, shape in manifest["parameters"].items()}
    return weights | {name: stored.whole(BUFFER, name, shape) for name, shape in manifest["buffers"].items()}


def _remove_padding(weights: State, model_config: PretrainedConfig, vocab_size: int, trust_remote_code: bool) -> State:
    """Return the weights without the padding rows of the embedding and of adapters of the head, and set the vocabulary
    size in the config."""
    text_config = model_config.get_text_config()
    padded, text_config.vocab_size = text_config.vocab_size, vocab_size
    if padded == vocab_size:
        return weights
    with torch.device("meta"):
        model = auto_class(model_config).from_config(model_config, trust_remote_code=trust_remote_code)
    names = {name for name, p in model.named_parameters(remove_duplicate=False) if p.shape[0] == vocab_size}
    cut = {n for n, t in weights.items() if weight_of_rows(n) in names and t.shape[0] == padded}
    return {name: t[:vocab_size].clone() if name in cut else t for name, t in weights.items()}
