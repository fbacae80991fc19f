"""A needle in a haystack: YaRN makes a trained model find what stands further away than anything it was trained on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "needle.py"


@pytest.mark.long
def test_yarn_reaches_beyond_the_trained_length(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("needle", BENCHMARK)
    assert spec is not None and spec.loader is not None
    needle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(needle)
    needle.train(tmp_path, steps=700)
    trained, lengths = needle.TRAINED, [needle.TRAINED, 2 * needle.TRAINED, 4 * needle.TRAINED]
    found = needle.table(tmp_path, lengths, asked=200)
    plain, twice, four = found[None], found[2.0], found[4.0]
    assert plain[trained] > 0.9
    assert twice[2 * trained] > max(0.8, plain[2 * trained])
    assert set(twice) == {trained, 2 * trained}  # as far as its positions reach
    assert four[4 * trained] > plain[4 * trained] + 0.3
