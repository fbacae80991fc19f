"""The weights of reasoning: at tags alone, whether a tokenizer has them as tokens or spells them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from run_files import lines
from tokenizers import AddedToken, Tokenizer as Backend, decoders, models, pre_tokenizers, trainers

from mm.core.plugins import PluginManager
from mm.plugins.algorithms.reason import ReasonConfig
from mm.plugins.algorithms.reason.algorithm import Reason
from mm.runtime.data.tokenizer_training import NAMES, SPECIAL
from mm.runtime.nn.batch import pack
from mm.runtime.text.tokenizer import DEFAULT_TEMPLATE, Tokenizer
from mm.runtime.text.tokenizer_files import TokenizerFiles
from mm.runtime.training.context import Context
from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Totals
from mm.runtime.training.roles import Role
from mm.testing import tiny_model, tiny_tokenizer, tiny_units
from mm.testing.pytest_plugin import Train

ROWS = [
    {"messages": [
        {"role": "user", "content": "<think>what?</think> answer <answer>x</answer>"},
        {"role": "assistant", "content": "<think>\nI think </thin of an answer> a<b\n</think>\n<answer>\nanswer: 7\n</answer>"},
    ]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no tags, <answers> and think"}]},
]  # fmt: skip


def reason(tokenizer: Tokenizer, **config: object) -> Reason:
    policy = Role("policy", tiny_model(vocab_size=tokenizer.vocab_size).double(), trainable=True)
    tools = Context(tokenizer=tokenizer, world=World(), seed=0, more_rows=lambda n: [])
    return Reason(ReasonConfig(**config), {"policy": policy}, tools)


def without_tags() -> Tokenizer:
    """As MiniMind's second generation: no tag is a token, and `think` is a piece of tags and of words alike."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [AddedToken(name, special=True, normalized=False) for name in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["<think>think</think><answer>answer</answer> I think of an answer"] * 9, trainer)
    found = Tokenizer(TokenizerFiles(backend=backend, template=DEFAULT_TEMPLATE.read_text(encoding="utf-8"), special=NAMES))
    assert backend.token_to_id("think") is not None and backend.token_to_id("<think>") is None
    return found


@pytest.mark.parametrize("shipped", [True, False])
def test_the_tokens_that_weigh_more_are_the_tags(shipped: bool) -> None:
    tokenizer = Tokenizer.load() if shipped else without_tags()
    units = tiny_units("chat", tokenizer, rows=ROWS, plugins=PluginManager.discover(environ={})) or []
    found = reason(tokenizer, tag_weight=4.0)
    assert (len(found._ids) > 0, bool(found._spelled)) == (shipped, True)  # the shipped one has think, and spells answer
    for number, unit in enumerate(units):
        batch = pack([unit])
        weights = found.weights(batch)
        assert set(weights.tolist()) == ({1.0, 4.0} if number == 0 else {1.0})
        heavy = b"".join(tokenizer.id_bytes[token] for token in batch.targets[weights > 1].tolist())
        assert heavy == (b"<think></think><answer></answer>" if number == 0 else b"")


def test_the_loss_is_the_weighted_mean() -> None:
    tokenizer = tiny_tokenizer()
    units = tiny_units("chat", tokenizer, rows=ROWS, plugins=PluginManager.discover(environ={})) or []
    found, batch = reason(tokenizer, tag_weight=10.0), pack(units)
    loss, metrics = found.loss(batch, Totals.of([batch], found.counts(batch)))
    with torch.no_grad():
        logits = found.models["policy"].model(batch)[0][batch.target_index].double()
    weights = found.weights(batch)
    expected = (F.cross_entropy(logits, batch.targets, reduction="none") * weights).sum() / weights.sum()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["tags"][0]) == (weights > 1).sum()
    # MiniMind 2 divides by the number of learned tokens
    theirs = reason(tokenizer, tag_weight=10.0, divide_by="tokens")
    theirs.models = found.models
    loss, metrics = theirs.loss(batch, Totals.of([batch], theirs.counts(batch)))
    assert float(loss.detach()) == pytest.approx(float(expected * weights.sum()) / len(weights), rel=1e-6)
    assert float(metrics["loss"][0]) / float(metrics["loss"][1]) == pytest.approx(float(loss.detach()))


def test_rows_without_tags_are_said(mm_train: Train) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": f"is {n}"}]} for n in range(4)]
    run = mm_train("reason", rows=rows, log_interval=1)
    assert any("no tag was met" in note for note in run.manifest["notes"])
    tagged = mm_train("reason", rows=ROWS, run="tagged", log_interval=1, max_steps=1)
    (line,) = lines(tagged)
    assert line["tags"] > 0 and not any("no tag" in note for note in tagged.manifest["notes"])
