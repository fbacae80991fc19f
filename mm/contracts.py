"""The authors' one import: contracts, records and the few values that pass between them.

Importing this module imports no torch, so that a declaration may use it. Names of implementations that need torch
(`Packed`, `token_logprobs` and so on) can be imported from here too; torch is then imported with the first of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mm.core.callback import Callback, TrainingView
from mm.core.configs import AdapterConfig, ArchitectureConfig
from mm.core.errors import CheckpointError, DataError, MMError, UsageError
from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.plugins import PluginManager
from mm.core.records import (
    AdapterSpec,
    AlgorithmSpec,
    ArchitectureSpec,
    BackendSpec,
    CommandSpec,
    Container,
    ConverterSpec,
    EngineSpec,
    FormatSpec,
    Needs,
    Probe,
    RecipeSpec,
    RewardSpec,
    SourceSpec,
    StageSpec,
    ToolSpec,
    TrackerSpec,
)
from mm.core.run import Run
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.data.source import Format, Position, Source
from mm.runtime.devices.accelerator import AcceleratorBackend
from mm.runtime.devices.backend import Backend
from mm.runtime.devices.scaler import Scaler
from mm.runtime.generation.engine import (
    Completion,
    Constraint,
    Engine,
    OnToken,
    Request,
    Reward,
    Running,
    Sampling,
    SupportsContinuous,
    Tool,
)
from mm.runtime.models.adapter import Adapter
from mm.runtime.models.converter import Converter, Unsupported
from mm.runtime.models.repacker import Contents, Packing, Repacker
from mm.runtime.models.rules import Rule, Rules
from mm.runtime.nn.cache import Cache, SupportsCache, SupportsFastDecode, SupportsTruncate
from mm.runtime.runs.stage import Stage, StageResult
from mm.runtime.text.rows import ChatRow, Encoded, Message, Row, TextRow, ToolCall
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.context import Context
from mm.runtime.training.measures import Largest, Metrics, Totals, Watch, mean_loss
from mm.runtime.training.preference import Answers, PreferenceAlgorithm, PreferenceConfig
from mm.runtime.training.rollouts.completions import Groups, Sample, rewards_of
from mm.runtime.training.rollouts.experience import DrawnTokens, Experience, TokenValues
from mm.runtime.training.rollouts.losses import KL_ESTIMATORS, clip_ratio, clipped_surrogate, estimate_kl, policy_gradient
from mm.runtime.training.rollouts.options import RolloutConfig, kl_coefficient, rollout_needs
from mm.runtime.training.rollouts.rollout import Rollout
from mm.runtime.training.tracker import Tracker

if TYPE_CHECKING:
    from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
    from mm.runtime.nn.heads import linear_cross_entropy, token_logprobs
    from mm.runtime.nn.kernels import Kernels
    from mm.runtime.nn.model import Head, Model, logits
    from mm.runtime.training.roles import Role

# where the names are that need torch: imported when they are asked for (PEP 562)
_WITH_TORCH = {
    **dict.fromkeys(("Packed", "Tokens", "Unit", "pack"), "mm.runtime.nn.batch"),
    **dict.fromkeys(("linear_cross_entropy", "token_logprobs"), "mm.runtime.nn.heads"),
    **dict.fromkeys(("Head", "Model", "logits"), "mm.runtime.nn.model"),
    "Kernels": "mm.runtime.nn.kernels",
    "Role": "mm.runtime.training.roles",
}

__all__ = [
    "KL_ESTIMATORS",
    "AcceleratorBackend",
    "Adapter",
    "AdapterConfig",
    "AdapterSpec",
    "Algorithm",
    "AlgorithmSpec",
    "Answers",
    "ArchitectureConfig",
    "ArchitectureSpec",
    "Backend",
    "BackendSpec",
    "Cache",
    "Callback",
    "ChatRow",
    "CheckpointError",
    "CommandSpec",
    "Completion",
    "Constraint",
    "Container",
    "Contents",
    "Context",
    "Converter",
    "ConverterSpec",
    "DataError",
    "DrawnTokens",
    "Encoded",
    "Engine",
    "EngineSpec",
    "Experience",
    "Format",
    "FormatSpec",
    "Groups",
    "Head",
    "Kernels",
    "Largest",
    "MMError",
    "Message",
    "Metrics",
    "Model",
    "Needs",
    "OnToken",
    "Packed",
    "Packing",
    "PluginManager",
    "Position",
    "PreferenceAlgorithm",
    "PreferenceConfig",
    "Probe",
    "RecipeSpec",
    "Repacker",
    "Request",
    "Reward",
    "RewardSpec",
    "Role",
    "Rollout",
    "RolloutConfig",
    "Row",
    "Rule",
    "Rules",
    "Run",
    "RunFolder",
    "Running",
    "Sample",
    "Sampling",
    "Scaler",
    "Source",
    "SourceSpec",
    "Stage",
    "StageResult",
    "StageSpec",
    "SupportsCache",
    "SupportsContinuous",
    "SupportsFastDecode",
    "SupportsTruncate",
    "TextRow",
    "TokenValues",
    "Tokens",
    "Tool",
    "ToolCall",
    "ToolSpec",
    "Totals",
    "Tracker",
    "TrackerSpec",
    "TrainingView",
    "Unit",
    "Unsupported",
    "UsageError",
    "Watch",
    "Workspace",
    "clip_ratio",
    "clipped_surrogate",
    "estimate_kl",
    "hookimpl",
    "kl_coefficient",
    "linear_cross_entropy",
    "logits",
    "mean_loss",
    "option",
    "pack",
    "policy_gradient",
    "rewards_of",
    "rollout_needs",
    "token_logprobs",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The implementations that need torch."""
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
