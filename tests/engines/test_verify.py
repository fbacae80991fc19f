"""`mm convert --verify` in the engines themselves, for trained models of both generations, dense and with experts."""

from __future__ import annotations

from pathlib import Path

import pytest

import mm
from mm.core.errors import UsageError

pytestmark = pytest.mark.engines
KINDS = {"2": ("dense", "tiny"), "3": ("dense", "tiny3"), "2-moe": ("moe", "tiny"), "3-moe": ("moe", "tiny3")}
LAYOUTS = {"2": "llama", "3": "qwen3", "2-moe": "qwen2-moe", "3-moe": "qwen3-moe"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a small trained model of each kind."""
    workspace = tmp_path_factory.mktemp("verify")
    few = {"max_steps": 60, "global_batch_size": 8, "max_length": 256, "eval_ratio": 0.0, "learning_rate": 5e-3}
    for name, (arch, preset) in KINDS.items():
        mm.train(
            "sft", arch=arch, preset=preset, tokenizer="default", data="skills", run=name, backend="cpu", dtype="fp32",
            workspace=workspace, quiet=True, **few,
        )  # fmt: skip
    return workspace


def proved(workspace: Path, kind: str, to: str, engine: str, **options: str) -> None:
    """Convert and verify; skipped with the reason if the engine is not there. The verdict is printed."""
    name = "-".join([kind, to, engine.replace("/", "_"), *options.values()])
    out = workspace / (f"{name}.gguf" if to == "gguf" else name)
    try:
        mm.convert(kind, out, to=to, verify=engine, workspace=workspace, **options)
    except UsageError as error:
        if "make engines" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_every_kind_is_proved(kind: str, engine: str, trained: Path) -> None:
    proved(trained, kind, "gguf" if engine == "llama.cpp" else LAYOUTS[kind], engine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["vllm", "vllm-server"])
def test_every_kind_is_proved_in_vllm(kind: str, engine: str, trained: Path) -> None:
    proved(trained, kind, LAYOUTS[kind], engine)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_proved_in_transformers_4(kind: str, trained: Path) -> None:
    python = Path(__file__).parents[2] / "build/engines/transformers4/bin/python"
    if not python.exists():
        pytest.skip(f"no {python}: make engines")
    proved(trained, kind, LAYOUTS[kind], f"transformers:{python}")


@pytest.mark.parametrize("kind", ["2", "3"])
def test_a_dense_model_is_proved_in_onnxruntime(kind: str, trained: Path) -> None:
    proved(trained, kind, "onnx", "onnxruntime")


@pytest.mark.parametrize("kind", ["fp16", "bf16", "q8_0", "q5_1", "q4_0"])
def test_every_type_of_a_gguf_file_is_proved(kind: str, trained: Path) -> None:
    proved(trained, "3", "gguf", "llama.cpp", **{"dtype" if kind in ("fp16", "bf16") else "quantise": kind})


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_weights_are_proved(dtype: str, trained: Path) -> None:
    proved(trained, "2-moe", LAYOUTS["2-moe"], "transformers", dtype=dtype)
