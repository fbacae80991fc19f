"""The metrics whose names do not explain themselves, in a few words. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_MEANINGS: Mapping[str, str] = {
    "accuracy": "share of pairs whose good answer is the likelier one",
    "below_best": "share of completions whose reward is below the best one so far",
    "bits_per_byte": "loss per byte of text, comparable between tokenizers",
    "clip_fraction": "share of tokens that lost their gradient to clipping",
    "engine_gap": "mean difference of a token's log-probability when drawn and when trained; rounding explains 0.05",
    "engine_gap_max": "the largest such difference",
    "entropy": "randomness of the drawn tokens; near 0 the policy always writes the same",
    "failed_rewards": "share of completions for which a reward failed",
    "grad_norm": "length of the gradient before it is clipped",
    "kl": "distance of the policy from the reference",
    "length_growth": "mean length of a completion, in units of the first rollout's",
    "margin": "how much likelier good answers are than bad ones, relative to the reference",
    "nll": "negative log-likelihood of a token, the mean over those that are learned",
    "no_spread": "share of prompts whose completions all have the same reward, from which nothing is learned",
    "truncated": "share of completions that reached --max-new-tokens",
}


def meanings_of(names: Iterable[str]) -> dict[str, str]:
    """name -> meaning, for those of the metrics that have one; a held-out metric is explained without its `held_out/`."""
    bare = sorted({name.removeprefix("held_out/") for name in names})
    return {name: _MEANINGS[name] for name in bare if name in _MEANINGS}
