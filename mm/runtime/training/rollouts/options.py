"""The options and needs that algorithms with rollouts share. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from attrs import Attribute, frozen

from mm.core.options import option
from mm.core.records import Needs


def only_if(applies: Callable[[Any], Any], why: str) -> Callable[[Any, Attribute[Any], Any], None]:
    """A validator for an option whose default is None. It refuses other values, with the reason `why`, unless `applies(config)`
    is true."""

    def check(config: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is not None and not applies(config):
            raise ValueError(f"'{attribute.name}' {why}")

    return check


def at_least_two(config: RolloutConfig, attribute: Attribute[Any], value: int) -> None:
    """A validator for the size of groups whose completions are compared with each other."""
    if value < 2:
        raise ValueError(f"'{attribute.name}' must be at least 2: nothing is learned from a group of one")


def _within_completion(config: RolloutConfig, attribute: Attribute[Any], value: int) -> None:
    if value > config.max_new_tokens:
        raise ValueError(f"'overlong_buffer' {value} is longer than a completion (--max-new-tokens {config.max_new_tokens})")


@frozen(kw_only=True)
class RolloutConfig:
    """The options of sampling completions and of using them. `--global-batch-size` counts prompts, and `--max-length` bounds the
    tokens of a prompt.

    The log-probabilities of the engine and of the trainer are those before top-p, top-k and min-p, so these may be used.
    Penalties are refused: the trainer would have to recompute them at every position.
    """

    refused_options: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("repetition_penalty", "presence_penalty", "frequency_penalty"),
            "refused in a rollout. The tokens would be drawn from a penalised distribution, and the trainer computes their "
            "log-probabilities without penalties, so the ratio of both would be wrong. Give a reward against repetition instead: "
            "--reward repetition",
        ),
        "stop": "refused in a rollout. A completion that a text ends has no end token, so the model would not learn to end. "
        "Bound completions with --max-new-tokens",
    }

    num_generations: int = option(8, help="Completions drawn for each prompt.", within="[1, inf)")
    max_new_tokens: int = option(256, help="Longest completion, in tokens.", within="[1, inf)")
    temperature: float = option(1.0, help="Sampling temperature, also that of all log-probabilities.", within="[1e-4, inf)")
    top_p: float = option(1.0, help="Nucleus sampling: share of the probability that is kept.", within="(0, 1]")
    top_k: int = option(0, help="Draw from that many likeliest tokens; 0: from all.", within="[0, inf)")
    open_thinking: float | None = option(
        None, help="Share of the prompts that end with an opened thought, the others with an empty one; by default the "
        "template's choice.", within="[0, 1]",
    )  # fmt: skip
    min_p: float = option(0.0, help="Drop tokens below this share of the likeliest one's probability; 0: none.", within="[0, 1]")
    passes: int = option(1, help="Passes over the completions of one rollout.", within="[1, inf)")
    mini_batches: int = option(1, help="Optimizer steps in each of these passes.", within="[1, inf)")
    overlong_buffer: int = option(
        0, help="The last tokens before --max-new-tokens, in which the reward falls by up to 1 (DAPO); 0: none.",
        within="[0, inf)", validator=_within_completion,
    )  # fmt: skip
    samples_logged: int = option(8, help="Completions of each rollout that are written to rollouts.jsonl.", within="[0, inf)")

    @property
    def updates(self) -> int:
        """The number of optimizer steps per rollout."""
        return self.passes * self.mini_batches


def kl_coefficient(default: float) -> float:
    """The option `kl_coef`, the weight of a penalty on the KL to a reference. Unless it is 0, the algorithm needs the
    reference."""
    return option(default, help="Weight of the KL to the reference; 0: no reference.", within="[0, inf)")  # type: ignore[no-any-return]


def rollout_needs(
    config: RolloutConfig, *, data: str = "prompt", reference: bool = False, critic: bool = False, tools: bool = False
) -> Needs:
    """The needs of an algorithm with rollouts: rows of kind `data`, an engine and the policy; optionally a frozen reference, a
    trained critic and tools."""
    roles = ("policy",) + ("reference",) * reference + ("critic",) * critic
    return Needs(
        data=data, roles=roles, trainable=("policy",) + ("critic",) * critic, value_heads=("critic",) * critic, generates=True,
        tools=tools, steps=config.updates,
    )  # fmt: skip
