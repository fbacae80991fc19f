"""Rollouts: ids that are only ever drawn, prompts that come again, groups with spread, bounds, warnings."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import drawing
import pytest
from run_files import held_out, lines, series

import mm
from mm.contracts import Completion, Request, Reward
from mm.core.errors import MMError
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import RewardSpec
from mm.core.workspace import RunFolder
from mm.plugins.engines.local.engine import LocalEngine
from mm.runtime.nn.batch import Packed, Unit
from mm.runtime.text.rows import Row
from mm.runtime.training.callbacks.watchdog import Watchdog
from mm.runtime.training.rollouts import rollout
from mm.runtime.training.rollouts.completions import Sample
from mm.runtime.training.rollouts.experience import Experience
from mm.runtime.training.rollouts.rollout import Rollout
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import Train

TINY = {
    "num_generations": 4, "max_new_tokens": 8, "reward": "vowels", "global_batch_size": 4, "log_interval": 1,
    "samples_logged": 999,
}  # fmt: skip
pytestmark = [
    pytest.mark.mm_plugins("drawing"),
    pytest.mark.mm_train("grpo", rows=drawing.PROMPTS, **drawing.SMALL, **TINY),
]
TOKENIZER = tiny_tokenizer()


class Picky(Reward):
    """The share of vowels for the first four prompts, always 1 for the others; None, NaN or an error on request."""

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        found: list[float | None] = []
        for row, vowels in zip(rows, drawing.Vowels(None)(rows, completions), strict=True):
            word = row.messages[0].content.split()[1]  # type: ignore[attr-defined]
            found.append({"nan": float("nan"), "none": None}.get(word, vowels if word in drawing.WORDS[:4] else 1.0))
        return found


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    yield RewardSpec(name="picky", summary="Picky.", target=f"{__name__}:Picky")


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawing.caller(tmp_path_factory.mktemp("caller")).model


@attrs.define
class Seen:
    """What passed through the engine, the samples of each rollout, and the packs that models were called with."""

    asked: list[tuple[Request, Completion]] = attrs.field(factory=list)
    rollouts: list[list[Sample]] = attrs.field(factory=list)
    mini_batches: list[list[Unit]] = attrs.field(factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found, generate, assign = Seen(), LocalEngine.generate, rollout.assign_mini_batches

    def generating(self: Any, requests: Sequence[Request], on_token: Any = None) -> list[Completion]:
        completions = generate(self, requests, on_token)
        found.asked += zip(requests, completions, strict=True)
        return completions

    def assigning(experience: Sequence[Experience], *rest: Any) -> list[list[Unit]]:
        found.rollouts.append([one.sample for one in experience])
        assigned = assign(experience, *rest)
        found.mini_batches += assigned
        return assigned

    monkeypatch.setattr(LocalEngine, "generate", generating)
    monkeypatch.setattr(rollout, "assign_mini_batches", assigning)
    return found


def play(mm_train: Train, caller: Path, **options: Any) -> RunFolder:
    settings = {**drawing.AGENT, "rows": drawing.EPISODES, "global_batch_size": 3, "from_": caller, "max_steps": 1, **options}
    return mm_train("agent", **settings)


# ---- ids


def test_what_is_learned_is_what_was_drawn(seen: Seen, mm_train: Train) -> None:
    mm_train(passes=2, mini_batches=2)
    drawn = {(*request.ids, *completion.ids) for request, completion in seen.asked}
    learned = [sequence for batch in seen.mini_batches for unit in batch for sequence in unit.sequences]
    assert {tuple(tokens.ids.tolist()) for tokens in learned} == drawn and len(drawn) == 16
    # an untrained model writes what no text would be cut into, so ids made of its text again would be others
    again = [TOKENIZER.encode(TOKENIZER.decode(completion.ids)) for _, completion in seen.asked]
    assert sum(tuple(ids) != completion.ids for ids, (_, completion) in zip(again, seen.asked, strict=True)) > 8
    for sample in seen.rollouts[0]:
        assert sample.learn == [False] * sample.prompt_length + [True] * sample.length


def test_an_episode_only_grows_and_its_tools_are_not_learned(seen: Seen, caller: Path, mm_train: Train) -> None:
    play(mm_train, caller, max_turns=2, max_total_tokens=420)
    turns = sorted(seen.asked, key=lambda pair: pair[0].key)
    assert len(turns) > len(seen.rollouts[0])
    for sample in seen.rollouts[0]:
        mine = [pair for pair in turns if pair[0].key[:-1] == sample.key]
        ids, learn = list(mine[0][0].ids), [False] * sample.prompt_length
        for number, (request, completion) in enumerate(mine):
            assert request.key[-1] == number and list(request.ids[: len(ids)]) == ids
            learn += [False] * (len(request.ids) - len(ids)) + [True] * len(completion.ids)
            ids = [*request.ids, *completion.ids]
        assert (sample.ids, sample.learn) == (ids, learn)
        assert len(mine) <= 2 and len(ids) <= 420
        unlearned = TOKENIZER.decode([i for i, drawn in zip(ids, learn, strict=True) if not drawn][sample.prompt_length :])
        assert unlearned.count("<tool_response>") == sum(len(given) for given in sample.results)
    assert any(sample.results for sample in seen.rollouts[0])


def test_a_tool_that_is_not_there_is_said(caller: Path, mm_train: Train, tmp_path: Path) -> None:
    told = "rows offer the tool calculate, which no --tool runs: calls of it are answered with an error"
    assert told in play(mm_train, caller, workspace=tmp_path / "a", tool=["search"]).manifest["notes"]
    assert told not in play(mm_train, caller, workspace=tmp_path / "b").manifest["notes"]


# ---- prompts


def test_a_prompt_that_comes_again_is_drawn_anew(seen: Seen, mm_train: Train) -> None:
    mm_train(rows=drawing.PROMPTS[:2], max_steps=1)
    (samples,) = seen.rollouts
    assert sorted(sample.unit.row_index for sample in samples) == [0] * 8 + [1] * 8
    assert len({sample.key for sample in samples}) == len({tuple(sample.ids) for sample in samples}) == 16


def test_groups_without_spread_make_room(seen: Seen, mm_train: Train, tmp_path: Path) -> None:
    options = {"reward": "picky", "global_batch_size": 4, "max_steps": 1}
    plain = mm_train(workspace=tmp_path / "plain", **options)
    assert series(plain, "no_spread")[0] > 0
    seen.asked.clear()
    run = mm_train(workspace=tmp_path / "dynamic", dynamic_sampling=True, most_resamples=20, **options)
    samples = seen.rollouts[-1]
    assert len(samples) == 16 and series(run, "no_spread") == [0.0]
    assert {drawing.PROMPTS[sample.unit.row_index]["prompt"].split()[1] for sample in samples} <= set(drawing.WORDS[:4])
    # the rows came from the run's own order, and no draw was made twice
    assert len(seen.asked) > 16 and len({request.key for request, _ in seen.asked}) == len(seen.asked)
    bounded = mm_train(workspace=tmp_path / "bounded", dynamic_sampling=True, most_resamples=0, **options)
    assert series(bounded, "no_spread") == series(plain, "no_spread")


def test_epochs_count_prompts(mm_train: Train, plugins: PluginManager, seen: Seen, tmp_path: Path) -> None:
    run = mm_train(epochs=2, max_steps=None, passes=2, mini_batches=2)
    assert run.manifest["step"] == run.manifest["steps"] == 2 * (8 // 4) * 2 * 2
    plan = mm.plan("grpo", config=run.path / "run.toml", run="other", workspace=tmp_path, plugins=plugins)
    assert "16 of 4 prompts" in plan and "4 with the same prompts" in plan
    assert sorted(s.unit.row_index for rollout in seen.rollouts for s in rollout) == sorted([*range(8)] * 2 * 4)


@pytest.mark.parametrize("budget", [1, 40])
def test_models_are_given_no_more_than_the_budget(budget: int, mm_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from mm.runtime.training.roles import Role

    packs: list[Packed] = []
    forward = Role.__call__
    monkeypatch.setattr(Role, "__call__", lambda self, batch, head: (packs.append(batch), forward(self, batch, head))[1])
    mm_train("ppo", num_generations=2, micro_batch_tokens=budget)
    assert len(packs) > 20 and all(len(batch.units) == 1 or batch.num_tokens <= budget for batch in packs)


def test_the_engine_holds_nothing_while_models_learn(mm_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    measure = Rollout._completion_metrics
    monkeypatch.setattr(
        Rollout, "_completion_metrics", lambda self, groups: (held.append(self.engine._scheduler.table), measure(self, groups))[1]
    )
    mm_train(eval_ratio=0.3, max_steps=2)
    assert held == [None] * 5  # two rollouts, and an evaluation before and after each


# ---- rewards


def test_a_long_completion_costs(seen: Seen, mm_train: Train) -> None:
    """DAPO, arXiv:2503.14476, eq. 13, with L_max 8 and L_cache 5."""
    run = mm_train(overlong_buffer=5, max_steps=4, num_generations=8, eval_ratio=0.3)
    costs, means = {}, []
    for samples in seen.rollouts:
        for sample in samples:
            given, cost = sample.score.by_name["vowels"], sample.score.by_name["overlong"]
            assert given is not None and cost == pytest.approx(sample.reward - given)
            costs[sample.length] = round(given - sample.reward, 6)
        means.append(sum(sample.score.by_name["overlong"] or 0.0 for sample in samples) / len(samples))
    assert costs == {n: 0.0 if n <= 3 else min(1.0, (n - 3) / 5) for n in costs} and {8} < costs.keys()
    # said by its name, and no part of what is held out
    assert series(run, "reward/overlong") == pytest.approx(means)
    assert all("overlong" in line["rewards"] for line in lines(run, "rollouts.jsonl"))
    held = held_out(run)
    assert held and all(line["held_out/reward"] == line["held_out/reward/vowels"] for line in held)


def test_a_long_episode_costs_by_its_turns_and_its_whole(seen: Seen, caller: Path, mm_train: Train) -> None:
    play(mm_train, caller, overlong_buffer=60, max_new_tokens=72, max_total_tokens=450)
    costs = []
    for sample in seen.rollouts[0]:
        mine = [completion for request, completion in seen.asked if request.key[:-1] == sample.key]
        room = min(450 - len(sample.ids), 72 - max(len(completion.ids) for completion in mine))
        costs.append(sample.score.by_name["overlong"])
        assert costs[-1] == pytest.approx(-max(0.0, 1 - room / 60))
    # several turns may together be longer than one may be
    assert len(set(costs)) > 2 and any(sample.length > 72 for sample in seen.rollouts[0])


def test_a_reward_that_owes_an_answer_is_told_from_one_that_does_not_apply(mm_train: Train, tmp_path: Path) -> None:
    rows = [{"prompt": "say one"}, {"prompt": "say none"}]
    run = mm_train(workspace=tmp_path / "none", rows=rows, reward=["picky"], global_batch_size=2, max_steps=1)
    assert (series(run, "reward/picky/none"), series(run, "failed_rewards")) == ([0.5], [0.0])
    assert not any("failed_rewards" in note for note in run.manifest["notes"])
    rows[1] = {"prompt": "say nan"}
    options = {"rows": rows, "reward": "picky", "global_batch_size": 2, "max_steps": 1}
    with pytest.raises(MMError, match=r"Reward 'picky' failed on .*tiny_rows\.jsonl:2: ValueError: nan is not a score"):
        mm_train(workspace=tmp_path / "nan", **options)
    run = mm_train(workspace=tmp_path / "skipped", skip_failed_rewards=True, **options)
    assert (series(run, "reward/picky/none"), series(run, "failed_rewards")) == ([0.5], [0.5])
    assert any(note.startswith("step 1: failed_rewards is 0.5: a reward raised") for note in run.manifest["notes"])


# ---- what is kept and told


def test_lengths_are_compared_with_the_first(mm_train: Train, plugins: PluginManager, tmp_path: Path) -> None:
    """Also after a resume, which has not seen the first."""
    run = mm_train(run="a", max_steps=6, stop_after_steps=3, learning_rate=1e-2)
    run = mm.train("grpo", resume=True, run="a", workspace=tmp_path, plugins=plugins, quiet=True)
    lengths = series(run, "length")
    assert series(run, "length_growth") == pytest.approx([length / lengths[0] for length in lengths])
    assert len(lengths) == 6 and len(set(lengths)) > 1


def test_what_a_lost_stretch_drew_is_not_kept_twice(mm_train: Train, plugins: PluginManager, tmp_path: Path) -> None:
    options = {"max_steps": 6, "run": "a", "save_interval": 2, "keep_checkpoints": 9}
    whole = mm_train(workspace=tmp_path / "whole", **options)
    cut = mm_train(workspace=tmp_path / "cut", stop_after_steps=4, **options)
    shutil.rmtree(cut.checkpoints / "step-00000004")  # as if it had been killed before that was written
    again = mm.train("grpo", resume=True, run="a", workspace=tmp_path / "cut", plugins=plugins, quiet=True)
    assert (again.path / "rollouts.jsonl").read_bytes() == (whole.path / "rollouts.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine_gap", 0.1), ("engine_gap_max", 4.0), ("clip_fraction", 0.5), ("no_spread", 0.9), ("entropy", 0.001),
        ("length", 1.1), ("length_growth", 0.1), ("length_growth", 4.0), ("truncated", 0.7), ("failed_rewards", 0.1),
    ],
)  # fmt: skip
def test_a_figure_out_of_its_range_is_said_once_with_its_meaning(name: str, value: float) -> None:
    told: list[str] = []
    dog: Any = Watchdog(Rollout.watch, told.append)
    run = SimpleNamespace(step=7)
    well = {
        "engine_gap": 0.01, "engine_gap_max": 0.1, "clip_fraction": 0.1, "no_spread": 0.5, "entropy": 0.5, "length": 20.0,
        "length_growth": 1.5, "truncated": 0.1, "failed_rewards": 0.0,
    }  # fmt: skip
    assert well.keys() == Rollout.watch.keys()
    watching: Callable[[dict[str, float]], None] = lambda metrics: dog.on_log(run, metrics)  # noqa: E731
    watching(well)
    assert told == []
    watching({**well, name: value})
    watching({**well, name: value})
    assert told == [f"step 7: {name} is {value:.3g}: {Rollout.watch[name].meaning}"]
