"""DeepSpeed's Muon optimizer is imported without PyTorch's compiler, which ranks do not use."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from ftdist.engine.muon import import_muon
import_muon()
assert "deepspeed.runtime.zero.muon.original_muon" in sys.modules
print([name for name in sys.modules if name.startswith("torch._inductor")])
"""


@pytest.mark.process
def test_the_compiler_is_not_loaded() -> None:
    """In a new process: in this one, another test may have loaded it."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
