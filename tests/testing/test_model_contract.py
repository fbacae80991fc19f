"""The contract of models, caches and chips: what the kit says of a part that breaks it, and that mm refuses to use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from plain_model import Plain, PlainConfig
from torch import Tensor, nn

import mm
from mm.contracts import Adapter, Backend, Head, Kernels, Model, Packed
from mm.core.errors import MMError
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec, ArchitectureSpec, BackendSpec, Probe
from mm.testing import check_architecture, check_backend, plugin_manager, tiny_run


class Lost:
    """A cache without half of what an engine needs."""

    def __init__(self, slots: int) -> None:
        self.slots, self.capacity = slots, 64


class Opaque(Plain):
    """A cache that is not one."""

    def new_cache(self, slots: int, capacity: int) -> Any:
        return Lost(slots)

    def prefill(self, batch: Packed, slots: Sequence[int], cache: Any) -> Tensor: ...
    def decode(self, ids_A: Tensor, slots_A: Sequence[int], cache: Any) -> Tensor: ...


class Half(Plain):
    """A misspelt method of the cache."""

    new_cache, decode = Opaque.new_cache, Opaque.decode

    def prefil(self, batch: Packed, slots: Sequence[int], cache: Any) -> Tensor: ...


class Misspelt(Plain):
    """A method that nothing calls."""

    def set_output(self, count: int) -> None: ...


class Blockless(Model):
    """Blocks are no member of the class."""

    def forward(self, batch: Packed, *, head: Head | None = None) -> tuple[Any, None]: ...


class Leaking(Plain):
    """The last document of a pack is never alone."""

    def forward(self, batch: Packed, *, head: Head | None = None) -> tuple[Any, None]:
        one = attrs.evolve(batch, lengths=(batch.num_tokens,)) if batch.lengths else batch
        return super().forward(one, head=head)


class Tied(Plain):
    """The outputs of a critic are not new."""

    def set_outputs(self, count: int) -> None:
        self.head.weight = nn.Parameter(self.head.weight[:count].detach().clone())


class Stranger(nn.Linear):
    """No model at all."""

    def __init__(self, config: PlainConfig, kernels: Kernels) -> None:
        super().__init__(2, 2)


class Wrapping(Backend):
    """A chip whose fused norm is a module around the plain one."""

    def fuse(self, module: nn.Module) -> list[str]:
        for block in module.blocks:  # type: ignore[union-attr]
            block.input_layernorm = nn.Sequential(block.input_layernorm)
        return ["norm"]


class Compiling(Backend):
    """A chip that compiles norms as `torch.compile` does: by modules around them."""

    def compile(self, model: Model) -> str | None:
        Wrapping().fuse(model)
        return None


class Around(Adapter):
    """An adapter that is a module around a norm, and says that all the names in it are its own."""

    def apply(self, saved: Path | None = None) -> None:
        Wrapping().fuse(self.model)

    def names(self) -> frozenset[str]:
        return frozenset(name for name in self.model.state_dict() if ".0.weight" in name)

    restart = remove = off = merged = save = None  # type: ignore[assignment] # it is refused before they are used


def spec_of(target: type) -> ArchitectureSpec:
    return ArchitectureSpec(
        name=target.__name__.lower(), summary="A model for a test.", target=f"{__name__}:{target.__name__}", config=PlainConfig
    )


@hookimpl
def mm_architectures() -> Iterable[ArchitectureSpec]:
    yield from map(spec_of, (Blockless, Stranger))


@hookimpl
def mm_backends() -> Iterable[BackendSpec]:
    for target in (Wrapping, Compiling):
        yield BackendSpec(
            name=target.__name__.lower(), summary="A chip.", target=f"{__name__}:{target.__name__}", probe=lambda: Probe(True),
            priority=-1,
        )  # fmt: skip


@hookimpl
def mm_adapters() -> Iterable[AdapterSpec]:
    yield AdapterSpec(name="around", summary="An adapter.", target=f"{__name__}:Around")


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return plugin_manager(__name__)


def failures(target: type, plugins: PluginManager) -> Mapping[str, str]:
    checks = check_architecture(spec_of(target), plugins=plugins, module=__name__)
    # the declaration of a test imports torch
    return {check.name: check.detail for check in checks if check.failed and check.name != "declaration is light"}


def test_a_plain_model_passes_and_what_it_lacks_is_said(plugins: PluginManager) -> None:
    checks = {check.name: check for check in check_architecture(spec_of(Plain), plugins=plugins, module=__name__)}
    assert not failures(Plain, plugins)
    assert checks["config"].detail == "documents of any length"
    assert checks["adapter targets"].detail == "mix"
    assert checks["set outputs"].detail.startswith("set_outputs is not implemented")
    assert checks["cached decoding equals forward"].detail.startswith("no cache")
    assert checks["generation"].detail.startswith("generation is slow: Plain has no cache")


@pytest.mark.parametrize(
    ("target", "check", "said"),
    [
        (Opaque, "cache", "new_cache returns a Lost without clear, copy, device, lengths (see mm.contracts.Cache)"),
        (Half, "names", "nothing calls Half.prefil: is prefill meant?"),
        (Misspelt, "names", "nothing calls Misspelt.set_output: is set_outputs meant?"),
        (Blockless, "target", "Blockless does not implement blocks: each is a member of the class"),
        (Leaking, "packed equals unpacked", "forward: a document's logits change with its pack (keep documents apart"),
        (Tied, "set outputs", "set_outputs: the new weight is not zero at first"),
    ],
)
def test_the_kit_names_the_member_and_the_cure(target: type, check: str, said: str, plugins: PluginManager) -> None:
    found = failures(target, plugins)
    assert found[check].startswith(said)
    assert check not in ("names", "target") or list(found) == [check]  # one cause is reported once


def test_a_config_must_extend_the_contract() -> None:
    with pytest.raises(ValueError, match=r"config=Other: it must extend mm\.contracts\.ArchitectureConfig"):
        ArchitectureSpec(name="x", summary="X.", target="a:b", config=attrs.make_class("Other", ["vocab_size"]))


def test_a_model_that_breaks_the_contract_is_refused_by_name(plugins: PluginManager, tmp_path: Path) -> None:
    with pytest.raises(MMError, match=r"Architecture blockless: Blockless does not implement blocks of mm\.contracts\.Model"):
        tiny_run(tmp_path, "pretrain", plugins=plugins, arch="blockless", preset="")
    with pytest.raises(MMError, match=r"Architecture stranger: its model, a Stranger, does not extend mm\.contracts\.Model"):
        tiny_run(tmp_path, "pretrain", plugins=plugins, arch="stranger", preset="")


def test_a_kernel_that_renames_parameters_is_refused_when_the_model_opens(plugins: PluginManager, tmp_path: Path) -> None:
    norm = r"model\.layers\.0\.input_layernorm"
    said = rf"Backend wrapping .* fuse\(\): missing: {norm}\.weight, .* and 1 more; new: {norm}\.0\.weight, "
    with pytest.raises(MMError, match=said):
        tiny_run(tmp_path, "pretrain", plugins=plugins, backend="wrapping", run="base")
    assert not (tmp_path / "runs/base").exists()
    tiny_run(tmp_path, "pretrain", plugins=plugins, run="base")
    with pytest.raises(MMError, match=said):
        mm.load("base", workspace=tmp_path, plugins=plugins, backend="wrapping")
    found = {check.name: check.detail for check in check_backend(plugins.get(BackendSpec, "wrapping"), module=__name__)}
    assert "fuse(): missing: model.layers.0.input_layernorm.weight" in found["fuse keeps names and result"]


def test_whatever_wraps_a_model_is_refused_by_name(plugins: PluginManager, tmp_path: Path) -> None:
    moved = r"missing: model\.layers\.0\.input_layernorm\.weight"
    with pytest.raises(MMError, match=rf"Backend compiling .* compile\(\): {moved}.* compile must keep every name"):
        tiny_run(tmp_path, "pretrain", plugins=plugins, backend="compiling", compile=True)
    tiny_run(tmp_path, "pretrain", plugins=plugins, backend="compiling", run="plain")
    found = {check.name: check for check in check_backend(plugins.get(BackendSpec, "compiling"), module=__name__)}
    assert found["compile"].failed and "missing: model.layers.0" in found["compile"].detail
    with pytest.raises(MMError, match=rf"Adapter around .* apply\(\): {moved}"):
        tiny_run(tmp_path, "pretrain", plugins=plugins, adapter="around")


def test_kernels_of_a_chip_reach_the_model() -> None:
    def scan(decay: Tensor, x: Tensor, batch: Packed) -> Tensor:
        raise NotImplementedError

    def default(x: Tensor) -> Tensor:
        return x

    def fused(x: Tensor) -> Tensor:
        return x

    kernels = Kernels(scan=scan, others={"pack.fold": fused})
    assert kernels.scan is scan and kernels.attention is Kernels().attention
    assert kernels.get("pack.fold", default) is fused and kernels.get("pack.other", default) is default
