"""A chip that cannot be used is explained in one sentence, with the way on."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from mm.backends import cuda, npu
from mm.backends.npu.backend import NpuBackend
from mm.core.config.autoselect import choose_backend
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.plugins.commands.plugins.details import describe
from mm.runtime.devices.accelerator import AcceleratorBackend
from mm.runtime.devices.container import card_devices


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return PluginManager.discover()


@pytest.mark.parametrize(
    "source, cause",
    [
        ("raise ImportError('libhccl.so: cannot open shared object file')", "torch_npu cannot be imported: libhccl.so: cannot"),
        ("raise AttributeError('no _register')", "torch_npu cannot be imported: no _register"),
        ("", "torch_npu was imported and registers no device torch.npu"),
    ],
    ids=["no CANN", "for another torch", "registers nothing"],
)
def test_a_torch_npu_that_does_not_work(source: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence does not speak of an option, since npu may have been chosen automatically."""
    (tmp_path / "torch_npu.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    with pytest.raises(UsageError) as raised:
        NpuBackend().setup()
    assert str(raised.value).startswith(f"backend npu: {cause}")
    assert "set_env.sh" in str(raised.value)
    assert str(raised.value).endswith("--backend cpu runs without it.")
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)


def test_a_chip_that_torch_does_not_know() -> None:
    class NewChip(AcceleratorBackend):
        device_type = "a_new_chip"

    with pytest.raises(UsageError, match=r"backend a_new_chip: torch has no torch\.a_new_chip: .* --backend cpu runs without it"):
        NewChip().setup()


def test_a_missing_driver_names_the_way_on(plugins: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu, "_MANAGER", tmp_path / "davinci_manager")
    monkeypatch.setattr(cuda, "_DEVICES", (tmp_path / "nvidiactl",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("npu", "cuda"):
        way_on = rf"install it, or start the container with 'mm docker run --backend {name}'.* --backend cpu works here\.$"
        with pytest.raises(UsageError, match=way_on):
            choose_backend(plugins, name)


@pytest.mark.parametrize("name, meant", [("ascend", "npu"), ("Nvidia", "cuda"), ("cpuu", "cpu"), ("an", None)])
def test_a_vendors_name_hints_at_the_backend(name: str, meant: str | None, plugins: PluginManager) -> None:
    with pytest.raises(UsageError) as raised:
        plugins.get(BackendSpec, name)
    hint = re.search(r"Did you mean '(\w+)'\?", str(raised.value))
    assert (hint and hint[1]) == meant


def test_the_container_of_npu_has_every_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("davinci0", "davinci3", "davinci_manager"):
        (tmp_path / name).touch()
    monkeypatch.setattr(npu, "_MANAGER", tmp_path / "davinci_manager")
    (spec,) = npu.mm_backends()
    devices = card_devices(spec.container, None)
    assert [Path(path).name for path in devices][:3] == ["davinci0", "davinci3", "davinci_manager"]


def test_npu_smi_is_mounted_from_where_the_driver_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbin").touch()
    monkeypatch.setattr(npu, "_TOOLS", [tmp_path / "bin", tmp_path / "sbin"])
    (spec,) = npu.mm_backends()
    assert f"{tmp_path / 'sbin'}:{tmp_path / 'sbin'}:ro" in spec.container.mounts


def test_the_container_is_a_line_for_the_shell(plugins: PluginManager) -> None:
    text = describe(plugins, "npu")
    command = text[text.index("docker run --rm") :].replace("\\\n", " ")
    words = shlex.split(command.splitlines()[0])
    devices = card_devices(plugins.get(BackendSpec, "npu").container, None)
    assert [words[i + 1] for i, word in enumerate(words) if word == "--device"] == list(devices)
    assert words[-1] == "IMAGE"
    assert max(map(len, text[text.index("docker run --rm") :].splitlines())) < 100
    assert "Not run on hardware yet" in text
