"""The files of the corpus and their rows.

- `pretrain`: texts.
- `sft`: conversations.
- `preference`: preference pairs.
- `prompts`: questions with an answer that can be checked.
- `agent`: episodes, with the values that the final reply must contain.
- `lora` and `reason`: conversations of one skill each, which `sft` does not show.
- `dev` and `test`: evaluation items.
"""

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from mm.plugins.sources.skills import calls, chat, dialogues, facts, lines, preference, reasoning, suites, verifiable
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


def scale_count(count: int, scale: float) -> int:
    """`count` times `scale`, rounded, at least 1."""
    return max(1, round(count * scale))


def shuffle_rows(seed: int, name: str, rows: list[T]) -> list[T]:
    """Shuffle the rows in place, with a random generator for this file, and return them."""
    random.Random(f"{seed}/order/{name}").shuffle(rows)
    return rows


def pretrain_lines(seed: int, world: World, plan: facts.Plan, scale: float) -> list[str]:
    """All texts of the file `pretrain`."""
    rng = random.Random(f"{seed}/pretrain")
    text = facts.portrait_lines(rng, plan.written, scale_count(PASSES, scale))
    for make, count in LINES.items():
        text += lines.make_lines(rng, make, scale_count(count, scale), world.forbidden_strings())
    return shuffle_rows(seed, "pretrain", text)


def sft_cases(seed: int, world: World, plan: facts.Plan, scale: float) -> list[Case]:
    """All cases of the file `sft`. Every question about a fact occurs twice (at scale 1), and some in `dialogues`, too."""

    def count(rows: int) -> int:
        return scale_count(rows, scale)

    rng = random.Random(f"{seed}/sft")
    cases = facts.cases(rng, plan.asked, count(2 * len(plan.asked)))
    cases += calls.cases(rng, single=count(700), double=count(200))
    cases += chat.cases(rng, world, count(320))
    cases += dialogues.cases(rng, world, plan, count(400))
    cases += preference.cases(rng, count(300))
    cases += reasoning.cases(rng, count(540))
    cases += verifiable.cases(rng, count(900))
    return shuffle_rows(seed, "sft", cases)


def agent_row(case: Case) -> Row:
    """An episode in MiniMind's form: the last turn is an empty placeholder, and `gt` has one value per call."""
    return case.row() | {"gt": case.check["contains"]}


def generate(seed: int = 0, people: int = 16, *, scale: float = 1.0) -> dict[str, list[Row]]:
    """The rows of every file. The same arguments give the same rows in the same order, on any machine.

    `scale` multiplies the number of training rows. It does not change the evaluation items, except that tier `seen` has
    fewer if fewer questions were trained on. With at least 16 people and scale 1, every suite has at least 100 items.
    """
    world = make_world(seed, people)
    plan = facts.make_plan(world)
    cases = sft_cases(seed, world, plan, scale)
    episodes = calls.episodes(random.Random(f"{seed}/agent"), scale_count(400, scale))
    lora = verifiable.lora_cases(random.Random(f"{seed}/lora"), scale_count(800, scale))
    longer = reasoning.cases(random.Random(f"{seed}/reason"), scale_count(800, scale), reasoning.LONGER)
    data: dict[str, list[Row]] = {
        "pretrain": [{"text": line} for line in pretrain_lines(seed, world, plan, scale)],
        "sft": [case.row() for case in cases],
        "preference": preference.pairs(random.Random(f"{seed}/preference"), scale_count(300, scale)),
        "prompts": verifiable.prompt_rows(random.Random(f"{seed}/prompts"), scale_count(1600, scale)),
        "agent": [agent_row(case) for case in episodes],
        "lora": [case.row() for case in lora],
        "reason": [case.row() for case in longer],
    }
    first_calls = [calls.first_call(case) for case in cases if case.suite == "tool_answer"]
    trained = [*cases, *first_calls, *episodes, *lora, *longer]
    for split in HELD_OUT:
        rng = random.Random(f"{seed}/{split}")
        data[split] = suites.items(rng, world, plan, trained, scale_count(PASSES, scale), split)
    return data


def conversations(data: dict[str, list[Row]]) -> Iterator[list[Turn]]:
    """Every conversation of the training files, both sides of a pair: no held-out question may occur in one."""
    for row in (row for name in ("sft", "prompts", "agent", "lora", "reason") for row in data[name]):
        yield row["conversations"]
    for row in data["preference"]:
        yield from (row["chosen"], row["rejected"])


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write one JSON object per line. The file is complete or does not exist: it is written under another name and renamed."""
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
    """Write NAME.jsonl for every file of the corpus into the folder, which is created if necessary. Returns the number of
    rows of each."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    data = generate(seed, people, scale=scale)
    for name in NAMES:
        write_rows(target / f"{name}.jsonl", data[name])
    return {name: len(data[name]) for name in NAMES}
