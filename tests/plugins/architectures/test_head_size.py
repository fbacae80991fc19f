"""As many query heads of size 32 as fit, where a preset leaves their number open."""

from __future__ import annotations

import attrs
import pytest

from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec


@pytest.mark.parametrize(("hidden", "heads"), [(96, 3), (128, 4), (64, 2), (32, 1), (16, 1), (112, 2), (100, 2), (256, 8)])
@pytest.mark.parametrize("architecture", ["dense", "moe"])
def test_the_number_of_heads_follows_from_the_width(
    hidden: int, heads: int, architecture: str, installed: PluginManager
) -> None:
    spec = installed.get(ArchitectureSpec, architecture)
    for preset in ("tiny", "tiny3"):
        config = spec.config(**{**spec.presets[preset], "hidden_size": hidden})
        assert (config.num_attention_heads, config.head_size) == (heads, hidden // heads)
        assert attrs.evolve(config, vocab_size=300).num_attention_heads == heads


def test_a_number_that_is_given_stands(installed: PluginManager) -> None:
    spec = installed.get(ArchitectureSpec, "dense")
    assert spec.config(**{**spec.presets["tiny"], "num_attention_heads": 6}).head_size == 16
    assert spec.config(**spec.presets["tiny"]).num_parameters() == 590_688
