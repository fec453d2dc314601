"""Write a run directory before the run starts. It holds all settings; only ``ftdist resume`` can change some."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import write_json
from ftdist.base.permissions import AccessError, explain_os_error
from ftdist.base.redact import redact_arguments, redact_source
from ftdist.base.temporary import temporary_path
from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.machine import package_versions
from ftdist.launch.runs.resolve import check_run_dir
from ftdist.plan.batch import BatchPlan, plan_resumed
from ftdist.plan.deepspeed import check_frozen, deepspeed_settings
from ftdist.plan.layout import layout_of
from ftdist.run.rundir import RunDir


def freeze(
    config: RunConfig, plan: BatchPlan, argv: Optional[List[str]] = None, files: Optional[Mapping[str, str]] = None
) -> RunDir:
    """Write the run directory of a resolved config.

    Args:
        argv: the command line. Defaults to that of this process.
        files: the texts of additional files, by name.

    Raises:
        ConfigError: the directory exists and is not empty, or cannot be written. Nothing is left behind.
    """
    assert config.run_dir is not None
    check_run_dir(config)
    settings = deepspeed_settings(config, plan)
    path = Path(config.run_dir)
    temporary = temporary_path(path)
    run = RunDir(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()  # fails if another user has put a link there, which is possible in a shared folder
        run.logs.mkdir()
        run.checkpoints.mkdir()
        write_json(run.deepspeed, settings)
        write_json(run.provenance, provenance(["ftdist", *sys.argv[1:]] if argv is None else argv))
        known = {} if config.train.max_steps is None else {"max_steps": config.train.max_steps}
        run.write_status(state="frozen", step=0, attempt=0, **known)
        run.config.write_text(dump_config(config), encoding="utf-8")
        run.config.chmod(run.config.stat().st_mode & ~0o222)
        _write_files(run, files or {})
        temporary.rename(path)  # fails if another run has taken the name in the meantime
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(path, error) from error
    return RunDir(path)


def freeze_again(
    run: RunDir, config: RunConfig, plan: BatchPlan, overrides: List[str], files: Mapping[str, str]
) -> None:
    """Replace run.yaml for the next attempt, and add the overrides to provenance.json.

    The old file is kept as ``run.attempt-N.yaml``, where N is the last attempt that used it.

    Args:
        files: the texts of additional files, by name.

    Raises:
        ConfigError: the run directory cannot be written.
    """
    settings = deepspeed_settings(config, plan)
    before = run.path / f"run.attempt-{run.read_status().get('attempt', 0)}.yaml"
    fresh = temporary_path(run.config)
    origin = run.read_provenance()
    resumes = origin.get("resumes")
    this = {**provenance(["ftdist", *sys.argv[1:]]), "overrides": redact_arguments(overrides)}
    origin["resumes"] = [*(resumes if isinstance(resumes, list) else []), this]
    try:
        fresh.write_text(dump_config(config), encoding="utf-8")
        fresh.chmod(fresh.stat().st_mode & ~0o222)
        if not before.exists():  # if it exists, no attempt began with the config that is replaced now
            shutil.copy2(run.config, before)
        write_json(run.provenance, origin)
        write_json(run.deepspeed, settings)
        fresh.replace(run.config)
        _write_files(run, files)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise _cannot_write(run.path, error) from error


def confirm_settings(run: RunDir, config: RunConfig) -> None:
    """Check before a start that deepspeed.json agrees with run.yaml. Write it if it is missing.

    Raises:
        ConfigError: deepspeed.json was edited, or cannot be read.
    """
    if run.deepspeed.exists():
        check_frozen(run.deepspeed, config)
    else:
        plan = plan_resumed(config.batch, layout_of(config).data, config.data.max_seq_len)
        write_json(run.deepspeed, deepspeed_settings(config, plan))


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    """Return an error with the reason: no permission, a full disk, a name that is too long."""
    why = explain_os_error(error)
    reason = why.found if isinstance(why, AccessError) else error.strerror
    return ConfigError(f"cannot write {path}: {reason}", why.expected or "a path that can be written",
                       "set runs_dir=FOLDER, or choose another name or run_dir")  # fmt: skip


def _write_files(run: RunDir, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (run.path / name).write_text(text, encoding="utf-8")


def provenance(argv: List[str]) -> Dict[str, Any]:
    """Return where a run comes from: command, host, git commit and diff, package versions.

    It holds no environment variables, and values that look like secrets are replaced.
    """
    return {
        "argv": redact_arguments(argv),
        "command": shlex.join(redact_arguments(argv)),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "agent_pid": os.getppid(),
        "cwd": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "git": _git(),
    }


def _git() -> Optional[Dict[str, str]]:
    def git(*arguments: str) -> Optional[str]:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20, errors="replace")
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    diff = redact_source(git("diff", "HEAD") or "")
    return {"commit": commit.strip(), "status": git("status", "--short") or "", "diff": diff}
