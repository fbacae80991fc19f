"""Every built-in part passes its kind's checks, and the kit notices parts that do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import pytest
import torch
from torch import Tensor

from mm.contracts import Algorithm, Metrics, Totals, mean_loss
from mm.core.plugins import PluginManager
from mm.core.records import KINDS, AlgorithmSpec, ArchitectureSpec, BackendSpec, Needs, Probe
from mm.runtime.nn.batch import Packed
from mm.runtime.nn.heads import token_logprobs
from mm.testing import Check, assert_passed, check_algorithm, check_architecture, check_backend, check_part

PLUGINS = PluginManager.discover(environ={})
PARTS = [
    pytest.param(kind, spec.name, id=f"{kind}.{spec.name}")
    for kind, record in KINDS.items()
    for spec in PLUGINS.specs(record)
    if PLUGINS.owner(spec).distribution == "minimind-ascend"
]
# parts that cannot be made from their defaults, since the user must name a model or a function
NEED_SETTINGS = {("reward", "model"), ("reward", "python")}


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_built_in_part_passes(kind: str, name: str) -> None:
    spec = PLUGINS.get(KINDS[kind], name)
    if isinstance(spec, BackendSpec) and not spec.probe().available:
        pytest.skip(spec.probe().reason)
    checks = check_part(spec, plugins=PLUGINS, module=PLUGINS.owner(spec).value)
    if (kind, name) in NEED_SETTINGS:
        assert not failures(checks) and any(check.state == "skipped" for check in checks)
    else:
        assert_passed(checks)


def failures(checks: Iterable[Check]) -> Mapping[str, str]:
    return {check.name: check.detail for check in checks if check.failed}


class Careless(Algorithm):
    """What a first attempt often looks like: a mean over the micro-batch, and a count that is a tensor."""

    def counts(self, batch: Packed) -> dict[str, float]:
        return {"targets": torch.tensor(float(batch.num_targets))}  # type: ignore[dict-item]

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        logprobs = self.models["policy"](
            batch, head=lambda hidden, weight: token_logprobs(hidden[batch.target_index], weight, batch.targets)
        )
        return -logprobs.mean(), {"loss": (-logprobs.mean(), 1.0)}

    def state_dict(self) -> dict[str, object]:
        return {"config": self}


def test_the_kit_catches_a_careless_algorithm() -> None:
    spec = AlgorithmSpec(
        name="careless", summary="A careless one.", target=f"{__name__}:Careless", needs=lambda config: Needs(data="text"),
        defaults={"learning_rat": 1.0},
    )  # fmt: skip
    found = failures(check_algorithm(spec))
    assert found.keys() >= {
        "defaults are common settings", "counts", "metrics", "cutting a batch changes nothing", "state round trip",
    }  # fmt: skip
    assert "empty pack" not in found  # whose mean is NaN for the same reason
    assert "not a host number" in found["counts"]
    assert "not detached" in found["metrics"]


class Forgetful(Algorithm):
    """Weighs each step by how many there were, and does not say that this is state."""

    steps = 0

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        return mean_loss(-self.models["policy"].logprobs(batch) / (1 + self.steps), totals.targets)

    def after_step(self, step: int) -> bool:
        self.steps += 1
        return False


class Mindful(Forgetful):
    state = ("steps",)


@pytest.mark.parametrize("kind", [Forgetful, Mindful])
def test_the_kit_catches_what_a_resume_would_forget(kind: type[Algorithm]) -> None:
    target = f"{__name__}:{kind.__name__}"
    spec = AlgorithmSpec(name="forgetful", summary="Forgetful.", target=target, needs=lambda config: Needs(data="text"))
    found = failures(check_algorithm(spec))
    assert list(found.keys() - {"declaration is light"}) == (["changed attributes"] if kind is Forgetful else [])
    assert kind is Mindful or "add it to `state`" in found["changed attributes"]


def test_rows_of_an_unknown_kind_are_skipped_and_said() -> None:
    spec = attrs.evolve(PLUGINS.get(AlgorithmSpec, "sft"), needs=lambda config: Needs(data="poems"))
    checks = {check.name: check for check in check_algorithm(spec)}
    assert checks["counts"].state == "skipped" and not checks["counts"].ok
    assert checks["counts"].detail == "no rows of kind 'poems' here: give some (--rows FILE, rows= of check_algorithm)"
    assert checks["rows"].detail.startswith("no format gives rows of kind 'poems'. Known: chat, episode")


def test_the_kit_catches_a_wrong_parameter_count() -> None:
    spec = PLUGINS.get(ArchitectureSpec, "dense")
    config = attrs.make_class("Short", (), bases=(spec.config,), frozen=True, kw_only=True)
    config.num_parameters = lambda self: 7
    tiny = {"tiny": spec.presets["tiny"]}
    found = failures(check_architecture(attrs.evolve(spec, config=config, presets=tiny), module="mm.plugins.architectures.dense"))
    assert found["parameter counts"].startswith("tiny: 7 declared")
    assert list(found) == ["parameter counts"]


def test_an_absent_chip_is_skipped_with_its_reason() -> None:
    spec = attrs.evolve(PLUGINS.get(BackendSpec, "cpu"), probe=lambda: Probe(False, "it is at the repair shop"))
    checks = check_backend(spec, module="mm.backends.cpu")
    assert not failures(checks)
    assert {check.detail for check in checks if check.name == "device"} == {"it is at the repair shop"}
    with pytest.raises(AssertionError, match=r"nothing but the declaration could be checked: \d ok, 1\d skipped \(it is at the"):
        assert_passed(checks)


@pytest.mark.slow
@pytest.mark.parametrize("name", [spec.name for spec in PLUGINS.specs(AlgorithmSpec)])
def test_every_algorithm_passes_with_experts(name: str) -> None:
    spec = PLUGINS.get(AlgorithmSpec, name)
    assert_passed(check_algorithm(spec, architecture="moe", plugins=PLUGINS, module=PLUGINS.owner(spec).value))
