"""The files of docker/: Dockerfiles are linted, compose files fit their schema and the records, and docs/docker.md the code."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import check_jsonschema
import click
import jsonschema
import pytest
import yaml

from mm.cli import mm
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.plugins.commands.docker.compose import SERVERS, as_yaml, document, service_name
from mm.plugins.commands.run.command import read_stages
from mm.runtime.devices.container_engine import _SOURCES
from mm.runtime.runs.pipeline import check_options, expand, ordered, stage_options

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
PAGES = [ROOT / "docs" / "docker.md", ROOT / "docs" / "docker_zh.md"]
BUILT_IN = ("cpu", "cuda", "npu")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([program, "--no-color", path], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_every_dockerfile_has(path: Path, installed: PluginManager) -> None:
    text = path.read_text(encoding="utf-8")
    (base,) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert re.search(r":[0-9]+\.[0-9]+", base) and "latest" not in text
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["${BASE}"]
    assert 'HEALTHCHECK --interval=5m --timeout=1m CMD ["mm", "plugins"]' in text
    user = re.findall(r"^USER (.*)$", text, re.MULTILINE)
    container = installed.get(BackendSpec, path.suffix[1:]).container
    assert user == ([] if container.root else ["10001:10001"])
    installs = re.findall(r"pip install [^&\n]*", text)
    assert installs and all("--no-cache-dir" in line and ("-c " in line or "--no-deps" in line) for line in installs)
    assert installs[0].split()[-1].startswith("torch") and not re.search(r"https?://", text)


def test_the_npu_image_has_the_versions_of_its_extra() -> None:
    extra = re.search(r'"npu": \[(.*?)\]', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert extra
    wanted = " ".join(re.findall(r'"(.*?)"', extra[1]))
    assert f"constraints.txt {wanted}\n" in (DOCKER / "Dockerfile.npu").read_text(encoding="utf-8")


def test_an_image_is_built_from_what_the_context_has() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(_SOURCES)
    for path in DOCKERFILES:
        lines = re.findall(r"^COPY (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        copied = [word for line in lines for word in line.split()[:-1]]
        assert {*copied} <= {*_SOURCES} and all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("path", [ROOT / "compose.yaml", DOCKER / "compose.yaml"], ids=["compose.yaml", "docker/compose.yaml"])
def test_a_compose_file_fits_the_schema(path: Path) -> None:
    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)


def test_the_compose_file_is_what_the_command_prints(installed: PluginManager) -> None:
    specs = [installed.get(BackendSpec, name) for name in BUILT_IN]
    written = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    assert written == as_yaml(document(specs, (0,))), "run: mm docker compose --print > docker/compose.yaml"


def test_the_root_file_starts_one_container(compose: dict[str, Any]) -> None:
    root = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert root == {"include": ["docker/compose.yaml"]}
    assert [name for name, service in compose["services"].items() if not service.get("profiles")] == ["train"]


def test_every_service_has_a_health_check_and_closed_ports(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert [*services] == [*(service_name(name) for name in BUILT_IN), *(server.name for server in SERVERS)]
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "privileged" not in service and service["shm_size"] == "1024m", name
        for path in [service["build"]["dockerfile"]] if "build" in service else []:
            assert (DOCKER / service["build"]["context"] / path).is_file(), name
    for server in SERVERS:
        words = services[server.name]["command"]
        assert words[words.index("--tool-call-parser") + 1] == "hermes" and "--enable-auto-tool-choice" in words
        assert words[words.index("--reasoning-parser") + 1] == "qwen3"
        assert "/health" in services[server.name]["healthcheck"]["test"][-1]
        assert re.search(r":-[\w./-]+:v\d+\.\d+\.\d+}$", services[server.name]["image"])


# ---- docs/docker.md


def rows(page: Path) -> list[list[str]]:
    """The cells of every table's rows."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_lines_of_the_tables_are_valid(page: Path, installed: PluginManager) -> None:
    """Every `mm ...` in a table is a line that mm accepts, with the words in capitals as values."""
    found = [code for row in rows(page) for cell in row for code in re.findall(r"`mm ([^`]+)`", cell)]
    assert len(found) > 15
    for line in found:
        words = shlex.split(line)
        context = mm.make_context("mm", words, obj=installed)
        name, command, rest = mm.resolve_command(context, words)
        assert name and command
        if name == "run":
            params = command.make_context(name, rest, parent=context, obj=installed).params
            names, options = read_stages(params["words"], stage_options(installed))
            layer = Layer(origin=page.name, values=options, textual=True)
            check_options(expand(installed, [*names, "build"]), installed, [layer])
        elif isinstance(command, click.Group):
            inner = command.make_context(name, rest, parent=context, obj=installed)
            left = [*getattr(inner, "_protected_args", []), *inner.args]
            _, last, words = command.resolve_command(inner, left)
            assert last
            last.make_context(left[0], words, parent=inner, obj=installed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_name_what_there_is(page: Path, installed: PluginManager, compose: dict[str, Any]) -> None:
    text = page.read_text(encoding="utf-8")
    found = {row[0]: row[1:] for row in rows(page)}
    for preset in ("all", "core"):
        names = [spec.name for spec in ordered(expand(installed, [preset]))]
        assert re.split(r", |、", found[f"`{preset}`"][0]) == names
    variables = set(re.findall(r"\$\{(\w+):-([^}]*)}", (DOCKER / "compose.yaml").read_text(encoding="utf-8")))
    for name, default in variables:
        assert found[f"`{name}`"][0] == f"`{default}`"
    for path in DOCKERFILES:
        (base,) = re.findall(r"^ARG BASE=(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert f"`{base}`" in text or path.suffix == ".cuda"
    for service in compose["services"]:
        assert f"`{service}`" in text


def test_the_options_of_the_older_script_are_all_in_the_table() -> None:
    older = (
        "hidden-size", "num-hidden-layers", "use-moe", "resume", "weight", "reward-model", "teacher-hidden-size", "vllm-image",
        "vllm-port", "max-model-len", "force-build", "inside-docker", "dry-run",
    )  # fmt: skip
    for page in PAGES:
        first = [row[0] for row in rows(page)]
        assert [name for name in older if not any(cell.startswith(f"`--{name}") for cell in first)] == []
