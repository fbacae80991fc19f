"""YaRN on a trained model: the same numbers as transformers, positions that reach further, exports that say so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_config import rope
from torch import Tensor, nn

import mm
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.workspace import Workspace
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import load_model_folder, new_model, save_model_folder
from mm.runtime.models.storage import seal
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 32, "rope_theta": 1e4,
}  # fmt: skip
LENGTH = 100


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager, tokenizer: Tokenizer) -> Workspace:
    """Two runs, `gen2` and `gen3`, whose models never had YaRN; weights so large that attention is sharp."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    for name, extra in (("gen2", {}), ("gen3", GEN3)):
        torch.manual_seed(0)
        loaded = new_model(installed, "dense", DenseConfig(**SMALL, **extra), tokenizer, Backend())
        for parameter, values in loaded.model.named_parameters():
            nn.init.uniform_(values, 0.5, 1.5) if "norm" in parameter else nn.init.normal_(values, std=0.3)
        run = workspace.run(name)
        run.model.mkdir(parents=True)
        save_model_folder(run.model, loaded)
        seal(run.model)
        run.update_manifest({"name": name, "state": "finished", "algorithm": "sft"})
    return workspace


def ids(vocabulary: int, length: int = LENGTH) -> Tensor:
    return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(1))


def ours(model: nn.Module, given: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pack([Unit((Tokens(given),))]))[0]


def theirs(config: DenseConfig, state: dict[str, Tensor], factor: float, given: Tensor) -> Tensor:
    kind = "Qwen3" if config.qk_norm else "Llama"
    parameters = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": factor,
        "original_max_position_embeddings": SMALL["max_position_embeddings"],
    }  # fmt: skip
    sizes = {k: v for k, v in SMALL.items() if k not in ("rope_theta", "max_position_embeddings")}
    made = getattr(transformers, f"{kind}Config")(
        **sizes, vocab_size=config.vocab_size, head_dim=config.head_size, rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=round(32 * factor), **rope(parameters), tie_word_embeddings=True,
        attn_implementation="eager",
    )  # fmt: skip
    network = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        return network(given[None]).logits[0]


@pytest.mark.parametrize("factor", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("name", ["gen2", "gen3"])
def test_a_trained_model_with_a_factor_equals_transformers(
    name: str, factor: float, workspace: Workspace, plugins: PluginManager
) -> None:
    before = {p.name: p.read_bytes() for p in workspace.run(name).model.iterdir()}
    loaded = load_model_folder(plugins, workspace.run(name).model, Backend(), {"rope_scaling_factor": factor})
    assert loaded.config.max_position_embeddings == round(32 * factor)
    given = ids(loaded.config.vocab_size, min(LENGTH, round(32 * factor)))
    found, expected = ours(loaded.model, given), theirs(loaded.config, loaded.model.state_dict(), factor, given)
    # logits of about 10: a part of a hundred thousand of them is the rounding of float32
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    assert {p.name: p.read_bytes() for p in workspace.run(name).model.iterdir()} == before
    plain = load_model_folder(plugins, workspace.run(name).model, Backend())
    difference = (ours(plain.model, given[:32]) - found[:32]).abs().max()
    assert difference == 0 if factor == 1 else difference > 0.1


def test_the_attention_factor_can_be_set(workspace: Workspace, plugins: PluginManager) -> None:
    def table(**changes: float) -> Tensor:
        loaded = load_model_folder(plugins, workspace.run("gen2").model, Backend(), {"rope_scaling_factor": 4.0, **changes})
        return loaded.model.model.rotary(torch.arange(LENGTH))[0]

    scaled, plain = table(), table(rope_attention_factor=1.0)
    torch.testing.assert_close(scaled, plain * (0.1 * math.log(4) + 1))
    assert plain[0].max() == 1


def test_cached_decoding_goes_as_far_as_the_positions_do(workspace: Workspace, plugins: PluginManager) -> None:
    model = mm.load("gen2", workspace=workspace.path, plugins=plugins, backend="cpu", dtype="fp32", rope_scaling_factor=4.0)
    text = "one two three four " * 3
    found = model.generate(text, raw=True, max_new_tokens=60, temperature=0)
    begin = model.loaded.tokenizer.encode(text, plain=True)
    if model.loaded.tokenizer.bos_id is not None:
        begin = [model.loaded.tokenizer.bos_id, *begin]
    whole = torch.tensor([*begin, *found.ids])
    greedy = ours(model.loaded.model, whole).argmax(-1)[len(begin) - 1 : -1].tolist()
    assert len(whole) > 64 and greedy == list(found.ids)
    with pytest.raises(UsageError, match="the model's 128 positions"):
        model.generate(text, raw=True, max_new_tokens=128)


def test_an_export_tells_transformers(workspace: Workspace, plugins: PluginManager, tmp_path: Path) -> None:
    made = mm.convert("gen2", tmp_path / "hf", to="llama", workspace=workspace.path, plugins=plugins, rope_scaling_factor=4.0)
    written = json.loads((made / "config.json").read_text())
    assert written["max_position_embeddings"] == 128
    assert written["rope_scaling"] == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0
    }  # fmt: skip
    loaded = load_model_folder(plugins, workspace.run("gen2").model, Backend(), {"rope_scaling_factor": 4.0})
    network = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32, attn_implementation="eager").eval()
    given = ids(loaded.config.vocab_size)
    with torch.no_grad():
        expected = network(given[None]).logits[0]
    torch.testing.assert_close(ours(loaded.model, given), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    back = load_model_folder(plugins, made, Backend())
    assert torch.equal(ours(back.model, given), ours(loaded.model, given))
    native = mm.convert("gen2", tmp_path / "own", to="native", workspace=workspace.path, plugins=plugins, rope_scaling_factor=4.0)
    assert torch.equal(ours(load_model_folder(plugins, native, Backend()).model, given), ours(loaded.model, given))


def test_what_follows_from_a_factor() -> None:
    trained = DenseConfig(max_position_embeddings=512)
    long = trained.loaded_with(rope_scaling_factor=4.0)
    assert (long.max_position_embeddings, long.original_positions) == (2048, 512)
    # from a model that has YaRN already, its trained length counts and not what it reaches
    assert long.loaded_with(rope_scaling_factor=8.0).max_position_embeddings == 4096
    assert long.loaded_with(rope_scaling_factor=None).max_position_embeddings == 512
    assert DenseConfig(max_position_embeddings=32768, rope_scaling_factor=16.0).original_positions == 2048
    short = DenseConfig(max_position_embeddings=32768).loaded_with(rope_scaling_factor=4.0, rope_original_positions=512)
    assert (short.max_position_embeddings, short.original_positions) == (2048, 512)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rope-scaling-factor", "0.5"], "--rope-scaling-factor: "),
        (["--rope-original-positions", "16"], "--rope-original-positions: 'rope_original_positions' has no effect"),
        (["--rope-scaling-factor", "long"], "--rope-scaling-factor (command line): expected a number"),
        (["--rope-scaling-facto", "4"], "Did you mean '--rope-scaling-factor'"),
        (["--max-new-tokens", "60"], "the model's 32 positions"),
    ],
)
def test_generate_says_what_is_wrong(
    words: list[str], said: str, mm_cli: CommandLine, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_WORKSPACE", str(workspace.path))
    assert said in mm_cli("generate", "gen2", "hello", "--backend", "cpu", "--raw", "--max-new-tokens", "2", *words, code=2).err


def test_generate_and_convert_take_the_factor(
    mm_cli: CommandLine, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_WORKSPACE", str(workspace.path))
    line = ["generate", "gen2", "hello", "--backend", "cpu", "--raw", "--max-new-tokens", "60", "--rope-scaling-factor", "4"]
    assert "60 tokens" in mm_cli(*line, "--local-slots", "1", "--no-local-fast", "--engine", "local").err
    mm_cli("convert", "gen2", tmp_path / "out", "--rope-scaling-factor", "4")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"]["factor"] == 4.0
    assert "--local-slots is an option of engine 'local'" in mm_cli("train", "--algo", "sft", "--local-slots", "4", code=2).err
