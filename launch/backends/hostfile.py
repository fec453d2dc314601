"""The machines of a run with ``launch=deepspeed``, and the hostfile that names them."""

import re
import sys
from pathlib import Path
from typing import Dict

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.base.permissions import explain_os_error
from ftdist.config.launch import HOST
from ftdist.config.schema import RunConfig

HOST_LINE = re.compile(r"(\S+)\s+slots=0*([1-9]\d*)")
PLAIN = re.compile(r"[\w@+=:,./-]+")
"""Text that needs no quotes in a shell."""


def read_hostfile(path: Path) -> Dict[str, int]:
    """Return the number of ranks of each machine, in the order of the file.

    A line of the file is ``NAME slots=N``. A ``#`` begins a comment.

    Raises:
        ConfigError: the file cannot be read, a line is wrong, or there is no line. The message quotes the wrong line.
    """
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except PermissionError as error:
        raise explain_os_error(error) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}",
                          "a hostfile with one line `NAME slots=RANKS` for each machine",
                          "launch.deepspeed.hostfile=FILE") from error  # fmt: skip
    hosts: Dict[str, int] = {}
    for line in filter(None, lines):
        match = HOST_LINE.fullmatch(line)
        if match is None or match.group(1) in hosts or not HOST.fullmatch(match.group(1)):
            raise ConfigError(
                f"{path} has the line {line!r}",
                "lines `NAME slots=RANKS`, with each machine once and at least 1 rank",
                "correct the line",
            )
        hosts[match.group(1)] = int(match.group(2))
    if not hosts:
        raise ConfigError(f"{path} names no machine", "one line `NAME slots=RANKS` for each machine",
                          "add the machines")  # fmt: skip
    return hosts


def resolve_hosts(config: RunConfig) -> None:
    """Take the machines and their ranks from the hostfile, so that the frozen run does not depend on the file.

    Raises:
        ConfigError: the file is missing or contradicts the config, or DeepSpeed's launcher cannot pass a value on.
    """
    launch = config.launch
    if launch.deepspeed.hostfile is not None:
        found = read_hostfile(Path(launch.deepspeed.hostfile).expanduser())
        if len(set(found.values())) != 1:
            raise ConfigError(f"the machines in {launch.deepspeed.hostfile} have different numbers of slots: "
                              + ", ".join(map(str, sorted(set(found.values())))),
                              "the same number of slots on every machine",
                              "give every machine the smallest of these numbers")  # fmt: skip
        launch.nodes.hosts, ranks = list(found), next(iter(found.values()))
        for name, said, is_ in (("nnodes", launch.nnodes if launch.nnodes > 1 else None, len(found)),
                                ("nproc_per_node", launch.nproc_per_node, ranks)):  # fmt: skip
            if said not in (None, is_):
                what = "machines" if name == "nnodes" else "slots per machine"
                found_in = f"{launch.deepspeed.hostfile}, which has {is_} {what}"
                raise ConfigError(f"launch.{name}={said} contradicts {found_in}",
                                  f"launch.{name}={is_}", f"leave out launch.{name}")  # fmt: skip
        launch.nnodes, launch.nproc_per_node, launch.deepspeed.hostfile = len(found), ranks, None
    if len(launch.nodes.hosts) != launch.nnodes:
        raise ConfigError(f"launch=deepspeed needs a host for each of launch.nnodes={launch.nnodes} machines, but "
                          f"{count(len(launch.nodes.hosts), 'is given', 'are given')}",
                          "one host for each machine", "launch.deepspeed.hostfile=FILE")  # fmt: skip
    carried = {"run_dir": config.run_dir, "python": sys.executable, "host": ",".join(launch.nodes.hosts)}
    for name, value in carried.items():
        if value and not PLAIN.fullmatch(value):
            raise ConfigError(f"{name} {value!r} cannot be used with launch=deepspeed",
                              "letters, digits and _@+=:,./- (DeepSpeed's launcher does not quote it for the shell)",
                              f"use another {name}")  # fmt: skip
    if launch.max_restarts:
        raise ConfigError(f"launch.max_restarts={launch.max_restarts} cannot be used with launch=deepspeed",
                          "0 (only torchrun restarts ranks)",
                          "use launch=nodes, or resume after a failure")  # fmt: skip
