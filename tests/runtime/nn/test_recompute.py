"""Activation checkpointing: the same gradients out of less memory."""

from __future__ import annotations

import pytest
import torch
from run_files import weights
from safetensors.torch import load_file
from sizes import sizes
from torch import nn

from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.recompute import checkpoint_blocks
from mm.testing import tiny_model
from mm.testing.pytest_plugin import Train

pytestmark = pytest.mark.mm_train("sft", max_steps=3, log_interval=1, learning_rate=1e-2, **sizes())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_training_is_the_same_to_the_bit(dtype: str, mm_train: Train) -> None:
    kept, again = (mm_train(run=str(on), activation_checkpointing=on, dtype=dtype) for on in (False, True))
    assert weights(kept) == weights(again)
    assert not [note for note in again.manifest["notes"] if "activations" in note]


@pytest.mark.slow
def test_a_compiled_training_is_the_same_to_the_bit(mm_train: Train) -> None:
    kept, again = (mm_train(run=str(on), activation_checkpointing=on, compile=True) for on in (False, True))
    if any(note.startswith("not compiled") for note in again.manifest["notes"]):
        pytest.skip("no compiler here")
    first, second = (load_file(run.model / "model.safetensors") for run in (kept, again))
    assert all(first[name].equal(second[name]) for name in first)


def kept_bytes(model: nn.Module) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that a forward leaves behind for its backward, each storage once and weights apart; and the gradients."""
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 300, (512,), generator=torch.Generator().manual_seed(0))
    batch = pack([Unit((Tokens(part),)) for part in ids.split(128)])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch)[0].logsumexp(-1).mean()
    loss.backward()
    return sum(held.values()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_less_is_kept_for_the_backward() -> None:
    plain, recomputing = tiny_model(), tiny_model()
    assert checkpoint_blocks(recomputing) is None
    (much, expected), (little, found) = kept_bytes(plain), kept_bytes(recomputing)
    assert all(expected[name].equal(found[name]) for name in expected) and len(expected) == len(found)
    hidden = 512 * plain.config.hidden_size * 4
    # the head's logits and the final norm are kept either way; of each block only what enters it
    logits = 2 * 512 * 300 * 4
    assert little <= logits + (len(plain.blocks) + 4) * hidden
    assert much > little + len(plain.blocks) * 6 * hidden


def test_a_model_without_blocks_keeps_its_activations() -> None:
    class Whole(type(tiny_model())):  # type: ignore[misc]
        blocks = ()

    model = tiny_model()
    model.__class__ = Whole
    assert checkpoint_blocks(model) == "Whole has no `blocks`"
    assert not any("forward" in vars(module) for module in model.modules())
