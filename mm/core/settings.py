"""The settings that all runs share, and the options that select a run's parts."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, frozen

from mm.core.options import option


def _steps(instance: object, attribute: Attribute[Any], value: str | None) -> None:
    if value is not None:
        first_and_count(value)


def first_and_count(text: str) -> tuple[int | None, int]:
    """The text of `--profile`: "COUNT" as (None, COUNT), "FIRST:COUNT" as (FIRST, COUNT). Raises ValueError for any other."""
    first, colon, count = text.rpartition(":")
    if not (count.isdigit() and int(count) and (first.isdigit() and int(first) if colon else True)):
        raise ValueError(f"'profile' must be a number of steps, or FIRST:COUNT with steps counted from 1: {text!r}")
    return int(first) if colon else None, int(count)


@frozen(kw_only=True)
class Selection:
    """The parts of a run by name. If one is empty, the part is chosen automatically and printed."""

    algo: str = option("", help="Training algorithm.")
    arch: str = option("", help="Architecture of a new model; omit it with --from.")
    preset: str = option("", help="Named sizes of the architecture.")
    from_: str = option("", help="Start from this run, Hugging Face folder or model folder.")
    tokenizer: str = option("", help="Tokenizer folder for a new model; default is the one that comes with mm.")
    data: tuple[str, ...] = option(
        (), help="File or built-in source, or NAME:WEIGHT; may be given several times.", on_resume=True
    )
    adapter: str = option("", help="Adapter that is trained instead of the policy's own weights.")
    backend: str = option("auto", help="Chip: auto or a backend's name, with a card as in NAME:1.", on_resume=True)
    run: str = option("", help="Name of the run folder; by default algorithm-preset-date-number.")
    tracker: tuple[str, ...] = option((), help="Further tracker of metrics, or none; may be given several times.", on_resume=True)


@frozen(kw_only=True)
class TrainSettings:
    """The common settings of training. A step is an optimizer step; a row is a document, pair or prompt."""

    seed: int = option(42, help="Seed of weights, row order and every other draw.", within="(-inf, inf)")
    epochs: int = option(1, help="Passes over the rows; fixes the schedule's horizon unless --max-steps does.", within="[1, inf)")
    max_steps: int | None = option(None, help="Horizon in optimizer steps instead of --epochs.", within="[1, inf)")
    stop_after_steps: int | None = option(
        None, help="Stop (and save) at this step; the schedule stays as it was.", within="[1, inf)", on_resume=True
    )
    max_time: float | None = option(
        None, help="Stop (and save) after this many seconds of training.", within="(0, inf)", on_resume=True
    )
    global_batch_size: int = option(32, help="Rows in one optimizer step, over all ranks.", within="[1, inf)")
    micro_batch_tokens: int = option(8192, help="Tokens in one forward pass; accumulation follows from it.", within="[1, inf)")
    max_length: int = option(
        512, help="Longest sequence in tokens: text is split there, chats are cut at a turn.", within="[2, inf)"
    )
    optimizer: str = option("adamw", help="Optimizer.", choices=("adamw", "muon"))
    learning_rate: float = option(5e-4, help="Peak learning rate.", within="(0, inf)")
    min_learning_rate_ratio: float = option(0.1, help="Final learning rate as a share of the peak.", within="[0, 1]")
    schedule: str = option("cosine", help="Shape after warm-up.", choices=("cosine", "linear", "constant", "wsd"))
    decay_ratio: float = option(
        0.1, help="wsd (warm-up, stable, decay): share of the steps with falling learning rate.", within="[0, 1]"
    )
    warmup_ratio: float = option(0.0, help="Share of the steps with rising learning rate.", within="[0, 1]")
    weight_decay: float = option(0.01, help="Decoupled decay; not on norms, biases and embeddings.", within="[0, inf)")
    adam_beta1: float = option(0.9, help="AdamW: decay of the first moment.", within="[0, 1)")
    adam_beta2: float = option(0.95, help="AdamW: decay of the second moment.", within="[0, 1)")
    dropout: float = option(
        0.0, help="Share of embeddings, attention probabilities and outputs of layers that a training step sets to zero.",
        within="[0, 1)",
    )  # fmt: skip
    clip_norm: float = option(1.0, help="Largest gradient norm; 0 switches clipping off.", within="[0, inf)")
    dtype: str = option("auto", help="Compute type; parameters stay float32.", choices=("auto", "fp32", "bf16", "fp16"))
    compile: bool = option(False, help="Compile the model where a compiler is found.")
    activation_checkpointing: bool = option(
        False, help="Keep only what enters each block, and compute it again in the backward: less memory, more time."
    )
    threads: int | None = option(
        None, help="CPU threads; by default the best number for the model's size on the backend.", within="[1, 1024]"
    )
    nproc: int | None = option(1, help="Ranks of this machine: N, or auto.", within="[1, 4096]", none="auto", on_resume=True)
    parallel: str = option("ddp", help="A rank keeps the model (ddp) or a part (fsdp).", choices=("ddp", "fsdp"), on_resume=True)
    skip_bad_rows: bool = option(False, help="Skip invalid rows, and count them by reason, instead of stopping.")
    allow_lost_fields: bool = option(
        False, help="Train on rows of which the tokenizer's chat template leaves out a text, and count them, instead of stopping."
    )
    empty_think_share: float = option(0.2, help="Share of chats that keep a template's own empty think block.", within="[0, 1]")
    system_share: float = option(0.0, help="Share of chats without a system turn that get a --system-text.", within="[0, 1]")
    system_text: tuple[str, ...] = option((), help="Text of such a system turn; may be given several times.")
    data_workers: int | None = option(
        None, help="Processes that encode rows; by default one per core.", within="[1, 1024]", on_resume=True
    )
    eval_ratio: float = option(0.02, help="Share of the rows held out for evaluation.", within="[0, 1)")
    eval_data: tuple[str, ...] = option(
        (), help="File or source to evaluate on, instead of holding out rows; may be given several times.", on_resume=True
    )
    eval_rows: int = option(256, help="Most rows that an evaluation measures.", within="[1, inf)")
    eval_interval: int | None = option(
        None, help="Steps between evaluations; by default a fifth of the run.", within="[1, inf)", on_resume=True
    )
    patience: int | None = option(
        None, help="End the training after this many evaluations in a row without a better held-out loss or reward.",
        within="[1, inf)",
    )  # fmt: skip
    min_delta: float = option(0.0, help="How much better counts for --patience.", within="[0, inf)")
    keep_best: bool = option(
        False, help="Keep the model with the best held-out loss (in reinforcement learning: reward), as NAME@best.",
        on_resume=True,
    )  # fmt: skip
    samples: int = option(
        0, help="Held-out rows whose beginning is continued at each evaluation.", within="[0, inf)", on_resume=True
    )
    sample_prompt: tuple[str, ...] = option(
        (), help="Prompt that is completed at each evaluation; may be given several times.", on_resume=True
    )
    sample_tokens: int = option(64, help="Most tokens of such a generation.", within="[1, inf)", on_resume=True)
    profile: str | None = option(
        None, help="Trace this many steps, after two that warm up, or FIRST:COUNT.", validator=_steps, on_resume=True
    )
    log_interval: int = option(10, help="Steps between lines of metrics.", within="[1, inf)", on_resume=True)
    save_interval: int | None = option(
        None, help="Steps between checkpoints; by default a tenth of the run.", within="[1, inf)", on_resume=True
    )
    save_minutes: float | None = option(
        10.0, help="Most minutes between checkpoints; none: only those of --save-interval and the last.", within="(0, inf)",
        on_resume=True,
    )  # fmt: skip
    background_save: bool = option(True, help="Write checkpoints in the background, from a copy in host memory.", on_resume=True)
    keep_checkpoints: int = option(2, help="Newest checkpoints that are kept.", within="[1, inf)", on_resume=True)


@frozen(kw_only=True)
class RolloutParts:
    """The options that select the parts of a run which samples completions."""

    engine: str = option("", help="Engine that generates; by default the first one that runs on the backend.")
    reward: tuple[str, ...] = option((), help="Reward as NAME or NAME:WEIGHT; may be given several times.")
    skip_failed_rewards: bool = option(
        False, help="Continue if a reward fails on a completion: it is counted, and the completion is not learned."
    )


@frozen(kw_only=True)
class EpisodeParts(RolloutParts):
    """The options that select the parts of a run whose completions are episodes with tools."""

    tool: tuple[str, ...] = option((), help="Tool that the model may call; may be given several times.")


@frozen(kw_only=True)
class RoleSettings:
    """The options of a role besides the policy."""

    from_: str = option("", help="Run or model folder that this role starts from; by default that of the policy.")


@frozen(kw_only=True)
class TrainedRoleSettings(RoleSettings):
    """The options of a role that is trained besides the policy."""

    learning_rate: float | None = option(None, help="Its peak learning rate; by default the policy's.", within="(0, inf)")
    clip_norm: float | None = option(None, help="Its largest gradient norm; by default the policy's.", within="[0, inf)")
    adapter: str = option("", help="Adapter that is trained instead of its own weights.")
