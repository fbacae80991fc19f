"""How the ranks of a command are started, and how they ended. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import frozen

from mm.core.options import build, coerce, option, options_of


@frozen(kw_only=True)
class LaunchSettings:
    """How the ranks of a command are started, beside `--nproc`. Each machine has its own values."""

    nnodes: int = option(1, help="Machines that train together; the same line is typed on each of them.", within="[1, 65536]")
    node_rank: int = option(
        0, help="Number of this machine, from 0; machine 0 is that of --rdzv-endpoint.", within="[0, 65535]"
    )
    rdzv_endpoint: str = option("", help="Where the machines meet: HOST:PORT of machine 0.")
    max_restarts: int = option(
        0, help="Times that all ranks are started again, from the newest checkpoint, after one has failed.", within="[0, inf)"
    )
    hang_seconds: int = option(
        1800, help="End the run, with the stack of each rank, if one stands still for so many seconds.", within="[1, inf)"
    )


LAUNCH = options_of(LaunchSettings, section="launch")


def read_launch(texts: Mapping[str, Any], origin: str) -> LaunchSettings:
    """The settings from texts by flat key; None stands for one that is not given. Raises UsageError for an invalid one."""
    given = {o.key: coerce(o, texts[o.key], origin, textual=True) for o in LAUNCH if texts.get(o.key) is not None}
    return build(LaunchSettings, LAUNCH, given)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Inside the block these variables are set, for the processes that are started."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
