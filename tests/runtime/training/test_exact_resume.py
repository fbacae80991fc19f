"""Wherever a run stops, and however often, it goes on as if it had not: hypothesis chooses the places.

The algorithm of these tests has everything that can be lost: `prepare` gives several mini-batches with fields of their
own, `after_step` may drop the rest of them, its loss draws from the generator, and it and a callback have a state.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from run_files import Line, lines, write_rows
from sizes import sizes

from mm.contracts import Algorithm, Callback
from mm.core.callback import TrainingView
from mm.core.hooks import hookimpl
from mm.core.records import AlgorithmSpec, Needs
from mm.core.run import Run
from mm.core.workspace import RunFolder
from mm.runtime.nn.batch import Packed, Tokens, Unit
from mm.runtime.nn.heads import token_logprobs
from mm.testing import plugin_manager, tiny_run

STEPS = 9
ROWS = [{"text": f"number {n} " * (1 + n % 4)} for n in range(10)]
SMALL = {
    **sizes(layers=1), "max_steps": STEPS, "global_batch_size": 4, "micro_batch_tokens": 48, "log_interval": 4,
    "eval_ratio": 0.0, "learning_rate": 1e-2, "warmup_ratio": 0.3,
}  # fmt: skip


class Rounds(Algorithm):
    """Two mini-batches a batch, three in every third; each token's loss is weighted by what `prepare` drew."""

    prepared = 0

    def prepare(self, units: list[Unit]) -> list[list[Unit]]:
        self.prepared += 1
        weighted = [attrs.evolve(u, sequences=tuple(map(self._weighted, u.sequences))) for u in units]
        return [weighted] * (3 if self.prepared % 3 == 0 else 2)

    def _weighted(self, tokens: Tokens) -> Tokens:
        return attrs.evolve(tokens, fields={**tokens.fields, "weight": torch.rand(len(tokens))})

    def counts(self, batch: Packed) -> dict[str, float]:
        return {"tokens": float(batch.num_targets)}

    def loss(self, batch: Packed, totals: Mapping[str, float]) -> Any:
        def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return token_logprobs(hidden.index_select(0, batch.target_index), weight, batch.targets)

        logprobs = self.models["policy"](batch, head=head)
        noise = 20 + torch.rand(())  # large enough for fp16 to overflow in the first steps
        total = -(logprobs * batch.fields["weight"][batch.target_index]).sum() * noise
        return total / max(1.0, totals["tokens"]), {"loss": (total.detach(), float(batch.num_targets))}

    def after_step(self, step: int) -> bool:
        return step == 6

    def state_dict(self) -> dict[str, Any]:
        return {"prepared": self.prepared}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prepared = state["prepared"]


class Witness(Callback):
    """Every step's weights, and a state that depends on all steps so far."""

    def __init__(self) -> None:
        self.total = 0.0
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_step(self, run: TrainingView) -> None:
        named = run.roles["policy"].model.named_parameters()
        self.weights[run.step] = {name: p.detach().clone() for name, p in named}
        self.total = self.total * 0.9 + float(next(iter(self.weights[run.step].values())).sum())

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"]


class Bystander(Callback):
    """Another callback before the witness, in resumed runs alone: a state goes to its owner."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state


WATCHERS: list[Callback] = []


@hookimpl
def mm_callbacks(run: Run) -> Iterable[Callback]:
    return WATCHERS


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    target = f"{__name__}:Rounds"
    yield AlgorithmSpec(
        name="rounds", summary="For tests.", target=target, needs=lambda config: Needs(data="text"), new_model=("dense", "tiny")
    )


PLUGINS = plugin_manager(__name__)


def train(workspace: Path, **options: Any) -> tuple[RunFolder, Witness]:
    witness = Witness()
    WATCHERS[:] = [*([Bystander()] if options.get("resume") else []), witness]
    if "data" not in options:
        options["data"] = [write_rows(workspace / f"{name}.jsonl", ROWS[place::2]) for place, name in enumerate(("one", "two"))]
    return tiny_run(workspace, "rounds", plugins=PLUGINS, run="a", rows=ROWS, **SMALL | options), witness


@cache
def undisturbed(**options: Any) -> tuple[list[Line], Witness]:
    run, witness = train(Path(tempfile.mkdtemp()), **options)
    return lines(run), witness


def assert_resumes(stops: Iterable[int], folder: Path, **options: Any) -> None:
    expected, whole = undisturbed(**options)
    run = None
    for step in [*sorted(stops), None]:
        run, part = train(folder, resume=run is not None, stop_after_steps=step, **options)
        for number, weights in part.weights.items():
            assert all(weights[name].equal(whole.weights[number][name]) for name in weights), f"step {number}"
    assert run is not None and run.manifest["state"] == "finished"
    assert part.total == whole.total
    assert lines(run) == expected


# 10 rows, 4 a batch, 2 or 3 mini-batches each: 1, 3, 5 stop inside a `prepare`, 6 where the rest of it is dropped; the
# first epoch ends within the third batch
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stops=st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=3),
    optimizer=st.sampled_from(["adamw", "muon"]),
    dtype=st.sampled_from(["fp32", "fp16"]),
    background=st.booleans(),
)
@example(stops={1, 6}, optimizer="adamw", dtype="fp16", background=True)
@example(stops={3, 5, 7}, optimizer="muon", dtype="fp32", background=True)
def test_it_goes_on_from_anywhere(stops: set[int], optimizer: str, dtype: str, background: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert_resumes(stops, Path(folder), optimizer=optimizer, dtype=dtype, background_save=background)


@pytest.mark.parametrize("step", [5, 10])
def test_it_goes_on_at_an_epochs_end(step: int, tmp_path: Path) -> None:
    assert_resumes([step], tmp_path, global_batch_size=5, max_steps=12)  # 2 batches an epoch, of 5 and 4 steps


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(
    stops=st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=4),
    optimizer=st.sampled_from(["adamw", "muon"]),
    dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
    schedule=st.sampled_from(["cosine", "linear", "wsd"]),
    batch=st.integers(1, 7),
    rows=st.integers(1, 64),
)
def test_it_goes_on_from_anywhere_under_any_settings(
    stops: set[int], optimizer: str, dtype: str, schedule: str, batch: int, rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = {"optimizer": optimizer, "dtype": dtype, "schedule": schedule, "global_batch_size": batch}
        assert_resumes(stops, Path(folder), micro_batch_tokens=rows, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "dtype"), [("adamw", "fp32"), ("muon", "bf16")])
def test_it_goes_on_compiled(optimizer: str, dtype: str, tmp_path: Path) -> None:
    assert_resumes([1, 4], tmp_path, compile=True, optimizer=optimizer, dtype=dtype)
