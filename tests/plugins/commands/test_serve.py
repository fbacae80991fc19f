"""`mm serve` as a program: its address, its signals, and the lines that it refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from served import save_tiny_model

from mm.core.plugins import PluginManager
from mm.runtime.serving.server import listen
from mm.testing.pytest_plugin import CommandLine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> Path:
    return save_tiny_model(installed, tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    words = ["serve", str(folder), f"again={folder}", "--port", "0", "--api-key", "key", "--dtype", "fp32"]
    with subprocess.Popen([sys.executable, "-m", "mm", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "serving on" in line:
                break
        url = lines[-1].split("serving on ")[1].split(";")[0]
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer secret"}, timeout=60, trust_env=False) as client:
            assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny", "again"]
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        process.send_signal(number)
        assert process.wait(30) == 0
    assert any("parameters in float32 on cpu, weights" in line and "peak" in line for line in lines)


def test_what_is_refused_before_anything_is_loaded(folder: Path, mm_cli: CommandLine, mm_workspace: Path) -> None:
    (mm_workspace / "empty").write_text("")
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        lines = {
            f"serve {folder} --port {port}": f"Port {port} of 127.0.0.1 is in use",
            f"serve {folder} --host 0.0.0.0": "give --api-key",
            f"serve {folder} --api-key none.txt": "--api-key none.txt",
            f"serve {folder} --api-key empty": "the file is empty",
            f"serve {folder} --api-key env:NOT_SET_HERE": "NOT_SET_HERE is not set",
            f"serve {folder} x={folder} x={folder} --port 0": "Two models are named 'x'",
            "serve no-such-model --port 0": "No model at 'no-such-model'",
            f"serve {folder} --lora tuned --port 0": "expected NAME=RUN",
            f"serve {folder} --lora tiny={folder} --port 0": "has that name already",
            f"serve {folder} --lora a=nowhere --port 0": "No adapter at 'nowhere'",
            f"serve {folder} --lora a={folder}:other --port 0": "No model 'other' is served",
            f"serve {folder} --port 70000": "--port",
            "serve": "MODEL",
        }
        for line, message in lines.items():
            assert message in mm_cli(*line.split(), code=2).err, line
