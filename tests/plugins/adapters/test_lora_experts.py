"""LoRA of mixtures of experts: what PEFT holds of it, what is kept beside that, and the weights that an export doubles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import mm
from mm.core.errors import CheckpointError
from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec
from mm.core.workspace import RunFolder
from mm.plugins.adapters.lora import LoraConfig
from mm.plugins.adapters.lora.adapter import Lora
from mm.runtime.nn.batch import pack
from mm.testing import assert_passed, check_adapter, tiny_model, tiny_run
from mm.testing.suites.tensors import documents

FORMATS = {"tiny": "qwen2-moe", "tiny3": "qwen3-moe"}
LEARNING = {"max_steps": 3, "learning_rate": 3e-2, "seed": 5}
OURS = "experts.safetensors"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of each generation, and its export."""
    folder = tmp_path_factory.mktemp("experts")
    for preset, to in FORMATS.items():
        run = tiny_run(folder, "pretrain", run=preset, arch="moe", preset=preset, max_steps=1)
        mm.convert(run.model, folder / to, to=to)
    return folder


def tuned(workspace: Path, preset: str, name: str, *target: str, **options: Any) -> RunFolder:
    start = {"from_": preset, "run": f"{preset}-{name}", "adapter": "lora", "lora_target": target}
    return tiny_run(workspace, "sft", **{**LEARNING, **start, **options})


def their_logits(folder: Path, adapter: Path | None = None) -> Tensor:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        found: Tensor = model(torch.tensor([[1, 40, 7, 99]])).logits
    return found


@pytest.mark.parametrize(
    ("preset", "target"),
    [
        ("tiny", ()), ("tiny", ("shared_expert.down_proj",)), ("tiny3", ()), ("tiny3", ("experts.*",)),
        ("tiny3", ("experts.down_proj", "q_proj")), ("tiny3", ("layers.1.mlp.experts.*", "o_proj")),
    ],
)  # fmt: skip
def test_peft_answers_as_the_merged_model(preset: str, target: tuple[str, ...], workspace: Path, tmp_path: Path) -> None:
    run = tuned(workspace, preset, tmp_path.name, *target)
    assert not (run.model / "adapter" / OURS).exists()
    to = FORMATS[preset]
    merged, plain = their_logits(mm.convert(run.model, tmp_path / "merged", to=to)), their_logits(workspace / to)
    torch.testing.assert_close(their_logits(workspace / to, run.model / "adapter"), merged, atol=1e-5, rtol=1e-5)
    assert (merged - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("preset", "target", "apart", "left"),
    [
        ("tiny", ("experts.*", "q_proj"), {"gate_proj", "up_proj", "down_proj"}, {"q_proj"}),
        ("tiny3", ("experts.gate_proj", "experts.down_proj"), {"gate_proj"}, {"down_proj"}),
    ],
)
def test_what_peft_cannot_hold_is_kept_beside_and_said(
    preset: str, target: tuple[str, ...], apart: set[str], left: set[str], workspace: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name = tuned(workspace, preset, "apart", *target, stop_after_steps=2).name
    run = mm.train("sft", run=name, resume=True, workspace=workspace)
    said = f"PEFT does not support updates of the routed experts' {', '.join(sorted(apart))}: they are saved in {OURS}"
    assert capsys.readouterr().err.count(said) == 2  # when it starts, and when the finished model stands
    folder = run.model / "adapter"
    config, stacks = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / OURS)
    assert set(config["target_modules"]) == left and config["mm_experts"] == OURS
    assert {name.split(".")[-2] for name in stacks} == apart
    assert stacks["model.layers.0.mlp.experts.gate_proj.lora_A"].shape == (4, 16, 96)
    again = mm.convert(preset, tmp_path / "again", to="native", adapter=f"lora:{folder}", workspace=workspace)
    own, merged = (load_file(path / "model.safetensors") for path in (run.model, again))
    assert all(merged[name].equal(own[name]) for name in own)
    (folder / OURS).unlink()
    with pytest.raises(CheckpointError, match=OURS):
        mm.convert(preset, tmp_path / "torn", to="native", adapter=f"lora:{folder}", workspace=workspace)


def test_peft_leaves_out_only_what_is_kept_beside(workspace: Path, tmp_path: Path) -> None:
    """On a gen 2 export with the rest alone: PEFT reads q_proj, and says that it does not know our key."""
    run = tuned(workspace, "tiny", "rest", "experts.*", "q_proj")
    with pytest.warns(UserWarning, match="mm_experts"):
        found = their_logits(workspace / "qwen2-moe", run.model / "adapter")
    assert not found.allclose(their_logits(workspace / "qwen2-moe"), atol=1e-3)


def test_a_resumed_adapter_of_experts_is_exact(workspace: Path) -> None:
    """Also of the matrix that an export doubles, whose saved factor is halved when it is read."""
    target = ("experts.*", "shared_expert.down_proj")
    whole = tuned(workspace, "tiny", "whole", *target)
    tuned(workspace, "tiny", "cut", *target, stop_after_steps=2)
    cut = mm.train("sft", run="tiny-cut", resume=True, workspace=workspace, quiet=True)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors", f"adapter/{OURS}"):
        assert (whole.model / file).read_bytes() == (cut.model / file).read_bytes()


@pytest.mark.parametrize("target", [(), ("experts.*",), ("experts.down_proj", "mlp.gate", "q_proj")])
def test_the_kit_s_checks_hold_for_experts(target: tuple[str, ...]) -> None:
    plugins = PluginManager.discover()
    spec = plugins.get(AdapterSpec, "lora")
    assert_passed(check_adapter(spec, architecture="moe", config=LoraConfig(target=target), plugins=plugins))


def test_adapted_experts_compile_as_often_as_plain_ones() -> None:
    """A compiler takes the blocks for one, as long as their experts are of one class."""
    compiled = []
    for target in ((), ("experts.*",)):
        model, batch = tiny_model("moe"), pack(documents((6, 3), 300))
        if target:
            Lora("lora", LoraConfig(target=target), model).apply()
        torch._dynamo.reset()
        counter = CompileCounter()
        with torch.no_grad():  # with gradients the first block is another, for what it gets has none
            expected = model(batch)[0]
            for block in model.blocks:
                block.compile(backend=counter, dynamic=True)
            torch.testing.assert_close(model(batch)[0], expected, atol=1e-5, rtol=1e-5)
        compiled.append(counter.frame_count)
    assert len(model.blocks) > 1 and compiled[0] == compiled[1] > 0
