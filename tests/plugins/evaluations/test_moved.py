"""What each stage moved: which suites its data teaches, where it started, and the pooled figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mm.core.plugins import PluginManager
from mm.core.workspace import Workspace
from mm.plugins.evaluations.stage_effects import TrainedModel, stage_effects
from mm.plugins.evaluations.table import as_text, stage_effects_table, unlisted
from mm.plugins.sources.skills import corpus
from mm.plugins.sources.skills.suites import SUITES, TEACHES
from mm.plugins.sources.skills.turns import question_of

Parts = Sequence[tuple[str, str]]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def run(workspace: Workspace, name: str, start: str, data: Parts) -> TrainedModel:
    """A finished run that says what it was trained on (locator, format) and from, without weights."""
    folder = workspace.run(name)
    folder.model.mkdir(parents=True)
    (folder.model / "config.json").write_text("{}")
    parts = [{"locator": locator, "format": form, "digest": "", "rows": 0, "tokens": 0} for locator, form in data]
    folder.update_manifest({"name": name, "created": 1, "state": "finished", "data": parts})
    (folder.path / "run.toml").write_text(f'from = "{start}"\n')
    return TrainedModel.of(folder.model, name)


def report(one: TrainedModel, **right: int) -> dict[str, Any]:
    """Ten items of the tier `new` for each suite, of which so many are right; the other tiers must not count."""
    skills = [{"suite": suite, "tier": "new", "right": right.get(suite, 0), "total": 10} for suite in SUITES]
    skills += [{"suite": suite, "tier": tier, "right": 10, "total": 10} for suite in SUITES for tier in ("seen", "never")]
    return {"model": {"name": one.name}, "skills": skills}


def base(workspace: Workspace) -> list[TrainedModel]:
    pretrain = run(workspace, "pretrain", "", [("skills:7", "text"), ("classics", "text")])
    return [pretrain, run(workspace, "sft", str(pretrain.model), [("skills:7", "chat")])]


@pytest.mark.parametrize(
    ("start", "data", "suites"),
    [
        ("sft", [("skills:7", "preference")], ("polite",)),
        ("sft", [("skills:7", "prompt")], ("max", "sort", "reverse", "add")),
        ("sft", [("skills:7", "episode")], ("agent",)),
        # what sft has learned from already is rehearsal, unless there is nothing else
        ("sft", [("skills:lora:7", "chat"), ("skills:7", "chat")], ("double",)),
        ("sft", [("skills:reason:7", "chat"), ("skills:7", "chat")], ("reason_longer",)),
        ("sft", [("skills:7", "chat")], TEACHES["sft"]),
        ("pretrain", [("skills:7", "chat")], TEACHES["sft"]),
        # another corpus, and no corpus at all
        ("sft", [("skills:8", "chat")], None),
        ("sft", [("mine.jsonl", "chat")], None),
        ("sft", [("./skills:7", "a format that is gone")], None),
    ],
)
def test_the_suites_that_data_teaches(
    start: str, data: Parts, suites: tuple[str, ...] | None, workspace: Workspace, plugins: PluginManager
) -> None:
    trained = [*base(workspace), run(workspace, "more", start, data)]
    reports = {one.model: report(one) for one in trained}
    lines = {line["stage"]: line for line in stage_effects(plugins, workspace, trained, reports, 7)}
    assert lines["pretrain"]["suites"] == ("cloze",) and lines["pretrain"]["start"] is None
    assert lines["sft"]["suites"] == TEACHES["sft"] and lines["sft"]["start"] == "pretrain"
    if suites is None:
        assert "more" not in lines
    else:
        assert lines["more"]["suites"] == suites and lines["more"]["start"] == start


def test_figures_are_pooled_over_new_items(workspace: Workspace, plugins: PluginManager) -> None:
    pretrain, sft = base(workspace)
    grpo = run(workspace, "grpo", "sft", [("skills:7", "prompt")])
    reports = {
        pretrain.model: report(pretrain, cloze=8), sft.model: report(sft, max=5, sort=4, chat=9),
        grpo.model: report(grpo, max=9, sort=8, reverse=10, chat=3),
    }  # fmt: skip
    first, _, last = stage_effects(plugins, workspace, [pretrain, sft, grpo], reports, 7)
    assert first["before"] is None and first["others_before"] is None
    assert (first["after"]["right"], first["after"]["total"]) == (8, 10)
    rest = 10 * (len(SUITES) - 4)
    assert [(last[k]["right"], last[k]["total"]) for k in ("before", "after", "others_before", "others_after")] == [
        (9, 40), (27, 40), (9, rest), (3, rest)
    ]  # fmt: skip
    assert last["after"]["low"] < last["after"]["share"] == 0.675 < last["after"]["high"]


def test_a_start_that_is_gone(workspace: Workspace, plugins: PluginManager) -> None:
    one = run(workspace, "dpo", "runs/gone/model", [("skills", "preference")])
    assert one.start(workspace) is None and one.seed() == 0
    (line,) = stage_effects(plugins, workspace, [one], {one.model: report(one, polite=7)}, 0)
    assert line["before"] is None and line["after"]["right"] == 7


def test_a_model_that_no_run_has_made(tmp_path: Path, plugins: PluginManager) -> None:
    foreign = TrainedModel.of(tmp_path / "somewhere", "mine")
    assert stage_effects(plugins, Workspace(tmp_path), [foreign], {}, 0) == [] and foreign.seed() is None


def test_the_table_fits_and_names_who_is_missing(workspace: Workspace, plugins: PluginManager) -> None:
    trained = [*base(workspace), run(workspace, "reason", "sft", [("skills:reason:7", "chat")])]
    trained.append(run(workspace, "lora", "sft", [("mine.jsonl", "chat")]))
    reports = {one.model: report(one, reason_longer=10, facts=10) for one in trained}
    effects = stage_effects(plugins, workspace, trained, reports, 7)
    lines = as_text(stage_effects_table(effects), 80).splitlines()
    (line,) = unlisted(effects, [one.name for one in trained])
    assert line.endswith("not listed: lora.") and unlisted(effects, ["sft"]) == []
    (row,) = [line for line in lines if line.startswith("reason")]
    assert row.split() == ["reason", "reason_longer", "10", "1.00", "[0.72,", "1.00]", "1.00", "[0.72,", "1.00]", "0.07", "0.07"]
    assert max(map(len, lines)) <= 80


def test_every_suite_is_asked_about_in_a_file_that_teaches_it() -> None:
    data = corpus.generate(0)
    assert set(TEACHES) == set(corpus.TRAINING) and {s for suites in TEACHES.values() for s in suites} == set(SUITES)
    turns = {name: [row.get("conversations") or row["chosen"] for row in data[name]] for name in TEACHES if name != "pretrain"}
    questions = {name: {question_of(turn) for turn in found} for name, found in turns.items()}
    text = "\n".join(row["text"] for row in data["pretrain"])
    for item in (*data["dev"], *data["test"]):
        if item["tier"] == "seen" and "conversations" in item:
            question = question_of(item["conversations"])
            assert any(question in questions[f] for f in questions if item["suite"] in TEACHES[f]), item
        elif item["tier"] == "seen":
            assert item["prompt"] in text and item["check"]["starts"] in text
