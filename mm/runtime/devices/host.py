"""The machine that this process runs on."""

from __future__ import annotations

import os


def host_memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
