"""No process of a test outlives it, however the test ends."""

from collections.abc import Iterator

import psutil
import pytest

from tests.e2e import cli


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    _, left = psutil.wait_procs(cli.left_processes(), timeout=5)
    found = [f"{process.pid} {' '.join(process.cmdline())[:200]}" for process in left if process.is_running()]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)
    assert not found, f"the test left processes running: {found}"
