"""The contracts: what the parts of each kind implement, and the small values that pass between them.

Importing them imports no torch, so that a declaration may name these types too. The chip's is `mm.core.backend`.
"""

from mm.core.contracts.data import Format, Position, Source
from mm.core.contracts.generation import Completion, Engine, OnToken, Request, Reward, Sampling, Tool
from mm.core.contracts.learning import Adapter, Algorithm, Callback, Largest, Metrics, Totals, Watch
from mm.core.contracts.pipeline import Stage, StageResult

__all__ = [
    "Adapter",
    "Algorithm",
    "Callback",
    "Completion",
    "Engine",
    "Format",
    "Largest",
    "Metrics",
    "OnToken",
    "Position",
    "Request",
    "Reward",
    "Sampling",
    "Source",
    "Stage",
    "StageResult",
    "Tool",
    "Totals",
    "Watch",
]
