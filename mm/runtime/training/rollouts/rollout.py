"""The base of algorithms that learn from completions sampled from the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mm.core.errors import MMError, UsageError
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.measures import Largest, Metrics, Totals, Watch
from mm.runtime.training.positions import check_positions
from mm.runtime.training.rollouts import sampling
from mm.runtime.training.rollouts.advantages import mean_and_deviation
from mm.runtime.training.rollouts.completion_metrics import (
    RANGES,
    best_reward_metrics,
    completion_metrics,
    length_metrics,
    widen_range,
)
from mm.runtime.training.rollouts.completions import (
    Groups,
    Sample,
    flatten,
    penalise_length,
    prompt_text,
    samples_to_read,
    without_failures,
)
from mm.runtime.training.rollouts.experience import DrawnTokens, Experience, TokenValues, compute_logprobs
from mm.runtime.training.rollouts.losses import policy_gradient
from mm.runtime.training.rollouts.mini_batches import assign_mini_batches

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.generation.engine import Engine
    from mm.runtime.nn.batch import Packed, Unit
    from mm.runtime.training.context import Context
    from mm.runtime.training.roles import Role
    from mm.runtime.training.rollouts.options import RolloutConfig


class Rollout(Algorithm):
    """REINFORCE with the advantages of a subclass: completions are sampled from the policy for a batch of prompts, scored by
    rewards, and used for a policy gradient. Rows are prompts, of which `global_batch_size` make a batch; `config` is a
    `RolloutConfig`.

    A subclass implements `advantages`. It overrides `loss` for another surrogate, and `make_experience` if tokens need further
    values. If a rollout is used for one step, old log-probabilities are the present ones: the ratio is 1, and only its gradient
    matters. Otherwise they are computed by the trainer before the first update; the engine's differ by rounding, which the
    metrics `engine_gap` and `engine_gap_max` watch.
    """

    config: RolloutConfig
    watch: ClassVar[Mapping[str, Watch]] = RANGES
    state: ClassVar[tuple[str, ...]] = ("rollouts", "first_length", "reward_range")

    def __init__(self, config: RolloutConfig, models: Mapping[str, Role], context: Context) -> None:
        super().__init__(config, models, context)
        # the number of rollouts so far, on which the draws of the next depend, and the mean length in the first one
        self.rollouts, self.first_length = 0, 0.0
        self.reward_range: list[float] = []  # the smallest and the largest reward so far
        self._failures, self._metrics = 0, Metrics()
        if not context.rewards:
            raise UsageError("Nothing scores the completions: pass --reward NAME (mm plugins --kind reward lists them).")
        check_positions(models, self.longest_sequence())

    # ---- what an algorithm decides

    def advantages(self, groups: Groups) -> list[list[float]]:
        """The advantage of each completion. `groups` has this rank's completions by prompt, without those for which a reward
        failed; `rewards_of(groups)` are their rewards."""
        raise NotImplementedError

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The policy-gradient loss, a mean over all drawn tokens of the step."""
        tokens = self.drawn_tokens(batch)
        loss = policy_gradient(tokens).sum() / max(1.0, totals.targets)
        return loss, {"loss": (loss.detach(), totals.share), **self.token_metrics(tokens)}

    def make_experience(self, groups: Groups) -> list[Experience]:
        """Each completion with its advantage and, if needed, its old and reference log-probabilities."""
        samples, groups_of_advantages = flatten(groups), self.advantages(groups)
        given, wanted = ([len(group) for group in one] for one in (groups_of_advantages, groups))
        if given != wanted:
            raise MMError(f"{type(self).__name__}.advantages: {given} advantages for {wanted} completions.")
        advantages = [advantage for group in groups_of_advantages for advantage in group]
        old = self.logprobs("policy", samples) if self.config.updates > 1 else [None] * len(samples)
        reference = self.logprobs("reference", samples) if "reference" in self.models else [None] * len(samples)
        return [Experience.of(*parts) for parts in zip(samples, advantages, old, reference, strict=True)]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Algorithm`. A checkpoint from before `reward_range` starts it anew."""
        super().load_state_dict({"reward_range": [], **state})

    # ---- a rollout

    def prepare(self, units: list[Unit]) -> list[list[Unit]]:
        """Sample and score completions, compute their experience, and assign it to the mini-batches of all passes."""
        self.update_engine()
        groups = self.sample_groups(units)
        self.engine.release()  # the next rollout has new weights, so it cannot use this cache
        experience = self.make_experience([without_failures(group) for group in groups])
        self._metrics = {**self._completion_metrics(groups), **self.rollout_metrics(flatten(groups))}
        self._log(groups, experience)
        for name, (reward, _) in self.context.rewards.items():
            if advice := reward.advice():
                self.context.warn(f"reward {name}: {advice}")
        self.rollouts += 1
        return assign_mini_batches(experience, self.context.world, self.config.passes, self.config.mini_batches)

    def evaluate(self, units: list[Unit]) -> Metrics:
        """The metrics of one completion for each held-out prompt."""
        self.update_engine()
        samples = sampling.start_evaluation(units, self.context)
        self._sample(samples)
        self.engine.release()
        return self._completion_metrics([[sample] for sample in samples])

    def sample_groups(self, units: Sequence[Unit], attempt: int = 0) -> list[list[Sample]]:
        """The scored completions of each prompt. `attempt` numbers the calls in this rollout, so that a prompt that comes again
        gets other draws."""
        key, size = (self.rollouts, attempt), self.config.num_generations
        groups = [sampling.start_group(unit, self.context, key, size) for unit in units]
        self._sample(samples := flatten(groups))
        if buffer := self.config.overlong_buffer:
            for sample in samples:
                sample.score = penalise_length(sample.score, self.remaining_tokens(sample) / buffer)
        return groups

    def complete(self, samples: Sequence[Sample]) -> None:
        """Let the policy complete each sample, in one turn."""
        sampling.complete(samples, self.config, self.context)

    def longest_sequence(self) -> Mapping[str, int]:
        """The largest number of tokens of a prompt and of its completion, by the option that bounds each."""
        prompt, drawn = self.context.max_length or 0, self.config.max_new_tokens
        return {f"--max-length {prompt} for prompts": prompt, f"--max-new-tokens {drawn}": drawn}

    def remaining_tokens(self, sample: Sample) -> int:
        """The number of tokens that the completion could still have had."""
        return self.config.max_new_tokens - sample.length

    @property
    def engine(self) -> Engine:
        """The run's engine, which exists for every algorithm that generates."""
        assert self.context.engine is not None
        return self.context.engine

    def update_engine(self) -> None:
        """Give the engine the policy's present weights."""
        self.engine.update(self.models["policy"].tensors(), version=self.rollouts)

    # ---- log-probabilities and metrics

    def logprobs(self, role: str, samples: Sequence[Sample]) -> list[Tensor]:
        """A role's log-probabilities of the drawn tokens of each sample, on the host."""
        return compute_logprobs(self.models[role], samples, self.context, self.config.temperature)

    def drawn_tokens(self, batch: Packed, values: TokenValues | None = None) -> DrawnTokens:
        """Run the policy on a pack. Returns its drawn tokens with their present log-probabilities."""
        return DrawnTokens.of(batch, self.models["policy"].logprobs(batch, temperature=self.config.temperature), values)

    def rollout_metrics(self, samples: Sequence[Sample]) -> Metrics:
        """The metrics of a rollout's completions that an evaluation does not have."""
        if not self.rollouts:
            lengths = [float(sample.length) for sample in samples]
            self.first_length = max(1.0, mean_and_deviation(self.context.world, lengths)[0])
        self.reward_range = widen_range(self.context.world, self.reward_range, samples)
        return {
            **length_metrics(samples, self.first_length, self.config.overlong_buffer),
            **best_reward_metrics(samples, self.reward_range),
        }

    def token_metrics(self, tokens: DrawnTokens, **means: Tensor) -> Metrics:
        """The metrics that every loss on drawn tokens has, with the means of further values `means`, (M,) each. The first call
        after a rollout adds the metrics of its completions."""
        gap_M, count = (tokens.old_M - tokens.engine_M).abs(), tokens.count
        completions, self._metrics = self._metrics, Metrics()
        return {
            # an unbiased estimate of the entropy only in the first mini-batch, while the policy is the one that drew, and without
            # top-p, top-k and min-p; otherwise an indication
            "entropy": (-tokens.logprobs_M.detach().sum(), count),
            "engine_gap": (gap_M.sum(), count),
            "engine_gap_max": Largest(gap_M.max() if count else gap_M.sum(), count),
            **{name: (values.detach().sum().float(), count) for name, values in means.items()},
            **completions,
        }

    # ---- parts of the above

    def _sample(self, samples: Sequence[Sample]) -> None:
        with sampling.evaluation_mode(self.models["policy"]):
            self.complete(samples)
        self._failures += sampling.score(samples, self.context)

    def _completion_metrics(self, groups: Groups) -> Metrics:
        """`completion_metrics`, with the number of failed rewards since the last call."""
        failures, self._failures = self._failures, 0
        return completion_metrics(groups, tuple(self.context.rewards), failures)

    def _log(self, groups: Groups, experience: Sequence[Experience]) -> None:
        advantages, lines = {one.sample.key: one.advantage for one in experience}, []
        for sample in samples_to_read(groups, self.config.samples_logged):
            place = self.context.place(sample.unit.row_index)
            text = prompt_text(sample.row) or self.context.tokenizer.decode(sample.ids[: sample.prompt_length])
            advantage = advantages.get(sample.key, 0.0)
            lines.append(sample.log_line(self.context.step() + 1, place, text, advantage))
        self.context.log(lines)
