"""The known engines, and where each is looked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm.core.errors import UsageError
from mm.runtime.generation.verification.verifier import Verifier
from mm.runtime.models.head_sizes import head_size_of, refusal_on_cpu

PROGRAMS = Path(__file__).with_name("programs")
# the folder of `make engines`
FOLDER = "MM_ENGINES"
Prepared = tuple[Sequence[str], Mapping[str, Any]]


def _folder() -> Path:
    return Path(os.environ.get(FOLDER) or Path(__file__).parents[3] / "build/engines")


def _is_address(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def _python(program: str, package: str, environment: str = "", *, server: bool = False) -> Callable[[str], Prepared]:
    """`Verifier.prepare` for a program in Python: WHERE is an interpreter that has the package, or the address of a `server`. By
    default it is this interpreter or, if that lacks the package, the one of `make engines` in that environment."""

    def prepare(where: str) -> Prepared:
        if _is_address(where):
            if not server:
                raise UsageError(f"--verify: {where} is an address. Name an interpreter that has {package}, or none.")
            return [sys.executable, str(PROGRAMS / program)], {"address": where}
        built = _folder() / environment if environment else None
        known = [str(built / "bin/python")] if built and (built / "installed").exists() else []
        own = [where] if where else [sys.executable, *known]
        for python in own:
            if shutil.which(python) and not subprocess.run(
                [python, "-c", f"import importlib.util as u, sys; sys.exit(not u.find_spec({package!r}))"], check=False
            ).returncode:
                return [python, str(PROGRAMS / program)], {"address": ""}
        raise UsageError(
            f"--verify: no {package} in {' or '.join(own)}. Name an interpreter that has it (ENGINE:/path/to/python)"
            + (", or run `make engines`." if environment else f", or: pip install {package}.")
        )

    return prepare


def _llama_cpp(where: str) -> Prepared:
    """WHERE is a llama-server, its address, or a node_modules folder with node-llama-cpp (by default that of `make engines`)."""
    if _is_address(where):
        return [sys.executable, str(PROGRAMS / "run_llama_server.py")], {"address": where}
    if where and shutil.which(where):
        return [sys.executable, str(PROGRAMS / "run_llama_server.py")], {"address": "", "server": where}
    modules = Path(where or _folder() / "node_modules").resolve()
    if not (modules / "node-llama-cpp").is_dir():
        raise UsageError(
            f"--verify llama.cpp: {where or modules} is neither a llama-server nor a folder with node-llama-cpp. "
            "Name one of them (llama.cpp:WHERE), or run `make engines`."
        )
    if not (node := shutil.which("node")):
        raise UsageError("--verify llama.cpp: node-llama-cpp needs node, which is not installed. Or name a llama-server.")
    return [node, str(PROGRAMS / "run_llama_cpp.mjs")], {"modules": str(modules)}


def _ollama(where: str) -> Prepared:
    """WHERE is the address of a server; by default that of this machine."""
    if not where and not shutil.which("ollama"):
        raise UsageError("--verify ollama: Ollama is not installed here. Install it, or name its address (ollama:http://HOST:11434).")
    return [sys.executable, str(PROGRAMS / "run_ollama.py")], {"address": where or "http://127.0.0.1:11434"}


# of llama.cpp, which quantises activations too, and computes half-precision weights in half precision
_LLAMA_CPP = {"fp32": 2e-4, "fp16": 0.02, "": 0.2}

# of vLLM, which quantises activations for w8a8, and computes with w4a16 in bfloat16; all else in float32
_VLLM = {"w8a8": 1.0, "w4a16": 0.5, "": 1e-4}


def _vllm_refusal(values: Mapping[str, Any], where: str) -> str:
    """For a CPU; an interpreter or a server that the user names may have a card."""
    return refusal_on_cpu(size) if not where and (size := head_size_of(values)) else ""


ENGINES = {
    verifier.name: verifier
    for verifier in (
        Verifier(
            name="transformers", summary="Hugging Face transformers.", layouts=True, bounds={"": 1e-4},
            prepare=_python("run_transformers.py", "transformers"),
        ),
        Verifier(
            name="onnxruntime", summary="onnxruntime, by the file's KV cache.", formats=("onnx",), bounds={"": 1e-4},
            prepare=_python("run_onnxruntime.py", "onnxruntime"),
        ),
        Verifier(
            name="llama.cpp", summary="llama.cpp, by node-llama-cpp or a llama-server.", formats=("gguf",), bounds=_LLAMA_CPP,
            prepare=_llama_cpp,
        ),
        Verifier(
            name="vllm", summary="vLLM, in one process.", layouts=True, formats=("compressed-tensors",), bounds=_VLLM,
            prepare=_python("run_vllm.py", "vllm", "vllm"), refusal=_vllm_refusal,
        ),
        Verifier(
            name="vllm-server", summary="vLLM's HTTP server.", layouts=True, formats=("compressed-tensors",), bounds=_VLLM,
            prepare=_python("run_vllm_server.py", "vllm", "vllm", server=True), refusal=_vllm_refusal,
        ),
        Verifier(name="ollama", summary="A running Ollama.", formats=("ollama",), bounds=_LLAMA_CPP, prepare=_ollama),
    )
}  # fmt: skip


def own_program(program: Path) -> Verifier:
    """The verifier of a program that the user names, for every format. Raises UsageError if it is not there."""
    if not program.is_file():
        raise UsageError(f"--verify {program}: there is no such program.")
    return Verifier(
        name=program.name, summary="A program of the user's.", layouts=True, formats=("*",), bounds={"fp32": 1e-4, "": 1.0},
        prepare=lambda where: ([sys.executable, str(program)], {"address": ""}),
    )  # fmt: skip
