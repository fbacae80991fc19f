"""The settings of an evaluation: the data, its amount, and the skills."""

from __future__ import annotations

from attrs import frozen

from mm.core.options import option
from mm.runtime.generation.options import AnswerOptions


@frozen(kw_only=True)
class EvalSettings(AnswerOptions):
    """Settings of an evaluation. The options of answers apply to the held-out items."""

    data: tuple[str, ...] = option((), help="Text or chat rows to measure the perplexity on; may be given several times.")
    skills: bool = option(False, help="Ask the held-out items of the skills corpus.")
    split: str = option("test", help="Split of the skills corpus whose items are asked.", choices=("dev", "test"))
    skills_seed: int = option(0, help="Seed of the skills corpus that the model was trained on.", within="(-inf, inf)")
    open_thinking: float | None = option(
        None, help="Share of the skill items that are asked with an opened thought, the others with an empty one; by default the "
        "template's choice.", within="[0, 1]",
    )  # fmt: skip
    max_length: int = option(
        512, help="Longest document in tokens: longer text is split, longer chats are cut at a turn.", within="[2, inf)"
    )
    batch_tokens: int = option(8192, help="Most tokens in one forward pass over --data.", within="[1, inf)")
    limit: int | None = option(
        None, help="Most documents of each --data, and most skill items; --seed selects them.", within="[1, inf)"
    )
    seed: int = option(0, help="Seed of sampled answers and of the selection by --limit.", within="(-inf, inf)")
