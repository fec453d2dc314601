"""Names that Slurm does not know are refused with those that it knows. The answers are those of Slurm 22.05."""

import subprocess
from typing import Dict, List

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.launch import Device
from ftdist.launch.backends.slurm import client, names
from ftdist.launch.backends.slurm.backend import SlurmBackend
from tests.unit.launch.run_tools import smoke

BANNER = "*** Welcome | 2026 ***\n"
NODES = "ftdist|n1|gpu*|a100,ib|64|n/a|infinite|gpu:8\nftdist|n2|gpu*|h100,ib|64|n/a|infinite|gpu:8\n"
ACCOUNTS = "physics|high,normal\nmath|normal\n"
BAD_ACCOUNT = "allocation failure: Invalid account or account/partition combination specified\n"
BAD_RESERVATION = "allocation failure: Requested reservation is invalid\n"
BAD_QOS = "allocation failure: Invalid qos specification\n"
POLICY = "allocation failure: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)\n"
WAITS = "allocation failure: Requested node configuration is not available\n"
"""What sbatch says if the nodes are drained. The job itself would be accepted, and wait."""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Dict[str, str]:
    """Return what Slurm's commands answer. ``sbatch`` is what it writes to standard error: it then fails."""
    names._refusal.cache_clear()
    said = {"sinfo": NODES, "partitions": "ftdist|gpu\nftdist|empty\n", "sacctmgr": ACCOUNTS, "sbatch": "",
            "scontrol": "ReservationName=maint StartTime=2026-01-01T00:00:00\n"}  # fmt: skip

    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        name = command[0] if "--format=ftdist|%R" not in command else "partitions"
        failed = name == "sbatch" and bool(said["sbatch"])
        return subprocess.CompletedProcess(command, int(failed), BANNER + said[name], said[name] if failed else "")

    monkeypatch.setattr(client, "_run", run)
    monkeypatch.setattr("ftdist.launch.backends.slurm.resolve.available", lambda: True)
    return said


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as error:
        SlurmBackend().resolve(smoke("launch=slurm", "launch.nproc_per_node=1", *words))
    return str(error.value)


@pytest.mark.parametrize(
    ("words", "sbatch", "said"),
    [
        (["partition=gpuu"], "", ["no partition gpuu", "a partition: empty, gpu", "launch.slurm.partition=gpu"]),
        (["partition='gpu,emptyy'"], "", ["no partition emptyy", "launch.slurm.partition=gpu,empty"]),
        (["partition='gpu,cpu'"], "", ["no partition cpu"]),
        (["account=physics"], BAD_ACCOUNT, ["launch.slurm.account=physics: Invalid",
                                            "fix:      launch.slurm.account=math"]),
        (["options=['--partition=gpuu']"], "", ["--partition=gpuu in launch.slurm.options: Slurm has no partition gpuu",
                                                 "fix:      --partition=gpu in launch.slurm.options"]),
        (["reservation=maintt"], BAD_RESERVATION, ["launch.slurm.reservation=maintt: Requested reservation is invalid",
                                                   "a reservation: maint", "launch.slurm.reservation=maint"]),
        (["constraint=h10"], "", ["no node", "a100, h100, ib", "launch.slurm.constraint=h100"]),
        (["account=physisc"], BAD_ACCOUNT, ["launch.slurm.account=physisc: Invalid account or account/partition",
                                            "one of your accounts: math, physics", "launch.slurm.account=physics"]),
        ([], BAD_ACCOUNT, ["launch.slurm.account is not set: Invalid account"]),
        (["account=math", "qos=high"], BAD_QOS, ["launch.slurm.qos=high: Invalid qos", "a QOS of math: normal",
                                                 "launch.slurm.qos=normal"]),
        (["qos=low"], BAD_QOS, ["launch.slurm.qos=low: Invalid qos", "a QOS that you may use: high, normal",
                                "launch.slurm.qos=NAME"]),
    ],
)  # fmt: skip
@pytest.mark.thorough
def test_a_name_that_slurm_does_not_know_is_refused_with_those_that_it_knows(
    words: List[str], sbatch: str, said: List[str], slurm: Dict[str, str]
) -> None:
    slurm["sbatch"] = sbatch
    found = refused(*(f"launch.slurm.{word}" for word in words))
    assert all(part in found for part in said), found
    if sbatch:
        slurm["sacctmgr"] = ""  # a site without it
        names._refusal.cache_clear()
        assert said[0] in refused(*(f"launch.slurm.{word}" for word in words))


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["partition=empty"], {}),  # it has no nodes
        (["partition=mine"], {"partitions": ""}),
        (["account=any", "qos=any"], {}),
        (["account=any"], {"sbatch": WAITS}),
        (["account=any"], {"sinfo": "", "sbatch": BAD_ACCOUNT}),  # Slurm cannot be queried
        (["account=any"], {"sbatch": POLICY}),
        (["reservation=any"], {"sbatch": "sbatch: error: Requested reservation not usable now"}),
        (["account=any"], {"sbatch": "charged to account any\nRequested node configuration is not available"}),
    ],
)
def test_nothing_is_refused_that_slurm_does_not_call_unknown(
    words: List[str], answers: Dict[str, str], slurm: Dict[str, str]
) -> None:
    slurm.update(answers)
    config = smoke("launch=slurm", "launch.nproc_per_node=1", *(f"launch.slurm.{word}" for word in words))
    SlurmBackend().resolve(config)
    assert config.launch.device is Device.cuda
