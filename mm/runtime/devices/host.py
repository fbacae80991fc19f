"""The machine that this process runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# more of them would each hold a copy of the model for a few rows of a batch; the other cores become threads
_MOST_RANKS = 8


def host_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_ranks() -> int:
    """The ranks that train together on this machine's processor by default: one a core."""
    return min(host_cores(), _MOST_RANKS)


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: those of the machine, or fewer if its container (its control group, or one of
    the groups above it) has a limit. `root` has `proc` and `sys`."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(root)])


def multiplies_bfloat16(root: Path = Path("/")) -> bool:
    """True if the processor has bfloat16 products (AVX512-BF16, AMX, or Arm's); False if that is not known."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return any(name in flags for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _limits(root: Path) -> Iterator[int]:
    """The memory limits of the control groups of this process, versions 1 and 2; "max" is none."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:  # not Linux
        return
    for _, controllers, group in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = Path(group.strip("/"))
        for parent in (folder, *folder.parents):
            try:
                yield int((mount / parent / file).read_text(encoding="utf-8"))
            except (OSError, ValueError):  # no such file, or "max": this group has no limit
                continue
