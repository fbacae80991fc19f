"""The memory that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mm.runtime.devices.host import host_memory

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, PHYSICAL),
        ("0::/box/job\n", {"box/memory.max": "4096", "box/job/memory.max": "max"}, 4096),
        ("0::/box/job\n", {"box/memory.max": "8192", "box/job/memory.max": "2048"}, 2048),
        ("0::/\n", {"memory.max": str(2 * PHYSICAL)}, PHYSICAL),
        ("4:cpu,cpuacct:/a\n3:memory:/a\n", {"memory/a/memory.limit_in_bytes": "1024"}, 1024),
    ],
)
def test_a_containers_limit_counts(groups: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_memory(tmp_path) == expected


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert host_memory(tmp_path) == PHYSICAL
