"""Preferences: each loss against its formula, log-probabilities against a padded batch of another program."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st
from preference_rows import ROWS, SMALL, VERDICTS
from run_files import held_out, logged

import mm
from mm.core.errors import UsageError
from mm.core.options import option
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec
from mm.plugins.algorithms.dpo import BETAS, DpoConfig
from mm.plugins.algorithms.dpo.losses import LOSSES
from mm.plugins.algorithms.kto import KtoConfig
from mm.plugins.algorithms.kto.algorithm import Kto
from mm.runtime.nn.batch import Unit, pack
from mm.runtime.training.context import Context
from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Totals
from mm.runtime.training.preference import Answers, PreferenceAlgorithm
from mm.runtime.training.roles import Role
from mm.testing import assert_passed, check_algorithm, tiny_model, tiny_tokenizer, tiny_units
from mm.testing.pytest_plugin import Train

PLUGINS = PluginManager.discover(environ={})
TOKENIZER = tiny_tokenizer()


# ---- the losses of pairs


def by_hand(loss: str, c: tuple[float, float, float], r: tuple[float, float, float], beta: float, eps: float) -> float:
    """The papers' formulas for one pair, in Python's floats: (policy, reference, length) of both answers."""
    log_sigmoid = lambda x: -math.log1p(math.exp(-x))  # noqa: E731
    ratio_c, ratio_r = c[0] - c[1], r[0] - r[1]
    mean_c, mean_r = ratio_c / c[2], ratio_r / r[2]
    if loss == "ipo":
        return (mean_c - mean_r - 1 / (2 * beta)) ** 2
    if loss == "orpo":
        odds_c, odds_r = (math.exp(m) / (1 - math.exp(m)) for m in (mean_c, mean_r))
        return -mean_c - beta * log_sigmoid(math.log(odds_c / odds_r))
    x = {"sigmoid": ratio_c - ratio_r, "sigmoid_norm": mean_c - mean_r, "simpo": mean_c - mean_r}[loss] * beta
    x -= 0.5 if loss == "simpo" else 0
    return -(1 - eps) * log_sigmoid(x) - eps * log_sigmoid(-x)


negative = st.floats(-40.0, -0.5)
answer = st.tuples(negative, negative, st.integers(1, 30))


@settings(max_examples=40, deadline=None)
@given(loss=st.sampled_from(sorted(BETAS)), pairs=st.lists(st.tuples(answer, answer), min_size=1, max_size=4),
       beta=st.sampled_from([0.05, 0.4]), eps=st.sampled_from([0.0, 0.2]))  # fmt: skip
def test_the_losses(loss: str, pairs: list[tuple[Any, Any]], beta: float, eps: float) -> None:
    free, smoothed = loss in ("simpo", "orpo"), loss in ("sigmoid", "sigmoid_norm", "simpo")
    if free:
        pairs = [((c[0], 0.0, c[2]), (r[0], 0.0, r[2])) for c, r in pairs]
    config = DpoConfig(
        loss_type=loss, beta=beta, label_smoothing=eps if smoothed else 0.0, gamma=0.5 if loss == "simpo" else None
    )
    sides = [Answers(*torch.tensor([pair[i] for pair in pairs], dtype=torch.float64).unbind(1)) for i in (0, 1)]
    found, margin = LOSSES[loss](*sides, config)
    expected = [by_hand(loss, c, r, beta, config.label_smoothing) for c, r in pairs]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9)
    assert margin.shape == found.shape


def test_certain_answers_have_finite_odds() -> None:
    sure = torch.zeros(1, requires_grad=True)
    side = Answers(sure, torch.zeros(1), torch.ones(1))
    loss, _ = LOSSES["orpo"](side, Answers(torch.tensor([-9.0]), torch.zeros(1), torch.ones(1)), DpoConfig(loss_type="orpo"))
    (gradient,) = torch.autograd.grad(loss.sum(), sure)
    assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("loss", [name for name in BETAS if name != "sigmoid"])
def test_every_loss_passes_the_checks(loss: str) -> None:
    @attrs.frozen(kw_only=True)
    class Changed(DpoConfig):
        loss_type: str = option(loss, help="A loss.")

    spec = attrs.evolve(PLUGINS.get(AlgorithmSpec, "dpo"), config=Changed)
    assert_passed(check_algorithm(spec, plugins=PLUGINS, module="mm.plugins.algorithms.dpo"))


def test_settings_of_another_loss_are_refused(mm_train: Train) -> None:
    for given_, match in [
        ({"gamma": 1.0}, "--gamma: .*simpo"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "--label-smoothing: .*ipo has none"),
        ({"loss_type": "orpo", "cache_reference": True}, "--cache-reference: .*orpo has no reference"),
        ({"loss_type": "simpo", "reference_from": "x"}, "No such option: --reference-from"),
    ]:
        with pytest.raises(UsageError, match=match):
            mm_train("dpo", **given_)


# ---- log-probabilities of answers


def algorithm(kind: type[PreferenceAlgorithm], config: Any, units: list[Unit], **tools: Any) -> PreferenceAlgorithm:
    roles = {
        name: Role(name, tiny_model(vocab_size=TOKENIZER.vocab_size, seed=seed).double(), trainable=name == "policy")
        for seed, name in enumerate(("policy", "reference"))
    }
    made = Context(tokenizer=TOKENIZER, world=World(), seed=3, more_rows=lambda n: units[:n], units=units, **tools)
    return kind(config, roles, made)


def pairs() -> list[Unit]:
    return tiny_units("preference", TOKENIZER, rows=ROWS, plugins=PLUGINS) or []


def test_packing_changes_no_logprobs() -> None:
    units = pairs()
    found = algorithm(PreferenceAlgorithm, DpoConfig(), units)
    with torch.no_grad():
        packed = found.models["policy"].sequence_logprobs(pack(units))
        alone = torch.cat([found.models["policy"].sequence_logprobs(pack([Unit((s,))])) for u in units for s in u.sequences])
    torch.testing.assert_close(packed, alone, atol=1e-9, rtol=0)


def test_logprobs_are_those_of_a_padded_batch_elsewhere(mm_train: Train, tmp_path: Path) -> None:
    """transformers' Llama on the exported model, padded on the left and masked, as other trainers compute them."""
    from transformers import LlamaForCausalLM

    run = mm_train("pretrain", max_steps=1, run="base")
    theirs = LlamaForCausalLM.from_pretrained(mm.convert(run.model, tmp_path / "llama", to="llama"))
    from mm.runtime.devices.backend import Backend
    from mm.runtime.models.folder import load_model_folder

    units = pairs()
    ours = algorithm(PreferenceAlgorithm, DpoConfig(), units)
    ours.models["policy"].model = ours.models["policy"].module = load_model_folder(PLUGINS, run.model, Backend()).model
    sequences = [s for unit in units for s in unit.sequences]
    longest = max(map(len, sequences))
    ids, mask, learn = (torch.zeros(len(sequences), longest, dtype=torch.long) for _ in range(3))
    for row, s in enumerate(sequences):
        ids[row, longest - len(s) :], mask[row, longest - len(s) :] = s.ids, 1
        learn[row, longest - len(s) :] = s.fields["learn"]
    with torch.no_grad():
        found = ours.models["policy"].sequence_logprobs(pack(units))
        logits = theirs(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    per_token = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    expected = (per_token * learn[:, 1:]).sum(1)
    counts = learn[:, 1:].sum(1)
    torch.testing.assert_close(found / counts, expected / counts, atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), max_size=5), seed=st.integers(0, 99))
def test_sums_by_document(lengths: list[int], seed: int) -> None:
    from mm.runtime.nn.batch import Tokens

    generator = torch.Generator().manual_seed(seed)
    learns = [torch.rand(n, generator=generator) < 0.5 for n in lengths]
    batch = pack([Unit((Tokens(torch.zeros(len(learn), dtype=torch.long), {"learn": learn}),)) for learn in learns])
    values = torch.rand(batch.num_targets, generator=generator, dtype=torch.float64, requires_grad=True)
    found = batch.sum_by_document(values)
    parts = values.split([int(learn[1:].sum()) for learn in learns])
    torch.testing.assert_close(found, torch.stack([p.sum() for p in parts]) if parts else found)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert gradient.equal(torch.ones_like(values))


# ---- runs


def test_a_run_begins_at_the_reference_and_learns_to_prefer(mm_train: Train) -> None:
    run = mm_train("dpo", rows=ROWS, **SMALL)
    first, *_, last = logged(run)
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert first["chosen_drift"] == first["rejected_drift"] == first["margin"] == first["accuracy"] == 0
    assert last["margin"] == pytest.approx(0.15 * (last["chosen_drift"] - last["rejected_drift"]), rel=1e-4)
    assert last["margin"] > 0.1 and last["accuracy"] > 0.5
    assert first["chosen_logprob"] == pytest.approx(-math.log(TOKENIZER.vocab_size), rel=0.05)


def verdicts() -> list[Unit]:
    return tiny_units("unpaired", TOKENIZER, rows=VERDICTS, plugins=PLUGINS) or []


def kto(**config: Any) -> tuple[Kto, list[Unit]]:
    units = verdicts()
    found = algorithm(Kto, KtoConfig(**config), units)
    assert isinstance(found, Kto)
    return found, units


@pytest.mark.parametrize("cached", [False, True])
def test_kto_is_the_papers_formula(cached: bool) -> None:
    found, units = kto(beta=0.3, desirable_weight=0.5, undesirable_weight=2.0, cache_reference=cached)
    with torch.no_grad():
        (prepared,) = found.prepare(units)
        batch = pack(prepared)
        totals = Totals.of([batch], found.counts(batch))
        loss, metrics = found.loss(batch, totals)
        policy, reference = found.models["policy"], found.models["reference"]
        ratios = (policy.sequence_logprobs(batch) - reference.sequence_logprobs(batch)).tolist()
        mismatched = pack([found._mismatch(unit) for unit in units])
        gaps = policy.sequence_logprobs(mismatched) - reference.sequence_logprobs(mismatched)
    z = max(0.0, float(gaps.mean()))
    assert totals["kl"] / totals.units == pytest.approx(float(gaps.mean()), rel=1e-5)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = [
        0.5 * (1 - sigmoid(0.3 * (ratio - z))) if row["label"] else 2.0 * (1 - sigmoid(0.3 * (z - ratio)))
        for ratio, row in zip(ratios, VERDICTS, strict=True)
    ]
    assert float(loss) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert float(metrics["kl"][0]) / metrics["kl"][1] == pytest.approx(float(gaps.mean()), rel=1e-5)


def test_kto_compares_each_prompt_with_another_rows_answer() -> None:
    found, units = kto()
    answers = {tuple(u.sequences[0].ids[u.sequences[0].fields["learn"]].tolist()): u.row_index for u in units}
    for unit in units:
        (own,), (other,) = unit.sequences, found._mismatch(unit).sequences
        begin = int(own.fields["learn"].int().argmax())
        assert other.ids[:begin].equal(own.ids[:begin]) and not other.fields["learn"][:begin].any()
        assert answers[tuple(other.ids[other.fields["learn"]].tolist())] != unit.row_index


def test_ktos_baseline_does_not_depend_on_the_ranks() -> None:
    found, units = kto()
    with torch.no_grad():
        (whole,) = found.prepare(units)
        halves = [found.prepare(units[k::2])[0] for k in (0, 1)]
    values = {unit.row_index: unit.values["kl"] for half in halves for unit in half}
    assert [values[u.row_index] for u in whole] == pytest.approx([u.values["kl"] for u in whole], rel=1e-9)


def test_kto_evaluates_with_its_baseline(mm_train: Train) -> None:
    run = mm_train("kto", rows=VERDICTS, eval_ratio=0.4, eval_interval=4, **SMALL)
    held = held_out(run)
    assert [line["step"] for line in held] == [0, 4]
    assert held[0]["held_out/loss"] == 0.5 and held[0]["held_out/kl"] == 0
    assert held[1]["held_out/loss"] < 0.5 and held[1]["held_out/kl"] != 0


def test_kto_reads_a_pair_as_a_good_and_a_bad_answer() -> None:
    found = tiny_units("unpaired", TOKENIZER, rows=ROWS, plugins=PLUGINS) or []
    assert [unit.values for unit in found] == [unit.values for unit in verdicts()]
    for unit, expected in zip(found, verdicts(), strict=True):
        (one,), (other,) = unit.sequences, expected.sequences
        assert one.ids.equal(other.ids) and one.fields["learn"].equal(other.fields["learn"])


def test_kto_finds_rows_in_the_corpus(mm_train: Train) -> None:
    run = mm_train("kto", data="skills", eval_ratio=0.1, **SMALL)
    assert all(math.isfinite(line["held_out/loss"]) for line in held_out(run))
    assert run.manifest["state"] == "finished"
