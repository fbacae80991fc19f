"""`--cache-reference`: the same run as without, one table for each reference, file of rows and draw of answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from preference_rows import ROWS, SMALL, VERDICTS
from run_files import held_out, logged, write_rows
from safetensors.torch import load_file, save_file

from mm.runtime.training.context import stable_seed
from mm.testing.pytest_plugin import Train


def tables(workspace: Path) -> list[Path]:
    return list((workspace / ".mm/reference").glob("*.safetensors"))


def test_the_cached_reference_gives_the_same_run(mm_train: Train, tmp_path: Path) -> None:
    plain = mm_train("dpo", rows=ROWS, run="plain", **SMALL)
    cached = mm_train("dpo", rows=ROWS, run="cached", cache_reference=True, **SMALL)
    for one, two in zip(logged(plain), logged(cached), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-5)
    (file,) = tables(tmp_path)
    written = file.stat().st_mtime_ns
    mm_train("dpo", rows=ROWS, run="again", cache_reference=True, **SMALL)
    assert file.stat().st_mtime_ns == written
    mm_train("dpo", rows=ROWS, run="another-model", cache_reference=True, **SMALL | {"seed": 8})
    mm_train("dpo", rows=ROWS[1:], run="other-data", cache_reference=True, **SMALL)
    mm_train("dpo", rows=ROWS, run="adapted", adapter="lora", cache_reference=True, **SMALL)
    # an adapted policy with its adapter off is the first run's reference
    assert len(tables(tmp_path)) == 3


@pytest.mark.parametrize("algo", ["dpo", "kto"])
@pytest.mark.parametrize("rows", [3, 13])
def test_held_out_files_have_a_reference_of_their_own(mm_train: Train, tmp_path: Path, algo: str, rows: int) -> None:
    """At step 0 the policy is the reference, whatever file the answers stand in."""
    others = [{"prompt": f"tell {n}", "chosen": f"it is {n} " * (1 + n % 3), "rejected": f"none {n}"} for n in range(rows)]
    own = write_rows(tmp_path / "held_out.jsonl", others)
    settings = SMALL | {"max_steps": 2, "eval_ratio": None, "eval_data": own, "eval_interval": 2}
    plain, cached = (
        mm_train(algo, rows=ROWS, run=f"{cache}", cache_reference=cache, **settings) for cache in (False, True)
    )
    (begin, end), expected = held_out(cached), held_out(plain)
    drifts = [name for name in begin if name.endswith("drift") or name == "held_out/kl"]
    assert len(drifts) >= 2 and all(begin[name] == pytest.approx(0, abs=1e-4) for name in drifts)
    assert end == pytest.approx(expected[1], rel=1e-3, abs=1e-4)
    assert len(tables(tmp_path)) == 2


def test_ktos_cached_reference_is_its_seeds(mm_train: Train, tmp_path: Path) -> None:
    """Seeds whose first rows get the same other answer, but not their further ones."""
    rows, settings = VERDICTS * 5, {**SMALL, "max_steps": 1, "eval_ratio": 0.4, "cache_reference": True}
    base = mm_train("pretrain", max_steps=1, run="base")
    assert stable_seed(42, 0) % 80 == stable_seed(23, 0) % 80 and stable_seed(42, 1) % 80 != stable_seed(23, 1) % 80
    for seed in (42, 23):
        (begin, _) = held_out(mm_train("kto", rows=rows, run=f"s{seed}", from_=base.name, **{**settings, "seed": seed}))
        assert begin["held_out/kl"] == pytest.approx(0, abs=1e-3)
    for seed in (42, 23):  # pairs draw no answer: all seeds share one table
        mm_train("dpo", rows=ROWS, run=f"d{seed}", from_=base.name, **{**settings, "seed": seed})
    assert len(tables(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "zero", "old"])
def test_a_damaged_table_is_computed_again(damage: str, mm_train: Train, tmp_path: Path) -> None:
    settings = {**SMALL, "max_steps": 1, "cache_reference": True, "rows": ROWS}
    whole = mm_train("dpo", run="whole", **settings)
    (file,) = tables(tmp_path)
    before = bytearray(file.read_bytes())
    if damage == "old":  # of a version that wrote no hash
        save_file(load_file(file), file)
    else:
        flipped = before[:-3] + bytes([before[-3] ^ 64]) + before[-2:]
        file.write_bytes({"flip": flipped, "cut": before[:50], "zero": bytes(len(before))}[damage])
    file.with_suffix(".tmp").write_bytes(b"what a killed process left")
    again = mm_train("dpo", run="again", **settings)
    assert logged(again) == logged(whole) and file.read_bytes() == before
    assert sorted(path.suffix for path in file.parent.iterdir()) == [".lock", ".safetensors"]
