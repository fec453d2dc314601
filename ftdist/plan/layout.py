"""How the ranks of a run are laid out."""

from dataclasses import dataclass

from ftdist.config.schema import RunConfig


@dataclass(frozen=True)
class Layout:
    """The number of machines, and of ranks on each. Today all ranks are data parallel."""

    nnodes: int
    """Machines."""
    nproc_per_node: int
    """Ranks on each machine."""

    @property
    def world(self) -> int:
        """Ranks of the run, ``world_size``."""
        return self.nnodes * self.nproc_per_node

    @property
    def data(self) -> int:
        """Data parallel ranks, ``dp_world_size``: each takes its own rows, and ZeRO shards over them."""
        return self.world

    @classmethod
    def of_world(cls, world_size: int) -> "Layout":
        """Return the layout of ranks that torchrun has started, where only their number matters."""
        return cls(nnodes=1, nproc_per_node=world_size)


def layout_of(config: RunConfig) -> Layout:
    """Return the layout that a resolved config asks for: ``launch.nproc_per_node`` is set."""
    assert config.launch.nproc_per_node is not None
    return Layout(config.launch.nnodes, config.launch.nproc_per_node)
