"""A reward model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs
from attrs.validators import ge

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class ModelConfig:
    """Which model judges, and how."""

    path: Path | None = option(None, help="Folder of the reward model, from the workspace.")  # noqa: RUF009
    trust_remote_code: bool = option(False, help="Run the Python code that lies in the folder; its get_score is then used.")
    device: str = option("auto", help="Where it runs: auto, cpu, or a device of torch such as cuda:1.")
    dtype: str = option(
        "auto", help="Type of its weights; auto takes that of its files.", choices=("auto", "fp32", "bf16", "fp16")
    )
    batch_size: int = option(8, help="Texts judged at once.", validator=ge(1))
    max_length: int = option(2048, help="Longest conversation in tokens; a longer one loses its beginning.", validator=ge(1))


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The part."""
    yield RewardSpec(
        name="model",
        summary="The score of a reward model in a Hugging Face folder, within -3 and 3.",
        target="mm.plugins.rewards.model.reward:ModelReward",
        config=ModelConfig,
    )
