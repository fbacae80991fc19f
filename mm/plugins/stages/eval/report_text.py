"""The two texts of the evaluation: the report with everything, and its summary, which ends `mm run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm.plugins.evaluations.stage_effects import TIER
from mm.plugins.evaluations.table import as_text, notes_of, stage_effects_table, suites_text, table_of, unlisted
from mm.plugins.stages.eval.sample_conversations import TRIES, Turns, as_lines

# the suites that the summary names, in words
_IN_WORDS = {
    "facts": "answer a question about a person",
    "chat": "greet a person by name",
    "reason": "add three numbers step by step",
    "tool": "call the right tool with the right argument",
    "tool_answer": "answer from the result of a tool",
    "follow_up": "answer a question that builds on the last",
}
_HOW_TO_READ = """\
How to read the scores. Each cell is the share of right answers with its 95% interval.
- seen (recall): questions of the training data. new: the same facts and values in a form that training does not show.
  never: people, values and facts that no training question is about, which a model of this size mostly cannot do.
- max, sort, reverse, add, polite, and agent with two calls are taught with examples of which half are wrong (or terse) on
  purpose, so that sft gets about half of them right. The stages dpo, grpo, spo, ppo, distill and agent improve on that.
- double and reason_longer are taught by the stages lora and reason only. cloze is asked in plain text, as in pretraining.
"""


def full_report(values: Mapping[str, Any], stages: Sequence[str]) -> str:
    """Every score of every model, the effect of each stage, and the sample answers. `values` are those of eval.json, `stages`
    the names of all trained models."""
    reports, effects = values["reports"], values["moved"]
    lines = [_HOW_TO_READ, as_text(table_of(reports), width=40 + 25 * len(reports)), *notes_of(reports), ""]
    if effects:
        lines += ["Effect of each stage: n new items of the suites that its data teaches; rest: those of all other suites.", ""]
        lines += [as_text(stage_effects_table(effects), width=120)]
    lines += unlisted(effects, stages)
    for title, talks in (("Conversations", values["conversations"]), ("Answers to held-out items", values["samples"])):
        lines += [f"{title} with the model of {values['speaker']}:", *_talk_lines(talks)]
    return "\n".join([*lines, f"Curves: {', '.join(values['pictures'])}", ""])


def summary(values: Mapping[str, Any], report: Path) -> str:
    """The end of `mm run` on one screen: the skills before and after fine-tuning, the effect of further stages, three
    conversations, and the paths of the pictures and of the report. Of models that were trained on other data, only the paths:
    the questions are not about what they have learned."""
    lines = list(_skill_lines(values["reports"], values["moved"]))
    if lines:
        lines += [
            "", f"Three conversations with the model of {values['speaker']}, which answers every line itself",
            f"(of each kind the first of at most {TRIES} tries whose last answer is right;",
            "the answers before the last are shown as they came, right or wrong):",
        ]  # fmt: skip
        lines += _talk_lines(values["conversations"])
    if values["pictures"]:
        lines.append(f"Picture of the training: {values['pictures'][0]}")
    return "\n".join([*lines, f"All scores, what they mean, and more answers: {report}"])


def _skill_lines(reports: Sequence[Mapping[str, Any]], effects: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each skill of `sft`, and one for each further stage: the right answers before and after."""
    sft = next((effect for effect in effects if effect["stage"] == "sft"), None)
    by_name = {report["model"]["name"]: report for report in reports}
    if sft is None or sft["start"] not in by_name:
        return
    yield "What the model has learned (questions in a form that training does not show):"
    yield f"  {'':<45}{'after ' + sft['start']:>15}{'after sft':>15}"
    for suite, words in _IN_WORDS.items():
        before, after = (_right(by_name[name], suite) for name in (sft["start"], "sft"))
        if before and after:
            yield f"  {words:<45}{before:>15}{after:>15}"
    further = [effect for effect in effects if effect["stage"] not in ("pretrain", "sft") and effect["before"]]
    if further:
        yield f"  {'stage: what it teaches':<45}{'before':>15}{'after':>15}"
    for effect in further:
        before, after = (f"{share['right']} of {share['total']}" for share in (effect["before"], effect["after"]))
        yield f"  {effect['stage'] + ': ' + suites_text(effect):<45}{before:>15}{after:>15}"


def _right(report: Mapping[str, Any], suite: str) -> str:
    scores = [score for score in report["skills"] if (score["suite"], score["tier"]) == (suite, TIER)]
    return f"{scores[0]['right']} of {scores[0]['total']}" if scores else ""


def _talk_lines(talks: Sequence[Turns]) -> list[str]:
    return [line for turns in talks for line in ("", *(f"  {line}" for line in as_lines(turns)))] + [""]
