"""The device of the tests marked `cuda`: a card, or the backend that MM_TEST_DEVICE names, to try the tests themselves."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rank_cases
import torch

from mm.core.callback import Callback
from mm.core.errors import MMError
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, BackendSpec
from mm.core.run import Run
from mm.core.workspace import RunFolder
from mm.runtime.devices.backend import Backend
from mm.runtime.models.opening import open_backend
from mm.testing import tiny_run

DEVICE = os.environ.get("MM_TEST_DEVICE", "cuda")
_PLUGINS = PluginManager.discover(environ={})
_RECORD = _PLUGINS.get(BackendSpec, DEVICE)
ALGORITHMS = [spec.name for spec in _PLUGINS.specs(AlgorithmSpec) if _PLUGINS.owner(spec).distribution == "minimind-ascend"]
WATCHERS: list[Callback] = []


class WideCard(rank_cases.Wide, _RECORD.load()):  # type: ignore[misc]
    """The device in float64."""


@hookimpl
def mm_backends() -> Iterable[BackendSpec]:
    """wide-card."""
    yield BackendSpec(name="wide-card", summary="float64.", target=f"{__name__}:WideCard", probe=_RECORD.probe, priority=-1)


@hookimpl
def mm_callbacks(run: Run) -> Iterable[Callback]:
    """Those of a test."""
    return WATCHERS


def open_card() -> Backend | str:
    """The backend of the device, or the reason why it cannot be used here."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product; deterministic products need it
    probe = _RECORD.probe()
    if not probe.available:
        return f"no {DEVICE} here: {probe.reason}"
    precision = torch.get_float32_matmul_precision()
    try:
        return open_backend(_PLUGINS, DEVICE)
    except MMError as error:
        return str(error)
    finally:
        torch.set_float32_matmul_precision(precision)


def train(workspace: Path, case: str, run: str, **options: Any) -> RunFolder:
    """Train a case of `rank_cases` on the device, with further options."""
    given = {**rank_cases.options_of(case, workspace), "backend": DEVICE, "run": run, **options}
    return tiny_run(workspace, case.split()[0], plugins=plugins(), **given)


def plugins() -> PluginManager:
    """Everything that is installed, the reward and the backends of `rank_cases`, and this module."""
    return rank_cases.plugins(__name__)


def run_cases(folder: str, way: str, *cases: str) -> None:
    """Train each case of `rank_cases` on the device as this rank, in float64."""
    for case in cases:
        rank_cases.train(Path(folder), case, way, __name__, backend="wide-card")
