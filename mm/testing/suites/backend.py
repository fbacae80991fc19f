"""The checks that every backend must pass."""

from __future__ import annotations

import copy
import json
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mm.core.records import BackendSpec
from mm.runtime.devices.backend import Backend
from mm.runtime.devices.dtypes import DTYPES, torch_dtype
from mm.runtime.devices.scaler import Scaler
from mm.runtime.models.opening import compile_blocks, fuse_kernels
from mm.runtime.nn.attention import packed_attention
from mm.runtime.nn.batch import Packed, pack
from mm.runtime.nn.model import Model
from mm.runtime.nn.scan import packed_scan
from mm.testing.suites.author import members
from mm.testing.suites.check import Skip
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite
from mm.testing.suites.tensors import TOLERANCE, assert_near, documents, gradients

if TYPE_CHECKING:
    from mm.runtime.nn.attention import Attention
    from mm.runtime.nn.scan import Scan


class BackendSuite(Suite):
    """The checks of a backend. If the probe does not find the chip, all checks but those of the declaration are skipped.

    `model` is a small model, on which `fuse` and `compile` are tried.
    """

    contract = Backend

    def __init__(self, spec: BackendSpec, model: Model, module: str | None = None) -> None:
        super().__init__(spec, module)
        self.record, self.model = spec, model

    @cached_property
    def backend(self) -> Backend:
        """The backend, after `setup`; torch's float32 matmul precision is restored to its previous value."""
        probe = self.record.probe()
        if not probe.available:
            raise Skip(probe.reason)
        precision = torch.get_float32_matmul_precision()
        found: Backend = self.record.load()(None)
        found.name = self.record.name
        found.setup()
        torch.set_float32_matmul_precision(precision)
        return found

    def check_target(self) -> str:
        """The implementation can be imported if the chip is there."""
        probe = self.record.probe()
        if not probe.available:
            raise Skip(probe.reason)
        return super().check_target()

    @about("device")
    def check_device(self) -> str:
        """`device` returns a device of the declared type, on which tensors can be created."""
        device = self.backend.device(0)
        assert device.type == self.backend.device_type, f"device {device}, but device_type {self.backend.device_type!r}"
        assert float(torch.ones(3, device=device).sum()) == 3
        return str(device)

    @about("set_rng_state", "rng_state", "seed")
    def check_seed_and_rng_state(self) -> None:
        """Equal seeds give equal random numbers, and restoring a state repeats the numbers that followed it."""
        backend, device = self.backend, self.backend.device(0)
        draws = []
        for _ in range(2):
            backend.seed(7)
            draws.append(torch.rand(5, device=device))
        assert torch.equal(*draws), "the same seed drew different numbers"
        state = backend.rng_state()
        first = torch.rand(5, device=device), torch.rand(5)
        backend.set_rng_state(state)
        assert torch.equal(first[0], torch.rand(5, device=device)), "set_rng_state does not restore the device's draws"
        assert torch.equal(first[1], torch.rand(5)), "set_rng_state does not restore the host's draws"

    @about("default_dtype", "autocast")
    def check_autocast(self) -> str:
        """`default_dtype` is a known type; products under `autocast` have the requested type."""
        backend, device = self.backend, self.backend.device(0)
        default = backend.default_dtype()
        assert default in DTYPES, f"default_dtype is {default!r}, expected {', '.join(DTYPES)}"
        x = torch.ones(4, 4, device=device)
        for name in {"fp32", default}:
            with backend.autocast(name):
                found = (x @ x).dtype
            assert found == torch_dtype(name), f"autocast({name!r}) multiplies in {found}"
        return default

    @about("scaler")
    def check_scaler(self) -> str:
        """fp32 has no gradient scaler. That of fp16 unscales gradients to their true values, skips a step that overflowed and
        lowers its scale then, and its state can be saved and restored."""
        assert self.backend.scaler("fp32") is None, "float32 needs no gradient scaler"
        scaler = self.backend.scaler("fp16")
        assert scaler is not None, "fp16 needs a gradient scaler: scaler('fp16') returns None"
        missing = ", ".join(sorted(name for name in members(Scaler) if not hasattr(scaler, name)))
        assert not missing, f"the scaler of fp16, a {type(scaler).__name__}, has no {missing} (see mm.contracts.Scaler)"
        weight = nn.Parameter(torch.ones(3, device=self.backend.device(0)))
        optimizer, before = torch.optim.SGD([weight], lr=0.5), scaler.get_scale()
        for factor, expected in ((2.0, 0.0), (float("inf"), 0.0)):
            optimizer.zero_grad()
            scaler.scale((weight * factor).sum()).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            if factor == 2.0:
                assert weight.grad is not None and weight.grad.tolist() == [2.0] * 3, f"the gradient is {weight.grad}, not 2"
            scaler.step(optimizer)
            scaler.update()
            assert weight.tolist() == [expected] * 3, f"gradients of {factor} moved the weights to {weight.tolist()}"
        assert scaler.get_scale() < before, f"the scale is {scaler.get_scale()} after an overflow and was {before}"
        other = self.backend.scaler("fp16")
        assert other is not None
        other.load_state_dict(scaler.state_dict())
        assert other.get_scale() == scaler.get_scale(), "the scale that was saved is not the scale that was restored"
        return f"{type(scaler).__name__}, {before:g} at first"

    @about("capabilities", "memory")
    def check_memory(self) -> str:
        """`memory` returns bytes, `capabilities` can be written to the manifest, and `synchronize` and `empty_cache` work."""
        self.backend.synchronize()
        self.backend.empty_cache()
        memory = self.backend.memory()
        assert isinstance(memory["peak"], int), "memory()['peak'] is bytes"
        capabilities = self.backend.capabilities()
        json.dumps(capabilities)
        assert capabilities.get("device"), "capabilities() names the device"
        return f"device {capabilities['device']}, peak {memory['peak'] / 2**30:.2g} GiB"

    @about("peak_flops")
    def check_peak_flops(self) -> str:
        """`peak_flops` is positive, or None if unknown."""
        peaks = {name: self.backend.peak_flops(name) for name in ("fp32", "bf16")}
        assert all(peak is None or peak > 0 for peak in peaks.values()), f"{peaks}"
        return ", ".join(f"{name} {peak:.2g}" for name, peak in peaks.items() if peak)

    @about("kernels")
    def check_attention_in_float32(self) -> str:
        """The backend's attention has the values and gradients of the portable one, in float32."""
        return self._attention("fp32")

    @about("kernels")
    def check_attention_in_the_default_type(self) -> str:
        """As `check_attention_in_float32`, in the backend's default type."""
        self.require("check_autocast")
        return self._attention(self.backend.default_dtype())

    @about("kernels")
    def check_attention_of_an_empty_pack(self) -> None:
        """The attention of an empty pack stays in the graph, as data-parallel ranks without rows need."""
        device = self.backend.device(0)
        q, k = (torch.zeros(0, heads, 16, device=device, requires_grad=True) for heads in (4, 2))
        out = self.backend.kernels().attention(q, k, k, pack([]).to(device))
        assert out.shape == (0, 4, 16), f"shape {tuple(out.shape)}"
        out.sum().backward()  # type: ignore[no-untyped-call]

    @about("kernels")
    def check_scan(self) -> str:
        """The backend's scan has the values and gradients of the portable one, in float32; an empty pack stays in the graph."""
        device, scan = self.backend.device(0), self.backend.kernels().scan
        batch = pack(documents([1, 5, 17], 10))
        generator = torch.Generator().manual_seed(4)
        inputs = [torch.rand(batch.num_tokens, 16, generator=generator) for _ in range(3)]
        expected = _scan(packed_scan, inputs, batch)
        found = _scan(scan, [x.to(device) for x in inputs], batch.to(device))
        errors = [
            assert_near(f, e, TOLERANCE[torch.float32], f"the scan's {what}")
            for what, f, e in zip(("values", "gradients"), found, expected, strict=True)
        ]
        nothing = torch.zeros(0, 16, device=device, requires_grad=True)
        scan(nothing, nothing, pack([]).to(device)).sum().backward()  # type: ignore[no-untyped-call]
        return f"largest error {max(errors):.1g}"

    @about("fuse")
    def check_fuse_keeps_names_and_result(self) -> str:
        """`fuse` does not change a model's parameters and buffers, nor its logits, within the tolerance of float32."""
        device = self.backend.device(0)
        model = copy.deepcopy(self.model).to(device).eval()
        batch = pack(documents([5, 9], model.config.vocab_size)).to(device)
        with torch.no_grad():
            before = model(batch)[0]
            names = fuse_kernels(self.backend, model)
            assert_near(model(batch)[0], before, TOLERANCE[torch.float32], "logits after fuse")
        return ", ".join(names)

    @about("compile")
    def check_compile(self) -> str:
        """`compile` compiles a model in place and returns None, or changes nothing and returns the reason. It does not change the
        model's parameters and buffers."""
        reason = compile_blocks(self.backend, copy.deepcopy(self.model))
        assert reason is None or (isinstance(reason, str) and reason), f"compile returned {reason!r}"
        return reason or ""

    def _attention(self, dtype: str) -> str:
        device = self.backend.device(0)
        batch = pack(documents([1, 5, 5, 17], 10))
        generator = torch.Generator().manual_seed(3)
        draws = [torch.randn(batch.num_tokens, heads, 16, generator=generator) for heads in (4, 2, 2, 4)]
        *inputs, weight = (draw.to(torch_dtype(dtype)) for draw in draws)
        expected = _attend(packed_attention, [x.double() for x in inputs], weight.double(), batch)
        found = _attend(self.backend.kernels().attention, [x.to(device) for x in inputs], weight.to(device), batch.to(device))
        errors = [
            assert_near(f, e, TOLERANCE[torch_dtype(dtype)], f"attention's {what}")
            for what, f, e in zip(("values", "gradients"), found, expected, strict=True)
        ]
        return f"{dtype}: largest error {max(errors):.1g}"


def _attend(attention: Attention, inputs: list[Tensor], weight: Tensor, batch: Packed) -> tuple[Tensor, Tensor]:
    """(values, gradients of their weighted sum with respect to q, k and v, in one vector)."""
    q, k, v = leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(q, k, v, batch)
    (out * weight).sum().backward()  # type: ignore[no-untyped-call]
    return out.detach(), gradients(leaves)


def _scan(scan: Scan, inputs: list[Tensor], batch: Packed) -> tuple[Tensor, Tensor]:
    """(values, gradients of their weighted sum with respect to decay and input, in one vector); `inputs` end with the weight."""
    *given, weight = inputs
    decay, x = leaves = [tensor.detach().requires_grad_() for tensor in given]
    out = scan(decay, x, batch)
    (out * weight).sum().backward()  # type: ignore[no-untyped-call]
    return out.detach(), gradients(leaves)
