"""Folders are whole or not there, and damage is noticed before anything is read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from mm.core.errors import CheckpointError
from mm.runtime.models.storage import INDEX, atomic_folder, remove_leftovers, verify


def write(final: Path, text: str = "hello") -> Path:
    with atomic_folder(final) as folder:
        (folder / "inner").mkdir()
        (folder / "a.txt").write_text(text)
        (folder / "inner/b.bin").write_bytes(bytes(range(256)))
        assert folder != final
    return final


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_folder_is_sealed_and_replaced_as_a_whole(tmp_path: Path) -> None:
    final = write(tmp_path / "deep/model")
    verify(final)
    assert names(tmp_path) == ["deep/model/a.txt", f"deep/model/{INDEX}", "deep/model/inner/b.bin"]
    with atomic_folder(final) as folder:
        (folder / "c.txt").write_text("new")
    verify(final)
    assert names(tmp_path) == ["deep/model/c.txt", f"deep/model/{INDEX}"]
    with atomic_folder(final, index=False) as folder:
        (folder / "d.txt").write_text("plain")
    assert names(tmp_path) == ["deep/model/d.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("standing", [True, False])
def test_an_error_leaves_what_stood_there(tmp_path: Path, error: type[BaseException], standing: bool) -> None:
    final = write(tmp_path / "model") if standing else tmp_path / "model"
    before = names(tmp_path)
    with pytest.raises(error), atomic_folder(final) as folder:
        (folder / "half.txt").write_text("half")
        raise error
    assert names(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["model"] if standing else [])
    if standing:
        verify(final)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [flipped, truncated, longer, Path.unlink])
def test_damage_is_found_and_the_file_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    final = write(tmp_path / "model")
    damage(final / "inner/b.bin")
    with pytest.raises(CheckpointError, match=r"inner/b\.bin is (missing|damaged)"):
        verify(final)


@pytest.mark.parametrize("damage", [truncated, Path.unlink])
def test_a_lost_index_is_damage_too(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    final = write(tmp_path / "model")
    damage(final / INDEX)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        verify(final)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        final = write(Path(name) / "model")
        path = final / data.draw(st.sampled_from([INDEX, "a.txt", "inner/b.bin"]))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            verify(final)
        except CheckpointError:
            return
        # what is left are changes of white space in the index
        index = json.loads((final / INDEX).read_text())
        assert path.name == INDEX and index.keys() == {"a.txt", "inner/b.bin"}


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    write(tmp_path / "model")
    for folder in (".model.77", ".model.old", ".other.tmp", ".lost.old"):
        write(tmp_path / folder, folder)
    (tmp_path / ".notes.json.77").write_text("{")
    (tmp_path / ".lock").write_text("")
    remove_leftovers(tmp_path)
    # what was moved aside for a replacement that never came takes its name back
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "lost", "model"]
    assert (tmp_path / "lost/a.txt").read_text() == ".lost.old"
    assert (tmp_path / "model/a.txt").read_text() == "hello"


def test_what_stands_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    write(tmp_path / "run")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "run", overwrite=False) as folder:
        (folder / "a.txt").write_text("other")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run/a.txt").read_text() == "hello"
