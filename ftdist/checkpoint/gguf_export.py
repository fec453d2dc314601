"""Export a checkpoint as a GGUF file for llama.cpp and Ollama, and compare it with the model it was written from."""

import os
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json, write_json
from ftdist.base.permissions import follow_umask
from ftdist.base.temporary import remove_leftovers, temporary_path
from ftdist.checkpoint.export import check_out, export_checkpoint
from ftdist.checkpoint.gguf_check import (
    check_settings,
    check_tensors,
    check_tokens,
    compare_logits,
    probe_ids,
    read_logits,
)
from ftdist.checkpoint.gguf_family import Family, context_length, family_of
from ftdist.checkpoint.gguf_types import TYPES, GgufType
from ftdist.checkpoint.gguf_vocabulary import read_vocabulary
from ftdist.checkpoint.gguf_write import logits_of, special_tokens, write_gguf
from ftdist.checkpoint.modelfile import modelfile
from ftdist.checkpoint.protocol import HF
from ftdist.config.schema import RunConfig
from ftdist.model.opened import open_exported
from ftdist.model.parts import is_multimodal
from ftdist.run.file_names import EXPORT_MARK
from ftdist.run.rundir import read_manifest

MODELFILE = "Modelfile"
OUTTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8_0"}
"""What llama.cpp's converter writes itself."""


def export_gguf(checkpoint: Path, out: Path, config: RunConfig, type_name: str) -> List[str]:
    """Write a checkpoint to ``out`` as a GGUF file, with a Modelfile for Ollama and the model card.

    Adapters are merged first. The model is exported in Hugging Face format to a temporary folder, which is removed.

    Args:
        type_name: A key of ``TYPES``.

    Returns:
        What was measured, for the user.

    Raises:
        CheckpointError: The file does not hold the model: settings, token ids, tensors or logits differ.
        ConfigError: The model cannot be written as GGUF.
    """
    kind = TYPES.get(type_name.upper())
    if kind is None:
        raise ConfigError(f"--gguf {type_name}", ", ".join(TYPES), "--gguf Q8_0")
    adapters = config.method.facts.adapters
    commands = llama_cpp_commands(checkpoint.parents[1], adapters, kind)
    trust = config.model.trust_remote_code
    family = family_of(AutoConfig.from_pretrained(checkpoint / HF, trust_remote_code=trust), commands)
    check_out(out)
    remove_leftovers(out)
    unfinished = temporary_path(out)
    unfinished.mkdir(parents=True)
    folder = unfinished / HF
    measured = export_checkpoint(checkpoint, folder, config, merged=adapters)
    lines = _write_and_check(folder, unfinished / f"model-{kind.name}.gguf", config, family, kind, commands)
    card = _card((folder / "README.md").read_text(encoding="utf-8"), lines)
    manifest = read_manifest(checkpoint)
    (unfinished / "README.md").write_text(card + _keep_other_types(out, unfinished, manifest), encoding="utf-8")
    shutil.rmtree(folder)
    write_json(unfinished / EXPORT_MARK, manifest)
    follow_umask(unfinished)
    if out.exists():
        shutil.rmtree(out)
    unfinished.rename(out)
    return [line for line in (measured, *lines) if line]


def _keep_other_types(out: Path, unfinished: Path, manifest: Dict[str, Any]) -> str:
    """Put the files of other types that an earlier export has written from the same checkpoint beside the new file.

    Returns:
        Their rows of the model card.
    """
    if not (out / EXPORT_MARK).is_file() or read_json(out / EXPORT_MARK) != manifest:
        return ""
    rows = (out / "README.md").read_text(encoding="utf-8").splitlines()
    kept = [file for file in sorted(out.glob("model-*.gguf")) if not (unfinished / file.name).exists()]
    for file in kept:  # the folder stays complete until it is replaced
        try:
            os.link(file, unfinished / file.name)
        except OSError:  # not every file system has links
            shutil.copyfile(file, unfinished / file.name)
    return "".join(f"{row}\n" for row in rows if any(row.startswith(f"| GGUF | {file.name}: ") for file in kept))


def llama_cpp_commands(run: Path, adapters: bool, kind: GgufType) -> str:
    """Return the commands that convert a run with llama.cpp's own programs."""
    export, folder = (" --merged", "export-merged") if adapters else ("", "export")
    outtype = OUTTYPES.get(kind.name, "f16")
    first = f"ftdist export {run}{export} && python convert_hf_to_gguf.py {run / folder} --outtype {outtype}"
    if kind.name in OUTTYPES:
        return f"with llama.cpp: {first} --outfile model.gguf"
    return f"with llama.cpp: {first} --outfile f16.gguf && llama-quantize f16.gguf model.gguf {kind.name}"


def _write_and_check(
    folder: Path, file: Path, config: RunConfig, family: Family, kind: GgufType, commands: str
) -> List[str]:
    """Write the file and the Modelfile, and compare. Returns what was measured."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
    model = open_exported(folder, config.model.trust_remote_code)
    text = model.config.get_text_config()
    vocabulary = read_vocabulary(tokenizer, text.vocab_size, commands)
    stops = _stop_ids(folder, tokenizer)
    special = special_tokens(tokenizer, stops)
    write_gguf(file, model, vocabulary, special, family, kind, config.name)
    (file.parent / MODELFILE).write_text(
        modelfile(tokenizer, file.name, tokenizer.convert_ids_to_tokens(stops), special["ggml.add_bos_token"]),
        encoding="utf-8",
    )
    compared = check_tokens(file, tokenizer, vocabulary)
    ids = probe_ids(tokenizer, text, family)
    tensors, logits = _check_numbers(file, model, family, kind, ids)
    reader = "transformers' reader" if family.read else "gguf's reader, as transformers does not read this family"
    lines = [
        f"{file.name}: {file.stat().st_size / 2**20:,.1f} MiB, read with {reader}: {compared:,} token ids are those "
        "of the run's tokenizer",
        f"{file.name}: tensors have a relative error of at most {tensors:.1e} (Frobenius norm; allowed: "
        f"{kind.weights:g}), logits differ by {logits:.1e} of their standard deviation (allowed: {kind.logits:g})",
    ]
    if context_length(text, family) < text.max_position_embeddings:
        lines.append(f"{file.name}: context limited to {context_length(text, family):,} tokens, the attention window: "
                     "llama.cpp does not implement windows for this family")  # fmt: skip
    if is_multimodal(model.config):
        lines.append(f"{file.name}: holds the language part only, not those for images")
    return lines


def _check_numbers(file: Path, model: Any, family: Family, kind: GgufType, ids: List[int]) -> Tuple[float, float]:
    if family.read:
        check_settings(file, model.config.get_text_config(), family)
    tensors = check_tensors(file, model, family, kind)
    with torch.no_grad():
        expected = logits_of(model, ids).clone()
        found = read_logits(file, model, family, ids)
    return tensors, compare_logits(expected, found, kind, file)


def _stop_ids(folder: Path, tokenizer: Any) -> List[int]:
    """Return the ids of the tokens that end an answer, the tokenizer's own first."""
    generation = GenerationConfig.from_pretrained(folder).eos_token_id
    others = generation if isinstance(generation, list) else [generation]
    return list(dict.fromkeys(number for number in (tokenizer.eos_token_id, *others) if number is not None))


def _card(card: str, lines: List[str]) -> str:
    """Return the model card with one row for each measured line, and with the library and readers of GGUF files.

    The card already has the measurements of merged adapters.
    """
    rows = "".join(f"| GGUF | {line} |\n" for line in lines)
    card = re.sub(r"\| made to be read by \|.*", "| made to be read by | llama.cpp and Ollama |", card, count=1)
    return card.replace("library_name: transformers", "library_name: gguf", 1).rstrip("\n") + f"\n{rows}"
