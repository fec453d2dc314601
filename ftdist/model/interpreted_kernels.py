"""Run Liger's kernels in Triton's interpreter (``TRITON_INTERPRET=1``), which runs them on a CPU, for tests.

Two things of Triton 3.7 do not work there, and are replaced: arguments that are floats, and the functions of CUDA's
math library.
"""

from typing import Any

import numpy as np


def prepare_interpreter() -> None:
    """Make Triton's interpreter run Liger's norms, MLPs and rotary embeddings in this process."""
    from liger_kernel.ops import geglu, rms_norm
    from triton import language
    from triton.runtime import interpreter

    rms_norm.rsqrt = lambda numbers: language.rsqrt(numbers)
    geglu.tanh = lambda numbers: 2 * language.sigmoid(2 * numbers) - 1
    convert = interpreter._implicit_cvt
    if convert.__module__ == __name__:
        return

    def convert_float(value: Any) -> Any:
        """Pass a float as a compiled kernel gets it: as a tensor of 32 bits, which the kernel can convert."""
        if not isinstance(value, float):
            return convert(value)
        handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), language.float32)
        return language.tensor(handle, language.float32)

    interpreter._implicit_cvt = convert_float
