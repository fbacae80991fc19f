"""The parts that a training is built of, and the manifest of its run, which records where they came from."""

from __future__ import annotations

import platform
import shlex
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import torch

from mm.core.config.composition import Resolved
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import command_line
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.data.corpus import Corpus
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.provenance import packages_of
from mm.runtime.models.storage import fingerprint
from mm.runtime.runs.attempt import marks
from mm.runtime.runs.in_place import InPlace
from mm.runtime.training.distributed import World
from mm.runtime.training.trainer import Trainer


@attrs.define(kw_only=True, eq=False)
class Session:
    """The parts that one training is built of. `agents` are the launchers of its ranks; `evaluation` is the corpus of
    `--eval-data`, if that is given."""

    plugins: PluginManager
    run: Run
    workspace: Workspace
    folder: RunFolder
    backend: Backend
    world: World
    agents: list[str]
    loaded: LoadedModel
    corpus: Corpus
    evaluation: Corpus | None
    in_place: InPlace
    trainer: Trainer


def manifest_of(session: Session, resolved: Resolved) -> dict[str, Any]:
    """The manifest of a new run."""
    backend, corpus, state = session.backend, session.corpus, session.trainer.state
    roles = [role for role in state.roles.values() if role.trainable]
    return {
        "name": session.folder.name,
        "state": "running",
        "created": time.time(),
        "order": session.workspace.next_order(),
        "algorithm": session.run.select.algo,
        "architecture": session.loaded.architecture,
        "parameters": sum(p.numel() for p in session.loaded.model.parameters()),
        "trained_parameters": sum(p.numel() for role in roles for p in role.model.parameters() if p.requires_grad),
        "command": shlex.split(command_line("train", *session.run.argv(), plugins=session.plugins.options)),
        "sources": dict(resolved.sources),
        "versions": versions(),
        **parts_of(session),
        "backend": {"name": session.run.select.backend, "dtype": state.dtype, **backend.capabilities()},
        "notes": list(backend.notes),
        "world_size": session.world.size,
        **marks(session.agents),
        "threads": torch.get_num_threads(),
        "data": list(corpus.parts),
        "eval_data": list(session.evaluation.parts) if session.evaluation else [],
        "tokenizer": session.loaded.tokenizer.fingerprint,
        "roles": {name: fingerprint(path) for name, path in frozen_models(session).items()},
        "steps": state.horizon,
    }


def versions() -> dict[str, str]:
    """The versions of Python, PyTorch and this package, by name."""
    return {"python": platform.python_version(), "torch": torch.__version__, "mm": metadata.version("minimind-ascend")}


def parts_of(session: Session) -> dict[str, Any]:
    """The packages of the run's parts with their versions, and the values of `-p`: what the next resume needs."""
    return {
        "plugins": session.plugins.versions(),
        "parts": packages_of(session.plugins, session.run, session.loaded.architecture),
        "plugin_options": list(session.plugins.options),
    }


def frozen_models(session: Session) -> dict[str, Path]:
    """role -> the folder of its model, for each frozen role: a resume reads these models again."""
    return {name: role.path for name, role in session.trainer.state.roles.items() if role.path}
