"""The mixture of experts against a loop over masks in float64, transformers' balancing loss, and its declared sizes."""

from __future__ import annotations

import copy
import itertools

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mm.backends.cpu.backend import CpuBackend
from mm.plugins.architectures.dense import GEN3
from mm.plugins.architectures.moe import GEN3_EXPERTS, PRESETS, MoEConfig
from mm.plugins.architectures.moe.experts import MixtureOfExperts
from mm.plugins.architectures.moe.model import MoE
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.heads import linear_cross_entropy
from mm.runtime.nn.kernels import Kernels
from mm.runtime.training.roles import Role
from mm.testing.pytest_plugin import CommandLine

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 128,
}  # fmt: skip
GENERATIONS = {"gen2": MoEConfig(**SMALL), "gen3": MoEConfig(**SMALL, **GEN3, **GEN3_EXPERTS, head_dim=12)}
generations = pytest.mark.parametrize("generation", GENERATIONS)


def make(config: MoEConfig, seed: int = 0) -> MoE:
    """Weights so large that the router is not even."""
    torch.manual_seed(seed)
    model = MoE(config, Kernels())
    for name, parameter in model.named_parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else torch.nn.init.normal_(parameter, std=0.2)
    return model


def documents(lengths: list[int], seed: int = 0) -> list[Unit]:
    generator = torch.Generator().manual_seed(seed)
    return [Unit((Tokens(torch.randint(97, (n,), generator=generator)),)) for n in lengths]


# ---- the feed-forward


def mask_loop(layer: MixtureOfExperts, x_TE: Tensor) -> Tensor:
    """As MiniMind computes it; the weight of a single expert keeps its gradient."""
    p = (x_TE @ layer.gate.weight.T).softmax(-1)
    w, chosen = p.topk(layer.top_k, -1)
    if layer.normalise:
        w = w / (w.detach() if layer.top_k == 1 else w.sum(-1, keepdim=True))
    y, e = torch.zeros_like(x_TE), layer.experts
    for j, place in itertools.product(range(len(p[0])), range(layer.top_k)):
        mask = chosen[:, place] == j
        part = (F.silu(x_TE[mask] @ e.gate_proj[j].T) * (x_TE[mask] @ e.up_proj[j].T)) @ e.down_proj[j].T
        y[mask] += part * w[mask, place, None]
    return y if layer.shared_expert is None else y + layer.shared_expert(x_TE)[0]


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 30), experts=st.integers(1, 7), top_k=st.integers(1, 7), shared=st.sampled_from([0, 8]),
    normalise=st.booleans(), tilt=st.booleans(),
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_a_loop_over_masks(
    tokens: int, experts: int, top_k: int, shared: int, normalise: bool, tilt: bool
) -> None:
    sizes = {"num_experts": experts, "num_experts_per_tok": min(top_k, experts), "norm_topk_prob": normalise}
    config = MoEConfig(**{**SMALL, "hidden_size": 16}, **sizes, shared_expert_intermediate_size=shared)
    layer = MixtureOfExperts(config)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(tokens, 16)
    if tilt:  # every token to the same experts: the others get none
        x = x.abs()
        with torch.no_grad():
            layer.gate.weight.copy_(torch.linspace(-1, 1, experts)[:, None].expand(-1, 16))
    layer, x = layer.double(), x.double()
    direction = torch.randn_like(x)
    # the router computes its probabilities in float32
    found = torch.autograd.grad((layer(x, pack([]))[0] * direction).sum(), list(layer.parameters()))
    expected = torch.autograd.grad((mask_loop(layer, x) * direction).sum(), list(layer.parameters()))
    torch.testing.assert_close(layer(x)[0], mask_loop(layer, x), atol=1e-5, rtol=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_single_expert_teaches_its_router() -> None:
    layer = MixtureOfExperts(GENERATIONS["gen3"])
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, direction = torch.randn(9, 32), torch.randn(9, 32)
    y, _ = layer(x)
    plain = attrs.evolve(GENERATIONS["gen3"], norm_topk_prob=False)
    weighted = MixtureOfExperts(plain)
    weighted.load_state_dict(layer.state_dict())
    # the output is the expert's own, as if the weight were 1 ..
    chosen = (x @ layer.gate.weight.T).softmax(-1).amax(-1, keepdim=True)
    torch.testing.assert_close(weighted(x)[0], y * chosen, atol=1e-6, rtol=1e-5)
    # .. and the gradient is that of the logarithm of its probability
    (found,) = torch.autograd.grad((y * direction).sum(), layer.gate.weight)
    log_p = (x @ layer.gate.weight.T).log_softmax(-1).amax(-1)
    (expected,) = torch.autograd.grad((log_p * (y.detach() * direction).sum(-1)).sum(), layer.gate.weight)
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_router_that_learns_from_the_balance_alone() -> None:
    """MiniMind 3's gradients, where a token's weight is p / (p + 1e-20): of the task for everything but the router."""
    config = GENERATIONS["gen3"]
    model, theirs = make(config), make(attrs.evolve(config, router_gradient="balance"))
    batch = pack(documents([11, 3, 20]))
    assert torch.equal(model(batch)[0], theirs(batch)[0])

    def gradients(model: MoE, *, task: bool, balance: bool) -> dict[str, Tensor]:
        model.zero_grad()
        result, routing = model(batch)
        loss = task * result.pow(2).mean()
        (loss + model.auxiliary_loss(routing, model.counts(batch)) if balance else loss).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    gate = "model.layers.0.mlp.gate.weight"
    both, alone = (gradients(theirs, task=task, balance=True)[gate] for task in (True, False))
    assert alone.abs().max() > 0
    last = f"model.layers.{config.num_hidden_layers - 1}.mlp.gate.weight"
    assert last not in gradients(theirs, task=True, balance=False) and gate in gradients(model, task=True, balance=False)
    # the last layer's router gets what the balancing loss gives it, whatever the task; earlier ones also feed later layers
    with_task, without = (gradients(theirs, task=task, balance=True)[last] for task in (True, False))
    torch.testing.assert_close(with_task, without)
    assert not torch.equal(both, gradients(model, task=True, balance=True)[gate])
    layer, x = theirs.blocks[0].mlp, torch.randn(9, 32, requires_grad=True)
    own = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.experts.parameters()])
    chosen = (x @ layer.gate.weight.T).softmax(-1).argmax(-1).tolist()
    gates, ups, downs = layer.experts.gate_proj, layer.experts.up_proj, layer.experts.down_proj
    plain = torch.stack([downs[j] @ (F.silu(gates[j] @ row) * (ups[j] @ row)) for row, j in zip(x, chosen, strict=True)])
    wanted = torch.autograd.grad(plain.sum(), [x, *layer.experts.parameters()])
    for a, b in zip(own, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_how_a_router_learns_is_a_setting_of_a_trained_model() -> None:
    config = GENERATIONS["gen3"].loaded_with(router_gradient="balance")
    assert attrs.evolve(config, router_gradient="task") == GENERATIONS["gen3"]
    assert config.loaded_with(rope_scaling_factor=2.0).router_gradient == "balance"
    with pytest.raises(ValueError, match="'router_gradient' balance needs a balancing loss"):
        MoEConfig(router_gradient="balance", router_aux_loss_coef=0.0)


def test_how_a_router_learns_is_changed_by_a_conversion_and_has_no_effect_on_use(mm_cli: CommandLine) -> None:
    told = mm_cli("train", "--algo", "sft", "--from", "x", "--moe-router-gradient", "balance", "--dry-run", code=2).err
    assert "A trained model takes it by 'mm convert MODEL OUT --router-gradient VALUE'" in told
    assert "--router-gradient [task|balance]" in mm_cli("convert", "--help").out
    for command in (("generate", "x", "hello"), ("chat", "x"), ("eval", "x", "--skills")):
        assert "No such option: --router-gradient" in mm_cli(*command, "--router-gradient", "balance", code=2).err


def test_nothing_waits_for_the_device() -> None:
    """Fake tensors have no values: whatever asks for one raises. Products are a device's, as on the CPU it may ask."""
    config = MoEConfig(**SMALL)
    with FakeTensorMode():
        layer, x = MixtureOfExperts(config), torch.empty(40, 32)
        with pytest.raises(DataDependentOutputException):
            layer(x)
        layer.experts.product = lambda x, weight, ends: F.grouped_mm(x, weight.mT, offs=ends)
        with torch.autocast("cpu", torch.bfloat16):
            y, (probabilities, _) = layer(x, pack([]))
        model = attrs.make_class("Model", {"config": attrs.field(default=config)})()
        routing = torch.stack([probabilities] * 2), torch.zeros(2, 40, 4), torch.zeros(4, dtype=torch.int32)
        loss = MoE.auxiliary_loss(model, routing, {"documents": 3.0, "tokens": 40.0})
        MoE.auxiliary_metrics(model, routing)
        (y.float().mul(2).sum() + loss).backward()
        assert layer.gate.weight.grad.shape == (4, 32)


# ---- the model


@generations
@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_packed_equals_unpacked(generation: str, lengths: list[int]) -> None:
    model, units = make(GENERATIONS[generation]), documents(lengths)
    with torch.no_grad():
        alone = torch.cat([model(pack([unit]))[0] for unit in units])
        torch.testing.assert_close(model(pack(units))[0], alone, atol=1e-5, rtol=1e-4)


@generations
def test_cached_decoding_equals_the_forward(generation: str) -> None:
    model = make(GENERATIONS[generation]).eval()
    ids = torch.stack([unit.sequences[0].ids for unit in documents([12, 12, 12])])
    with torch.no_grad():
        expected = torch.stack([model(pack([Unit((Tokens(row),))]))[0] for row in ids])
        for choose in (lambda: model.decode, model.fast_decode):
            cache, decode = model.new_cache(3, 16), choose()
            found = [model.prefill(pack([Unit((Tokens(row[:5]),)) for row in ids]), [0, 1, 2], cache)]
            found += [decode(ids[:, i], [0, 1, 2], cache) for i in range(5, 12)]
            torch.testing.assert_close(torch.stack(found, 1), expected[:, 4:], atol=1e-5, rtol=1e-4)


COUNTS = {"minimind2-moe": (145.03, 91.95), "minimind2-moe-768x16": (406.07, 255.08), "minimind3-moe": (198.42, 63.94)}


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_counts(preset: str) -> None:
    config = MoEConfig(**PRESETS[preset])
    with torch.device("meta"):
        model = MoE(config, Kernels())
    assert config.num_parameters() == sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    idle = experts * (config.num_experts - config.num_experts_per_tok) // config.num_experts
    assert config.num_active_parameters() == config.num_parameters() - idle
    # what a token passes but for norms, twice forward and four times backward
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert config.flops_per_token(0) == 6 * (config.num_active_parameters() - norms)
    if preset in COUNTS:
        assert tuple(round(n / 1e6, 2) for n in (config.num_parameters(), config.num_active_parameters())) == COUNTS[preset]


@pytest.mark.parametrize("wrong", [{"num_experts_per_tok": 5}, {"num_experts": 0}, {"router_aux_loss_scope": "step"}])
def test_impossible_sizes_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MoEConfig(**{**SMALL, **wrong})


@generations
def test_autocast_stays_close_and_trains_float32_parameters(generation: str) -> None:
    model, batch = make(GENERATIONS[generation]), pack(documents([12, 5, 5]))
    head = lambda h, w: linear_cross_entropy(h[batch.target_index], w, batch.targets)  # noqa: E731
    exact, _ = model(batch, head=head)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model(batch, head=head)
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_copy_in_half_precision_routes_as_the_trainer_does() -> None:
    """What the engine holds beside a policy trained under autocast: the same tokens to the same experts."""
    wide = {**SMALL, "hidden_size": 256, "num_experts": 8, "num_hidden_layers": 1}
    for generation in (MoEConfig(**wide), MoEConfig(**wide, **GEN3, **GEN3_EXPERTS)):
        model = MoE(generation, Kernels()).eval()
        router, x_TE = model.blocks[0].mlp, torch.randn(4096, 256).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            expected = router._route(x_TE)
        for dtype in (torch.bfloat16, torch.float16):
            half = copy.deepcopy(model).to(dtype)
            assert half.blocks[0].mlp.experts.up_proj.dtype == dtype
            assert all(a.equal(b) for a, b in zip(half.blocks[0].mlp._route(x_TE), expected, strict=True))
        assert {p.dtype for p in model.to(torch.float64).parameters()} == {torch.float64}


@pytest.mark.long
def test_compiled_blocks_compute_the_same() -> None:
    model = make(GENERATIONS["gen2"])
    batches = [pack(documents(lengths)) for lengths in ([9, 4], [17], [3, 3, 30])]
    expected = [model(batch)[0] for batch in batches]
    if reason := CpuBackend().compile(model):
        pytest.skip(reason)
    for batch, logits in zip(batches, expected, strict=True):
        found, auxiliary = model(batch)
        torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)
        (found.mean() + model.auxiliary_loss(auxiliary, model.counts(batch))).backward()


# ---- the load-balancing loss


def routing_of(model: MoE, units: list[Unit]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each layer's probabilities and choices, of float64 arrays, from the inputs of the routers."""
    seen: list[Tensor] = []
    hooks = [block.mlp.gate.register_forward_hook(lambda m, inputs, logits: seen.append(logits)) for block in model.blocks]
    with torch.no_grad():
        model(pack(units))
    for hook in hooks:
        hook.remove()
    logits = [x.double().numpy() for x in seen]
    probabilities = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits]
    return probabilities, [np.argsort(-p, -1)[:, : model.config.num_experts_per_tok] for p in probabilities]


def balance(probabilities: np.ndarray, chosen: np.ndarray) -> float:
    """experts * sum of (choices of an expert / rows) * (its mean probability), an expert at a time."""
    rows, experts = probabilities.shape
    return experts * sum((chosen == j).sum() / rows * probabilities[:, j].mean() for j in range(experts))


def test_the_document_loss_is_the_formula() -> None:
    model, lengths = make(GENERATIONS["gen2"]), [11, 3, 1, 20]
    batch = pack(documents(lengths))
    loss = model.auxiliary_loss(model(batch)[1], model.counts(batch))
    cuts = np.cumsum(lengths)[:-1]
    expected = sum(
        balance(p, c) / model.config.num_experts_per_tok
        for layer in zip(*routing_of(model, documents(lengths)), strict=True)
        for p, c in zip(*(np.split(part, cuts) for part in layer), strict=True)
    )
    assert loss.item() == pytest.approx(0.01 * expected / len(lengths), rel=1e-5)


def test_the_micro_batch_loss_is_the_formula_and_transformers() -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    model, units = make(GENERATIONS["gen3"]), documents([11, 3, 20])
    batch = pack(units)
    loss = model.auxiliary_loss(model(batch)[1], model.counts(batch)).item()
    probabilities, chosen = routing_of(model, units)
    assert loss == pytest.approx(5e-4 * sum(map(balance, probabilities, chosen)), rel=1e-5)
    # transformers pools the layers it is given: one at a time, it is a layer's loss
    theirs = [load_balancing_loss_func((torch.tensor(p).log(),), 4, 1).item() for p in probabilities]
    assert loss == pytest.approx(5e-4 * sum(theirs), rel=1e-5)


@generations
def test_cutting_a_step_changes_the_document_loss_nowhere(generation: str) -> None:
    config = attrs.evolve(GENERATIONS[generation], router_aux_loss_scope="document")
    model, units = make(config), documents([11, 3, 8, 20])
    totals = {"documents": 4.0, "tokens": 42.0}

    def gradient(cuts: list[list[Unit]]) -> Tensor:
        model.zero_grad()
        for part in cuts:
            model.auxiliary_loss(model(pack(part))[1], totals).backward()
        return torch.stack([block.mlp.gate.weight.grad for block in model.blocks])

    whole = gradient([units])
    assert whole.abs().max() > 0
    torch.testing.assert_close(gradient([units[:1], units[1:], []]), whole, atol=1e-8, rtol=1e-4)


@generations
def test_metrics(generation: str) -> None:
    model = make(GENERATIONS[generation])
    units = documents([11, 3, 20])
    found = {name: float(total) / count for name, (total, count) in model.auxiliary_metrics(model(pack(units))[1]).items()}
    probabilities, chosen = routing_of(model, units)
    loads = [np.array([(c == j).mean() * 4 for j in range(4)]) for c in chosen]
    assert found["router/load"] == pytest.approx(np.mean([load.max() for load in loads]))
    assert found["router/dead"] == sum((load == 0).sum() for load in loads)
    assert found["router/entropy"] == pytest.approx(np.mean([-(p * np.log(p)).sum(-1).mean() for p in probabilities]))


def test_a_role_keeps_its_own_counts_and_only_what_is_learned_from() -> None:
    model, batch = make(GENERATIONS["gen2"]), pack(documents([5, 6]))
    policy, reference = Role("policy", model, trainable=True), Role("reference", make(GENERATIONS["gen2"]), trainable=False)
    head = lambda hidden, weight: hidden.sum()  # noqa: E731
    with torch.no_grad():
        policy(batch, head)
    reference(batch, head)
    totals = {**policy.counts(batch), **reference.counts(batch)}
    assert totals == {"policy.documents": 2, "policy.tokens": 11}  # a frozen role has no auxiliary loss to divide
    assert policy.auxiliary_loss(totals) is None
    assert reference.auxiliary_loss(totals) is None
    policy(batch, head)
    assert policy.auxiliary_metrics()["router/entropy"][1] == 22
    assert policy.auxiliary_loss(totals).item() > 0
    assert policy.auxiliary_metrics() == {}
    without = MoE(attrs.evolve(model.config, router_aux_loss_coef=0.0), Kernels())
    assert without.auxiliary_loss(without(batch)[1], without.counts(batch)) is None


def test_presets_are_shown_with_what_is_active(mm_cli: CommandLine) -> None:
    assert "minimind2-moe (145M, 91.95M of them active)" in mm_cli("plugins", "moe").out
