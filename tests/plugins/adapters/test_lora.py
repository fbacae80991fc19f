"""LoRA: against PEFT, MiniMind's files and the formula; under other algorithms, resumed, merged, continued."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import logged
from safetensors.torch import load_file
from torch import Tensor, nn

import mm
from mm.contracts import Head, Model, Packed, Request, Sampling
from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.core.workspace import RunFolder
from mm.plugins.adapters.lora import LoraConfig
from mm.plugins.adapters.lora.adapter import Lora
from mm.plugins.adapters.lora.files import read
from mm.plugins.architectures.dense import DenseConfig
from mm.runtime.nn.batch import pack
from mm.testing import tiny_model, tiny_run
from mm.testing.suites.tensors import documents

SMALL = {"max_steps": 4, "learning_rate": 1e-2, "log_interval": 1, "seed": 5}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("base"), "pretrain", run="base", **SMALL)


@pytest.fixture(scope="module")
def tuned(base: RunFolder) -> RunFolder:
    """Trained by the algorithm that bears the name, from the base."""
    return tiny_run(base.path.parents[1], "lora", from_="base", run="tuned", **SMALL)


def adapted(seed: int = 0, **config: Any) -> Lora:
    """A tiny model with an adapter whose B is drawn too."""
    torch.manual_seed(seed)
    adapter = Lora("lora", LoraConfig(**config), tiny_model())
    adapter.apply()
    for name, parameter in adapter.model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.1)
    return adapter


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(pack(documents((6, 3), 300)))[0]


@pytest.mark.parametrize(("rslora", "scale"), [(False, 1.5), (True, 3.0)])
def test_the_model_is_that_of_the_formula(rslora: bool, scale: float) -> None:
    adapter, plain = adapted(rank=4, alpha=6.0, rslora=rslora), tiny_model()
    state = adapter.model.state_dict()
    with torch.no_grad():
        for name, weight in plain.state_dict().items():
            if name.replace("weight", "lora_A") in state:
                b, a = (state[name.replace("weight", f"lora_{letter}")].double() for letter in "BA")
                weight.copy_(weight.double() + scale * b @ a)
    torch.testing.assert_close(logits(adapter.model), logits(plain), atol=1e-4, rtol=1e-4)


def test_what_is_adapted() -> None:
    leaves = {name.split(".")[-2] for name in adapted().names()}
    assert leaves == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    some = adapted(target=("self_attn.[qk]_proj", "layers.1.mlp.down_proj")).names()
    assert {name.split(".")[-2] for name in some} == {"q_proj", "k_proj", "down_proj"}
    assert [name for name in some if "mlp" in name and "layers.1." not in name] == []
    with pytest.raises(UsageError, match=r"--lora-target qkv: no weight of this model .* q_proj"):
        adapted(target=("qkv",))
    with pytest.raises(UsageError, match="--lora-target lm_head"):
        adapted(target=("lm_head",))


class Routed(nn.Module):
    """Experts with stacked weights, as a mixture of experts may hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.randn(3, 4, 5))
        self.up_proj = nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x_JTE: Tensor) -> Tensor:
        return x_JTE @ self.gate_proj.to(x_JTE.dtype).mT


class Mixture(Model):
    config = DenseConfig(vocab_size=7)
    blocks = ()
    adapter_targets = ("gate_proj",)

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.gate_proj = Routed(), nn.Linear(5, 5, bias=False)

    def forward(self, batch: Packed, *, head: Head | None = None) -> tuple[Any, Any]:
        raise NotImplementedError


def test_routed_experts_on_request(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Mixture(), torch.randn(3, 2, 5)
    plain = model.experts(x)
    shared_only = Lora("lora", LoraConfig(rank=2), model)
    shared_only.apply()
    assert shared_only.names() == {"gate_proj.lora_A", "gate_proj.lora_B"}
    shared_only.remove()
    adapter = Lora("lora", LoraConfig(rank=2, target=("experts.gate_proj",)), model)
    adapter.apply()
    assert adapter.names() == {"experts.gate_proj_lora_A", "experts.gate_proj_lora_B"}
    assert model.experts(x).equal(plain)
    factors = model.experts.gate_proj_lora_A, model.experts.gate_proj_lora_B
    nn.init.normal_(factors[1])
    weight = model.state_dict()["experts.gate_proj"]
    expected = x @ (weight + factors[1] @ factors[0]).mT
    torch.testing.assert_close(model.experts(x), expected)
    model.experts(x).sum().backward()
    assert all(f.grad is not None and f.grad.any() for f in factors) and not weight.requires_grad
    adapter.save(tmp_path, adapter.model.state_dict())
    assert load_file(tmp_path / "experts.safetensors")["experts.gate_proj.lora_B"].equal(factors[1].detach())
    with adapter.off():
        assert model.experts(x).equal(plain)
    before = model.experts(x).detach()
    with adapter.merged():
        torch.testing.assert_close(model.experts(x), before)
    adapter.remove()
    assert model.experts(x).equal(plain) and type(model.experts) is Routed
    with pytest.raises(UsageError, match=r"only routed experts have it: name them as experts\.up_proj"):
        Lora("lora", LoraConfig(target=("up_proj",)), Mixture()).apply()
    again = Lora("lora", LoraConfig(), model)
    again.apply(tmp_path)
    assert model.experts(x).equal(before)


def test_a_file_of_minimind_is_read(base: RunFolder, tmp_path: Path) -> None:
    """Its update is B A without a scale, on q and o alone."""
    state, rank = load_file(base.model / "model.safetensors"), 3
    torch.manual_seed(0)
    names = [name.removesuffix(".weight") for name in state if name.endswith(("q_proj.weight", "o_proj.weight"))]
    file = {f"{n}.lora.A.weight": torch.randn(rank, state[f"{n}.weight"].shape[1]) * 0.1 for n in names}
    file |= {f"{n}.lora.B.weight": torch.randn(state[f"{n}.weight"].shape[0], rank) * 0.1 for n in names}
    path = tmp_path / "lora_identity_512.pth"
    torch.save({name: tensor.half() for name, tensor in file.items()}, path)
    run = tiny_run(
        base.path.parents[1], "sft", from_="base", run="from-minimind", adapter="lora", lora_from=path, max_steps=1,
        learning_rate=1e-30, weight_decay=0.0,
    )  # fmt: skip
    merged = load_file(run.model / "model.safetensors")
    for name in names:
        a, b = (file[f"{name}.lora.{letter}.weight"].half().double() for letter in "AB")
        torch.testing.assert_close(merged[f"{name}.weight"].double(), state[f"{name}.weight"] + b @ a, atol=1e-6, rtol=1e-6)
    assert merged["model.layers.0.mlp.up_proj.weight"].equal(state["model.layers.0.mlp.up_proj.weight"])
    only = load_file(mm.convert(base.model, tmp_path / "out", to="native", adapter=f"lora:{path}") / "model.safetensors")
    assert all(only[name].equal(merged[name]) for name in merged)
    config = json.loads((run.model / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 3.0, ["o_proj", "q_proj"])


def test_files_that_do_not_fit_are_refused(base: RunFolder, tmp_path: Path) -> None:
    def train(**options: Any) -> None:
        tiny_run(base.path.parents[1], "sft", from_="base", run="refused", adapter="lora", **options)

    with pytest.raises(UsageError, match="no run of this workspace, and no such folder or file"):
        train(lora_from=tmp_path / "nothing.pth")
    with pytest.raises(UsageError, match=r"--lora-target.*cannot be combined with"):
        train(lora_from="x.pth", lora_target=["q_proj"])
    with pytest.raises(UsageError, match=r"--lora-init.*cannot be combined with"):
        train(lora_from="x.pth", lora_init="normal")
    torch.save({"model.layers.9.self_attn.q_proj.lora.A.weight": torch.ones(2, 96)} | {
        "model.layers.9.self_attn.q_proj.lora.B.weight": torch.ones(96, 2)}, tmp_path / "deep.pth")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"layers\.9\.self_attn\.q_proj is not a weight of this model"):
        train(lora_from=tmp_path / "deep.pth")
    torch.save({"model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="is not a LoRA factor"):
        train(lora_from=tmp_path / "whole.pth")
    with pytest.raises(UsageError, match=r"--optimizer muon works on whole matrices.*leave it out"):
        train(optimizer="muon")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True), ("bias", "all"), ("alora_invocation_tokens", [1, 2]), ("layer_replication", [[0, 2], [1, 3]]),
        ("use_bdlora", {"nblocks": 2}), ("arrow_config", {"top_k": 3}), ("kasa_config", {"alpha": 1}),
        ("init_lora_weights", "pissa"), ("alpha_pattern", {"q_proj": 4}), ("trainable_token_indices", [5]),
        ("of_a_later_peft", 1),
    ],
)  # fmt: skip
def test_more_than_plain_lora_is_refused(key: str, value: object, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "use_dora": False, "bias": "none", "init_lora_weights": True, "rank_pattern": {}}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UsageError, match=re.escape(f"{key} {value!r} is not a plain low-rank update")):
        read(tmp_path)


def test_the_algorithm_of_that_name(tuned: RunFolder, base: RunFolder) -> None:
    saved = load_file(tuned.model / "adapter/adapter_model.safetensors")
    assert saved["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"].shape == (16, 96)
    assert tuned.manifest["sources"]["adapter"] == "defaults of lora"
    assert tuned.manifest["trained_parameters"] == sum(t.numel() for t in saved.values())
    checkpoint = next(iter(tuned.checkpoints.glob("step-*")))
    start, frozen, merged = (load_file(f / "model.safetensors") for f in (base.model, checkpoint, tuned.model))
    assert frozen.keys() == merged.keys() == start.keys()
    assert all(frozen[name].equal(start[name]) for name in start)
    changed = {name for name in start if not merged[name].equal(start[name])}
    assert changed == {name for name in start if "_proj" in name}


def test_a_checkpoint_answers_like_the_merged_model(plugins: PluginManager, tuned: RunFolder) -> None:
    from mm.runtime.devices.backend import Backend
    from mm.runtime.models.folder import load_model_folder

    checkpoint = next(iter(tuned.checkpoints.glob("step-*")))
    models = [load_model_folder(plugins, folder, Backend()).model for folder in (checkpoint, tuned.model)]
    assert logits(models[0]).equal(logits(models[1]))


def test_a_run_that_continues_merges_first(tuned: RunFolder) -> None:
    more = tiny_run(tuned.path.parents[1], "sft", from_="tuned", run="more", max_steps=1, learning_rate=1e-30, adapter="lora")
    before, after = (load_file(run.model / "model.safetensors") for run in (tuned, more))
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_adapter_is_the_unbroken_one_to_the_bit(dropout: float, base: RunFolder, tmp_path: Path) -> None:
    settings = {**SMALL, "lora_dropout": dropout, "adapter": "lora", "micro_batch_tokens": 24, "eval_ratio": 0.25}
    start = {**settings, "from_": base.model, "workspace": tmp_path}
    whole = tiny_run(algo="sft", run="whole", **start)
    tiny_run(algo="sft", run="cut", stop_after_steps=1, **start)
    mm.train("sft", run="cut", stop_after_steps=3, resume=True, workspace=tmp_path, quiet=True)
    cut = mm.train("sft", run="cut", resume=True, workspace=tmp_path, quiet=True)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (whole.model / file).read_bytes() == (cut.model / file).read_bytes()


def test_dropout_is_for_training_alone() -> None:
    adapter = adapted(dropout=0.5)
    adapter.model.train()
    assert not logits(adapter.model).equal(logits(adapter.model))
    adapter.model.eval()
    assert logits(adapter.model).equal(logits(adapter.model))


def test_the_reference_is_the_policy_with_the_adapter_off(base: RunFolder) -> None:
    run = tiny_run(base.path.parents[1], "dpo", from_="base", run="preferring", adapter="lora", **SMALL)
    first, *_, last = logged(run)
    assert first["margin"] == first["chosen_drift"] == 0.0
    assert last["margin"] > 0.05
    first, again = (load_file(path / "model.safetensors") for path in (base.model, next(iter(run.checkpoints.glob("step-*")))))
    assert all(first[name].equal(again[name]) for name in first)


def test_an_adapted_model_generates_as_the_merged_one() -> None:
    from mm.plugins.engines.local.engine import LocalEngine
    from mm.runtime.devices.backend import Backend

    adapter = adapted()
    requests = [Request(ids=(1, 5, 9), max_new_tokens=12, sampling=Sampling(temperature=0.0)) for _ in range(2)]
    adapter.model.eval()
    found = LocalEngine(None, adapter.model, Backend()).generate(requests)
    with adapter.merged():
        merged = LocalEngine(None, adapter.model, Backend()).generate(requests)
    plain = LocalEngine(None, tiny_model().eval(), Backend()).generate(requests)
    assert found[0].ids == found[1].ids == merged[0].ids != plain[0].ids
    assert found[0].logprobs == pytest.approx(merged[0].logprobs, abs=1e-4)


@pytest.mark.parametrize("where", ["tuned", "runs/tuned", "runs/tuned/model", "runs/tuned/model/adapter", "tuned@4"])
def test_an_adapter_is_named_by_its_run(where: str, tuned: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace := tuned.path.parents[1])
    folder = mm.convert("base", tmp_path / "merged", to="native", adapter=f"lora:{where}", workspace=workspace)
    merged, own = (load_file(path / "model.safetensors") for path in (folder, tuned.model))
    assert all(merged[name].equal(own[name]) for name in own)
    with pytest.raises(UsageError, match=r"No adapter at 'tunde'.* Did you mean 'tuned'"):
        mm.convert("base", tmp_path / "none", to="native", adapter="lora:tunde", workspace=workspace)


def test_a_run_goes_on_with_another_s_adapter(tuned: RunFolder) -> None:
    start = {"from_": "base", "run": "going-on", "adapter": "lora", "lora_from": "tuned"}
    run = tiny_run(tuned.path.parents[1], "sft", **start, max_steps=1, learning_rate=1e-30, weight_decay=0.0)
    one, two = (load_file(r.model / "model.safetensors") for r in (tuned, run))
    assert all(torch.allclose(one[name], two[name], atol=1e-7) for name in one)


def test_convert_gives_the_merged_model(tuned: RunFolder, tmp_path: Path) -> None:
    folder = mm.convert(tuned.model, tmp_path / "out", to="llama")
    exported, own = load_file(folder / "model.safetensors"), load_file(tuned.model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert exported[name].equal(own[name]) and not (folder / "adapter").exists()


def test_peft_loads_what_is_saved(base: RunFolder, tuned: RunFolder, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import LlamaForCausalLM

    ids = torch.tensor([[1, 40, 7, 99, 3]])
    with torch.no_grad():
        merged = LlamaForCausalLM.from_pretrained(mm.convert(tuned.model, tmp_path / "merged", to="llama"))(ids).logits
        plain = LlamaForCausalLM.from_pretrained(mm.convert(base.model, tmp_path / "plain", to="llama"))
        model = peft.PeftModel.from_pretrained(plain, tuned.model / "adapter")
        torch.testing.assert_close(model(ids).logits, merged, atol=1e-4, rtol=1e-4)
        assert not model.get_base_model().lm_head.weight.isnan().any()
        with model.disable_adapter():
            assert not torch.allclose(model(ids).logits, merged, atol=1e-3)
    # and back: what PEFT writes is read
    model.save_pretrained(tmp_path / "peft")
    again = tiny_run(
        base.path.parents[1], "sft", from_="base", run="from-peft", adapter="lora", lora_from=tmp_path / "peft", max_steps=1,
        learning_rate=1e-30, weight_decay=0.0,
    )  # fmt: skip
    one, two = (load_file(run.model / "model.safetensors") for run in (tuned, again))
    assert all(torch.allclose(one[name], two[name], atol=1e-7) for name in one)


def test_convert_writes_the_adapter_alone_for_peft(base: RunFolder, tuned: RunFolder, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import LlamaForCausalLM

    workspace = tuned.path.parents[1]
    out = mm.convert("tuned", tmp_path / "out", to="peft", workspace=workspace)
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    ids = torch.tensor([[1, 40, 7, 99, 3]])
    with torch.no_grad():
        merged = LlamaForCausalLM.from_pretrained(mm.convert(tuned.model, tmp_path / "merged", to="llama"))(ids).logits
        plain = LlamaForCausalLM.from_pretrained(mm.convert(base.model, tmp_path / "plain", to="llama"))
        torch.testing.assert_close(peft.PeftModel.from_pretrained(plain, out)(ids).logits, merged, atol=1e-4, rtol=1e-4)
    # it is an adapter of ours too, and keeps its base where no run says it
    again = mm.convert(out, tmp_path / "again", to="peft", workspace=workspace)
    assert [path.read_bytes() for path in sorted(again.iterdir())] == [path.read_bytes() for path in sorted(out.iterdir())]
    native = mm.convert("base", tmp_path / "native", to="native", adapter=f"lora:{out}", workspace=workspace)
    one, two = (load_file(folder / "model.safetensors") for folder in (native, tuned.model))
    assert all(one[name].equal(two[name]) for name in one)


def test_an_adapter_on_a_hugging_face_folder_loads_with_its_base(base: RunFolder, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    plain = mm.convert(base.model, tmp_path / "plain", to="llama")
    tiny_run(base.path.parents[1], "lora", from_=plain, run="on-a-folder", **SMALL)
    out = mm.convert("on-a-folder", tmp_path / "out", to="peft", workspace=base.path.parents[1])
    assert peft.AutoPeftModelForCausalLM.from_pretrained(out).peft_config["default"].base_model_name_or_path == str(plain)


def test_what_peft_does_not_take_is_refused(base: RunFolder, tuned: RunFolder, tmp_path: Path) -> None:
    workspace = tuned.path.parents[1]
    for model, options, told in [
        ("base", {}, "holds no adapter: it has no adapter_config.json"),
        ("tunde", {}, "No adapter at 'tunde'.* Did you mean 'tuned'"),
        ("tuned", {"dtype": "fp16"}, "--dtype has no effect with --to peft"),
        ("tuned", {"quantise": "w8a8"}, "--quantise has no effect with --to peft"),
        ("tuned", {"rope_scaling_factor": 2.0}, "--rope-scaling-factor has no effect with --to peft"),
    ]:
        with pytest.raises(UsageError, match=told):
            mm.convert(model, tmp_path / "out", to="peft", workspace=workspace, **options)
        assert list(tmp_path.iterdir()) == []
    out = mm.convert("tuned", tmp_path / "out", to="peft", workspace=workspace)
    with pytest.raises(UsageError, match="is not empty"):
        mm.convert("tuned", out, to="peft", workspace=workspace)
    assert mm.convert("tuned", out, to="peft", workspace=workspace, force=True) == out


# The last names that vLLM 0.33 expects of updates, by class of model: those that its joined layers (qkv_proj,
# gate_up_proj) are made of, and its other linear layers. Facts of packed_modules_mapping and get_expert_mapping there.
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_SWIGLU = {"gate_proj", "up_proj", "down_proj"}
_VLLM = {
    **dict.fromkeys(("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"), _ATTENTION | _SWIGLU),
    "Qwen3MoeForCausalLM": _ATTENTION | {f"experts.{j}.{leaf}" for j in range(4) for leaf in _SWIGLU},
}  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "preset", "to", "target"),
    [
        ("dense", "tiny", "llama", ()), ("dense", "tiny2-bias", "qwen2", ()), ("dense", "tiny3", "qwen3", ()),
        ("moe", "tiny3", "qwen3-moe", ("experts.*", "q_proj")),
    ],
)
def test_the_files_keep_vllms_rules(arch: str, preset: str, to: str, target: tuple[str, ...], tmp_path: Path) -> None:
    """Read from its source (vllm/lora/peft_helper.py, utils.py, lora_model.py of 0.33.0), not run: no vLLM is here."""
    tiny_run(tmp_path, "pretrain", run="base", arch=arch, preset=preset, max_steps=1)
    run = tiny_run(tmp_path, "sft", from_="base", run="tuned", adapter="lora", lora_target=target, max_steps=1)
    config = json.loads((run.model / "adapter/adapter_config.json").read_text())
    assert config.keys() >= {"r", "lora_alpha", "target_modules"} and isinstance(config["r"], int)
    assert (config["bias"], config["r"], config["lora_alpha"]) == ("none", 16, 16)  # its default bound of the rank is 16
    refused = ("modules_to_save", "use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens", "layer_replication")
    assert not any(config.get(name) for name in (*refused, "use_bdlora"))
    exported = mm.convert(tmp_path / "runs/base/model", tmp_path / "exported", to=to)
    weights = load_file(exported / "model.safetensors")
    (kind,) = json.loads((exported / "config.json").read_text())["architectures"]
    updates = load_file(run.model / "adapter/adapter_model.safetensors")
    assert updates
    for name, update in updates.items():
        prefix, _, rest = name.partition("base_model.model.")
        module, letter, end = rest.rsplit(".", 2)
        assert (prefix, end) == ("", "weight") and letter in ("lora_A", "lora_B")
        last = module[module.index("experts.") :] if ".experts." in module else module.rpartition(".")[2]
        assert last in _VLLM[kind]
        weight = weights[f"{module}.weight"]  # it takes the place of a weight of the exported model
        assert update.shape == ((16, weight.shape[1]) if letter == "lora_A" else (weight.shape[0], 16))
