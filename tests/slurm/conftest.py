"""One Slurm cluster for all tests of a pytest worker."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as base, Cluster(Path(base)) as running:
        yield running


@pytest.fixture
def slurm(cluster: Cluster) -> Iterator[Cluster]:
    """Return the cluster. It has no job before and after the test."""
    yield cluster
    cluster.end_all_jobs()
