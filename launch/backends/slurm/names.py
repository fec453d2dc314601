"""Check the names of a job (partition, account, QOS, features) before anything is submitted. If Slurm cannot tell
whether it knows a name, nothing is checked."""

import functools
import os
import pwd
import re
from typing import Collection, List, NoReturn, Optional, Sequence, Tuple

from ftdist.base.errors import ConfigError
from ftdist.base.names import nearest
from ftdist.config.launch import LaunchConfig
from ftdist.config.schema import RunConfig
from ftdist.launch.backends.slurm import answers
from ftdist.launch.backends.slurm.client import command_output, refusal
from ftdist.launch.backends.slurm.script import option_name, sbatch_options, setting_or_option

NOT_TESTED = {"job-name", "output", "open-mode"}
"""Options that differ between the trials of a sweep and say nothing about whether Slurm accepts a job."""
ACCOUNT, QOS = re.compile(r"account", re.IGNORECASE), re.compile(r"\bqos\b", re.IGNORECASE)
"""What sbatch says if it knows no such account or QOS, or if the user may not use it."""
ASSOCIATION = re.compile(r"^([\w.@+-]+)\|([\w.@+,-]*)$", re.MULTILINE)
"""A line of ``sacctmgr --parsable2``: account and its QOS. A banner has spaces."""


def check_partitions(launch: LaunchConfig, listed: Sequence[str]) -> None:
    """Check that every partition of a job exists.

    Args:
        listed: the partitions of which sinfo has listed nodes. It is asked again if one is not among them: a partition
            may have no nodes, or be hidden.

    Raises:
        ConfigError: a partition does not exist. The message names the partitions that do.
    """
    asked = (setting_or_option(launch.slurm, "partition") or "").split(",")
    missing = [name for name in asked if name and name not in listed]
    known = _partitions("--all") if missing else []
    if known and (wrong := [name for name in missing if name not in known]):
        _refuse("partition", ",".join(asked), f"Slurm has no partition {wrong[0]}", "a partition", _partitions())


def refuse_features(launch: LaunchConfig, known: Collection[str]) -> NoReturn:
    """Refuse a constraint that no node fulfils.

    Raises:
        ConfigError: always. The message names the features that the nodes have.
    """
    asked = setting_or_option(launch.slurm, "constraint")
    _refuse("constraint", asked, "no node that the job can use has these features", "features of the nodes", known)


def _partitions(*options: str) -> List[str]:
    printed = command_output("sinfo", *options, "--noheader", f"--format={answers.line_format('%R')}")
    return sorted({row[0] for row in answers.rows(printed, 1)})


def check_names(config: RunConfig) -> None:
    """Check that Slurm accepts the account and the QOS of a job, also if the job names none and has no default.

    Raises:
        ConfigError: Slurm refuses one of them. The message names the accounts or QOS that the user has.
    """
    options = [option for option in sbatch_options(config) if option_name(option) not in NOT_TESTED]
    said = _refusal(tuple(options))
    slurm, known = config.launch.slurm, _associations() if ACCOUNT.search(said) or QOS.search(said) else []
    account, qos = setting_or_option(slurm, "account"), setting_or_option(slurm, "qos")
    if ACCOUNT.search(said):
        _refuse("account", account, said, "one of your accounts", [name for name, _ in known])
    if QOS.search(said):
        _refuse("qos", qos, said, f"a QOS of {account}" if account else "a QOS that you may use",
                [name for other, names in known if other == (account or other) for name in names])  # fmt: skip


@functools.lru_cache
def _refusal(options: Tuple[str, ...]) -> str:
    return refusal(options)


def _associations() -> List[Tuple[str, List[str]]]:
    """Return the accounts of this user, each with its QOS. Empty on a site without accounting."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return []
    printed = command_output("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}",
                             "format=Account,QOS")  # fmt: skip
    return [(account, names.split(",") if names else []) for account, names in ASSOCIATION.findall(printed)]


def _refuse(key: str, given: Optional[str], said: str, wanted: str, known: Collection[str]) -> NoReturn:
    names = sorted(set(known))
    near = nearest(given or "", names)
    setting = f"launch.slurm.{key}"
    raise ConfigError(f"{setting}={given}: {said}" if given else f"{setting} is not set, and Slurm says: {said}",
                      wanted + (f": {', '.join(names)}" if names else ""),
                      f"{setting}={near[0] if near else names[0] if len(names) == 1 else 'NAME'}")  # fmt: skip
