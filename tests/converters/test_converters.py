"""Folders for and from transformers: equal logits, tokens and chat text; what cannot be held is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hf_config import VERSION_5, rope
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.workspace import Workspace
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.devices.backend import Backend
from mm.runtime.models.config_files import read_config
from mm.runtime.models.convert import convert
from mm.runtime.models.converter import Unsupported
from mm.runtime.models.folder import LoadedModel, load_model_folder, new_model, save_model_folder
from mm.runtime.models.tensors import named_tensors
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.text.tokenizer import Tokenizer

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "intermediate_size": 48,
}  # fmt: skip
YARN = {"rope_scaling_factor": 4.0, "rope_original_positions": 32}
UNTIED = {"tie_word_embeddings": False}
SHAPES = {
    "llama": DenseConfig(**SMALL),
    "llama-yarn-untied": DenseConfig(**SMALL, **YARN, **UNTIED, head_dim=12),
    "llama-yarn-unscaled": DenseConfig(**SMALL, **YARN, rope_attention_factor=1.0),
    "llama-biases": DenseConfig(**SMALL, attention_bias="all", mlp_bias=True),
    "qwen2": DenseConfig(**SMALL, attention_bias="qkv"),
    "qwen3": DenseConfig(**SMALL, **GEN3),
    "qwen3-yarn-untied": DenseConfig(**SMALL, **GEN3, **YARN, **UNTIED, head_dim=12),
}
IDS = [5, 300, 17, 42, 256, 9, 9, 100, 3, 1, 77, 260]
CHAT = [{"role": "user", "content": "1 + 1 是?"}, {"role": "assistant", "content": "2 <|im_end|>"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["the cat sat on the mat, the dog ran to the tree " * 3, "今天天气很好, 我们去公园 " * 3] * 4
    return train_tokenizer(texts, TrainingOptions(vocab_size=320))


def make(plugins: PluginManager, config: DenseConfig, tokenizer: Tokenizer, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    loaded = new_model(plugins, "dense", config, tokenizer, Backend())
    shake(loaded.model)
    return loaded


def shake(model: nn.Module) -> None:
    """Weights so large that attention is sharp: fresh ones attend evenly, which hides wrong positions and norms."""
    for name, parameter in model.named_parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else nn.init.normal_(parameter, std=0.3)


def native(folder: Path, loaded: LoadedModel) -> str:
    folder.mkdir()
    save_model_folder(folder, loaded)
    return str(folder)


def our_logits(model: nn.Module) -> Tensor:
    ids = torch.tensor([i % model.lm_head.weight.shape[0] for i in IDS])
    with torch.no_grad():
        return model(pack([Unit((Tokens(ids),))]))[0]


def their_logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        return network(torch.tensor([[i % network.config.vocab_size for i in IDS]])).logits[0]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


@pytest.mark.parametrize("shape", SHAPES)
def test_export_gives_transformers_the_same_logits(
    shape: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    loaded = make(plugins, SHAPES[shape], tokenizer)
    model, out = native(tmp_path / "own", loaded), tmp_path / "hf"
    chosen: list[str] = []
    assert convert(plugins, model, out, workspace=Workspace(tmp_path), say=chosen.append) == out
    said = [line for line in chosen if not line.startswith("head size ")]
    assert said == [f"--to {shape.partition('-')[0]}: the only format that can hold this model", "read back bit for bit"]
    torch.testing.assert_close(their_logits(out), our_logits(loaded.model), atol=1e-5, rtol=1e-5)
    back = load_model_folder(plugins, out, Backend())
    assert attrs.evolve(back.config, head_dim=loaded.config.head_dim, norm_rounding=loaded.config.norm_rounding) == loaded.config
    assert back.tokenizer.fingerprint == tokenizer.fingerprint
    assert torch.equal(our_logits(back.model), our_logits(loaded.model))
    assert list(tmp_path.glob(".hf*")) == []


def test_written_files(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    plugins.load(ConverterSpec, "llama")().write(make(plugins, SHAPES["llama"], tokenizer), out)
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    config = read_config(out)
    assert config["rope_theta"] == 1e6
    assert config["torch_dtype"] == "float32"
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"rope_parameters", "dtype"} & config.keys()
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    assert json.loads((out / "generation_config.json").read_text()) == ids


def test_tokenizer_and_chat_in_transformers(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name in ("llama", "qwen3"):
        plugins.load(ConverterSpec, name)().write(make(plugins, SHAPES[name], tokenizer), tmp_path / name)
        theirs = AutoTokenizer.from_pretrained(tmp_path / name)
        for text in ("the cat 12345", "今天<|im_start|>\n\n x  y", "<think>\nnaïve 🙂</think>"):
            assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
            assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text), skip_special=False)
        assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
        for prompt in (True, False):
            shown = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
            assert shown == tokenizer.render(CHAT, add_generation_prompt=prompt)


def written_by_transformers(folder: Path, kind: str, tokenizer: Tokenizer, **changes: Any) -> Path:
    import transformers

    torch.manual_seed(1)
    sizes = {**SMALL, "vocab_size": tokenizer.vocab_size, "head_dim": 8, "rms_norm_eps": 1e-6, **changes}
    sizes.update(rope(sizes.pop("rope_parameters", {"rope_type": "default", "rope_theta": 5e4})))
    config = getattr(transformers, f"{kind}Config")(**sizes)
    network = getattr(transformers, f"{kind}ForCausalLM")(config)
    shake(network)
    network.save_pretrained(folder)
    tokenizer.save(folder)
    # what transformers itself makes of the tokenizer, in its own style
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


YARN5 = {
    "rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.0,
}  # fmt: skip

NO_FACTOR = {key: value for key, value in YARN5.items() if key != "attention_factor"}
EXTRAS = {
    "plain": {}, "yarn-tied": {"rope_parameters": YARN5, "tie_word_embeddings": True},
    "yarn-scaled": {"rope_parameters": NO_FACTOR},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS.keys())
def test_import_of_what_transformers_wrote(
    kind: str, extra: dict[str, Any], plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = written_by_transformers(tmp_path / "hf", kind, tokenizer, **extra)
    written = read_config(folder)
    assert (written["rope_parameters"] if VERSION_5 else written)["rope_theta"] == 5e4
    loaded = load_model_folder(plugins, folder, Backend())
    assert loaded.config.rope_theta == 5e4
    assert loaded.config.qk_norm == (kind == "Qwen3")
    assert loaded.config.norm_rounding == "before"
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    torch.testing.assert_close(our_logits(loaded.model), their_logits(folder), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_import_rounds_norms_as_transformers_does(
    kind: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    folder = written_by_transformers(tmp_path / "hf", kind, tokenizer)
    ours = load_model_folder(plugins, folder, Backend()).model.model.norm.to(torch.bfloat16)
    theirs = {"Llama": LlamaRMSNorm, "Qwen3": Qwen3RMSNorm}[kind](32, 1e-6)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(64, 32, dtype=torch.bfloat16)
    assert torch.equal(ours(x), theirs.to(torch.bfloat16)(x))


def test_config_in_the_style_of_version_4(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = written_by_transformers(tmp_path / "hf", "Llama", tokenizer)
    edit_config(folder, rope_parameters=..., dtype=..., rope_theta=5e4, torch_dtype="float32", rope_scaling=None, head_dim=...)
    loaded = load_model_folder(plugins, folder, Backend())
    assert (loaded.config.rope_theta, loaded.config.head_size) == (5e4, 8)
    torch.testing.assert_close(our_logits(loaded.model), their_logits(folder), atol=1e-5, rtol=1e-5)
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.0}
    edit_config(folder, rope_scaling=scaling)
    loaded = load_model_folder(plugins, folder, Backend())
    assert loaded.config.rope_scaling_factor == 4.0
    torch.testing.assert_close(our_logits(loaded.model), their_logits(folder), atol=1e-5, rtol=1e-5)


def test_a_config_may_leave_out_what_has_a_default(plugins: PluginManager, tokenizer: Tokenizer) -> None:
    from transformers import LlamaConfig, Qwen3Config

    sizes = {**SMALL, "vocab_size": 320}
    del sizes["num_key_value_heads"]
    llama = plugins.load(ConverterSpec, "llama")().read_config(sizes)
    qwen3 = plugins.load(ConverterSpec, "qwen3")().read_config({**sizes, "num_key_value_heads": 4})
    for ours, theirs in ((llama, LlamaConfig(**sizes)), (qwen3, Qwen3Config(**sizes, num_key_value_heads=4))):
        assert ours.head_size == theirs.head_dim
        assert ours.rope_theta == (theirs.rope_parameters["rope_theta"] if VERSION_5 else theirs.rope_theta)
        for name in ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"):
            assert getattr(ours, name) == getattr(theirs, name)


def test_shards_and_pickles_are_read(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = written_by_transformers(tmp_path / "hf", "Llama", tokenizer)
    expected = our_logits(load_model_folder(plugins, folder, Backend()).model)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(our_logits(load_model_folder(plugins, folder, Backend()).model), expected)
    (folder / "pytorch_model.bin").unlink()
    halves = {"a.safetensors": dict(list(state.items())[:7]), "b.safetensors": dict(list(state.items())[7:])}
    for file, part in halves.items():
        save_file(part, folder / file)
    index = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(our_logits(load_model_folder(plugins, folder, Backend()).model), expected)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**index, "ghost": "a.safetensors"}}))
    with pytest.raises(CheckpointError, match="do not agree on tensor ghost"):
        load_model_folder(plugins, folder, Backend())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"ghost": "../a.safetensors"}}))
    with pytest.raises(CheckpointError, match="is not a file name"):
        load_model_folder(plugins, folder, Backend())


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_not_run(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = written_by_transformers(tmp_path / "hf", "Llama", tokenizer)
    (folder / "model.safetensors").unlink()
    torch.save({"x": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_model_folder(plugins, folder, Backend())
    assert not (tmp_path / "sprung").exists()


def test_a_tied_output_layer_may_be_stored_if_it_is_equal(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    loaded = make(plugins, SHAPES["llama"], tokenizer)
    plugins.load(ConverterSpec, "llama")().write(loaded, folder)
    state = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in state
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    assert torch.equal(our_logits(load_model_folder(plugins, folder, Backend()).model), our_logits(loaded.model))
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_model_folder(plugins, folder, Backend())


def test_what_does_not_come_back_is_not_kept(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flip(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file({**tensors, "model.norm.weight": -tensors["model.norm.weight"]}, path, metadata)

    monkeypatch.setattr("mm.runtime.models.folder.save_file", flip)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight did not come back"):
        plugins.load(ConverterSpec, "llama")().write(make(plugins, SHAPES["llama"], tokenizer), tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "wrong", "right"),
    [("llama", "qwen3", "llama"), ("qwen3", "llama", "qwen3"), ("qwen2", "llama", "qwen2"), ("llama", "qwen2", "llama")],
)
def test_a_format_that_cannot_hold_the_model_names_one_that_can(
    shape: str, wrong: str, right: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = native(tmp_path / "own", make(plugins, SHAPES[shape], tokenizer))
    with pytest.raises(Unsupported, match=rf"{wrong} cannot hold this model: .*Use --to {right}\."):
        convert(plugins, model, tmp_path / "out", to=wrong, workspace=Workspace(tmp_path))
    assert not (tmp_path / "out").exists()


def test_what_no_format_holds(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = DenseConfig(**{**SMALL, "hidden_size": 30}, head_dim=8)
    model = native(tmp_path / "own", make(plugins, config, tokenizer))
    with pytest.raises(UsageError, match="no installed converter can hold it"):
        convert(plugins, model, tmp_path / "out", workspace=Workspace(tmp_path))
    with pytest.raises(Unsupported, match="multiple of num_attention_heads=4"):
        convert(plugins, model, tmp_path / "out", to="llama", workspace=Workspace(tmp_path))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen3", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"rope_parameters": {**YARN5, "truncate": False}}, "truncate is False"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "different for each kind of layer"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0\.5"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantized"),
        ("llama", {"hidden_size": ...}, "hidden_size is missing"),
        ("llama", {"num_key_value_heads": 3}, "'num_key_value_heads' must divide"),
    ],
)
def test_a_config_that_ours_cannot_hold(
    kind: str, changes: dict[str, Any], message: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    converter = plugins.load(ConverterSpec, kind)()
    config = converter.write_config(attrs.evolve(SHAPES[kind], vocab_size=320), tokenizer)
    (tmp_path / "config.json").write_text(json.dumps(config))
    edit_config(tmp_path, **changes)
    with pytest.raises(Unsupported, match=message):
        converter.read(tmp_path)


def test_damaged_and_foreign_folders(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    plugins.load(ConverterSpec, "llama")().write(make(plugins, SHAPES["llama"], tokenizer), folder)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="tensor extra is not expected"):
        load_model_folder(plugins, folder, Backend())
    save_file({n: t for n, t in state.items() if n != "model.norm.weight"}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight is missing"):
        load_model_folder(plugins, folder, Backend())
    save_file({**state, "model.norm.weight": torch.zeros(31)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \(31,\), not \(32,\)"):
        load_model_folder(plugins, folder, Backend())
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model_folder(plugins, folder, Backend())
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="holds no weights"):
        load_model_folder(plugins, folder, Backend())
    edit_config(folder, architectures=["MysteryForCausalLM"])
    with pytest.raises(UsageError, match=r"no converter reads MysteryForCausalLM\. Readable: .*LlamaForCausalLM"):
        load_model_folder(plugins, folder, Backend())


def test_nothing_is_left_when_writing_is_cut_off(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, out = make(plugins, SHAPES["llama"], tokenizer), tmp_path / "made" / "hf"

    def cut_off(self: Tokenizer, folder: Path) -> None:
        assert (folder / "model.safetensors").exists()
        assert not out.exists()  # so a kill at this moment, too, leaves nothing under that name
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        plugins.load(ConverterSpec, "llama")().write(loaded, out)
    assert list(out.parent.iterdir()) == []


def test_half_precision(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = make(plugins, SHAPES["qwen3"], tokenizer)
    model, workspace = native(tmp_path / "own", loaded), Workspace(tmp_path)
    convert(plugins, model, tmp_path / "bf16", dtype="bf16", workspace=workspace)
    assert read_config(tmp_path / "bf16")["torch_dtype"] == "bfloat16"
    back = named_tensors(load_model_folder(plugins, tmp_path / "bf16", Backend()).model)
    ours = named_tensors(loaded.model)
    assert all(torch.equal(back[name], ours[name].bfloat16().float()) for name in ours)
    with torch.no_grad():
        loaded.model.model.norm.weight[3] = 1e6
    shutil.rmtree(tmp_path / "own")
    native(tmp_path / "own", loaded)
    for to in ("qwen3", "native"):
        with pytest.raises(UsageError, match=r"model\.norm\.weight has values that are not finite in torch\.float16"):
            convert(plugins, model, tmp_path / "fp16", to, "fp16", workspace=workspace)
    assert not (tmp_path / "fp16").exists()


def test_foreign_to_native(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = written_by_transformers(tmp_path / "hf", "Qwen3", tokenizer)
    convert(plugins, str(folder), tmp_path / "own", workspace=Workspace(tmp_path))
    assert read_config(tmp_path / "own")["model_type"] == "mm"
    own = load_model_folder(plugins, tmp_path / "own", Backend())
    torch.testing.assert_close(our_logits(own.model), their_logits(folder), atol=1e-5, rtol=1e-5)


def test_what_stands_at_out(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model, workspace = native(tmp_path / "own", make(plugins, SHAPES["llama"], tokenizer)), Workspace(tmp_path)
    for out in (model, str(tmp_path)):
        with pytest.raises(UsageError, match="holds the model to be converted"):
            convert(plugins, model, out, force=True, workspace=workspace)
    out = tmp_path / "out"
    out.mkdir()
    convert(plugins, model, out, workspace=workspace)
    with pytest.raises(UsageError, match="is not empty: choose another place, or pass --force"):
        convert(plugins, model, out, workspace=workspace)
    (out / "stale").touch()
    convert(plugins, model, out, force=True, workspace=workspace)
    assert not (out / "stale").exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="holds no model"):
        convert(plugins, model, tmp_path / "precious", force=True, workspace=workspace)
    with pytest.raises(UsageError, match="Did you mean 'llama'"):
        convert(plugins, model, tmp_path / "new", to="lama", workspace=workspace)
