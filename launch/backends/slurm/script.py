"""Render the batch script of a config. A pure function: it does not look at this machine, and starts nothing.

Two programs parse the script. bash reads all of it, so values go through ``shlex.quote``. sbatch reads the ``#SBATCH``
lines with rules of its own (a backslash escapes also inside quotes), so their values go through ``quote_option``.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from ftdist.base.errors import ConfigError
from ftdist.base.ranges import ranges
from ftdist.config.launch import Container, GpuOption, LaunchConfig, refuse_control_characters
from ftdist.config.schema import Device, RunConfig
from ftdist.launch.attempt.command import ranks_env

WORD = re.compile(r"@@([A-Z_]+)@@")
GPU_OPTIONS = {"gpus-per-node", "gres", "gpus", "gpus-per-task"}
CPU_OPTIONS = {"cpus-per-task", "cpus-per-gpu"}
START_NODE = """\
"$1" -m ftdist _start_node "$RUN_DIR" --attempt "$attempt" --id "$rendezvous_id" \\
      --endpoint "$rendezvous" --names "${names:-}"\
"""
"""What the task of each node runs, for bash. Its values are variables of the template."""
LONGEST_LINE = 1000
"""Maximum number of characters of an option. sbatch cuts lines at 8 KiB."""


@dataclass(frozen=True)
class Array:
    """The trials of a sweep as an array of jobs. Element N runs the run directory ``folder/NNN``."""

    folder: Path
    numbers: List[int]


def template_folder() -> Path:
    """Return the folder of ftdist's own templates, ``slurm/``."""
    import ftdist.slurm

    return Path(ftdist.slurm.__path__[0])


def quote_option(value: str) -> str:
    """Quote a value for a ``#SBATCH`` line."""
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _gpus(launch: LaunchConfig) -> Dict[str, Optional[object]]:
    """Return the option that asks for the GPUs of the job. One task runs on each node."""
    how = launch.slurm.gpus
    if launch.device is not Device.cuda or how is GpuOption.none or launch.nproc_per_node is None:
        return {}
    number = launch.nproc_per_node * (launch.nnodes if how is GpuOption.gpus else 1)
    value = f"{launch.slurm.gpu_type}:{number}" if launch.slurm.gpu_type else str(number)
    return {how.name.replace("_", "-"): f"gpu:{value}" if how is GpuOption.gres else value}


def cpus_asked(launch: LaunchConfig) -> Optional[int]:
    """Return the CPUs that the job asks for on each node. None: it takes what the site gives."""
    return launch.slurm.cpus_per_node or (launch.slurm.cpus_per_gpu or 0) * (launch.nproc_per_node or 1) or None


def sbatch_options(config: RunConfig, array: Optional[Array] = None) -> List[str]:
    """Return the options of the job, ``--name=value``, unquoted."""
    launch, slurm = config.launch, config.launch.slurm
    throttle = f"%{launch.trials_at_once}" if launch.trials_at_once else ""
    given: Dict[str, Optional[object]] = {
        "job-name": config.name,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "nodes": launch.nnodes,
        "ntasks-per-node": 1,
        **_gpus(launch),
        "cpus-per-task": cpus_asked(launch),
        "mem": slurm.mem,
        "time": slurm.time,
        "mail-user": slurm.mail_user,
        "mail-type": slurm.mail_type if slurm.mail_user else None,
        "array": ranges(array.numbers) + throttle if array else None,
        "output": f"{array.folder}/%3a/logs/slurm-%A_%a.out" if array else f"{config.run_dir}/logs/slurm-%j.out",
        "open-mode": "append",
        "signal": f"B:USR2@{slurm.stop_before_limit_s}",
    }
    theirs = {option[2:].split("=", 1)[0] for option in slurm.options}
    for kind in (GPU_OPTIONS, CPU_OPTIONS):
        if theirs & kind:  # they ask in their own way
            theirs |= kind
    options = [f"--{name}={value}" for name, value in given.items() if value is not None and name not in theirs]
    if slurm.exclusive and "exclusive" not in theirs:
        options.append("--exclusive")
    options.append("--requeue" if launch.max_requeues else "--no-requeue")
    return [*options, *slurm.options]


def _sbatch_lines(config: RunConfig, array: Optional[Array]) -> str:
    lines = []
    for option in sbatch_options(config, array):
        name, equals, value = option.partition("=")
        if len(value) > LONGEST_LINE:
            raise ConfigError(f"{name} is {len(value)} characters long", f"at most {LONGEST_LINE}")
        lines.append(f"#SBATCH {name}={quote_option(value)}" if equals else f"#SBATCH {name}")
    return "\n".join(lines)


def _container(config: RunConfig, place: str) -> List[str]:
    """Return srun's options for pyxis, or the command that runs another one in an apptainer container.

    Args:
        place: the run directory, or the folder of a sweep.
    """
    slurm = config.launch.slurm
    assert config.cache_dir
    for name, path in (("run_dir", place), ("cache_dir", config.cache_dir)):
        if re.search("[:,]", path):
            raise ConfigError(f"{name}={path} cannot be used with a container",
                              "a path without : and , (they separate the mounts)",
                              f"use another {name}")  # fmt: skip
    mounts = [f"{path}:{path}" for path in (place, config.cache_dir)] + slurm.container_mounts
    image = str(slurm.container_image)
    if slurm.container is Container.pyxis:
        return [f"--container-image={image}", f"--container-mounts={','.join(mounts)}"]
    gpus = ["--nv"] if config.launch.device is Device.cuda else []
    return ["apptainer", "exec", *gpus, *(f"--bind={mount}" for mount in mounts), image]


def _module(name: str) -> str:
    said = shlex.quote(f"error: module load {name} failed (launch.slurm.modules)")
    return f"module load {shlex.quote(name)} || {{ echo {said} >&2; exit 1; }}\n"


def render(config: RunConfig, template: Optional[str] = None, array: Optional[Array] = None) -> str:
    """Render the batch script of a resolved config.

    Args:
        template: the text of a template. Defaults to ``launch.slurm.template``, or ftdist's own template.
        array: render the script of an array instead, whose runs differ in nothing that the script holds.

    Raises:
        ConfigError: a value cannot be written into the script, or the template has an unknown word.
    """
    launch, slurm = config.launch, config.launch.slurm
    place = str(array.folder if array else config.run_dir)
    refuse_control_characters("", {"name": config.name, "run_dir": place, "cache_dir": config.cache_dir})
    if re.search(r"[%\\]", place):
        raise ConfigError(f"run_dir={place} holds % or \\", "a path without % and \\ (Slurm reads them as patterns)",
                          "use another run_dir or name")  # fmt: skip
    if template is None:
        template = _read(Path(slurm.template) if slurm.template else template_folder() / "submit.sbatch.template")
    pyxis, apptainer = slurm.container is Container.pyxis, slurm.container is Container.apptainer
    container = _container(config, place) if pyxis or apptainer else []
    once = ["srun", "--nodes=1", "--ntasks=1", *container] if pyxis else container
    # With whole nodes and no number of CPUs, srun would bind its task to one CPU.
    whole = ["--cpu-bind=none"] if slurm.cpus_per_gpu == 0 and slurm.cpus_per_node is None else []
    srun = shlex.join([*whole, *slurm.srun_options, *(container if pyxis or apptainer else [])])
    env = {**ranks_env(config), **slurm.env}
    words = {
        "SBATCH": _sbatch_lines(config, array),
        "RUN_DIR": shlex.quote(place) + ('/$(printf %03d "$SLURM_ARRAY_TASK_ID")' if array else ""),
        # Decided here and not in the script: a job that an element of an array submits inherits the array's variables.
        "JOB": '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if array else '"$SLURM_JOB_ID"',
        "PYTHON": shlex.quote(slurm.python or ("python3" if container else sys.executable)),
        "MODULES": "".join(_module(name) for name in slurm.modules),
        "PROFILE": _read(template_folder() / "profiles" / f"{slurm.profile.name}.sh").rstrip(),
        "ENV": "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items()),
        "ON_FIRST_NODE": shlex.join(once) if once else "command",
        "SRUN": srun,
        "TORCHRUN": START_NODE,
        "NNODES": str(launch.nnodes),
        "NPROC_PER_NODE": str(launch.nproc_per_node),
        "MAX_RESTARTS": str(launch.max_restarts),
        "JOIN_TIMEOUT": str(launch.nodes.join_timeout_s),
    }
    unknown = sorted(set(WORD.findall(template)) - set(words))
    if unknown:
        raise ConfigError(f"the template {slurm.template} has the word @@{unknown[0]}@@", "one of: " + ", ".join(words))
    return WORD.sub(lambda match: words[match.group(1)], template)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "a batch script template",
                          "launch.slurm.template=FILE") from error  # fmt: skip
