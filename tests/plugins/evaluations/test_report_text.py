"""The report of the stage `eval` and its summary: which lines stand in them, and for which models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.plugins.sources.skills.held_out_items import SuiteScore
from mm.plugins.sources.skills.suites import SUITES, TIERS
from mm.plugins.stages.eval.report_text import full_report, summary

TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"}]


def score(suite: str, right: int, tier: str = "new") -> dict[str, Any]:
    return SuiteScore(suite=suite, tier=tier, right=right, total=40).as_dict()


def report(name: str, right: int) -> dict[str, Any]:
    skills = [score(suite, right, tier) for suite in SUITES for tier in TIERS]
    return {"model": {"name": name}, "settings": {"split": "test"}, "skills": skills}


def effect(stage: str, start: str, right: int, *suites: str) -> dict[str, Any]:
    shares = {"before": 3, "after": right, "others_before": 20, "others_after": 21}
    return {"stage": stage, "start": start, "suites": suites, **{name: score(name, count) for name, count in shares.items()}}


def values(*effects: dict[str, Any], models: int = 2) -> dict[str, Any]:
    names = ["pretrain", "sft", *(f"more{i}" for i in range(models - 2))]
    return {
        "reports": [report(name, 38 * (name != "pretrain")) for name in names], "moved": list(effects), "speaker": "sft",
        "conversations": [TALK], "samples": [TALK], "pictures": ["reports/loss.png"],
    }  # fmt: skip


def test_the_summary_fits_a_screen_and_says_what_is_new() -> None:
    further = effect("dpo", "sft", 33, "polite"), effect("distill", "pretrain", 31, *SUITES)
    text = summary(values(effect("sft", "pretrain", 38, *SUITES), *further), Path("reports/report.txt"))
    lines = text.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) < 80
    assert any("whose last answer is right;" in line for line in lines)  # the others are not judged, and the heading says so
    # in words, not by the names of suites, and without shares that look like failure
    assert any("answer a question about a person" in line and line.endswith("0 of 40       38 of 40") for line in lines)
    assert any(line.startswith("  dpo: polite") and line.endswith("3 of 40       33 of 40") for line in lines)
    assert any(line.startswith(f"  distill: {len(SUITES)} suites") for line in lines)
    assert "  you    Hello\n  model  <think>\n         hm\n         </think>\n         Hello!" in text
    assert lines[-1].endswith("reports/report.txt") and "loss.png" in lines[-2]


def test_models_of_other_data_get_no_scores_that_they_were_not_taught() -> None:
    text = summary(values(), Path("report.txt"))
    assert "Hello" not in text and "of 40" not in text and "report.txt" in text
    assert "not listed: pretrain, sft." in full_report(values(), ["pretrain", "sft"])


def test_the_report_has_every_score_of_every_model_uncut() -> None:
    text = full_report(values(effect("sft", "pretrain", 38, *SUITES), models=10), ["pretrain", "sft"])
    rows = [line for line in text.splitlines() if line.startswith("  polite, ")]
    assert len(rows) == 3 and all(row.count("0.95 [0.83, 0.99]") == 9 for row in rows)
    assert "never: people, values and facts" in text
