"""The checks that every model must pass: of the contract, the config, and the computation."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.core.configs import ArchitectureConfig
from mm.core.records import ArchitectureSpec
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.nn.cache import SupportsCache, SupportsFastDecode
from mm.runtime.nn.kernels import Kernels
from mm.runtime.nn.model import Model
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite
from mm.testing.suites.tensors import assert_near, documents, gradients, reload

VOCABULARY = 97
NEAR = 1e-4  # tolerance for float32 sums in another order


def configs_of(spec: ArchitectureSpec) -> dict[str, Any]:
    """Name -> config of every preset, the smallest model first; of the class's defaults if there are no presets."""
    found = {name: spec.config(**sizes) for name, sizes in spec.presets.items()} or {"default": spec.config()}
    return dict(sorted(found.items(), key=lambda item: item[1].num_parameters()))


def small_model(spec: ArchitectureSpec, vocab_size: int = VOCABULARY, seed: int = 0) -> Model:
    """A new model of the smallest preset with a small vocabulary, on the CPU in float32."""
    config = attrs.evolve(next(iter(configs_of(spec).values())), vocab_size=vocab_size)
    torch.manual_seed(seed)
    model: Model = spec.load()(config, Kernels())
    return model


class ModelSuite(Suite):
    """The checks of a model. They run on its smallest preset, so an architecture should have a tiny one."""

    contract = Model
    optional = (SupportsCache, SupportsFastDecode)
    first = ("check_target", "check_names", "check_building")

    def __init__(self, spec: ArchitectureSpec, module: str | None = None) -> None:
        super().__init__(spec, module)
        self.record = spec

    @cached_property
    def model(self) -> Model:
        """The smallest preset in `eval()`."""
        return small_model(self.record).eval()

    @cached_property
    def batch(self) -> Packed:
        """Three documents."""
        return pack(documents([7, 1, 12], VOCABULARY))

    @cached_property
    def logits_TV(self) -> Tensor:
        """The logits of `batch`."""
        with torch.no_grad():
            found: Tensor = self.model(self.batch)[0]
        return found

    @about("__init__")
    def check_building(self) -> None:
        """A model can be built, and keeps its config."""
        assert hasattr(small_model(self.record), "config"), (
            f"{self.record.load().__name__} must keep its config: self.config = config"
        )

    @about("config")
    def check_config(self) -> str:
        """The number of positions is positive or None, at most all parameters are active, and exported scales are positive."""
        for name, config in configs_of(self.record).items():
            assert isinstance(config, ArchitectureConfig), f"{name}: {type(config).__name__} does not extend ArchitectureConfig"
            positions = config.max_position_embeddings
            assert positions is None or positions > 0, f"{name}: max_position_embeddings is {positions!r}"
            assert 0 < config.num_active_parameters() <= config.num_parameters(), f"{name}: num_active_parameters() is wrong"
            assert all(scale > 0 for scale in config.exported_scales.values()), f"{name}: {config.exported_scales}"
        return "documents of any length" if positions is None else f"{positions} positions"

    @about("config")
    def check_parameter_counts(self) -> str:
        """`config.num_parameters()` of every preset is the number of parameters of the module."""
        implementation, counts = self.record.load(), []
        for name, config in configs_of(self.record).items():
            with torch.device("meta"):
                model = implementation(config, Kernels())
            real = sum(p.numel() for p in model.parameters())
            assert config.num_parameters() == real, f"{name}: {config.num_parameters():,} declared, {real:,} built"
            counts.append(f"{name} {real / 1e6:.4g}M")
        return ", ".join(counts)

    @about("config")
    def check_flops(self) -> None:
        """The FLOPs per token are positive and do not decrease with the context."""
        config = next(iter(configs_of(self.record).values()))
        short, long = config.flops_per_token(64), config.flops_per_token(1024)
        assert 0 < short <= long, f"{short} at 64 tokens, {long} at 1024"

    @about("forward")
    def check_config_follows_the_vocabulary(self) -> None:
        """The model of `attrs.evolve(config, vocab_size=n)` has n logits and that config."""
        assert self.model.config.vocab_size == VOCABULARY, "the model keeps its config as `config`"
        assert self.logits_TV.shape == (self.batch.num_tokens, VOCABULARY), f"logits {tuple(self.logits_TV.shape)}"

    @about("forward")
    def check_head(self) -> None:
        """`model(batch, head=f)` returns (f(hidden_TE, weight_VE), auxiliary); without a head, (float32 logits, auxiliary)."""
        assert self.logits_TV.dtype == torch.float32, f"logits are {self.logits_TV.dtype}"
        with torch.no_grad():
            found = self.model(self.batch, head=lambda hidden_TE, weight_VE: hidden_TE @ weight_VE.t())
        assert isinstance(found, tuple) and len(found) == 2, f"forward returns {type(found).__name__}, not (result, auxiliary)"
        assert_near(found[0], self.logits_TV, NEAR, "forward: the head gets hidden_TE and weight_VE whose product is the logits")

    @about("forward")
    def check_packed_equals_unpacked(self) -> str:
        """A document's logits do not depend on the other documents of its pack."""
        with torch.no_grad():
            alone = torch.cat([self.model(pack([unit]))[0] for unit in self.batch.units])
        what = "forward: a document's logits change with its pack (keep documents apart: batch.lengths, batch.position_ids)"
        return f"largest error {assert_near(self.logits_TV, alone, NEAR, what):.1g}"

    @about("forward")
    def check_causal(self) -> None:
        """A token's logits do not depend on later tokens."""
        changed = attrs.evolve(self.batch, input_ids=self.batch.input_ids.clone())
        changed.input_ids[-1] = (changed.input_ids[-1] + 1) % VOCABULARY
        with torch.no_grad():
            assert_near(self.model(changed)[0][:-1], self.logits_TV[:-1], NEAR, "forward: the logits before a changed token")

    @about("forward")
    def check_shared_prompts(self) -> str:
        """A pack whose documents share a prompt has the same logits and gradients with `batch.shared` and without it."""
        self.require("check_packed_equals_unpacked")
        prompt, *ends = (unit.sequences[0].ids for unit in documents([9, 4, 6, 2], VOCABULARY))
        batch = pack([Unit((Tokens(torch.cat((prompt, end)), prompt=len(prompt)),)) for end in ends])
        (logits, gradient), (expected, plain) = (self.gradient(b) for b in (batch, attrs.evolve(batch, shared=None)))
        what = "with batch.shared (attention needs all tokens: see mm.runtime.nn.attention.sharing)"
        errors = [
            assert_near(logits, expected, NEAR, f"forward: logits {what}"),
            assert_near(gradient, plain, NEAR, f"forward: gradients {what}"),
        ]
        return f"largest error {max(errors):.1g}"

    def check_save_and_load(self) -> None:
        """A model that is saved, and loaded into one with other weights, computes the same, bit for bit."""
        other = small_model(self.record, seed=1).eval()
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            reload(self.model, other, Path(folder))
            assert torch.equal(other(self.batch)[0], self.logits_TV), "the loaded model computes something else"

    def gradient(self, batch: Packed, model: Model | None = None) -> tuple[Tensor, Tensor]:
        """(logits, gradient of their mean square with respect to all parameters) of `model`, by default a new one."""
        model = model or small_model(self.record)
        logits_TV = model(batch)[0]
        logits_TV.pow(2).mean().backward()
        return logits_TV.detach(), gradients(model.parameters())
