"""What a process sets once, before it computes: memory that is kept, threads on purpose."""

import ctypes
import os
import sys
from pathlib import Path


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


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory():
    """Bytes that can still be had: of the machine, or of the control group where it allows less; None where nothing tells."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if most.isdigit():
            found.append(int(most) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, KeyError, ValueError):
        pass
    return min(found) if found else None


def check_memory(each, count, what, key):
    """Raises ValueError where `count` times `each` bytes cannot be had, saying how much is needed and how many would fit."""
    free = free_memory()
    if free is not None and each * count > 0.9 * free:
        fit = int(0.9 * free // max(1, each))
        raise ValueError(f"{key}={count}: {count:,} {what} need {each * count / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free; "
                         + (f"{key}={fit} would fit" if fit else "not one fits, ask for fewer tokens"))  # fmt: skip
