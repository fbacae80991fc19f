"""What goes into which file.

Names and rows: `pretrain` text; `sft` conversations; `preference` pairs; `prompts` questions with a checkable
answer; `agent` episodes with the values their end must give; `lora` and `reason` conversations of a skill that `sft` does
not show; `dev` and `test` evaluation items.
"""

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from mm.plugins.sources.skills import calls, chat, facts, lines, preference, reasoning, suites, verifiable
from mm.plugins.sources.skills.splits import HELD_OUT
from mm.plugins.sources.skills.turns import Case, Row, Turn
from mm.plugins.sources.skills.world import World, make_world

T = TypeVar("T")

TRAINING = ("pretrain", "sft", "preference", "prompts", "agent", "lora", "reason")
NAMES = (*TRAINING, *HELD_OUT)
PASSES = 24
LINES = {
    lines.sum_line: 1000,
    lines.series_line: 300,
    lines.topic_line: 300,
    lines.copy_line: 800,
    lines.induction_line: 600,
}


def scaled(count: int, scale: float) -> int:
    """A count made smaller or larger, at least one."""
    return max(1, round(count * scale))


def shuffled(seed: int, name: str, rows: list[T]) -> list[T]:
    """The rows in a random order of their own."""
    random.Random(f"{seed}/order/{name}").shuffle(rows)
    return rows


def pretraining(seed: int, world: World, kept: facts.Plan, scale: float) -> list[str]:
    """All lines of pretraining."""
    draw = random.Random(f"{seed}/pretrain")
    text = facts.portraits(draw, kept.written, scaled(PASSES, scale))
    for make, count in LINES.items():
        text += lines.repeated(draw, make, scaled(count, scale), world.never_said())
    return shuffled(seed, "pretrain", text)


def conversing(seed: int, world: World, kept: facts.Plan, scale: float) -> list[Case]:
    """All cases of sft. Every question about a fact is put twice."""

    def count(rows: int) -> int:
        return scaled(rows, scale)

    draw = random.Random(f"{seed}/sft")
    cases = facts.cases(draw, kept.asked, count(2 * len(kept.asked)))
    cases += calls.cases(draw, single=count(920), double=count(200))
    cases += chat.cases(draw, world, count(200))
    cases += preference.cases(draw, count(300))
    cases += reasoning.cases(draw, count(680))
    cases += verifiable.cases(draw, count(900))
    return shuffled(seed, "sft", cases)


def agent_row(case: Case) -> Row:
    """An episode as MiniMind writes it: the last turn a placeholder, `gt` as long as the number of calls."""
    return case.row() | {"gt": case.check["contains"]}


def generate(seed: int = 0, people: int = 16, *, scale: float = 1.0) -> dict[str, list[Row]]:
    """Every file's rows. The same arguments give the same rows in the same order, on any machine.

    `scale` multiplies the number of training rows and leaves the evaluation alone, except that tier `seen`
    shrinks with what was trained on. Suites have at least 100 items from 16 people and scale 1 on.
    """
    world = make_world(seed, people)
    kept = facts.plan(world)
    cases = conversing(seed, world, kept, scale)
    episodes = calls.episodes(random.Random(f"{seed}/agent"), scaled(400, scale))
    adapted = verifiable.adapted(random.Random(f"{seed}/lora"), scaled(800, scale))
    longer = reasoning.cases(random.Random(f"{seed}/reason"), scaled(800, scale), reasoning.LONGER)
    data: dict[str, list[Row]] = {
        "pretrain": [{"text": line} for line in pretraining(seed, world, kept, scale)],
        "sft": [case.row() for case in cases],
        "preference": preference.pairs(random.Random(f"{seed}/preference"), scaled(300, scale)),
        "prompts": verifiable.prompts(random.Random(f"{seed}/prompts"), scaled(1600, scale)),
        "agent": [agent_row(case) for case in episodes],
        "lora": [case.row() for case in adapted],
        "reason": [case.row() for case in longer],
    }
    called = [calls.first_call(case) for case in cases if case.suite == "tool_answer"]
    trained = [*cases, *called, *episodes, *adapted, *longer]
    for split in HELD_OUT:
        draw = random.Random(f"{seed}/{split}")
        data[split] = suites.items(draw, world, kept, trained, scaled(PASSES, scale), split)
    return data


def conversations(data: dict[str, list[Row]]) -> Iterator[list[Turn]]:
    """Every conversation of the training files, both of each pair: what held-out questions must not occur in."""
    for row in (row for name in ("sft", "prompts", "agent", "lora", "reason") for row in data[name]):
        yield row["conversations"]
    for row in data["preference"]:
        yield from (row["chosen"], row["rejected"])


def write_rows(path: Path, rows: list[Row]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write(folder: str | os.PathLike[str], seed: int = 0, people: int = 16, *, scale: float = 1.0) -> dict[str, int]:
    """Writes NAME.jsonl for every name into the folder, which is made if need be, and returns the row counts."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    data = generate(seed, people, scale=scale)
    for name in NAMES:
        write_rows(target / f"{name}.jsonl", data[name])
    return {name: len(data[name]) for name in NAMES}
