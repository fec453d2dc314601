"""Run Triton's kernels on a CPU in a forked process."""

import os
import sys


def interpret_triton() -> None:
    """Make Triton interpret its kernels in this process. It reads the variable when it is imported.

    DeepSpeed has imported it already, in the process that this one was forked from.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    for name in [name for name in sys.modules if name == "triton" or name.startswith("triton.")]:
        if not name.startswith("triton._C"):  # a library is loaded once
            del sys.modules[name]
