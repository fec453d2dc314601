"""Lists of nodes as Slurm writes them."""

from typing import List

import pytest

from ftdist.launch.backends.slurm.hostlist import expand


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[08-10,12],login", ["node08", "node09", "node10", "node12", "login"]),
        ("r[1-2]n[3,5]", ["r1n3", "r1n5", "r2n3", "r2n5"]),
        ("a,b[1]-ib", ["a", "b1-ib"]),
        ("", []),
    ],
)
def test_a_list_of_nodes_is_expanded(nodes: str, names: List[str]) -> None:
    assert expand(nodes) == names
