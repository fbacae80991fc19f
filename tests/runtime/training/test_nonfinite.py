"""A loss that is no number is traced to its step, its rows and its layer, without asking the device in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sizes import sizes
from torch import Tensor, nn

from mm.contracts import Callback
from mm.core.callback import TrainingView
from mm.core.errors import MMError
from mm.core.settings import TrainSettings
from mm.runtime.devices.backend import Backend
from mm.runtime.training.roles import Role
from mm.runtime.training.updates import Updates
from mm.testing.pytest_plugin import Train

# only one of eleven rows has the letter z
ROWS = [{"text": f"number {n} " * (1 + n % 5) + ("zzz" if n == 7 else "")} for n in range(11)]
pytestmark = pytest.mark.mm_train(
    "pretrain", rows=ROWS, max_steps=20, global_batch_size=2, log_interval=6, learning_rate=1e-2, run="a", **sizes(layers=3)
)


class BadBackward(torch.autograd.Function):
    """The identity, whose gradient is not a number where `bad` is set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bad: Tensor) -> Tensor:
        ctx.save_for_backward(bad)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (bad,) = ctx.saved_tensors
        return torch.where(bad[:, None], torch.nan, gradient), None


class Plant(Callback):
    """Makes one module's output bad at the tokens of the letter z alone; notes in which steps it occurs."""

    def __init__(self, module: str, spoil: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.module, self.spoil, self.steps = module, spoil, []  # type: ignore[var-annotated]
        self.bad = torch.zeros(0, dtype=torch.bool)

    def on_start(self, run: Any) -> None:
        model = run.roles["policy"].model
        letter = run.algorithm.context.tokenizer.encode("z")[-1]
        forward, module = model.forward, model.get_submodule(self.module)

        def seen(batch: Any, *rest: Any, **more: Any) -> Any:
            self.bad = batch.input_ids == letter
            if self.bad.any() and run.step + 1 not in self.steps:
                self.steps.append(run.step + 1)
            return forward(batch, *rest, **more)

        inner = module.forward
        model.forward = seen  # type: ignore[method-assign]
        module.forward = lambda *inputs, **more: self._spoiled(inner(*inputs, **more))  # type: ignore[method-assign]

    def _spoiled(self, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.spoil(output[0], self.bad), *output[1:])
        return self.spoil(output, self.bad)


def nan(x: Tensor, bad: Tensor) -> Tensor:
    return torch.where(bad[:, None], torch.nan, x)


def overflow(x: Tensor, bad: Tensor) -> Tensor:
    return x * torch.where(bad[:, None], 3e38, 1.0) * 3e38 * torch.where(bad[:, None], 1.0, 1 / 3e38)


def bad_gradient(x: Tensor, bad: Tensor) -> Tensor:
    return BadBackward.apply(x, bad)  # type: ignore[no-any-return]


def only_row(workspace: Path) -> str:
    return f"(rows {workspace / 'tiny_rows.jsonl'}:8)"


@pytest.mark.parametrize(
    ("module", "spoil", "where"),
    [
        ("model.layers.1.mlp.up_proj", nan, "the first layer with a non-finite output is policy.model.layers.1.mlp.up_proj"),
        ("model.layers.2.self_attn.q_proj", overflow, "the first layer with a non-finite output is policy.model.layers.2.self"),
        ("model.norm", nan, "the first layer with a non-finite output is policy.model.norm"),
    ],
)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_one_bad_token_is_traced_to_its_layer_and_its_row(
    module: str, spoil: Any, where: str, compiled: bool, mm_train: Train, tmp_path: Path, mm_watchers: list[Callback]
) -> None:
    plant = Plant(module, spoil)
    mm_watchers.append(plant)
    with pytest.raises(MMError) as raised:
        mm_train(compile=compiled)
    message = str(raised.value)
    assert message.startswith(f"Step {plant.steps[0]} gave a non-finite gradient: {where}"), (plant.steps, message)
    assert only_row(tmp_path) in message


def test_a_gradient_that_fails_alone_is_traced_to_its_parameter(
    mm_train: Train, tmp_path: Path, mm_watchers: list[Callback]
) -> None:
    plant = Plant("model.layers.1.mlp.down_proj", bad_gradient)
    mm_watchers.append(plant)
    with pytest.raises(MMError) as raised:
        mm_train(micro_batch_tokens=1)
    where = "the loss is finite, the gradient of policy.model.layers.1.mlp.down_proj.weight is not"
    assert str(raised.value).startswith(f"Step {plant.steps[0]} gave a non-finite gradient: {where} {only_row(tmp_path)}")


def test_no_checkpoint_is_written_of_what_was_not_learned(mm_train: Train, tmp_path: Path, mm_watchers: list[Callback]) -> None:
    plant = Plant("model.layers.0.mlp.up_proj", nan)
    mm_watchers.append(plant)
    with pytest.raises(MMError, match="gave a non-finite gradient"):
        mm_train(save_interval=1, keep_checkpoints=99, log_interval=99)
    saved = sorted(int(p.name[-8:]) for p in (tmp_path / "runs/a/checkpoints").glob("step-*"))
    assert saved == list(range(1, plant.steps[0]))


# ---- nothing asks the device between log intervals

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__")


class Forbidden(Callback):
    """Lets no tensor be read on the host from a logged step to the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch, self.steps = monkeypatch, 0

    def on_start(self, run: TrainingView) -> None:
        for name in READS:
            self.patch.setattr(Tensor, name, _refuse(name))

    def on_step(self, run: TrainingView) -> None:
        self.steps += 1
        if run.step % run.settings.log_interval == 0:
            self.patch.undo()

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        if run.step < run.horizon:
            self.on_start(run)


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"Tensor.{name} between two log intervals")

    return refuse


def test_no_tensor_is_read_between_log_intervals(
    mm_train: Train, mm_watchers: list[Callback], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden = Forbidden(monkeypatch)
    mm_watchers.append(forbidden)
    mm_train(max_steps=12, micro_batch_tokens=40)
    assert forbidden.steps == 12
    with pytest.raises(AssertionError, match=r"Tensor\.item between"):  # the stated exception shows that it would be seen
        mm_train(max_steps=12, optimizer="muon", run="muon")


class NoNumber(Callback):
    """Makes the loss of every step no number, and leaves its gradients as they are."""

    def on_start(self, run: Any) -> None:
        loss, algorithm = run.algorithm.loss, run.algorithm

        def spoiled(*arguments: Any) -> Any:
            value, metrics = loss(*arguments)
            return value + torch.nan, metrics

        algorithm.loss = spoiled  # type: ignore[method-assign]


def test_a_loss_that_is_no_number_ends_the_run_though_its_gradients_are_finite(
    mm_train: Train, mm_watchers: list[Callback]
) -> None:
    mm_watchers.append(NoNumber())
    with pytest.raises(MMError, match=r"Step 1 gave.*all layers' outputs are finite, the loss is not"):
        mm_train()


# ---- fp16


def scaled(scale: float) -> tuple[Updates, nn.Parameter]:
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    model.config, model.blocks = SimpleNamespace(vocab_size=100), []  # type: ignore[assignment]
    settings = TrainSettings(learning_rate=0.5, weight_decay=0.0, clip_norm=0.0, schedule="constant")
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    roles = {"policy": Role("policy", model, trainable=True)}
    return Updates(roles, settings, scaler, torch.device("cpu"), Backend()), model.weight


def step(updates: Updates, weight: nn.Parameter, factor: float) -> dict[str, Any]:
    assert updates.scaler
    updates.scaler.scale((weight * factor).sum()).backward()  # type: ignore[no-untyped-call]
    return updates.apply(0, 10)


def test_a_scaler_passes_over_a_step_that_overflows() -> None:
    updates, weight = scaled(2.0**10)
    metrics = step(updates, weight, float("inf"))
    assert weight.tolist() == [[1.0, 1.0, 1.0]] and weight.grad is None
    assert (metrics["overflow"][0], metrics["grad_norm"][1]) == (1.0, 0.0)  # no norm is counted
    assert updates.scaler and updates.scaler.get_scale() == 2.0**9
    assert updates.failed_step(1) is None
    metrics = step(updates, weight, 2.0)
    # the first update of Adam is the rate, whatever the gradient; the norm is that of the loss, not of the scaled one
    torch.testing.assert_close(weight.detach(), torch.full((1, 3), 0.5))
    assert metrics["grad_norm"][0].item() == pytest.approx(2 * 3**0.5) and metrics["overflow"][0] == 0.0


def test_a_scaler_fails_once_no_scale_helps() -> None:
    updates, weight = scaled(2.0**-11)
    for done in range(1, 4):
        step(updates, weight, float("nan"))
        assert updates.failed_step(done) is None
    step(updates, weight, float("nan"))
    assert updates.failed_step(4) == 3
    assert weight.tolist() == [[1.0, 1.0, 1.0]]


def test_a_run_in_fp16_ends_once_no_scale_helps(
    mm_train: Train, mm_watchers: list[Callback], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(Backend, "scaler", lambda self, dtype: scaler("cpu", init_scale=2.0**-10))
    plant = Plant("model.layers.0.mlp.up_proj", lambda x, bad: x * torch.nan)
    mm_watchers.append(plant)
    with pytest.raises(MMError, match=r"Step 6 gave.*policy\.model\.layers\.0\.mlp\.up_proj"):
        mm_train(dtype="fp16")
