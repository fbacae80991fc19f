"""Kahneman-Tversky optimisation (arXiv:2402.01306)."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mm.contracts import Metrics, Packed, PreferenceAlgorithm, Tokens, Totals, Unit, mean_loss, pack
from mm.plugins.algorithms.kto import KtoConfig
from mm.runtime.training.context import stable_seed

_KL = "kl"  # the name of the log-ratio that `prepare` adds to each unit, and of the count that sums it


class Kto(PreferenceAlgorithm):
    """The mean over the global batch of weight * (1 - sigmoid(beta * (log-ratio - z))), for bad answers with the opposite sign
    inside the sigmoid.

    The baseline z estimates the policy's divergence from the reference over the global batch: max(0, mean log-ratio of
    mismatched answers). A row's mismatched answer is that of another row of the same data, chosen by a hash of (seed, row).
    It does not depend on the number of ranks or on how a batch is cut.
    """

    config: KtoConfig
    samples_answers = True

    def prepare(self, units: list[Unit]) -> list[list[Unit]]:
        """One mini-batch: the units, each with the log-ratio of an answer that belongs to another prompt."""
        gaps = self._gaps([self._mismatch(unit) for unit in units])
        return [[attrs.evolve(unit, values={**unit.values, _KL: gap}) for unit, gap in zip(units, gaps, strict=True)]]

    def counts(self, batch: Packed) -> dict[str, float]:
        """The sum of those log-ratios, from which the baseline is computed."""
        return {_KL: sum(unit.values[_KL] for unit in batch.units)}

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The sum over this pack's answers, divided by all answers of the step (1 if there are none)."""
        ratio_N = self.models["policy"].sequence_logprobs(batch) - self.reference(batch, column=0)
        good_N = torch.tensor([_is_good(unit) for unit in batch.units], dtype=torch.bool)
        good_N = good_N.to(ratio_N.device, non_blocking=True)
        baseline = max(0.0, totals[_KL] / max(1.0, totals.units))
        reward_N = self.config.beta * (ratio_N - baseline)
        weight_N = torch.where(good_N, self.config.desirable_weight, self.config.undesirable_weight).to(ratio_N.dtype)
        loss_N = weight_N * (1 - torch.sigmoid(torch.where(good_N, reward_N, -reward_N)))
        loss, metrics = mean_loss(loss_N, totals.units)
        return loss, {**metrics, **_metrics(ratio_N.detach(), good_N, batch)}

    def evaluate(self, units: list[Unit]) -> Metrics:
        """The loss's metrics, with the baseline of the held-out units."""
        (prepared,) = self.prepare(units)
        whole = pack(prepared)
        totals = Totals.of([whole], self.counts(whole)).over_ranks(self.context.world)
        found: Metrics = {}
        device = next(self.models["policy"].model.parameters()).device
        for batch in self.context.packs(prepared) or [pack([]).to(device)]:  # on a rank without units, for the names
            for name, (total, count) in self.loss(batch, totals)[1].items():
                before = found.get(name, (0.0, 0.0))
                found[name] = before[0] + total, before[1] + count
        return found

    def add_answers(self, unit: Unit) -> Unit:
        """The unit with two sequences: its own answer and the mismatched one."""
        return attrs.evolve(unit, sequences=(*unit.sequences, *self._mismatch(unit).sequences))

    def _gaps(self, units: Sequence[Unit]) -> list[float]:
        """The log-ratio of each unit's (mismatched) answer, with the policy in `eval()`."""
        found: dict[int, float] = {}
        policy = self.models["policy"]
        was = policy.model.training
        policy.train(False)
        for batch in self.context.packs([attrs.evolve(unit, row_index=place) for place, unit in enumerate(units)]):
            places = [unit.row_index for unit in batch.units]
            # a pack has the units' places in the list as row indices, to sort the results; the reference needs the real ones
            rows = attrs.evolve(batch, units=tuple(units[place] for place in places))
            gaps = policy.sequence_logprobs(batch) - self.reference(rows, column=1)
            found |= dict(zip(places, gaps.tolist(), strict=True))
        policy.train(was)
        return [found[place] for place in range(len(units))]

    def _mismatch(self, unit: Unit) -> Unit:
        """The unit's prompt with another row's answer, cut at the run's maximum length."""
        rows = self.context.units
        other = stable_seed(self.context.seed, unit.row_index) % len(rows)
        (own,), (theirs,) = unit.sequences, rows[(other + (other == unit.row_index)) % len(rows)].sequences
        prompt, start = _answer_start(own), _answer_start(theirs)
        ids = torch.cat([own.ids[:prompt], theirs.ids[start:]])
        learn = torch.cat([torch.zeros(prompt, dtype=torch.bool), theirs.learn[start:]])
        most = self.context.max_length
        return attrs.evolve(unit, sequences=(Tokens(ids[:most], {"learn": learn[:most]}),))


def _answer_start(sequence: Tokens) -> int:
    """The index of the answer's first token."""
    return int(sequence.learn.int().argmax())


def _is_good(unit: Unit) -> bool:
    """True if the row of unpaired data is labelled good."""
    return unit.values["label"] > 0


def _metrics(ratio_N: Tensor, good_N: Tensor, batch: Packed) -> Metrics:
    answers, good = float(len(batch.units)), sum(map(_is_good, batch.units))
    return {
        "kl": (ratio_N.new_full((), sum(unit.values[_KL] for unit in batch.units)), answers),
        "good_drift": (torch.where(good_N, ratio_N, 0.0).sum(), float(good)),
        "bad_drift": (torch.where(good_N, 0.0, ratio_N).sum(), answers - good),
    }
