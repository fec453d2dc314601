"""The memory that this process has allocated (glibc)."""

import ctypes


class HeapInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]  # fmt: skip


def bytes_in_use() -> int:
    """Return the bytes that this process has allocated and not freed.

    These are tensors, autograd's C++ objects and large Python objects. Resident memory would also count free memory
    that malloc keeps for later.
    """
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = HeapInfo
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)
