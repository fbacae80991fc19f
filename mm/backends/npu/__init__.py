"""Huawei Ascend NPUs through torch_npu."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from mm.core.hooks import hookimpl
from mm.core.records import BackendSpec, Container, Probe
from mm.plugins.extras import install_command

_MANAGER = Path("/dev/davinci_manager")
_TOOLS = [Path("/usr/local/bin/npu-smi"), Path("/usr/local/sbin/npu-smi")]  # drivers put it in one or the other


def probe() -> Probe:
    """Available if the driver's device file exists and torch_npu is installed. Imports neither torch nor torch_npu."""
    if not _MANAGER.exists():
        driver = f"no Ascend driver ({_MANAGER})"
        return Probe(False, f"{driver}: install it, or start the container with 'mm docker run --backend npu'")
    if importlib.util.find_spec("torch_npu") is None:
        return Probe(False, f"torch_npu is not installed ({install_command('npu')}, without -c constraints.txt)")
    return Probe(True, "Ascend driver and torch_npu found")


def _tool() -> Path:
    return next((path for path in _TOOLS if path.exists()), _TOOLS[0])


@hookimpl
def mm_backends() -> Iterable[BackendSpec]:
    """The backend `npu`, the first choice of `--backend auto`.

    By default, importing torch also loads torch_npu, and if that fails, torch is unusable in the whole process. So
    autoload is switched off, and the backend imports torch_npu itself and reports the failure.
    """
    yield BackendSpec(
        name="npu",
        summary="Huawei Ascend NPUs (910B and newer). Not run on hardware yet.",
        target="mm.backends.npu.backend:NpuBackend",
        probe=probe,
        priority=200,
        env={
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
            "TASK_QUEUE_ENABLE": "2",
            "CPU_AFFINITY_CONF": "2",
            "HCCL_CONNECT_TIMEOUT": "1200",
            "HCCL_EXEC_TIMEOUT": "3600",
        },
        container=Container(
            card=str(_MANAGER.with_name("davinci{}")),
            root=True,
            devices=(str(_MANAGER), "/dev/devmm_svm", "/dev/hisi_hdc"),
            mounts=tuple(
                f"{path}:{path}:ro"
                for path in ("/usr/local/Ascend/driver", "/usr/local/dcmi", _tool(), "/etc/ascend_install.info")
            ),
        ),
    )
