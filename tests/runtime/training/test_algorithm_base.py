"""The base classes of algorithms: declared state, typed totals, mean losses, experience, and needs with or without a config."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

from mm.contracts import (
    Algorithm,
    AlgorithmSpec,
    CheckpointError,
    Completion,
    Experience,
    MMError,
    Needs,
    Rollout,
    RolloutConfig,
    Tokens,
    TokenValues,
    Totals,
    Unit,
    mean_loss,
    option,
    pack,
    rollout_needs,
)
from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.algorithms.ppo.algorithm import Ppo, PpoValues
from mm.plugins.algorithms.spo.algorithm import Spo
from mm.runtime.training.distributed import World
from mm.runtime.training.rollouts.completions import Sample

# ---- state


class Counter:
    def __init__(self) -> None:
        self.number = 0

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


class Base(Algorithm):
    state = ("seen",)

    def __init__(self) -> None:
        super().__init__(None, {}, None)  # type: ignore[arg-type]
        self.seen, self.mean, self.counter = 0, torch.zeros(2), Counter()


class Derived(Base):
    state = ("mean", "counter")


def test_state_is_that_of_all_classes() -> None:
    one, other = Derived(), Derived()
    one.seen, one.mean, one.counter.number = 3, torch.tensor([1.0, 2.0]), 7
    saved = one.state_dict()
    assert list(saved) == ["seen", "mean", "counter"] and saved["counter"] == {"number": 7}
    counter = other.counter
    other.load_state_dict(saved)
    assert (other.seen, other.mean.tolist(), other.counter.number) == (3, [1.0, 2.0], 7) and other.counter is counter
    assert Base().state_dict() == {"seen": 0} and Algorithm(None, {}, None).state_dict() == {}  # type: ignore[arg-type]


def test_state_that_was_not_saved_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="no 'mean' of Derived"):
        Derived().load_state_dict({"seen": 1})


# ---- totals


def units() -> list[Unit]:
    """A pair of 3 and 5 tokens, and a row of 4, with so many targets: 2 + 1, 3."""
    learns = ([[0, 1, 1], [0, 0, 0, 0, 1]], [[0, 1, 1, 1]])
    return [
        Unit(tuple(Tokens(torch.arange(len(one)), {"learn": torch.tensor(one).bool()}) for one in learn)) for learn in learns
    ]  # fmt: skip


def test_totals_count_what_packs_hold() -> None:
    totals = Totals.of([pack(units()), pack(units()[:1])], {"weights": 2.5})
    assert (totals.tokens, totals.targets, totals.sequences, totals.units) == (20.0, 9.0, 5.0, 3.0)
    assert totals["weights"] == 2.5 and dict(totals) == {"weights": 2.5} and (totals.micro_batches, totals.share) == (2, 0.5)


def test_totals_are_summed_over_ranks() -> None:
    class Two(World):
        def sum(self, values: Any) -> dict[str, float]:
            return {name: 2 * value for name, value in values.items()}

        def max(self, value: int) -> int:
            return value + 1

    totals = Totals.of([pack(units())], {"weights": 1.0}).over_ranks(Two(size=2))
    assert (totals.tokens, totals.targets, totals.sequences, totals.units) == (24.0, 12.0, 6.0, 4.0)
    assert totals["weights"] == 2.0 and (totals.micro_batches, totals.ranks, totals.share) == (2, 2, 0.25)


def test_parts_of_a_mean_add_up_to_it() -> None:
    losses = torch.randn(7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    parts = [mean_loss(part, 7.0, positive=part > 0) for part in (losses[:3], losses[3:], losses[:0])]
    torch.testing.assert_close(sum(loss for loss, _ in parts), losses.mean())
    sums = {name: [metrics[name] for _, metrics in parts] for name in ("loss", "positive")}
    assert not sums["loss"][0][0].requires_grad
    assert float(sum(total for total, _ in sums["positive"])) == int((losses > 0).sum())
    assert [count for _, count in sums["loss"]] == [3.0, 4.0, 0.0]
    assert float(mean_loss(losses[:0], 0.0)[0].detach()) == 0.0


def test_targets_are_counted_by_document() -> None:
    batch = pack(units())
    assert batch.targets_per_document().tolist() == [2.0, 1.0, 3.0] and batch.target_document.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.sum_by_document(torch.arange(6.0)).tolist() == [1.0, 2.0, 12.0]
    assert pack([]).targets_per_document().tolist() == []


# ---- experience


@attrs.frozen(kw_only=True, eq=False)
class Bonus(TokenValues):
    bonus: torch.Tensor


def sample(ids: tuple[int, ...]) -> Sample:
    found = Sample.of(Unit((Tokens(torch.tensor([1, 2])),), row_index=4), None, (0,))  # type: ignore[arg-type]
    found.extend(Completion(ids=ids, logprobs=(-1.0,) * len(ids), finish_reason="stop"), "")
    found.observe([9, 9])
    return found


def test_experience_is_read_as_it_was_laid_out() -> None:
    first = Experience.of(sample((3, 4, 5)), 0.5, torch.tensor([-1.0, -2.0, -3.0]), None)
    second = Experience.of(sample((6,)), -0.5, torch.tensor([-4.0]), None)
    batch = pack([first.as_unit(), second.as_unit()])
    assert batch.targets.tolist() == [3, 4, 5, 6]
    values = TokenValues.of_pack(batch)
    assert values.advantages.tolist() == [0.5, 0.5, 0.5, -0.5] and values.engine.tolist() == [-1.0] * 4
    assert values.old is not None and values.old.tolist() == [-1.0, -2.0, -3.0, -4.0] and values.reference is None
    with pytest.raises(KeyError, match="bonus"):
        Bonus.of_pack(batch)


def test_advantages_for_other_completions_are_an_error() -> None:
    class Short(Rollout):
        def advantages(self, groups: Any) -> list[list[float]]:
            return [[0.0] for _ in groups]

    context: Any = SimpleNamespace(rewards={"some": None}, max_length=None)
    with pytest.raises(MMError, match=r"Short.advantages: \[1\] advantages for \[2\] completions"):
        Short(RolloutConfig(), {}, context).make_experience([[sample((3,)), sample((4,))]])


def test_a_subclass_has_values_of_its_own() -> None:
    one = Experience.of(sample((3, 4)), 1.0, None, None)
    values = Bonus(advantages=one.tokens.advantages, engine=one.tokens.engine, bonus=torch.tensor([7.0, 8.0]))
    batch = pack([attrs.evolve(one, tokens=values).as_unit()])
    assert Bonus.of_pack(batch).bonus.tolist() == [7.0, 8.0]
    assert Bonus.of_pack(pack([])).bonus.shape == (0,)  # a rank without completions


# ---- declarations


@attrs.frozen(kw_only=True)
class SomeConfig(RolloutConfig):
    kl_coef: float = option(0.0, help="A weight.")


def test_needs_are_given_as_they_are_or_by_the_config() -> None:
    fixed = AlgorithmSpec(name="a", summary="A.", target="a:A", needs=Needs(data="chat"))
    assert fixed.needs(None) == Needs(data="chat")
    spec = attrs.evolve(fixed, config=SomeConfig, needs=lambda config: rollout_needs(config, reference=config.kl_coef > 0))
    assert spec.needs(SomeConfig()).roles == ("policy",) and spec.needs(SomeConfig(kl_coef=0.1)).roles == ("policy", "reference")
    assert spec.needs(SomeConfig(passes=2, mini_batches=3)).steps == 6


def test_an_author_s_import_needs_no_torch() -> None:
    code = "import sys, mm.contracts, mm.plugins.algorithms.grpo.algorithm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_names_in_checkpoints_stay() -> None:
    """Units of a rollout that is not used up, and algorithms' states, are saved under these names."""
    names = lambda kind: {field.name for field in attrs.fields(kind)}  # noqa: E731
    assert names(TokenValues) == {"advantages", "engine", "old", "reference"}
    assert names(PpoValues) - names(TokenValues) == {"kl", "values", "returns"}
    saved = {kind: [*kind._state_names(kind.__new__(kind))] for kind in (Grpo, Ppo, Spo)}
    assert saved[Grpo] == ["rollouts", "first_length", "reward_range"]
    assert saved[Ppo] == [*saved[Grpo], "kl_coef"] and saved[Spo] == [*saved[Grpo], "tracker"]
