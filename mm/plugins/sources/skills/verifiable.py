"""Four tasks whose answer a machine can check, shown by a demonstrator that is wrong half of the time.

On purpose: reinforcement learning must start from a policy that succeeds sometimes, neither never nor always.
"""

import random
from itertools import product
from typing import NamedTuple

from mm.plugins.sources.skills.splits import LANGUAGES, by_hash, halves, three_way
from mm.plugins.sources.skills.turns import Case, Row, assistant, user

TASKS = ("max", "sort", "reverse", "add")
# a skill that only the file `lora` shows, always rightly
ADAPTED = "double"
ASKED = {
    "max": {"zh": "哪个更大：{}", "en": "Which is larger: {}"},
    "sort": {"zh": "从小到大排列：{}", "en": "Sort the digits: {}"},
    "reverse": {"zh": "倒过来写：{}", "en": "Write backwards: {}"},
    "add": {"zh": "求和：{}", "en": "Add up: {}"},
    ADAPTED: {"zh": "写两遍：{}", "en": "Write twice: {}"},
}
WRONG = 0.5
UNTAGGED = 0.4


class Problem(NamedTuple):
    """A task on one string of digits."""

    task: str
    given: str
    language: str

    @property
    def text(self) -> str:
        """The question as the user puts it."""
        return ASKED[self.task][self.language].format(self.given)

    @property
    def answer(self) -> str:
        """The right answer."""
        if self.task == "max":
            return max(self.given.split(), key=int)
        if self.task == "add":
            return str(sum(map(int, self.given.split("+"))))
        if self.task == ADAPTED:
            return self.given * 2
        return "".join(sorted(self.given)) if self.task == "sort" else self.given[::-1]

    def mistake(self, draw: random.Random) -> str:
        """A likely wrong answer: the other number, a sum that is near, the digits in another order."""
        if self.task == "max":
            return min(self.given.split(), key=int)
        if self.task == "add":
            near = (int(self.answer) + step for step in (-2, -1, 1, 2))
            return str(draw.choice([total for total in near if total >= 0]))
        orders = {a + b + c for a, b, c in (draw.sample(self.given, 3) for _ in range(8))} - {self.answer}
        return min(orders) if orders else str(draw.randint(100, 999))

    def case(self, reply: str) -> Case:
        """The question with a demonstrated reply; the check knows the right answer."""
        return Case(self.task, [user(self.text)], assistant(reply), {"answer": self.answer})


def strings(task: str) -> list[str]:
    """Everything that training and the `new` tier may ask: two digits, or three characters."""
    if task == "max":
        return [f"{a} {b}" for a in range(10) for b in range(10) if a != b]
    if task == "add":
        return [f"{a}+{b}" for a in range(10) for b in range(10)]
    return ["".join(digits) for digits in product("0123456789", repeat=3)]


def larger(task: str) -> list[str]:
    """What training never asks: numbers of two digits, strings of four characters."""
    if task == "max":
        return [f"{a} {b}" for a in range(10, 100) for b in range(10, 100, 7) if a != b]
    if task == "add":
        return [f"{a}+{b}" for a in range(10, 20) for b in range(10)]
    return [f"{n:04d}" for n in range(17, 10_000, 61)]


def problems(task: str, split: str) -> list[Problem]:
    """The task's problems of a split; a string belongs to one split in both languages."""
    given = three_way(strings(task), lambda x: f"{task}/{x}")[split]
    return [Problem(task, x, language) for x in given for language in LANGUAGES]


def demonstrate(draw: random.Random, problem: Problem) -> str:
    """Right and tagged half of the time; else a tagged mistake or, in 4 of 10, the right answer without its tags."""
    if draw.random() >= WRONG:
        return f"<answer>{problem.answer}</answer>"
    if draw.random() < UNTAGGED:
        return problem.answer
    return f"<answer>{problem.mistake(draw)}</answer>"


def drawn(draw: random.Random, count: int) -> list[Problem]:
    """Training problems, every task equally often and its problems in turn."""
    pools = {task: draw.sample(pool, len(pool)) for task in TASKS for pool in [problems(task, "train")]}
    return [pools[TASKS[i % 4]][i // 4 % len(pools[TASKS[i % 4]])] for i in range(count)]


def cases(draw: random.Random, count: int) -> list[Case]:
    """The weak demonstrations of sft."""
    return [problem.case(demonstrate(draw, problem)) for problem in drawn(draw, count)]


def adapted(draw: random.Random, count: int) -> list[Case]:
    """Demonstrations of the skill that an adapter is to learn."""
    pool = problems(ADAPTED, "train")
    return [problem.case(f"<answer>{problem.answer}</answer>") for problem in draw.sample(pool, min(count, len(pool)))]


def prompts(draw: random.Random, count: int) -> list[Row]:
    """Rows for reinforcement learning: the last turn is a placeholder, the answer stands beside it."""
    return [
        {
            "conversations": [user(problem.text), assistant("")],
            "task": problem.task,
            "answer": problem.answer,
        }
        for problem in drawn(draw, count)
    ]


def held(split: str) -> dict[str, dict[str, list[Case]]]:
    """Task -> tier -> cases. `new`: a string never asked about; `never`: longer than any that was.

    That 7+8 is 15 may stand in a line of pretraining or in a trace; as a question of `add` it is new.
    """
    suites: dict[str, dict[str, list[Case]]] = {}
    for task in (*TASKS, ADAPTED):
        never = [Problem(task, x, LANGUAGES[i % 2]) for i, x in enumerate(halves(larger(task))[split])]
        tiers = {"new": by_hash(problems(task, split), lambda p: p.text), "never": never}
        suites[task] = {tier: [p.case(f"<answer>{p.answer}</answer>") for p in group] for tier, group in tiers.items()}
    return suites
