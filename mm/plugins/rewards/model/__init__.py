"""The score of a reward model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import attrs

from mm.core.errors import UsageError
from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class RewardModelConfig:
    """Which reward model scores, and how it is loaded."""

    reward: ClassVar[str] = "model"  # of which these are the options

    path: Path | None = option(None, help="Folder of the reward model, relative to the workspace.")  # noqa: RUF009
    trust_remote_code: bool = option(False, help="Run the Python code in that folder, and score with its get_score.")
    device: str = option("auto", help="Device of the reward model: auto, cpu, or a torch device such as cuda:1.")
    dtype: str = option(
        "auto", help="Type of its weights; auto takes that of its files.", choices=("auto", "fp32", "bf16", "fp16")
    )
    batch_size: int = option(8, help="Conversations scored at once.", within="[1, inf)")
    max_length: int = option(2048, help="Tokens of a conversation, at most; a longer one is cut at its start.", within="[1, inf)")

    def check_files(self) -> None:
        """Raise UsageError if a folder is given that has no model. Loads nothing."""
        if self.path is not None:
            check_folder(self.path, self.reward)


@attrs.frozen(kw_only=True)
class ModelConfig(RewardModelConfig):
    """The settings of the reward `model`, which needs a path."""

    answer_only: bool = option(
        False, help="Score only what follows </think> (MiniMind 3's), not the whole reply and what answer tags enclose (2's)."
    )
    flat_history: bool = option(
        False, help="Show the reward model the conversation as the text of one user turn (MiniMind 3's)."
    )

    def check_files(self) -> None:
        """See `RewardModelConfig`. Raises UsageError too if no folder is given."""
        check_folder(self.path, self.reward)


def check_folder(path: Path | None, reward: str) -> Path:
    """The folder of the reward model of a reward. Raises UsageError if there is none, or it holds no model."""
    if path is None:
        raise UsageError(f"--reward {reward} needs --{reward}-path FOLDER, a reward model in the Hugging Face layout.")
    if not (path / "config.json").exists():
        raise UsageError(f"--{reward}-path {path}: not a model folder: it has no config.json.")
    return path


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `model`."""
    yield RewardSpec(
        name="model",
        summary="The score of a reward model in a Hugging Face folder, clipped to -3 to 3.",
        target="mm.plugins.rewards.model.reward:ModelReward",
        config=ModelConfig,
    )
