"""What a process sets once, before it computes: memory that is kept, threads on purpose."""

import ctypes
import os
import sys


def before_torch():
    """What must be in the environment before torch is imported: threads that wait asleep.

    OpenMP's threads wait by spinning; with other work on the same cores two of them then train at a third of the speed that they reach
    asleep (measured: 12 against 36 steps in 20 s with both cores busy).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_memory():
    """Lets glibc keep freed memory instead of handing every large tensor back to the system.

    By default each tensor over 32 MB is mapped anew and its pages are faulted in one by one, which took half of a training step here
    (a cross-entropy over 4,000 x 8,000 logits: 240 ms, 73 ms with this). Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux") or os.environ.get("QKV_KEEP_MEMORY") == "0":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the top of the heap stays
    except (OSError, AttributeError):
        pass
