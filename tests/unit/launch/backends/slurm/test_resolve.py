"""How many GPUs the nodes of a partition have, by what sinfo prints."""

from typing import Dict, List, Optional

import pytest

from ftdist.config.schema import LaunchConfig
from ftdist.launch.backends.slurm import resolve

LISTED = """\
n1|gpu*|a100,ib|gpu:a100:8(S:0-1)
n2|gpu*|h100,ib|gpu:h100:4
n2|all|h100,ib|gpu:h100:4
n3|all|(null)|(null)
"""


@pytest.mark.parametrize(
    ("partition", "constraint", "found"),
    [
        (None, None, {8: ["n1"], 4: ["n2"]}),  # of the default partition
        ("all,gpu", None, {0: ["n3"], 8: ["n1"], 4: ["n2"]}),  # sinfo lists no other ones
        (None, "a100", {8: ["n1"]}),
        (None, "h100&ib", {4: ["n2"]}),
        (None, "[a100|h100]", {8: ["n1"], 4: ["n2"]}),
        (None, "v100", {}),
        (None, "ib&[a100|h100]", {8: ["n1"], 4: ["n2"]}),
        (None, "(a100&ib)*1", {8: ["n1"], 4: ["n2"]}),
    ],
)
def test_gpus_are_counted_on_the_nodes_that_the_job_may_get(
    partition: Optional[str], constraint: Optional[str], found: Dict[int, List[str]]
) -> None:
    launch = LaunchConfig()
    launch.slurm.partition, launch.slurm.constraint = partition, constraint
    assert resolve.count_gpus(LISTED, launch) == found
