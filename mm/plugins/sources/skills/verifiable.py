"""Four tasks with answers that a program can check. Half of their demonstrations fail the check.

This is on purpose: reinforcement learning must start from a policy that sometimes succeeds and sometimes fails.
"""

import random
from itertools import product
from typing import NamedTuple

from mm.plugins.sources.skills.splits import LANGUAGES, by_hash, halves, three_way
from mm.plugins.sources.skills.turns import Case, Row, assistant, user

TASKS = ("max", "sort", "reverse", "add")
# a task that occurs only in the file `lora`, always with the right answer
LORA_TASK = "double"
ASKED = {
    "max": {"zh": "哪个更大：{}", "en": "Which is larger: {}"},
    "sort": {"zh": "从小到大排列：{}", "en": "Sort the digits: {}"},
    "reverse": {"zh": "倒过来写：{}", "en": "Write backwards: {}"},
    "add": {"zh": "求和：{}", "en": "Add up: {}"},
    LORA_TASK: {"zh": "写两遍：{}", "en": "Write twice: {}"},
}
WRONG_SHARE = 0.5
UNTAGGED_SHARE = 0.4


class Problem(NamedTuple):
    """A task on one string of digits: `7 3` for max, `7+3` for add, `731` for the others."""

    task: str
    digits: str
    language: str

    @property
    def text(self) -> str:
        """The question as the user puts it."""
        return ASKED[self.task][self.language].format(self.digits)

    @property
    def answer(self) -> str:
        """The right answer."""
        if self.task == "max":
            return max(self.digits.split(), key=int)
        if self.task == "add":
            return str(sum(map(int, self.digits.split("+"))))
        if self.task == LORA_TASK:
            return self.digits * 2
        return "".join(sorted(self.digits)) if self.task == "sort" else self.digits[::-1]

    def mistake(self, rng: random.Random) -> str:
        """A plausible wrong answer: the other number, a sum that is off by one or two, or the digits in another order."""
        if self.task == "max":
            return min(self.digits.split(), key=int)
        if self.task == "add":
            near = (int(self.answer) + step for step in (-2, -1, 1, 2))
            return str(rng.choice([total for total in near if total >= 0]))
        orders = {a + b + c for a, b, c in (rng.sample(self.digits, 3) for _ in range(8))} - {self.answer}
        return min(orders) if orders else str(rng.randint(100, 999))

    def case(self, reply: str) -> Case:
        """The question with a demonstrated reply; the check has the right answer."""
        return Case(self.task, [user(self.text)], assistant(reply), {"answer": self.answer})


def short_strings(task: str) -> list[str]:
    """The strings of training and of tier `new`: two digits for max and add, three for the others."""
    if task == "max":
        return [f"{a} {b}" for a in range(10) for b in range(10) if a != b]
    if task == "add":
        return [f"{a}+{b}" for a in range(10) for b in range(10)]
    return ["".join(digits) for digits in product("0123456789", repeat=3)]


def long_strings(task: str) -> list[str]:
    """The strings of tier `never`: numbers of two digits for max and add, four digits for the others."""
    if task == "max":
        return [f"{a} {b}" for a in range(10, 100) for b in range(10, 100, 7) if a != b]
    if task == "add":
        return [f"{a}+{b}" for a in range(10, 20) for b in range(10)]
    return [f"{n:04d}" for n in range(17, 10_000, 61)]


def problems(task: str, split: str) -> list[Problem]:
    """The problems of a task in a split. A string is in the same split in both languages."""
    strings = three_way(short_strings(task), lambda x: f"{task}/{x}")[split]
    return [Problem(task, x, language) for x in strings for language in LANGUAGES]


def demonstrate(rng: random.Random, problem: Problem) -> str:
    """A reply. With probability 0.5 it is the right answer in tags, with 0.2 the right answer without tags, and with 0.3 a
    wrong answer in tags."""
    if rng.random() >= WRONG_SHARE:
        return f"<answer>{problem.answer}</answer>"
    if rng.random() < UNTAGGED_SHARE:
        return problem.answer
    return f"<answer>{problem.mistake(rng)}</answer>"


def training_problems(rng: random.Random, count: int) -> list[Problem]:
    """`count` training problems: the tasks in turn, and the problems of each task in a random order, in turn."""
    pools = {task: rng.sample(pool, len(pool)) for task in TASKS for pool in [problems(task, "train")]}
    return [pools[TASKS[i % 4]][i // 4 % len(pools[TASKS[i % 4]])] for i in range(count)]


def cases(rng: random.Random, count: int) -> list[Case]:
    """`count` cases of the file `sft`, with replies from `demonstrate`."""
    return [problem.case(demonstrate(rng, problem)) for problem in training_problems(rng, count)]


def lora_cases(rng: random.Random, count: int) -> list[Case]:
    """At most `count` cases of the file `lora`, all with the right answer."""
    pool = problems(LORA_TASK, "train")
    return [problem.case(f"<answer>{problem.answer}</answer>") for problem in rng.sample(pool, min(count, len(pool)))]


def prompt_rows(rng: random.Random, count: int) -> list[Row]:
    """Rows for reinforcement learning: the last turn is an empty placeholder, and `answer` is a field of the row."""
    return [
        {
            "conversations": [user(problem.text), assistant("")],
            "task": problem.task,
            "answer": problem.answer,
        }
        for problem in training_problems(rng, count)
    ]


def held_out_cases(split: str) -> dict[str, dict[str, list[Case]]]:
    """Task -> tier -> cases. `new`: a string that training never asks about; `never`: a string longer than any in training.

    A sum such as 7+8=15 may occur in a line of `pretrain` or in a trace; as a question of the task `add` it is new.
    """
    suites: dict[str, dict[str, list[Case]]] = {}
    for task in (*TASKS, LORA_TASK):
        never = [Problem(task, x, LANGUAGES[i % 2]) for i, x in enumerate(halves(long_strings(task))[split])]
        tiers = {"new": by_hash(problems(task, split), lambda p: p.text), "never": never}
        suites[task] = {tier: [p.case(f"<answer>{p.answer}</answer>") for p in group] for tier, group in tiers.items()}
    return suites
