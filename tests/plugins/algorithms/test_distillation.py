"""Distillation: the chunked head against float64 formulas, and a student that comes closer to its teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.workspace import RunFolder
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import load_model_folder
from mm.runtime.nn.batch import pack
from mm.runtime.nn.distillation import Distillation, linear_distillation
from mm.testing import tiny_run, tiny_tokenizer, tiny_units


def inputs(m: int, v: int = 23) -> tuple[Tensor, ...]:
    """A student of width 8 and a teacher of width 5."""
    generator = torch.Generator().manual_seed(m)
    student = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (m, v))
    teacher = (torch.randn(n, 5, generator=generator) for n in (m, v))
    return (*student, *teacher, torch.randint(v, (m,), generator=generator))


def exact(tensors: tuple[Tensor, ...], what: Distillation) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas, by torch's own kl_div in float64."""
    hidden, weight, teacher_hidden, teacher_weight = (t.double() for t in tensors[:4])
    x, t = hidden @ weight.t(), teacher_hidden @ teacher_weight.t()
    cross_entropy = F.cross_entropy(x, tensors[4], reduction="sum")
    log_q, log_p = (F.log_softmax(z / what.temperature, -1) for z in (x, t))
    kl = lambda log_a, log_b: F.kl_div(log_b, log_a, log_target=True, reduction="sum")  # noqa: E731  KL(a || b)
    if what.divergence == "jsd":
        log_m = ((log_p.exp() + log_q.exp()) / 2).log()
        divergence = (kl(log_p, log_m) + kl(log_q, log_m)) / 2
    else:
        divergence = kl(log_p, log_q) if what.divergence == "forward" else kl(log_q, log_p)
    return what.alpha * cross_entropy + (1 - what.alpha) * what.temperature**2 * divergence, cross_entropy, divergence


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(0, 40), chunk=st.integers(1, 50), alpha=st.sampled_from([0.0, 0.3, 1.0]),
    temperature=st.sampled_from([0.7, 1.0, 2.5]), divergence=st.sampled_from(["forward", "reverse", "jsd"]),
)  # fmt: skip
def test_the_head(m: int, chunk: int, alpha: float, temperature: float, divergence: str) -> None:
    what, tensors = Distillation(alpha=alpha, temperature=temperature, divergence=divergence), inputs(m)
    found, expected = linear_distillation(*tensors, what, chunk=chunk), exact(tensors, what)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), two, atol=1e-4, rtol=1e-5)
    ours = torch.autograd.grad(found[0] * 0.7, tensors[:2])
    theirs = torch.autograd.grad(expected[0] * 0.7, tensors[:2])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_the_head_without_gradients_and_under_autocast() -> None:
    tensors, what = inputs(9), Distillation()
    with torch.no_grad():
        assert not linear_distillation(*tensors, what)[0].requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_distillation(*tensors, what)[0]
    assert found.dtype == torch.float32
    found.backward()
    assert tensors[0].grad is not None and tensors[0].grad.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact(tensors, what)[0], rtol=3e-2, atol=0.0)


class Largest(TorchDispatchMode):
    """The most numbers that one tensor had."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            self.size = max(self.size, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return found


def test_no_more_than_a_chunk_of_logits_exists() -> None:
    tensors, watch = inputs(600, v=400), Largest()
    with watch:
        linear_distillation(*tensors, Distillation(), chunk=10)[0].backward()
    assert watch.size == 600 * 8  # the student's hidden states and their gradient; all logits would be 240,000


TALE = [
    {"messages": [{"role": "user", "content": f"what follows {n}?"}, {"role": "assistant", "content": f"{n} then {n + 1}"}]}
    for n in range(24)
]  # fmt: skip
SMALL = {"learning_rate": 1e-2, "threads": 1, "global_batch_size": 8, "schedule": "constant"}
STUDENT = {"dense_hidden_size": 32, "dense_num_hidden_layers": 1, "dense_num_attention_heads": 2, "dense_num_key_value_heads": 1}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("taught"), "sft", rows=TALE, run="teacher", max_steps=20, **SMALL)


def teach(teacher: RunFolder, name: str, **options: Any) -> RunFolder:
    settings = {**SMALL, **STUDENT, "max_steps": 60, "teacher_from": "teacher", **options}
    return tiny_run(teacher.path.parents[1], "distill", rows=TALE, run=name, **settings)


def distance(teacher: RunFolder, student: RunFolder) -> float:
    """Mean KL(teacher || student) over the answers' tokens."""
    plugins, batch = PluginManager.discover(environ={}), pack(tiny_units("chat", tiny_tokenizer(), rows=TALE) or [])
    logits = []
    for run in (teacher, student):
        with torch.no_grad():
            found: Tensor = load_model_folder(plugins, run.model, Backend()).model(batch)[0]
        logits.append(found[batch.target_index].double().log_softmax(-1))
    return float(F.kl_div(logits[1], logits[0], log_target=True, reduction="batchmean"))


def test_the_student_comes_closer_than_labels_bring_it(teacher: RunFolder) -> None:
    labels = distance(teacher, teach(teacher, "labels", alpha=1.0))
    for divergence in ("forward", "reverse", "jsd"):
        taught = distance(teacher, teach(teacher, divergence, alpha=0.5, divergence=divergence, temperature=1.0))
        assert taught < 0.6 * labels, (divergence, taught, labels)


def test_what_is_logged(teacher: RunFolder) -> None:
    run = teach(teacher, "logged", max_steps=1, log_interval=1, alpha=0.25, temperature=2.0)
    (line,) = [json.loads(text) for text in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert line["loss"] == pytest.approx(0.25 * line["nll"] + 0.75 * 4 * line["divergence"], rel=1e-5)


def test_a_teacher_that_does_not_fit_is_refused(teacher: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="distill needs a teacher: pass --teacher-from"):
        teach(teacher, "alone", teacher_from="")
    tiny_run(tmp_path, "pretrain", run="other", tokenizer="default", max_steps=1)
    with pytest.raises(UsageError, match="its tokenizer is not the policy's"):
        teach(teacher, "foreign", teacher_from=tmp_path / "runs/other/model")
