"""Tables of the time and memory of training steps, by phase and by kind of operator, from a torch.profiler trace."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch

from mm.runtime.training.phases import PHASE_PREFIX

if TYPE_CHECKING:
    from torch.profiler import profile

# an operator belongs to the first group whose pattern is found in its name
_PATTERNS = {
    "communication": r"[a-z]ccl|gloo|c10d|all_?reduce|all_?gather|reduce_?scatter|barrier",
    "optimizer": r"adam|_foreach_|muon|Optimizer\.",
    "compiled kernels": r"triton|inductor|cpp_fused|compiled|graph_\d",
    "attention": r"attention|flash|varlen",
    "matrix products": r"::(mm|bmm|mv|dot|addmm|addmv|baddbmm|addbmm|matmul|linear|\w*gemm\w*|mkldnn_\w*linear\w*)_?$",
    "norms": r"norm",
    "softmax": r"softmax|logsumexp|nll_loss|cross_entropy",
    "activations": r"silu|gelu|relu|sigmoid|tanh",
    "gathers": r"embedding|index|gather|scatter|take|nonzero|masked",
    "copies and casts": r"::(copy_|_to_copy|clone|cat|stack|contiguous|fill_|zero_|repeat\w*)$|memcpy|memset",
    "reductions": r"::(sum|mean|amax|amin|max|min|all|any|cumsum|argmax|sort|topk)$",
    "elementwise": r"::(add|sub|rsub|mul|div|pow|exp|log|neg|sqrt|rsqrt|reciprocal|where|maximum|minimum|clamp\w*|sin|cos"
    r"|abs|add(cmul|cdiv)|lerp|isfinite|bitwise_\w+|logical_\w+|eq|ne|lt|le|gt|ge)_?$",
}
_GROUPS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _PATTERNS.items()}
_STEP = ("data", "forward", "backward", "optimizer")
_REST = "views, allocation and the rest"


def group_of(operator: str) -> str:
    """The group that an operator's time is added to."""
    return next((name for name, pattern in _GROUPS.items() if pattern.search(operator)), _REST)


@attrs.define
class Cost:
    """Microseconds on the host and on the device, and bytes: those that a group of operators allocated, or a phase's peak."""

    host: float = 0.0
    device: float = 0.0
    memory: float = 0.0

    def add(self, host: float, device: float, memory: float) -> None:
        """Add the cost of an operator."""
        self.host, self.device, self.memory = self.host + host, self.device + device, self.memory + memory


@attrs.frozen
class Spans:
    """The phases of a trace as intervals of time that do not overlap."""

    starts: list[float]
    ends: list[float]
    names: list[str]

    @classmethod
    def of(cls, intervals: Iterable[tuple[float, float, str]]) -> Spans:
        """Spans from triples (start, end, name)."""
        starts, ends, names = zip(*sorted(intervals), strict=True)
        return cls(list(starts), list(ends), list(names))

    def at(self, moment: float) -> str:
        """The phase at a moment, or "other" between phases."""
        index = bisect_right(self.starts, moment) - 1
        return self.names[index] if index >= 0 and moment <= self.ends[index] else "other"


def summarise(profiler: profile, trace: Path, steps: int, title: str) -> str:
    """Two tables, by phase and by group of operators, from a stopped profiler and the file `trace` that it exported.

    The second table has the operators of the steps only, not those of an evaluation or a checkpoint between them.
    """
    events = [e for e in profiler.events() or [] if e.device_type == torch.autograd.DeviceType.CPU]
    marked = [e for e in events if e.name.startswith(PHASE_PREFIX)]
    marks = [(e.time_range.start, e.time_range.end, e.name.removeprefix(PHASE_PREFIX)) for e in marked]
    spans = Spans.of(marks)
    phases: dict[str, Cost] = {name: Cost() for name in _STEP}
    groups: dict[str, Cost] = defaultdict(Cost)
    for start, end, name in marks:
        phases.setdefault(name, Cost()).host += end - start
    for event in events:
        if event.name.startswith(PHASE_PREFIX):
            continue
        device, where = float(event.self_device_time_total), spans.at(event.time_range.start)
        phases.setdefault(where, Cost()).device += device
        if where in _STEP:
            memory = event.self_cpu_memory_usage + event.self_device_memory_usage
            groups[group_of(event.name)].add(event.self_cpu_time_total, device, max(0, memory))
    wall = max(spans.ends) - min(spans.starts)
    phases.setdefault("other", Cost()).host = wall - sum(c.host for name, c in phases.items() if name != "other")
    for name, peak in peaks(trace).items():
        phases.setdefault(name, Cost()).memory = peak
    lines = [f"{title}: {wall / 1000 / steps:.1f} ms per step in total, while traced (which slows small operators down)"]
    lines += _table(("phase", "peak MiB"), phases, steps, per_step=False)
    lines += _table(("operators", "MiB"), dict(sorted(groups.items(), key=lambda g: -max(g[1].device, g[1].host))), steps)
    return "\n".join(lines)


def peaks(trace: Path) -> dict[str, float]:
    """The peak of the bytes allocated in each phase, above those at the start of the trace; on the device, or on the host if
    the trace has no device."""
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    marks = [e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith(PHASE_PREFIX)]
    spans = Spans.of((e["ts"], e["ts"] + e["dur"], e["name"].removeprefix(PHASE_PREFIX)) for e in marks)
    records = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    kinds = {e["args"]["Device Type"] for e in records}
    allocated = 0
    peak: dict[str, float] = defaultdict(float)
    for event in records:
        if event["args"]["Device Type"] == max(kinds):  # 0 is the host
            allocated += event["args"]["Bytes"]
            name = spans.at(event["ts"])
            peak[name] = max(peak[name], allocated)
    return dict(peak)


def _table(heads: tuple[str, str], rows: Mapping[str, Cost], steps: int, *, per_step: bool = True) -> Sequence[str]:
    """Lines with milliseconds per step, the share of the device's time (of the host's without a device), and MiB."""
    device = sum(cost.device for cost in rows.values())
    total = device or sum(cost.host for cost in rows.values())
    lines = ["", f"{heads[0]:<32}{'host ms':>10}{'device ms':>11}{'share':>8}{heads[1]:>10}"]
    for name, cost in rows.items():
        share = (cost.device if device else cost.host) / total if total else 0.0
        shown = f"{cost.device / 1000 / steps:.2f}" if device else "-"
        memory = cost.memory / 2**20 / (steps if per_step else 1)
        lines.append(f"{name:<32}{cost.host / 1000 / steps:>10.2f}{shown:>11}{share:>8.1%}{memory:>10.1f}")
    return lines
