"""The layout of ranks."""

from ftdist.config.schema import RunConfig
from ftdist.plan.layout import Layout, layout_of


def test_all_ranks_are_data_parallel() -> None:
    config = RunConfig()
    config.launch.nnodes, config.launch.nproc_per_node = 3, 8
    layout = layout_of(config)
    assert (layout.nnodes, layout.nproc_per_node, layout.world, layout.data) == (3, 8, 24, 24)
    assert Layout.of_world(6).world == Layout.of_world(6).data == 6
