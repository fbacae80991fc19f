"""Building the token cache in several processes: the same bytes, and nothing left behind whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from mm.contracts import Format
from mm.core.errors import DataError, MMError, UsageError
from mm.core.records import FormatSpec
from mm.plugins.sources.files.source import Files
from mm.runtime.data import cache, encoding_jobs as jobs
from mm.runtime.data.cache import TokenStore, build_or_open
from mm.runtime.text.rows import Encoded
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer


@attrs.frozen
class Deed:
    """A row that does something to the process that encodes it."""

    kind: ClassVar[str] = "deed"
    keep: ClassVar[bool] = True

    deed: str

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        print(end="a plugin prints\n" if self.deed == "sleep" else "")
        if self.deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "sleep":
            time.sleep(0.2)
        if self.deed == "usage":
            raise UsageError("the tokenizer lacks something")
        if self.deed == "bug":
            raise RuntimeError("a bug")
        ids = tokenizer.encode(self.deed)[:max_length]
        values = {"process": os.getpid(), "torch": "torch" in sys.modules}
        return Encoded(units=[[(ids, [True] * len(ids))]] * (len(self.deed) % 3), values=[values] * (len(self.deed) % 3))


class Deeds(Format):
    def parse(self, row: Mapping[str, Any]) -> Deed:
        if row["deed"] == "bad":
            raise DataError("a bad deed")
        return Deed(row["deed"])


DEED = FormatSpec(name="deed", summary="", target=f"{__name__}:Deeds", row="deed", recognise=lambda row: "deed" in row)


def write(path: Path, deeds: list[str]) -> Path:
    path.write_text("".join(json.dumps({"deed": deed}) + "\n" for deed in deeds), encoding="utf-8")
    return path


def build(path: Path, folder: Path, workers: int, **rest: Any) -> TokenStore:
    source = Files(None, str(path), "deed")
    return build_or_open(source, [DEED], tiny_tokenizer(), max_length=16, folder=folder, workers=workers, **rest)


@pytest.fixture(autouse=True)
def small_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows a piece, and other processes after the first of them."""
    monkeypatch.setattr(jobs, "_ROWS", 8)
    monkeypatch.setattr(cache, "_SERIAL_CHUNKS", 1)


def children() -> set[int]:
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def content(folder: Path) -> dict[str, bytes]:
    """The files of the one store in a cache folder, but for what says who encoded its rows."""
    (store,) = [path for path in folder.iterdir() if path.is_dir()]
    others = ("value-process.bin", "value-torch.bin", "info.json")
    return {file.name: file.read_bytes() for file in store.iterdir() if file.name not in others}


def test_several_processes_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deeds = [("bad" if n % 13 == 5 else f"deed {n} " * (n * n % 7)) for n in range(150)]
    path = write(tmp_path / "a.jsonl", deeds)
    options = {"skip_bad_rows": True}
    alone = build(path, tmp_path / "alone", 1, **options)
    together = build(path, tmp_path / "together", 3, **options)
    assert content(tmp_path / "alone") == content(tmp_path / "together")
    values = [together.unit(i).values for i in range(len(together))]
    used = {v["process"] for v in values}
    assert len(used) > 1 and os.getpid() in used
    assert {v["torch"] for v in values if v["process"] != os.getpid()} == {0}  # a worker imports no torch
    assert together.row(len(together) - 1) == alone.row(len(alone) - 1)
    assert attrs.evolve(alone.info, checks={}) == attrs.evolve(together.info, checks={})
    assert (alone.info.rows, alone.info.bad.count) == (138, 12)
    monkeypatch.setattr(jobs, "_ROWS", 3)  # nor does the size of the pieces show
    build(path, tmp_path / "pieces", 2, **options)
    assert content(tmp_path / "alone") == content(tmp_path / "pieces")


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.endswith(".lock")]


def test_a_worker_that_is_killed_gives_one_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["fine"] * 30 + ["die"] + ["fine"] * 100)
    with pytest.raises(MMError, match=rf"encoding 8 rows, starting at {path}:25, was killed by signal 9. Often memory ran out"):
        build(path, tmp_path / "cache", 2)
    assert leftovers(tmp_path / "cache") == []


def test_a_worker_that_fails_gives_its_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["fine"] * 30 + ["usage"] + ["fine"] * 100)
    with pytest.raises(UsageError, match=r"^the tokenizer lacks something$"):
        build(path, tmp_path / "cache", 2)
    path = write(tmp_path / "b.jsonl", ["fine"] * 30 + ["bug"] + ["fine"] * 100)
    said = rf"(?s)Encoding 8 rows, starting at {path}:25, failed:.*RuntimeError: a bug\nwhile encoding {path}:31"
    with pytest.raises(MMError, match=said):
        build(path, tmp_path / "cache", 2)
    assert leftovers(tmp_path / "cache") == []


def test_bad_rows_stop_a_build_in_several_processes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["fine"] * 30 + ["bad"] + ["fine"] * 400)
    with pytest.raises(DataError, match=rf"^{path}:31: a bad deed\nmm data check"):
        build(path, tmp_path / "cache", 2)
    assert leftovers(tmp_path / "cache") == []


def start_build(path: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A build in a process of its own, whose script has no guard against being imported again."""
    script = path.with_suffix(".py")
    script.write_text(
        "from pathlib import Path\nimport test_encoding_pool as t\n"
        f"t.jobs._ROWS, t.cache._SERIAL_CHUNKS = 8, 1\nprint('started', flush=True)\n"
        f"t.build(Path({str(path)!r}), Path({str(folder)!r}), 2)\nprint('built', flush=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)


def children_of(pid: int) -> list[int]:
    try:
        return [int(p) for file in Path(f"/proc/{pid}/task").glob("*/children") for p in file.read_text().split()]
    except OSError:
        return []


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_a_killed_build_leaves_no_process_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    path, folder = write(tmp_path / "a.jsonl", ["fine"] * 8 + ["sleep"] * 400), tmp_path / "cache"
    builder = start_build(path, folder)
    wait_for(lambda: len(children_of(builder.pid)) == 2 and any(f.is_dir() for f in folder.glob(".*.*")))
    found = children_of(builder.pid)
    builder.kill()
    builder.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))
    (left,) = leftovers(folder)
    assert left.name.startswith(".")  # half a store, which has no name that is looked for
    other = write(tmp_path / "b.jsonl", ["fine"] * 20)
    store = build(other, folder, 1)
    assert leftovers(folder) == [store.folder]


def test_a_living_build_is_not_swept_away(tmp_path: Path) -> None:
    path, folder = write(tmp_path / "a.jsonl", ["fine"] * 8 + ["sleep"] * 30), tmp_path / "cache"
    builder = start_build(path, folder)
    wait_for(lambda: any(f.is_dir() for f in folder.glob(".*.*")))
    build(write(tmp_path / "b.jsonl", ["fine"] * 20), folder, 1)
    out, _ = builder.communicate(timeout=60)
    assert (builder.returncode, out.count(b"started"), out.count(b"built")) == (0, 1, 1)  # no worker ran the script again
    assert len(leftovers(folder)) == 2


def test_who_waits_for_another_build_is_told(tmp_path: Path) -> None:
    path, folder = write(tmp_path / "a.jsonl", ["fine"] * 8 + ["sleep"] * 30), tmp_path / "cache"
    builder = start_build(path, folder)
    wait_for(lambda: any(f.is_dir() for f in folder.glob(".*.*")))
    told: list[bool] = []
    store = build(path, folder, 1, on_wait=lambda: told.append(True))
    assert told == [True] and os.getpid() not in {store.unit(i).values["process"] for i in range(20, len(store))}
    builder.communicate(timeout=60)


MEASURE = """
import resource, sys
from pathlib import Path
from mm.runtime.data.cache import build_or_open
from mm.runtime.text.tokenizer import Tokenizer
from mm.plugins.formats import text
from mm.plugins.sources.files.source import Files
rise = []
def progress(rows, fraction): rise.append(fraction)
source = Files(None, sys.argv[1], "text")
store = build_or_open(source, list(text.mm_formats()), Tokenizer.load(), max_length=512, folder=Path(sys.argv[2]),
                      workers=int(sys.argv[3]), progress=progress)
assert rise == sorted(rise) and rise[-1] == 1.0
print(store.info.rows, *(resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def measure(path: Path, rows: int, workers: int) -> list[int]:
    """Rows, and the most memory of the process and of its workers in MiB, for a file of short rows."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(f'{{"text": "{number} {"天地玄黄，宇宙洪荒。" * (number % 30)}"}}\n')
    words = [sys.executable, "-c", MEASURE, str(path), str(path.parent / "cache"), str(workers)]
    return [int(word) for word in subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()]


@pytest.mark.long
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    small = measure(tmp_path / "small.jsonl", 20_000, 2)
    large = measure(tmp_path / "large.jsonl", 800_000, 2)  # 350 MB
    assert (small[0], large[0]) == (20_000, 800_000)
    assert (tmp_path / "large.jsonl").stat().st_size > 300e6
    # 40 times the rows: what is opened at the end has 8 bytes a row for lengths, and maps that count while they are hot
    assert large[1] < small[1] + 60 and large[2] < small[2] + 60, (small, large)


def test_what_a_folder_holds_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("b", "a", "c"):
        write(folder / f"{name}.jsonl", [f"{name} {n}" for n in range(11)])
    store = build(folder, tmp_path / "cache", 2)
    assert store.info.files == [str(folder / f"{name}.jsonl") for name in "abc"]
    for index in range(len(store)):
        position = store.position(index)
        assert store.row(index) == Deed(json.loads(Path(position.path).read_text().splitlines()[position.line - 1])["deed"])


def test_a_format_whose_helpers_change_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an edited helper would be given what the old one made."""
    from importlib import import_module, reload

    from mm.runtime.data.encoding import code_digest

    package = tmp_path / "some_format"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("def clean(text):\n    return text\n")
    (package / "format.py").write_text("from some_format.helper import clean\n\n\ndef parse(text):\n    return clean(text)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_module("some_format.format")
    before = code_digest("some_format.format")
    assert before == code_digest("some_format.format")
    (package / "helper.py").write_text("def clean(text):\n    return text.strip()\n")
    reload(import_module("some_format.helper"))
    assert code_digest("some_format.format") != before
