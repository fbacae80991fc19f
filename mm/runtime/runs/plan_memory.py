"""An estimate of the memory of a training on each device: the bytes of the tensors that are alive at its peak, by kind.

Imports no torch. It follows from the settings, the sizes that the architecture tells (`Footprint`) and the lengths of the rows.
The memory of the process itself, such as that of torch, is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from mm.core.configs import ArchitectureConfig, Footprint
from mm.core.run import Run
from mm.core.settings import TrainSettings
from mm.runtime.runs.count import Count
from mm.runtime.runs.plan_batch import Batch, batch_of
from mm.runtime.runs.plan_machine import Machine

# bytes of a process beside its tensors: Python, PyTorch, the tokenizer and the first kernels
PROCESS = 400 * 2**20
# on a CPU oneDNN compiles kernels for each new shape, and shapes follow the lengths of the rows: bytes at most, and in each step
KERNELS, KERNELS_OF_A_STEP = 600 * 2**20, 10 * 2**20
FLOAT = 4  # bytes: parameters, their gradients and the optimizer's moments are float32
# float32 logits of a chunk (mm.runtime.nn.chunked), and those of a pass, which is a part of its rows
_CHUNK, _LEAST_ROWS, _PASS = 2**23, 128, 2**19
# vectors of the residual stream that exist outside the blocks: what leaves them, the final norm's, the predicting positions', and
# the gradients of the last two; in the backward of a block there is one gradient
_OUTSIDE, _AFTER = 5, 1
# the share of a block's activations that its backward makes as gradients before it has freed as many
_BACKWARD = 0.3
# bytes of a number of the vocabulary in drawing a token: logits, log-probabilities, weights, and their float64 sums
_SAMPLER = 20
_COPY = "copy for saving"


@attrs.frozen(kw_only=True)
class Memory:
    """Bytes of tensors by kind, at the peak of each phase: "step" (forward, backward and update) and "generation", of an
    algorithm that draws completions. `process` are bytes of the process itself, `kernels` those that it compiles meanwhile, and
    `ranks` the processes of one machine."""

    phases: Mapping[str, Mapping[str, int]]
    process: int
    kernels: int = 0
    ranks: int = 1

    @property
    def kinds(self) -> dict[str, int]:
        """The largest phase, by kind."""
        largest = max(self.phases, key=lambda phase: sum(self.phases[phase].values()))
        return {**self.phases[largest]}

    @property
    def peak(self) -> int:
        """Bytes of tensors on a device, for one rank."""
        return sum(self.kinds.values())

    @property
    def total(self) -> int:
        """Bytes of all ranks of this machine, with their processes."""
        return self.ranks * (self.peak + self.process + self.kernels)


def memory_of(
    run: Run, config: ArchitectureConfig, counted: Count, machine: Machine, *, steps: int = 1, kept_keys: int = 0
) -> Memory:
    """The memory of a run of so many steps on rows that were counted. `kept_keys` is that of the backend's record."""
    shards = machine.ranks if run.train.parallel == "fsdp" else 1  # over which weights, gradients and optimizer are divided
    estimator = Estimator(
        run=run, config=config, batch=batch_of(run, counted, machine.ranks), size=FLOAT if machine.dtype == "fp32" else 2,
        kept_keys=kept_keys, shards=shards, host=machine.host, shared=machine.host and machine.ranks > 1 and shards == 1,
    )  # fmt: skip
    kernels = min(KERNELS, steps * KERNELS_OF_A_STEP) if machine.host else 0
    return Memory(phases=estimator.phases(), process=PROCESS, kernels=kernels, ranks=machine.ranks)


@attrs.frozen(kw_only=True)
class Estimator:
    """Estimates the memory of a run with a model of this config. `size` is the number of bytes of the compute type, `shards` the
    number of ranks over which weights, gradients and optimizer are divided, and `kept_keys` that of the backend's record. `host`
    is true if the memory is that of the host, where the copy for saving is, and `shared` if ranks sum their gradients in it."""

    run: Run
    config: ArchitectureConfig
    batch: Batch
    size: int
    kept_keys: int = 0
    shards: int = 1
    host: bool = True
    shared: bool = False

    def phases(self) -> dict[str, dict[str, int]]:
        """See `Memory`."""
        found = {"step": self._step()}
        if self.run.needs.generates:
            found["generation"] = self._generation()
        return {phase: {kind: int(size) for kind, size in kinds.items() if size} for phase, kinds in found.items()}

    # ---- what exists all the time

    def _held(self) -> dict[str, float]:
        models, size = self._own_models(), FLOAT * self.config.num_parameters()
        weights = {self._kind(role): size / self._divided(role) for role in models}
        optimizer = sum(self._moments(role) / self.shards for role in self.run.needs.trainable)
        saved = optimizer + sum(self._trained(role) / self.shards for role in self.run.needs.trainable)
        return {
            **weights, "position tables": len(models) * FLOAT * self._foot.tables, "optimizer": optimizer,
            _COPY: saved if self._settings.background_save and self.host else 0,
            "shared gradients": self._gradients() if self.shared else 0,
        }  # fmt: skip

    def _own_models(self) -> list[str]:
        """The roles with a model of their own. A frozen role that only calls the policy without its adapter has none."""
        roles = set(self.run.needs.roles)
        if adapted(self.run, "policy"):
            roles -= {"reference"} - set(self.run.needs.trainable)
        return [role for role in self.run.needs.roles if role in roles]

    def _kind(self, role: str) -> str:
        return "weights" if role == "policy" else role

    def _divided(self, role: str) -> int:
        return self.shards if role in self.run.needs.trainable else 1

    def _trained(self, role: str) -> float:
        """Bytes of the weights of a role that are trained; an adapter's own are left out."""
        return 0.0 if adapted(self.run, role) else FLOAT * self.config.num_parameters()

    def _moments(self, role: str) -> float:
        return moments(self.run, self.config) if self._trained(role) else 0.0

    def _gradients(self) -> float:
        return sum(self._trained(role) / self.shards for role in self.run.needs.trainable)

    # ---- a step

    def _step(self) -> dict[str, float]:
        """The largest of these moments: the output head of the last forward, its backward, that of the last block, and the end.
        If a step has several micro-batches, the gradients of the first exist in all others."""
        gradients = self._gradients() if self.batch.several else 0.0
        kept = {"gradients": gradients, **self._activations()}
        block = {"gradients": max(gradients, self._table * self._learns_head), **self._activations(backward=True)}
        ended = {"gradients": self._gradients(), "activations": self._table * self._learns_head}
        moments = [{**kept, "logits": max(self._logits(), 2 * self._head_gradients())}, block, ended]
        return self._held() | max(moments, key=lambda kinds: sum(kinds.values()))

    def _activations(self, *, backward: bool = False) -> dict[str, float]:
        """After the forward, or in the backward of the last block, which makes some gradients before it has freed as much."""
        foot, batch, recomputes = self._foot, self.batch, self._settings.activation_checkpointing
        block, stream = foot.block * self.size * batch.rows, foot.stream * self.size * batch.rows
        pairs, dropped = self._pairs()
        blocks, matrices = foot.blocks, self._cast()
        if recomputes:
            blocks, matrices = (1, matrices / foot.blocks) if backward else (0, matrices)
        # attention works on all tokens, also where others share the rows of a prompt
        block += (batch.tokens - batch.rows) * (foot.stream + foot.cache / foot.blocks) * self.size
        outside = stream * (foot.blocks * recomputes + (_AFTER if backward else _OUTSIDE)) + backward * _BACKWARD * block
        forwards = len(self.run.needs.trainable)
        return {
            "activations": forwards * (blocks * (block + pairs) + outside), "weights in half precision": forwards * matrices,
            "dropout": forwards * blocks * dropped,
        }  # fmt: skip

    def _pairs(self) -> tuple[float, float]:
        """Bytes of attention probabilities that one block keeps: (without dropout, with it). Without dropout only some kernels
        keep them. With it they are kept as they were, in float32, as they are, and if they were dropped."""
        batch, heads = self.batch, self._foot.heads
        if self._settings.dropout:  # besides them the products' own copies of queries, keys and values, one for each head
            copies = 3 * self._foot.stream * self.size
            return 0.0, batch.tokens * (heads * batch.length * (FLOAT + self.size + 1) + copies)
        return batch.tokens * heads * kept_keys(batch.length, self.kept_keys) * self.size, 0.0

    def _cast(self) -> float:
        """The copies of matrices in half precision, which products of the backward need."""
        return (self.config.num_parameters() - self._table / FLOAT) * self.size if self.size < FLOAT else 0.0

    @property
    def _table(self) -> float:
        """Bytes of the embedding or the output layer, in float32."""
        return FLOAT * self.config.vocab_size * self._foot.stream

    @property
    def _learns_head(self) -> bool:
        return not adapted(self.run, "policy")

    def _head_gradients(self) -> float:
        """Gradients that a head computes in the forward: of its hidden states, and of its weight in float32."""
        return self.batch.targets * self._foot.stream * self.size + self._table * self._learns_head

    def _logits(self) -> float:
        """The output head at work on a chunk of positions."""
        vocabulary, half = self.config.vocab_size, self.size < FLOAT
        rows = min(self.batch.targets, max(_LEAST_ROWS, _CHUNK // vocabulary))
        passed = min(rows * vocabulary, _PASS if self.kept_keys else math.inf) * FLOAT * (1 + half)
        weight = self._table * self.size / FLOAT
        product = max(passed, weight * self._learns_head)
        return rows * vocabulary * self.size + product + weight * half + self._head_gradients()

    # ---- drawing completions

    def _generation(self) -> dict[str, float]:
        held, engine, foot = self._held(), self._engine, self._foot
        model = self.config.num_parameters() * self.size
        copies = model * getattr(engine, "fast", True) + (model + FLOAT * foot.tables if self.size < FLOAT else 0)
        prompts = slots(engine, self.batch)
        read = self.batch.prompt * min(prompts, self.batch.prompts) * foot.block * self.size * _BACKWARD
        draws = prompts * self.config.vocab_size * _SAMPLER
        return {
            **held, "engine's copy": copies, "activations": read, "logits": draws,
            "KV cache": prompts * self.batch.capacity * foot.cache * self.size,
        }  # fmt: skip

    @property
    def _engine(self) -> object:
        return next((part for name, part in self.run.parts.items() if name.startswith("engine.")), None)

    @property
    def _foot(self) -> Footprint:
        return self.config.footprint()

    @property
    def _settings(self) -> TrainSettings:
        return self.run.train


def kept_keys(length: float, most: int) -> float:
    """The mean number of probabilities that a kernel keeps for each query and head, in a document of this length, if it keeps
    those of blocks of queries with at most `most` keys."""
    rows = min(64, 16 * math.ceil(length / 16))
    padded = min(rows * math.ceil(length / rows), rows * (most // rows)) if length else 0
    return padded * (padded + rows) / 2 / max(1.0, length)


def slots(engine: object, batch: Batch) -> int:
    """The completions that an engine draws at once."""
    most, tokens = getattr(engine, "slots", batch.samples), getattr(engine, "cache_tokens", math.inf)
    return int(max(1, min(most, batch.samples, tokens // batch.capacity)))


def moments(run: Run, config: ArchitectureConfig) -> float:
    """Bytes of an optimizer's state of one model: Muon has one moment of a matrix, AdamW two of every number."""
    rest = config.vocab_size * config.footprint().stream
    return FLOAT * (config.num_parameters() + rest if run.train.optimizer == "muon" else 2 * config.num_parameters())


def adapted(run: Run, role: str) -> bool:
    """True if an adapter is trained instead of the role's own weights."""
    return bool(run.select.adapter if role == "policy" else run.parts[f"role.{role}"].adapter)
