"""From prompts to mini-batches: draw, judge, compare, and remember what the update needs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mm.contracts import Algorithm, Engine, Largest, Metrics, Request, Sampling, Totals, Watch
from mm.core.errors import UsageError
from mm.plugins.rollouts.losses import DrawnTokens, document_of
from mm.plugins.rollouts.samples import Sample, deal, judged
from mm.plugins.rollouts.statistics import over_ranks
from mm.plugins.rollouts.watch import RANGES, host_metrics
from mm.runtime.nn.batch import Packed, Unit
from mm.runtime.nn.heads import token_logprobs
from mm.runtime.training.roles import check_positions

Groups = list[list[Sample]]


class Rollout(Algorithm):
    """An algorithm that learns from completions of its own. A subclass says what a completion is worth against what was
    expected (`compare`), and how the policy follows (`loss`); rows are prompts, and `global_batch_size` counts them.

    The draws of a completion come from its key (seed, rollout, attempt, row, repeat, sample) and the turn, so they do not
    depend on ranks or slots.
    Old log-probabilities are the present ones where a rollout is used once (the ratio is then 1 and only its gradient
    counts), otherwise the trainer's own before the first update: the engine's differ by its rounding, and are watched.
    """

    watch: ClassVar[Mapping[str, Watch]] = RANGES

    def __init__(self, config: Any, models: Any, context: Any) -> None:
        super().__init__(config, models, context)
        self.rollouts, self.failed, self.metrics, self.first_length = 0, 0, dict[str, Any](), 0.0
        if not context.rewards:
            raise UsageError("Nothing judges the completions: pass --reward NAME (mm plugins --kind reward lists them).")
        check_positions(models, *self.longest())

    @abstractmethod
    def compare(self, groups: Groups) -> None:
        """Set each sample's advantage; `groups` are this rank's prompts, each with its completions (but those at which a
        reward failed)."""

    # ---- contract

    def prepare(self, units: list[Unit]) -> list[list[Unit]]:
        """Draw, judge and compare; then the mini-batches of all passes."""
        self.refresh()
        groups = self.draw(units)
        self.engine.release()  # the next rollout has new weights: nothing of this one's cache serves it
        learned = [judged(group) for group in groups]
        self.compare(learned)
        samples = [sample for group in learned for sample in group]
        self.remember(samples)
        drawn = [sample for group in groups for sample in group]
        self.metrics = {**self.measured_on_host(groups), **self.beside(drawn)}
        self._log(drawn)
        self.rollouts += 1
        return self._mini_batches(samples)

    def counts(self, batch: Packed) -> dict[str, float]:
        """Completions, and the tokens drawn for them."""
        return {"completions": float(len(batch.lengths)), "drawn": float(batch.num_targets)}

    def evaluate(self, units: list[Unit]) -> Metrics:
        """Rewards of one completion for each held-out prompt, drawn alike each time."""
        self.refresh()
        rows = [self.context.row(unit.row_index) for unit in units]
        keys = [(self.context.seed, -1, unit.row_index, 0) for unit in units]
        samples = [Sample.of(*parts) for parts in zip(units, rows, keys, strict=True)]
        self.complete(samples)
        self.engine.release()
        self.judge(samples)
        return self.measured_on_host([[sample] for sample in samples])

    def state_dict(self) -> dict[str, Any]:
        """How many rollouts there were, on which the next one's draws depend, and how long the first completions were."""
        return {"rollouts": self.rollouts, "first_length": self.first_length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.rollouts, self.first_length = state["rollouts"], state["first_length"]

    # ---- drawing

    def longest(self) -> tuple[int, str]:
        """The most tokens of a prompt with what is drawn for it, and the beginning of the sentence that this is too many."""
        prompt, drawn = self.context.max_length or 0, self.config.max_new_tokens
        return prompt + drawn, f"--max-length {prompt} for prompts and --max-new-tokens {drawn} are together"

    @property
    def engine(self) -> Engine:
        """The run's engine."""
        assert self.context.engine is not None
        return self.context.engine

    def refresh(self) -> None:
        """Give the engine the policy's present weights."""
        self.engine.update(self.models["policy"].model.state_dict().items(), version=self.rollouts)

    def draw(self, units: Sequence[Unit], attempt: int = 0) -> Groups:
        """The judged completions of each prompt; `attempt` counts the calls in this rollout, as a prompt may come again."""
        groups = []
        for unit in units:
            row = self.context.row(unit.row_index)
            prompt = (self.context.seed, self.rollouts, attempt, unit.row_index, unit.repeat)
            groups.append([Sample.of(unit, row, (*prompt, number)) for number in range(self.config.num_generations)])
        samples = [sample for group in groups for sample in group]
        self.complete(samples)
        self.judge(samples)
        if buffer := self.config.overlong_buffer:
            for sample in samples:
                sample.punish(self.room(sample) / buffer)
        return groups

    def complete(self, samples: Sequence[Sample]) -> None:
        """Let the engine continue each sample until it stops."""
        policy = self.models["policy"]
        policy.train(False)
        found = self.engine.generate([self.request(sample) for sample in samples])
        policy.train(True)
        for sample, completion in zip(samples, found, strict=True):
            sample.extend(completion, self.context.tokenizer.decode(completion.ids))

    def request(self, sample: Sample, turn: int = 0) -> Request:
        """What the engine is asked for a sample."""
        config, tokenizer = self.config, self.context.tokenizer
        return Request(
            ids=tuple(sample.ids), max_new_tokens=config.max_new_tokens, stop=(tokenizer.eos_id, tokenizer.pad_id),
            sampling=Sampling(temperature=config.temperature, top_p=config.top_p, top_k=config.top_k),
            key=(*sample.key, turn),
        )  # fmt: skip

    def judge(self, samples: Sequence[Sample]) -> None:
        """Every reward by name, and their weighted sum."""
        scores = self.context.score([sample.unit.row_index for sample in samples], [sample.text for sample in samples])
        for index, sample in enumerate(samples):
            sample.rewards, sample.failed, sample.reward = scores.of(index), scores.failed[index], scores.total[index]
            self.failed += len(sample.failed)

    def room(self, sample: Sample) -> int:
        """How many more tokens a completion could have had."""
        return int(self.config.max_new_tokens - sample.length)

    # ---- what the update needs

    def remember(self, samples: Sequence[Sample]) -> None:
        """Old and reference log-probabilities, where they are needed."""
        if self.config.passes * self.config.mini_batches > 1:
            self.add_field(samples, "old", self.logprobs("policy", samples))
        if "reference" in self.models:
            self.add_field(samples, "reference", self.logprobs("reference", samples))

    def add_field(self, samples: Sequence[Sample], name: str, values: Sequence[Tensor]) -> None:
        """Lay values of the drawn tokens out beside all tokens of each sample."""
        for sample, drawn in zip(samples, values, strict=True):
            field = torch.zeros(len(sample.ids))
            field[torch.tensor(sample.learn)] = drawn
            sample.fields[name] = field

    def logprobs(self, role: str, samples: Sequence[Sample]) -> list[Tensor]:
        """A role's log-probabilities of the drawn tokens, on the host."""
        return self.per_token(role, samples, self.logprobs_of)

    def per_token(self, role: str, samples: Sequence[Sample], head_of: Any) -> list[Tensor]:
        """`head_of(batch)`'s number for each drawn token under a role, without gradients, on the host."""
        found: list[Tensor] = [torch.empty(0)] * len(samples)
        units = [Unit(sample.as_unit().sequences, row_index=index) for index, sample in enumerate(samples)]
        self.models[role].train(False)
        for batch in self.context.packs(units):
            values = self.models[role](batch, head=head_of(batch)).float().cpu()
            counts = [int(unit.sequences[0].fields["learn"][1:].sum()) for unit in batch.units]
            for unit, part in zip(batch.units, values.split(counts), strict=True):
                found[unit.row_index] = part
        self.models[role].train(True)
        return found

    def logprobs_of(self, batch: Packed) -> Any:
        """The head that gives log-probabilities of a pack's drawn tokens, at the temperature they were drawn with."""

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            chosen = hidden.index_select(0, batch.target_index)
            return token_logprobs(chosen, weight, batch.targets, temperature=self.config.temperature)

        return head

    def measured_on_host(self, groups: Groups) -> Metrics:
        """Figures that need no model: rewards, and those that failed since the last such figures, lengths, spread."""
        failed, self.failed = self.failed, 0
        return host_metrics(groups, tuple(self.context.rewards), failed)

    def beside(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Figures of a rollout that held-out ones lack: the length in units of the first rollout's, what being long cost."""
        lengths, count = [float(s.length) for s in samples], float(len(samples))
        if not self.rollouts:
            self.first_length = max(1.0, over_ranks(self.context.world, lengths)[0])
        found = {"length_growth": (sum(lengths) / self.first_length, count)}
        if self.config.overlong_buffer:
            found["reward/overlong"] = (sum(s.rewards["overlong"] or 0.0 for s in samples), count)
        return found

    # ---- for losses

    def tokens(self, batch: Packed, logprobs_M: Tensor) -> DrawnTokens:
        """What a loss sees of a pack."""
        document_M, length_N = document_of(batch)
        old_M = self.field(batch, "old") if "old" in batch.fields else logprobs_M.detach()
        return DrawnTokens(batch, logprobs_M, old_M, self.field(batch, "advantages"), document_M, length_N)

    def share(self, totals: Totals) -> float:
        """The count of a metric of which every pack of every rank gives a part: they add up to 1 a step."""
        return 1.0 / (totals.micro_batches * self.context.world.size)

    def field(self, batch: Packed, name: str) -> Tensor:
        """A field at the learned positions; an empty pack has none."""
        if name not in batch.fields:
            return torch.zeros(batch.num_targets, device=batch.targets.device)
        return batch.fields[name].index_select(0, batch.target_index + 1)

    def measured(self, batch: Packed, tokens: DrawnTokens, cut_M: Tensor | None = None) -> Metrics:
        """Metrics that every such algorithm has, from numbers that are there anyway; `cut_M` is where clipping cut."""
        count = float(batch.num_targets)
        gap_M = (tokens.old_M - self.field(batch, "engine")).abs()
        found: Metrics = {
            # the entropy without bias only while the policy is what drew (the first mini-batch), from all tokens (no top-p or
            # top-k); otherwise a sign of it
            "entropy": (-tokens.logprobs_M.detach().sum(), count),
            "engine_gap": (gap_M.sum(), count),
            "engine_gap_max": Largest(gap_M.max() if count else gap_M.sum(), count),
            **({} if cut_M is None else {"clip_fraction": (cut_M.sum().float(), count)}),
        }
        found, self.metrics = {**found, **self.metrics}, {}
        return found

    def _mini_batches(self, samples: Sequence[Sample]) -> list[list[Unit]]:
        """Every pass in an order of its own, dealt into mini-batches; which of them a completion is in is decided among
        those of all ranks, so a rank may have none for a step."""
        keys = [key for part in self.context.world.gather([sample.key for sample in samples]) for key in part]
        units = {sample.key: sample.as_unit() for sample in samples}
        batches = deal(keys, self.config.passes, max(1, min(self.config.mini_batches, len(keys))))
        return [[unit for key, unit in units.items() if key in batch] for batch in batches]

    def _log(self, samples: Sequence[Sample]) -> None:
        chosen, decode = samples[: self.config.samples_logged], self.context.tokenizer.decode
        self.context.log([s.log(self.rollouts, decode(s.ids[: s.prompt_length], skip_special=False)) for s in chosen])
