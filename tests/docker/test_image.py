"""The CPU image, built from docker/Dockerfile.cpu with buildah on a base that debootstrap makes, and run.

No engine and no registry of images is needed: `apt-get install buildah debootstrap`, root, and the package indexes that pip and
apt are configured for. The base is kept in build/test-docker.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import engine_stand_in
import pytest

from mm.runtime.devices.container import flat, image_name
from mm.runtime.devices.container_engine import SOURCES_LABEL, build_of, sources_digest

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "test-docker"
BASE = "localhost/mm-base:bookworm"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
SMALL = ["--preset", "tiny", "--data", "classics:en", "--max-steps", "3", "--global-batch-size", "2", "--max-length", "64"]

pytestmark = pytest.mark.docker


@attrs.frozen
class Image:
    """The built image, the digest of the sources that it was built from, and the storage of buildah that holds it."""

    name: str
    sources: str
    environ: dict[str, str]

    def buildah(self, *words: object, code: int = 0) -> str:
        """The output of a buildah command."""
        done = subprocess.run(["buildah", *map(str, words)], env=self.environ, capture_output=True, text=True, timeout=1800)
        assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()

    def config(self) -> dict[str, object]:
        """The image's configuration, as docker writes it."""
        found = json.loads(self.buildah("inspect", "--type", "image", self.name))
        return {**found["Docker"]["config"], "history": found["Docker"]["history"]}


def environment(folder: Path) -> dict[str, str]:
    """The variables with which buildah keeps everything in one folder and needs no kernel features."""
    conf = folder / "storage.conf"
    conf.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n')
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MM_", "PYTHON", "PYTEST"))}
    return {**kept, "CONTAINERS_STORAGE_CONF": str(conf), "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}


def pip_of_this_machine(folder: Path) -> list[str]:
    """The arguments that give a build this machine's pip configuration for as long as it lasts: a secret, and mounts of the
    folders and certificates that it names."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    values = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        values[key.rpartition(".")[2]] = value.strip("'\"").replace("\\n", " ")
    values.pop("constraint", None)  # the project's own are used
    parser = configparser.RawConfigParser()
    parser["global"] = values
    with open(folder / "pip.conf", "w", encoding="utf-8") as file:
        parser.write(file)
    named = {word.removeprefix("file://") for value in values.values() for word in value.split()}
    places = {str(Path(path).parent if Path(path).is_file() else path) for path in named if path.startswith("/")}
    # an index in a folder may link to files beside it
    places = {str(Path(path).parent) if Path(path).name == "simple" else path for path in places}
    mounts = [word for path in sorted(places) if Path(path).is_dir() for word in ("-v", f"{path}:{path}:ro")]
    return ["--secret", f"id=pip,src={folder / 'pip.conf'}", *mounts]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    missing = [program for program in ("buildah", "debootstrap", "unshare") if shutil.which(program) is None]
    if missing or os.getuid() != 0:
        pytest.fail(f"needs root and {', '.join(missing) or 'nothing else'}: apt-get install buildah debootstrap")
    folder = tmp_path_factory.mktemp("containers")
    found = Image(f"localhost/{image_name('cpu')}", sources_digest(ROOT, "cpu"), environment(folder))
    base = KEPT / "bookworm"
    if not (base / "done").exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(base)], check=True)
        (base / "done").touch()
    made = found.buildah("from", "scratch")
    found.buildah("copy", made, base, "/")
    found.buildah("commit", "--rm", made, BASE)
    command = build_of(
        "cpu", ROOT, engine="buildah", image=found.name, arguments={"BASE": BASE}, extra=tuple(pip_of_this_machine(folder))
    )
    found.buildah(*flat(command)[1:])
    yield found
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture(scope="module")
def container(image: Image) -> str:
    return image.buildah("from", image.name)


def test_what_the_image_says_of_itself(image: Image) -> None:
    config = image.config()
    assert config["User"] == "10001:10001" and config["Entrypoint"] == ["mm"] and config["WorkingDir"] == "/workspace"
    assert config["Healthcheck"]["Test"] == ["CMD", "mm", "plugins"]  # type: ignore[index]
    assert config["Labels"][SOURCES_LABEL] == image.sources  # type: ignore[index]
    # of this machine's pip configuration nothing is left
    assert "find-links" not in str(config) and "://" not in str(config)


def test_nothing_of_the_build_is_left(image: Image, container: str) -> None:
    found = image.buildah("run", "--user", "0:0", container, "--", "find", "/", "-xdev", "-name", "pip.conf", "-size", "+0")
    assert found == ""
    assert image.buildah("run", container, "--", "sh", "-c", "ls /opt/source") == "LICENSE\nREADME.md\nconstraints.txt\nmm\n" + (
        "pyproject.toml\nsetup.py"
    )


def test_it_runs_as_an_ordinary_user(image: Image, container: str) -> None:
    assert image.buildah("run", container, "--", "id", "-u") == "10001"
    assert image.buildah("run", container, "--", "mm", "--version").startswith("mm, version")
    listed = image.buildah("run", container, "--", "mm", "plugins")
    assert "algorithm" in listed and "broken" not in listed
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    code = "from importlib.metadata import version as v; print(v('torch'), v('transformers'), v('numpy'))"
    torch, *others = image.buildah("run", container, "--", "python3", "-c", code).split()
    assert torch.partition("+")[0] == pinned["torch"] and others == [pinned["transformers"], pinned["numpy"]]


def test_a_training_in_it(image: Image, container: str) -> None:
    image.buildah("run", container, "--", "mm", "train", "--algo", "pretrain", *SMALL, "--run", "base", "--backend", "cpu")
    answer = image.buildah("run", container, "--", "mm", "generate", "base", "Hello", "--raw", "--max-new-tokens", "4", "--json")
    assert json.loads(answer)


def test_another_user_and_a_folder_of_the_host(image: Image, container: str, tmp_path: Path) -> None:
    """A user of whom the image knows nothing, as with `docker run --user`."""
    os.chown(tmp_path, 12345, 12345)
    options = ["--user", "12345:12345", "-v", f"{tmp_path}:{tmp_path}", "--workingdir", tmp_path]
    options += ["-e", f"MM_WORKSPACE={tmp_path}"]
    image.buildah("run", *options, container, "--", "mm", "train", "--algo", "pretrain", *SMALL, "--run", "base")
    assert json.loads((tmp_path / "runs" / "base" / "manifest.json").read_text())["state"] == "finished"
    assert (tmp_path / "runs" / "base").stat().st_uid == 12345


def test_a_root_that_cannot_be_written(image: Image, container: str, tmp_path: Path) -> None:
    """The image's files are mounted without writing, as with `docker run --read-only --tmpfs /tmp:exec`."""
    os.chown(tmp_path, 12345, 12345)
    root, inside = image.buildah("mount", container), tmp_path.parent / "root"
    inside.mkdir()
    environ = " ".join(f"'{value}'" for value in image.config()["Env"])  # type: ignore[attr-defined]
    line = f"mm train --algo pretrain {' '.join(SMALL)} --run base"
    script = f"""
        set -e
        mount --bind {root} {inside}
        mount -o remount,ro,bind {inside}
        mount -t tmpfs tmpfs {inside}/tmp
        mount --bind {tmp_path} {inside}/workspace
        mount -t proc proc {inside}/proc
        mount --bind /dev {inside}/dev
        if touch {inside}/opt/written; then exit 9; fi
        cd /
        exec env -i {environ} chroot --userspec=12345:12345 {inside} sh -c 'cd /workspace && {line}'
    """
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Read-only file system" in done.stderr
    assert json.loads((tmp_path / "runs" / "base" / "manifest.json").read_text())["state"] == "finished"


def test_the_stages_run_in_the_image(image: Image, tmp_path: Path) -> None:
    """`mm run --docker`, with a program that passes the engine's commands on to buildah."""
    work = tmp_path / "work"
    work.mkdir()
    stand_in = engine_stand_in.install(tmp_path / "bin", tmp_path / "notes")
    environ = {**image.environ, **stand_in, "STAND_IN_BUILDAH": "1", "PYTHONPATH": str(ROOT)}
    line = ["run", "tokenizer", "pretrain", *SMALL, "--tokenizer-vocab-size", "400", "--backend", "cpu", "--docker", "--json"]
    done = subprocess.run([sys.executable, "-m", "mm", *line], cwd=work, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert [(o["stage"], o["state"]) for o in json.loads(done.stdout)] == [("tokenizer", "done"), ("pretrain", "done")]
    (run,) = (work / "runs").iterdir()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
