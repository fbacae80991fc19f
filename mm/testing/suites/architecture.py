"""What every architecture must hold to."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mm.core.records import ArchitectureSpec
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.nn.kernels import Kernels
from mm.runtime.nn.model import Model
from mm.testing.suites.suite import Suite, host_numbers
from mm.testing.suites.tensors import assert_near, documents, gradients, reload

_VOCABULARY = 97
_NEAR = 1e-4  # float32, sums in another order


def configs_of(spec: ArchitectureSpec) -> dict[str, Any]:
    """The config of every preset, the smallest model first; without presets the class's own defaults."""
    found = {name: spec.config(**sizes) for name, sizes in spec.presets.items()} or {"default": spec.config()}
    return dict(sorted(found.items(), key=lambda item: item[1].num_parameters()))


def small_model(spec: ArchitectureSpec, vocab_size: int = _VOCABULARY, seed: int = 0) -> Model:
    """The smallest preset with a small vocabulary, on the CPU in float32."""
    config = attrs.evolve(next(iter(configs_of(spec).values())), vocab_size=vocab_size)
    torch.manual_seed(seed)
    model: Model = spec.load()(config, Kernels())
    return model


class ArchitectureSuite(Suite):
    """The checks run on the smallest preset, so give a tiny one."""

    contract = nn.Module

    def __init__(self, spec: ArchitectureSpec, module: str | None = None) -> None:
        super().__init__(spec, module)
        self.record = spec

    @cached_property
    def model(self) -> Any:
        """The smallest preset in `eval()`."""
        return small_model(self.record).eval()

    @cached_property
    def batch(self) -> Packed:
        """Three documents."""
        return pack(documents([7, 1, 12], _VOCABULARY))

    @cached_property
    def logits_TV(self) -> Tensor:
        """Of `batch`."""
        with torch.no_grad():
            found: Tensor = self.model(self.batch)[0]
        return found

    def check_parameter_counts(self) -> str:
        """`config.num_parameters()` of every preset is what the module has."""
        implementation, counts = self.record.load(), []
        for name, config in configs_of(self.record).items():
            with torch.device("meta"):
                model = implementation(config, Kernels())
            real = sum(p.numel() for p in model.parameters())
            assert config.num_parameters() == real, f"{name}: {config.num_parameters():,} declared, {real:,} built"
            counts.append(f"{name} {real / 1e6:.4g}M")
        return ", ".join(counts)

    def check_flops(self) -> None:
        """FLOPs a token are positive and do not fall with the context."""
        config = next(iter(configs_of(self.record).values()))
        short, long = config.flops_per_token(64), config.flops_per_token(1024)
        assert 0 < short <= long, f"{short} at 64 tokens, {long} at 1024"

    def check_config_follows_the_vocabulary(self) -> None:
        """`attrs.evolve(config, vocab_size=n)` gives the embedding n rows."""
        assert self.model.config.vocab_size == _VOCABULARY, "the model keeps its config as `config`"
        assert self.logits_TV.shape == (self.batch.num_tokens, _VOCABULARY), f"logits {tuple(self.logits_TV.shape)}"

    def check_head(self) -> None:
        """`model(batch, head=f)` answers (f(hidden_TE, weight_VE), auxiliary); without a head the float32 logits."""
        assert self.logits_TV.dtype == torch.float32, f"logits are {self.logits_TV.dtype}"
        with torch.no_grad():
            product, _ = self.model(self.batch, head=lambda hidden_TE, weight_VE: hidden_TE @ weight_VE.t())
        assert_near(product, self.logits_TV, _NEAR, "hidden_TE @ weight_VE.T against the logits")

    def check_packed_equals_unpacked(self) -> str:
        """A document's logits do not depend on what it is packed with."""
        with torch.no_grad():
            alone = torch.cat([self.model(pack([unit]))[0] for unit in self.batch.units])
        return f"largest error {assert_near(self.logits_TV, alone, _NEAR, 'packed logits'):.1g}"

    def check_causal(self) -> None:
        """A token's logits do not depend on later tokens."""
        changed = attrs.evolve(self.batch, input_ids=self.batch.input_ids.clone())
        changed.input_ids[-1] = (changed.input_ids[-1] + 1) % _VOCABULARY
        with torch.no_grad():
            assert_near(self.model(changed)[0][:-1], self.logits_TV[:-1], _NEAR, "logits before a changed token")

    def check_cached_decoding_equals_forward(self) -> str:
        """`new_cache`, `prefill` and `decode` give the full forward's logits."""
        ids, model = self.batch.units[2].sequences[0].ids, self.model
        cache = model.new_cache(2, len(ids))
        found = [model.prefill(pack(documents_of(ids[:5])), [1], cache)]
        found += [model.decode(ids[i : i + 1], [1], cache) for i in range(5, len(ids))]
        with torch.no_grad():
            expected = model(pack(documents_of(ids)))[0][4:]
        return f"largest error {assert_near(torch.cat(found), expected, _NEAR, 'decoded logits'):.1g}"

    def check_auxiliary_loss(self) -> None:
        """`counts` are host numbers with fixed names, and an auxiliary loss is a finite scalar."""
        model: Any = small_model(self.record)  # in training, which alone has auxiliary values
        counts = model.counts(self.batch)
        host_numbers(counts)
        assert counts.keys() == model.counts(pack([])).keys(), "an empty pack has other counts"
        auxiliary = model(self.batch)[1]
        if auxiliary is not None:
            loss = model.auxiliary_loss(auxiliary, counts)
            assert loss is None or (loss.shape == () and bool(loss.isfinite())), f"auxiliary loss {loss}"
            metrics = model.auxiliary_metrics(auxiliary) if hasattr(model, "auxiliary_metrics") else {}
            wrong = [name for name, (total, count) in metrics.items() if not torch.as_tensor(total / count).isfinite()]
            assert not wrong, f"metric {wrong[0]} is not a finite (sum, count)"

    def check_empty_pack(self) -> None:
        """A pack without tokens gives every parameter a zero gradient, which data-parallel training waits for."""
        model = small_model(self.record)
        model(pack([]), head=lambda hidden_TE, weight_VE: (hidden_TE @ weight_VE.t()).sum())[0].backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing, f"no gradient for {missing[0]}"
        assert not gradients(model.parameters()).any(), "the gradient is not zero"

    def check_every_parameter_learns(self) -> None:
        """Every parameter gets a finite gradient."""
        model = small_model(self.record)
        model(self.batch)[0].pow(2).mean().backward()
        wrong = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
        assert not wrong, f"no finite gradient for {wrong[0]}"

    def check_blocks(self) -> str:
        """`blocks` are the repeated modules, which compilation and sharding work on."""
        blocks = list(self.model.blocks)
        assert blocks and all(isinstance(block, nn.Module) for block in blocks), f"blocks is {self.model.blocks!r}"
        return f"{len(blocks)}"

    def check_save_and_load(self) -> None:
        """A model that was saved and loaded into a differently initialised one computes the same, bit for bit."""
        other = small_model(self.record, seed=1).eval()
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            reload(self.model, other, Path(folder))
            assert torch.equal(other(self.batch)[0], self.logits_TV), "the loaded model computes something else"


def documents_of(ids: Tensor) -> list[Unit]:
    """One unit of these ids."""
    return [Unit((Tokens(ids),))]
