"""Check the names of a job (partition, account, QOS, features, reservation) before anything is submitted. If Slurm
cannot tell whether it knows a name, nothing is checked."""

import functools
import os
import pwd
import re
from typing import Collection, List, NoReturn, Optional, Sequence, Tuple

from ftdist.base.errors import ConfigError
from ftdist.base.names import nearest
from ftdist.config.launch import LaunchConfig, SlurmConfig
from ftdist.config.schema import RunConfig
from ftdist.launch.backends.slurm import answers
from ftdist.launch.backends.slurm.client import command_output, refusal
from ftdist.launch.backends.slurm.script import assignment, option_name, sbatch_options, setting_or_option

NOT_TESTED = {"job-name", "output", "open-mode"}
"""Options that differ between the trials of a sweep and say nothing about whether Slurm accepts a job."""
ACCOUNT = re.compile(r"invalid account|account not permitted", re.IGNORECASE)
QOS = re.compile(r"invalid qos|qos not permitted", re.IGNORECASE)
RESERVATION = re.compile(r"reservation is invalid|denied to requested reservation", re.IGNORECASE)
"""What sbatch says if it knows no such account, QOS or reservation, or if the user may not use it. Slurm's other
messages about them say that the job has to wait or that a limit is reached. Such a job is not refused."""
RESERVATION_NAME = re.compile(r"\bReservationName=(\S+)")
ASSOCIATION = re.compile(r"^([\w.@+-]+)\|([\w.@+,-]*)$", re.MULTILINE)
"""A line of ``sacctmgr --parsable2``: account and its QOS. A banner has spaces."""


def check_partitions(launch: LaunchConfig, listed: Sequence[str]) -> None:
    """Check that every partition of a job exists.

    Args:
        listed: the partitions of which sinfo has listed nodes. sinfo is asked again if a partition is not among
            them, because it may have no nodes or be hidden.

    Raises:
        ConfigError: a partition does not exist. The message names the partitions that do.
    """
    asked = (setting_or_option(launch.slurm, "partition") or "").split(",")
    missing = [name for name in asked if name and name not in listed]
    known = _partitions("--all") if missing else []
    if known and (wrong := [name for name in missing if name not in known]):
        names = _partitions()
        right = [(nearest(name, names) or ["NAME"])[0] if name in wrong else name for name in asked]
        _refuse(launch.slurm, "partition", ",".join(asked), f"Slurm has no partition {wrong[0]}", "a partition", names,
                right=",".join(dict.fromkeys(right)))  # fmt: skip


def refuse_features(launch: LaunchConfig, known: Collection[str]) -> NoReturn:
    """Refuse a constraint that no node fulfils.

    Raises:
        ConfigError: always. The message names the features that the nodes have.
    """
    asked = setting_or_option(launch.slurm, "constraint")
    _refuse(launch.slurm, "constraint", asked, "no node that the job can use has these features",
            "features of the nodes", known)  # fmt: skip


def _partitions(*options: str) -> List[str]:
    printed = command_output("sinfo", *options, "--noheader", f"--format={answers.line_format('%R')}")
    return sorted({row[0] for row in answers.rows(printed, 1)})


def check_names(config: RunConfig) -> None:
    """Check that Slurm accepts the account, QOS and reservation of a job, also if the job names none.

    Raises:
        ConfigError: Slurm refuses one of them. The message names those that the user may use.
    """
    options = [option for option in sbatch_options(config) if option_name(option) not in NOT_TESTED]
    said = _refusal(tuple(options))
    slurm, known = config.launch.slurm, _associations() if ACCOUNT.search(said) or QOS.search(said) else []
    account, qos = setting_or_option(slurm, "account"), setting_or_option(slurm, "qos")
    if ACCOUNT.search(said):
        _refuse(slurm, "account", account, said, "one of your accounts", [name for name, _ in known])
    if QOS.search(said):
        _refuse(slurm, "qos", qos, said, f"a QOS of {account}" if account else "a QOS that you may use",
                [name for other, names in known if other == (account or other) for name in names])  # fmt: skip
    if RESERVATION.search(said):
        found = RESERVATION_NAME.findall(command_output("scontrol", "--oneliner", "show", "reservation"))
        _refuse(slurm, "reservation", setting_or_option(slurm, "reservation"), said, "a reservation", found)


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


def _refuse(
    slurm: SlurmConfig, key: str, given: Optional[str], said: str, wanted: str, known: Collection[str],
    right: Optional[str] = None,
) -> NoReturn:  # fmt: skip
    names = sorted(set(known))
    others = [name for name in names if name != given]  # the given one may exist and not be allowed here
    near = nearest(given or "", others)
    right = right or (near[0] if near else others[0] if len(others) == 1 else "NAME")
    found = f"{assignment(slurm, key, given)}: {said}" if given else f"launch.slurm.{key} is not set: {said}"
    raise ConfigError(found,
                      wanted + (f": {', '.join(names)}" if names else ""),
                      assignment(slurm, key, right))  # fmt: skip
