"""Save the checkpoints of a run in the background of training, and resume from them."""

import hashlib
import math
import os
import shutil
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from ftdist.base.counts import count
from ftdist.base.errors import CheckpointError
from ftdist.base.json_files import read_json
from ftdist.checkpoint.exported_template import save_tokenizer
from ftdist.checkpoint.protocol import (
    FORMAT,
    HF,
    STATE,
    Contents,
    RankAgreement,
    find_newest,
    rank_file,
    save_checkpoint,
    to_json,
)
from ftdist.checkpoint.state import layout, restore, tensors_to_save
from ftdist.checkpoint.tensors import Stored, key_of
from ftdist.config.optim import BLOCKS_CANNOT_BE_CUT, optimizer_of
from ftdist.config.resumable import config_hash
from ftdist.config.schema import RunConfig
from ftdist.data.tokenizer import SENTENCEPIECE
from ftdist.engine.engine import Engine
from ftdist.model.load import identity_of_base
from ftdist.model.parts import save_config
from ftdist.model.quantized import QUANTIZATION
from ftdist.plan.disk import checkpoint_bytes, free_memory, size_text
from ftdist.run.file_names import GENERATION_CONFIG
from ftdist.run.identity import read_inputs
from ftdist.run.rundir import RunDir, read_manifest

Note = Callable[[str], None]
PACKAGES = ("ftdist", "torch", "deepspeed", "transformers")
RNG = "rng"
"""Kind of the entries that hold random states in a tensor file."""


class Saver:
    """Saves and loads the checkpoints of a run. Every rank has one and must call its methods at the same steps.

    With ``train.async_checkpoint`` a save copies this rank's slices to host memory and returns. A thread writes them
    while training continues. The next save and the end of the run wait for this thread.
    """

    def __init__(
        self, engine: Engine, run: RunDir, config: RunConfig, files: Dict[str, bytes], note: Note,
        base: Optional[str] = None,
    ) -> None:  # fmt: skip
        """
        Args:
            files: The small files of every checkpoint, from ``hf_files``.
            note: Prints one line for the user. It is called on every rank and from any thread.
            base: Identity of the base model, if only a part of its parameters is trained.
        """
        self._base = base
        self._engine, self._run, self._config, self._files, self.note = engine, run, config, files, note
        self._config_hash, self._versions = config_hash(config), {name: version(name) for name in PACKAGES}
        self._data = (read_inputs(run) or {}).get("data")
        self.together = RankAgreement()
        everywhere = sorted({"; ".join(held) for held in self.together.gather(layout(engine)) if held})
        self._layout = hashlib.sha256("\n".join(everywhere).encode()).hexdigest() if everywhere else None
        self._thread: Optional[threading.Thread] = None
        self._host: Dict[str, torch.Tensor] = {}
        self._saved: Optional[Dict[str, Any]] = None  # state.json of the newest checkpoint that was saved or loaded
        self._error = ""
        self.published: Optional[Tuple[int, float]] = None
        """Step and time (seconds since 1970) of the newest checkpoint that this process has published."""
        self.longest_save_s = 0.0
        """Longest time from the beginning of a save until the checkpoint was complete."""
        self.background = config.train.async_checkpoint and self._has_memory()

    def _has_memory(self) -> bool:
        """Return whether every machine has enough host memory for a copy of the state of its ranks."""
        tensors = tensors_to_save(self._engine).values()
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if not self._engine.updates:  # the states do not exist yet
            needed = checkpoint_bytes(sum(tensor.numel() for tensor in tensors), optimizer_of(self._config.optim))
        here = os.uname().nodename
        ours = math.ceil(sum(size for host, size in self.together.gather((here, needed)) if host == here))
        machines = dict(self.together.gather((here, (ours, free_memory()))))
        for host, (size, free) in machines.items():
            if size > free:
                self.note(
                    f"{host} has not enough free memory to save checkpoints in the background ({size_text(size)} "
                    f"needed, {size_text(free)} free): training pauses during each save"
                )
                return False
        return True

    def save(self, state: Dict[str, Any]) -> None:
        """Save a checkpoint, or start to save it in the background.

        If it cannot be written, one line says so and training continues. The next save is tried as usual.

        Args:
            state: The content of ``state.json``.
        """
        self.join()
        if self._saved == state:
            return
        begun = time.monotonic()
        contents = Contents(
            step=state["step"], size=self._size(), tensors=self._tensors(),
            files={**self._files, STATE: to_json(state)}, manifest=self._manifest(state),
        )  # fmt: skip
        if self.background:
            self._thread = threading.Thread(target=self._write, args=(contents, state, begun), daemon=True)
            self._thread.start()
        else:
            self._write(contents, state, begun)

    def join(self, timeout_s: Optional[float] = None) -> None:
        """Wait until the checkpoint that is being written is complete, but not longer than ``timeout_s``."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def finish(self) -> None:
        """Wait for the newest save.

        Raises:
            CheckpointError: The newest checkpoint could not be written.
        """
        self.join()
        if self._error:
            raise CheckpointError(self._error, "space and write permission in the run directory",
                                  "free some space, then run ftdist resume RUN_DIR")  # fmt: skip

    def _size(self) -> int:
        """Return the size of a checkpoint in bytes, over all ranks."""
        numel = sum(math.prod(shape) for shape in self._engine.trained_shapes().values())
        return checkpoint_bytes(numel, optimizer_of(self._config.optim)) + sum(map(len, self._files.values()))

    def _tensors(self) -> Dict[str, torch.Tensor]:
        """Return the tensors that this rank saves, by the key of their entry."""
        tensors = tensors_to_save(self._engine)
        if self.background:
            tensors = self._copies(tensors)
        return {**tensors, **_rng_tensors(self.together.rank)}

    def _copies(self, tensors: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        """Copy tensors to host memory. The memory is reused, because allocating it takes longer than the copy."""
        for key, tensor in tensors.items():
            if key not in self._host:
                self._host[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._host[key].copy_(tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {key: self._host[key] for key in tensors}

    def _manifest(self, state: Dict[str, Any]) -> Dict[str, Any]:
        return {
            "format": FORMAT,
            "step": state["step"],
            "due": state["due"],
            "eval_loss": state["eval_loss"] if state["evaluated_step"] == state["step"] else None,
            "world_size": self.together.world_size,
            "zero_stage": self._engine.stage,
            "precision": self._config.train.precision.name,
            "config": self._config_hash,
            "data": self._data,
            **({"base": self._base} if self._base else {}),
            **({"quantization": QUANTIZATION} if self._config.method.facts.quantized else {}),
            **({"layout": self._layout} if self._layout else {}),
            "optimizer_step": self._engine.updates,
            "no_gradient": self._engine.no_gradient.names,
            "parameters": self._engine.trained_shapes(),
            "buffers": {name: list(tensor.shape) for name, tensor in self._engine.buffers().items()},
            "versions": self._versions,
        }

    def _write(self, contents: Contents, state: Dict[str, Any], begun: float) -> None:
        try:
            problem, remark = save_checkpoint(self._run, contents, self.together, self._config.train.keep_checkpoints)
        except Exception as error:  # the other ranks have ended; training will fail because of that too
            problem, remark = f"{type(error).__name__}: {error}", ""
        if problem:
            self._saved, self._error = None, f"the checkpoint of step {contents.step} could not be written: {problem}"
            self.note(f"{self._error}; training continues")
            return
        self._saved, self._error, self.published = state, "", (contents.step, time.time())
        self.longest_save_s = max(self.longest_save_s, time.monotonic() - begun)
        if remark:
            self.note(remark)

    def load_newest(self, due: bool = False) -> Optional[Dict[str, Any]]:
        """Load the newest undamaged checkpoint into the engine. Every rank must call it.

        The checkpoint may have been saved by another number of ranks or at another ZeRO stage.

        Args:
            due: Prefer checkpoints that were due over those that were saved only because the run was stopped.

        Returns:
            The content of its ``state.json``, or None if there is no checkpoint.

        Raises:
            CheckpointError: All checkpoints are damaged, or the newest one is of another model or other settings.
        """
        folder = find_newest(self._run, self.together, self.note, due)
        if folder is None:
            return None
        manifest = read_manifest(folder)
        self._check_fits(folder.name, manifest)
        stored = Stored([folder / rank_file(rank) for rank in range(manifest["world_size"])])
        restore(self._engine, stored, manifest["optimizer_step"])
        # Older versions did not write no_gradient. Then all parameters are listed at first, and the next step removes
        # those that get a gradient.
        self._engine.no_gradient.reset(manifest.get("no_gradient", self._engine.trained_shapes()))
        _restore_rng(stored, self.together.rank, manifest["world_size"], f"{self._config.seed} {manifest['step']}")
        here = (self.together.world_size, self._engine.stage)
        if (manifest["world_size"], manifest["zero_stage"]) != here:
            self.note(f"{folder.name} was saved by {_ranks(manifest['world_size'], manifest['zero_stage'])}; "
                       f"the run continues with {_ranks(*here)}")  # fmt: skip
        self._saved = read_json(folder / STATE)
        return self._saved

    def _check_fits(self, name: str, manifest: Dict[str, Any]) -> None:
        if manifest["parameters"] != (mine := self._engine.trained_shapes()):
            different = _differences(manifest, mine)
            raise CheckpointError(f"{name} belongs to another model: {different[0]}", "a checkpoint of this model",
                                  "resume with the model that the run was started with")  # fmt: skip
        check_base(name, manifest, self._base, self._config)
        if manifest.get("layout") != self._layout and manifest["optimizer_step"]:
            by = _ranks(manifest["world_size"], manifest["zero_stage"])
            raise CheckpointError(f"{name} was saved by {by}, and its states do not fit the "
                                  f"{count(self.together.world_size, 'rank')} with ZeRO-{self._engine.stage} and the "
                                  f"settings of ZeRO of this run. {BLOCKS_CANNOT_BE_CUT}",
                                  "the ranks, the stage and the settings of ZeRO that it was saved with",
                                  f"resume with {by}")  # fmt: skip
        saved = manifest.get("data")  # older versions did not write it
        if saved and self._data and saved["sha256"] != self._data["sha256"]:
            raise CheckpointError(f"{name} was saved by a run on other data ({count(saved['rows']['train'], 'row')})",
                                  "the data that inputs.json named then",
                                  "restore that inputs.json in the run directory, or start a new run")  # fmt: skip
        # Another version of ftdist may have other settings, so its config hash may differ.
        same_version = manifest["versions"]["ftdist"] == self._versions["ftdist"]
        if manifest["config"] != self._config_hash and same_version:
            raise CheckpointError(f"{name} was saved by a run with other settings", "the run.yaml of that run",
                                  "restore this run.yaml, or start a new run")  # fmt: skip


def check_base(name: str, manifest: Dict[str, Any], base: Optional[str], config: RunConfig) -> None:
    """Check that a checkpoint which holds only a part of the parameters was trained on this base model.

    Args:
        name: Name of the checkpoint, for the message.
        base: Identity of the base model now.
        config: The config of the run.

    Raises:
        CheckpointError: It was trained on another one.
    """
    saved = manifest.get("base")
    if saved != base and (saved is None or base is None or saved != identity_of_base(config, first=True)):
        if config.model.config:  # random weights have no files
            raise CheckpointError(f"{name} holds only the trained parameters, and its random base model had other "
                                  "weights: model.config or the seed was changed, or another version of ftdist drew "
                                  "them",
                                  "the random weights that the run was started with",
                                  "use the run.yaml and the version of ftdist of that run, or start a new "
                                  "run")  # fmt: skip
        raise CheckpointError(f"{name} holds only the trained parameters, and the base model now has other weights",
                              "the base model that the run was started with",
                              "restore the files of the base model, or start a new run")  # fmt: skip


def _differences(manifest: Dict[str, Any], mine: Dict[str, List[int]]) -> List[str]:
    """Describe the parameters whose shapes in the checkpoint and in the model differ."""
    saved = manifest["parameters"]
    return [f"{name} {_shape(saved.get(name))} in the checkpoint and {_shape(mine.get(name))} in this model"
            for name in sorted(saved.keys() | mine.keys()) if saved.get(name) != mine.get(name)]  # fmt: skip


def _shape(shape: Optional[List[int]]) -> str:
    return "does not exist" if shape is None else f"has shape {shape}"


def _ranks(world_size: int, stage: int) -> str:
    return f"{count(world_size, 'rank')} with ZeRO-{stage}"


def hf_files(model: Any, tokenizer: Any, others: Sequence[Path] = ()) -> Dict[str, bytes]:
    """Return the configs and the tokenizer of a model as files, by their path in a checkpoint.

    They do not change during a run.

    Args:
        others: Other files of the model's folder that belong to it.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_config(model, Path(folder))
        # save_pretrained refuses values that have no effect, such as a temperature without do_sample. The model came
        # with them, and other programs read them: vLLM samples with them.
        generation = Path(folder) / GENERATION_CONFIG
        generation.write_text(model.generation_config.to_json_string(), encoding="utf-8")
        save_tokenizer(tokenizer, folder)
        sentencepiece = getattr(tokenizer, "sentencepiece_file", None)
        if sentencepiece:
            shutil.copyfile(sentencepiece, Path(folder) / SENTENCEPIECE)
        for file in others:
            shutil.copyfile(file, Path(folder) / file.name)
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {f"{HF}/{path.relative_to(folder)}": path.read_bytes() for path in files}


def _rng_tensors(rank: int) -> Dict[str, torch.Tensor]:
    """Return the random states of this rank, by the key of their entry."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {key_of(RNG, rank * state.numel(), name): state for name, state in states.items()}


def _restore_rng(stored: Stored, rank: int, saved_ranks: int, seed: str) -> None:
    """Restore the random states of this rank.

    A rank that did not exist when the checkpoint was saved gets a state from ``seed``.

    Args:
        saved_ranks: Number of ranks that saved the checkpoint.
        seed: The seed of the run and the step.
    """
    if rank >= saved_ranks:
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {rank}".encode()).digest()[:7], "big"))
        return
    count = torch.get_rng_state().numel()
    torch.set_rng_state(stored.read(RNG, "cpu", rank * count, count))
    if torch.cuda.is_available() and "cuda" in stored.names(RNG):
        count = torch.cuda.get_rng_state().numel()
        torch.cuda.set_rng_state(stored.read(RNG, "cuda", rank * count, count))
