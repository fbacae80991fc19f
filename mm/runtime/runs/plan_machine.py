"""The machine that a plan is for: compute type, ranks and memory. Imports torch only if it may measure anyway."""

from __future__ import annotations

import os

import attrs

from mm.core.config.autoselect import backend_name
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.core.run import Run
from mm.runtime.devices.host import host_memory, host_ranks, multiplies_bfloat16


@attrs.frozen(kw_only=True)
class Machine:
    """`dtype` is the compute type, `ranks` the processes that train on this machine, `host` true if they share its memory, and
    `memory` the bytes of a device or of the host (None: not known)."""

    dtype: str
    ranks: int
    host: bool
    memory: int | None


def machine_of(plugins: PluginManager, run: Run, opened: bool) -> Machine:
    """The machine of a run. Unless the backend is `opened`, what its chip computes in and how large it is are the usual."""
    host = backend_name(run.select.backend)[0] == "cpu"
    dtype, ranks = run.train.dtype, run.train.nproc
    under = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory = host_memory() if host else None
    if opened and not host:
        from mm.runtime.models.opening import open_backend

        backend = open_backend(plugins, run.select.backend)
        memory = backend.memory().get("total")
        dtype = backend.default_dtype() if dtype == "auto" else dtype
        ranks = backend.ranks() if ranks is None else ranks
    if dtype == "auto":
        dtype = "bf16" if not host or multiplies_bfloat16() else "fp32"
    if ranks is None:
        ranks = host_ranks() if host else 1
    return Machine(dtype=dtype, ranks=max(ranks, under), host=host, memory=memory)


def kept_keys(plugins: PluginManager, run: Run) -> int:
    """See `BackendSpec`."""
    return plugins.get(BackendSpec, backend_name(run.select.backend)[0]).kept_keys
