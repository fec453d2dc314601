"""Render the batch script of a config. A pure function: it does not look at this machine, and starts nothing.

Two programs parse the script. bash reads all of it, so values go through ``shlex.quote``. sbatch reads the ``#SBATCH``
lines with rules of its own (a backslash escapes also inside quotes), so their values go through ``quote_option``.
"""

import glob
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from ftdist.base.errors import ConfigError
from ftdist.base.permissions import explain_os_error
from ftdist.base.ranges import ranges
from ftdist.config.data import named_sources
from ftdist.config.launch import Container, Device, GpuOption, LaunchConfig, SlurmConfig, refuse_control_characters
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.command import ranks_env
from ftdist.plan.layout import Layout
from ftdist.run.hub import hub_cache, reads_only_hub_cache

WORD = re.compile(r"@@([A-Z_]+)@@")
GPU_OPTIONS = {"gpus-per-node", "gres", "gpus", "gpus-per-task", "gpus-per-socket", "tres-per-task"}
CPU_OPTIONS = {"cpus-per-task", "cpus-per-gpu"}
MEMORY_OPTIONS = {"mem", "mem-per-cpu", "mem-per-gpu"}
"""Options of one group replace each other."""
START_NODE = """\
"$1" -m ftdist _start_node "$RUN_DIR" --attempt "$attempt" --id "$rendezvous_id" \\
      --endpoint "$rendezvous" --names "${names:-}"\
"""
"""What the task of each node runs, for bash. Its values are variables of the template."""
REPORT = '"$PYTHON" -m ftdist _report_job "$RUN_DIR" --job "$JOB" >/dev/null 2>&1 & reporter=$!'
"""What runs beside the ranks. A container has no commands of Slurm."""
IN_HUB_CACHE = re.compile(r"(/.*/(?:models|datasets)--[^/]+)/snapshots/")
"""A folder in the cache of the hub. Its files are links to files in another folder, so that one is needed, too."""
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
    number = Layout(launch.nnodes if how is GpuOption.gpus else 1, launch.nproc_per_node).world
    value = f"{launch.slurm.gpu_type}:{number}" if launch.slurm.gpu_type else str(number)
    return {how.name.replace("_", "-"): f"gpu:{value}" if how is GpuOption.gres else value}


def cpus_asked(launch: LaunchConfig) -> Optional[int]:
    """Return the CPUs that the job asks for on each node. None: the job uses the default of the site."""
    return launch.slurm.cpus_per_node or (launch.slurm.cpus_per_gpu or 0) * (launch.nproc_per_node or 1) or None


def option_name(option: str) -> str:
    """Return the name in an option ``--NAME=VALUE`` or ``--NAME``."""
    return option[2:].split("=", 1)[0]


def setting_or_option(slurm: SlurmConfig, name: str) -> Optional[str]:
    """Return the value of a setting, or of the user's option of this name, which replaces it."""
    given = [option.partition("=")[2] for option in slurm.options if option_name(option) == name]
    value: Optional[str] = given[-1] if given else getattr(slurm, name)
    return value


def assignment(slurm: SlurmConfig, name: str, value: str) -> str:
    """Return in words how the user gives a job a value: ``launch.slurm.time=60``, or the option that replaces it."""
    given = any(option_name(option) == name for option in slurm.options)
    return f"--{name}={value} in launch.slurm.options" if given else f"launch.slurm.{name}={value}"


def _other_gres(option: str) -> bool:
    """Return whether an option asks for another resource than GPUs: ``--gres=nvme:1``."""
    return option.startswith("--gres=") and "gpu" not in option and option != "--gres=none"


@dataclass(frozen=True)
class GpusAsked:
    """The GPUs that the user's settings or options ask for."""

    kind: Optional[str]
    """Their type. None: any, or several types."""
    per_node: Optional[int]
    """Their number on each node, if an option names it."""
    given: str
    """The setting or option in words."""


def gpus_asked(launch: LaunchConfig) -> GpusAsked:
    """Return which GPUs the user asks for: by an option, or else by ``launch.slurm.gpu_type``."""
    found = GpusAsked(launch.slurm.gpu_type, None, f"launch.slurm.gpu_type={launch.slurm.gpu_type}")
    for option in launch.slurm.options:
        name, _, value = option[2:].partition("=")
        if name in GPU_OPTIONS and not _other_gres(option):
            items = [item.split(":") for item in value.split(",")]
            parts = [item[1:] for item in items if item[0] == "gpu"] if name == "gres" else items
            kinds = {part[0] for part in parts if len(part) > 1 or (part and not part[0].isdigit())}
            number = sum(int(part[-1]) if part and part[-1].isdigit() else 1 for part in parts)
            nodes = launch.nnodes if name == "gpus" else 1
            known = name in ("gres", "gpus-per-node", "gpus-per-task", "gpus") and number % nodes == 0 and number > 0
            found = GpusAsked(kinds.pop() if len(kinds) == 1 and name != "tres-per-task" else None,
                              number // nodes if known else None, f"{option} in launch.slurm.options")  # fmt: skip
    return found


def sbatch_options(config: RunConfig, array: Optional[Array] = None) -> List[str]:
    """Return the options of the job, ``--name=value``, unquoted."""
    launch, slurm, gpus = config.launch, config.launch.slurm, _gpus(config.launch)
    options = [f"{o},{gpus['gres']}" if "gres" in gpus and _other_gres(o) else o for o in slurm.options]
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
        **gpus,
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
    theirs = {option_name(option) for option in options if not _other_gres(option)}
    for kind in (GPU_OPTIONS, CPU_OPTIONS, MEMORY_OPTIONS):
        if theirs & kind:  # the user's options replace the whole group
            theirs |= kind
    replaced = {name for name in given for their in theirs if name.startswith(their)}  # Slurm accepts prefixes of names
    ours = [f"--{name}={value}" for name, value in given.items() if value is not None and name not in replaced]
    if slurm.exclusive and "exclusive" not in theirs:
        ours.append("--exclusive")
    ours.append("--requeue" if launch.max_requeues else "--no-requeue")
    return [*ours, *options]


def _sbatch_lines(config: RunConfig, array: Optional[Array]) -> str:
    lines = []
    for option in sbatch_options(config, array):
        name, equals, value = option.partition("=")
        if len(value) > LONGEST_LINE:
            raise ConfigError(f"{name} is {len(value)} characters long", f"at most {LONGEST_LINE} characters",
                              f"shorten the value of {name}")  # fmt: skip
        lines.append(f"#SBATCH {name}={quote_option(value)}" if equals else f"#SBATCH {name}")
    return "\n".join(lines)


def _needed(config: RunConfig, place: str) -> Dict[str, str]:
    """Return the files and folders that the run reads and writes, by config key. Those inside others are left out."""
    assert config.cache_dir
    found = {"run_dir": place, "cache_dir": config.cache_dir, "model.path": config.model.path,
             "model.tokenizer": config.model.tokenizer, "data.chat_template": config.data.chat_template}  # fmt: skip
    found |= {f"{key}.path": source.path for key, source in named_sources(config.data).items()}
    if reads_only_hub_cache(config):
        found["HF_HUB_CACHE"] = str(hub_cache())
    paths: Dict[str, str] = {}
    for key, path in found.items():
        if path and path.startswith("/"):  # paths are absolute by now; other values are names
            fixed = path if not glob.has_magic(path) else str(Path(re.split(r"[*?[]", path)[0] + "x").parent)
            if in_cache := IN_HUB_CACHE.match(fixed):
                fixed = in_cache[1]
            if not any(Path(fixed).is_relative_to(other) for other in paths.values()):
                paths[key] = fixed
    return paths


def _container(config: RunConfig, place: str) -> List[str]:
    """Return srun's options for pyxis, or the command that runs another command in a container of apptainer or
    singularity.

    Args:
        place: the run directory, or the folder of a sweep.
    """
    slurm, needed = config.launch.slurm, _needed(config, place)
    for name, path in needed.items():
        if re.search('[:,"$`]', path):
            raise ConfigError(f"{name}={path} cannot be used with a container",
                              "a path without : , \" $ and ` (they separate mounts or are not literal)",
                              f"use another {name}")  # fmt: skip
    mounts = [f"{path}:{path}" for path in needed.values()] + slurm.container_mounts
    image = str(slurm.container_image)
    if slurm.container is Container.pyxis:
        return [f"--container-image={image}", f"--container-mounts={','.join(mounts)}"]
    gpus = ["--nv"] if config.launch.device is Device.cuda else []
    return [slurm.container.name, "exec", *gpus, *(f"--bind={mount}" for mount in mounts), image]


def _module(name: str) -> str:
    said = shlex.quote(f"error: module load {name} failed (launch.slurm.modules)")
    return f"module load {shlex.quote(name)} || {{ echo {said} >&2; exit 1; }}\n"


def _setup(line: str) -> str:
    said = shlex.quote(f"error: this line failed: {line} (launch.slurm.setup)")
    return f"{line}\n[ $? = 0 ] || {{ echo {said} >&2; exit 1; }}\n"


def _preparations(slurm: SlurmConfig) -> str:
    """Return the lines that load modules and run what the site needs. They may use variables that are not set."""
    lines = [*map(_module, slurm.modules), *map(_setup, slurm.setup)]
    return "".join(["set +u\n", *lines, "set -u\n"]) if lines else ""


def render(config: RunConfig, template: Optional[str] = None, array: Optional[Array] = None) -> str:
    """Render the batch script of a resolved config.

    Args:
        template: the text of a template. Defaults to ``launch.slurm.template``, or ftdist's own template.
        array: render the script of an array of jobs instead. The script holds no value that differs between the runs.

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
    container = _container(config, place) if slurm.container is not Container.none else []
    once = ["srun", "--nodes=1", "--ntasks=1", *container] if slurm.container is Container.pyxis else container
    # With whole nodes and no number of CPUs, srun would bind its task to one CPU.
    whole = ["--cpu-bind=none"] if slurm.cpus_per_gpu == 0 and slurm.cpus_per_node is None else []
    srun = shlex.join([*whole, *slurm.srun_options, *container])
    env = {**ranks_env(config), **slurm.env}
    if container and reads_only_hub_cache(config):
        env = {"HF_HUB_CACHE": str(hub_cache()), **env}  # the home folder in the container may be another one
    words = {
        "SBATCH": _sbatch_lines(config, array),
        "RUN_DIR": shlex.quote(place) + ('/$(printf %03d "$SLURM_ARRAY_TASK_ID")' if array else ""),
        # This is decided here and not in the script, because a job that an element of an array submits inherits the
        # array's variables.
        "JOB": '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if array else '"$SLURM_JOB_ID"',
        "PYTHON": shlex.quote(slurm.python or ("python3" if container else sys.executable)),
        "MODULES": _preparations(slurm),
        "PROFILE": _read(template_folder() / "profiles" / f"{slurm.profile.name}.sh").rstrip(),
        "ENV": "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items()),
        "ON_FIRST_NODE": shlex.join(once) if once else "command",
        "SRUN": srun,
        "REPORT": "" if container else REPORT,
        "TORCHRUN": START_NODE,
        "NNODES": str(launch.nnodes),
        "NPROC_PER_NODE": str(launch.nproc_per_node),
        "MAX_RESTARTS": str(launch.max_restarts),
        "JOIN_TIMEOUT": str(launch.nodes.join_timeout_s),
    }
    unknown = sorted(set(WORD.findall(template)) - set(words))
    if unknown:
        raise ConfigError(f"the template {slurm.template} has the word @@{unknown[0]}@@", "one of: " + ", ".join(words),
                          f"correct or remove @@{unknown[0]}@@ in the template")  # fmt: skip
    return WORD.sub(lambda match: words[match.group(1)], template)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except PermissionError as error:
        raise explain_os_error(error) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "a batch script template",
                          "launch.slurm.template=FILE") from error  # fmt: skip
