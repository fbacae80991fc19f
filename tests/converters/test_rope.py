"""Rotary scaling of folders from elsewhere: transformers' logits beyond the original length, and the same settings written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_config import rope
from torch import Tensor, nn

from mm.converters.rope import read_rope
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.workspace import Workspace
from mm.plugins.architectures.dense import DenseConfig
from mm.plugins.architectures.rotary import Rotary, inverse_frequencies
from mm.runtime.devices.backend import Backend
from mm.runtime.models.convert import convert
from mm.runtime.models.converter import Unsupported
from mm.runtime.models.folder import load_model_folder
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "intermediate_size": 48, "max_position_embeddings": 256,
}  # fmt: skip
ORIGINAL = {"original_max_position_embeddings": 64}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "llama3-narrow": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 9.0, **ORIGINAL},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, **ORIGINAL},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def written_by_transformers(folder: Path, kind: str, tokenizer: Tokenizer, scaling: dict[str, Any]) -> Path:
    torch.manual_seed(2)
    settings = rope({"rope_theta": 1e4, **scaling})
    config = getattr(transformers, f"{kind}Config")(**SIZES, vocab_size=tokenizer.vocab_size, **settings)
    network = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in network.named_parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else nn.init.normal_(parameter, std=0.15)
    network.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def ids(vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (200,), generator=torch.Generator().manual_seed(3))


def theirs(folder: Path) -> Tensor:
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return network(ids(network.config.vocab_size)[None]).logits[0]


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_logits_and_exports_equal_transformers(
    scaling: str, kind: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = written_by_transformers(tmp_path / "theirs", kind, tokenizer, SCALINGS[scaling])
    loaded = load_model_folder(plugins, folder, Backend())
    with torch.no_grad():
        ours = loaded.model(pack([Unit((Tokens(ids(loaded.config.vocab_size)),))]))[0]
    torch.testing.assert_close(ours, theirs(folder), atol=1e-5, rtol=1e-5)
    plain = written_by_transformers(tmp_path / "plain", kind, tokenizer, {"rope_type": "default"})
    assert (ours - theirs(plain)).abs().max() > 0.1
    own = convert(plugins, str(folder), tmp_path / "own", workspace=Workspace(tmp_path))
    back = convert(plugins, str(own), tmp_path / "back", workspace=Workspace(tmp_path))
    assert json.loads((back / "config.json").read_text())["rope_scaling"] == SCALINGS[scaling]
    torch.testing.assert_close(ours, theirs(back), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, r"'dynamic' \(its frequencies depend on the length"),
        ({"rope_type": "longrope", "factor": 2.0}, r"'longrope' \(its frequencies depend"),
        ({"rope_type": "proportional", "factor": 2.0}, "'proportional'; supported are 'default', 'yarn', 'linear', 'llama3'"),
        ({"type": "linear"}, "factor of the rotary scaling 'linear' is missing"),
        ({**SCALINGS["llama3"], "low_freq_factor": None}, "low_freq_factor of the rotary scaling 'llama3' is missing"),
        ({**SCALINGS["llama3"], "low_freq_factor": 4.0}, "'rope_high_freq_factor' must be more than"),
        ({**SCALINGS["linear"], "factor": 0.5}, "'rope_scaling_factor' must be at least 1"),
        ({**SCALINGS["linear"], "factor": "2"}, "'rope_scaling_factor' must be a number, not '2'"),
        ("linear", "rope_scaling is 'linear'; expected an object"),
    ],
)  # fmt: skip
def test_other_scalings_are_refused_by_name(
    scaling: Any, message: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    converter = plugins.load(ConverterSpec, "llama")()
    config = converter.write_config(DenseConfig(**SIZES), tokenizer)
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
    with pytest.raises(Unsupported, match=message):
        converter.read(tmp_path)


def test_a_trained_model_can_be_scaled_linearly_on_loading() -> None:
    long = DenseConfig(max_position_embeddings=512).loaded_with(rope_scaling_factor=4.0, rope_type="linear")
    assert (long.max_position_embeddings, long.rope_type) == (2048, "linear")
    with pytest.raises(ValueError, match="'rope_beta_fast' has no effect: the rotary scaling is 'linear', not 'yarn'"):
        long.loaded_with(rope_beta_fast=16.0)
    with pytest.raises(ValueError, match="'rope_type' has no effect without a scaling factor"):
        DenseConfig().loaded_with(rope_type="linear")


@pytest.mark.parametrize("scaling", ["linear", "llama3", "llama3-narrow"])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_frequencies_equal_transformers_to_the_bit(theta: float, scaling: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    made, kind = SCALINGS[scaling], SCALINGS[scaling]["rope_type"]
    sizes = {**SIZES, "head_dim": 128}
    expected, _ = ROPE_INIT_FUNCTIONS[kind](transformers.LlamaConfig(**sizes, **rope({"rope_theta": theta, **made})), "cpu")
    config = DenseConfig(**sizes, **read_rope({**sizes, "rope_theta": theta, "rope_scaling": made}))
    assert torch.equal(inverse_frequencies(config), expected)


def test_positions_beyond_any_table_are_computed(plugins: PluginManager) -> None:
    positions = torch.tensor([0, 5, 77, 4095])
    table, computed = (Rotary(DenseConfig(max_position_embeddings=n)) for n in (4096, 2**24))
    for found, expected in zip(computed(positions), table(positions), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
