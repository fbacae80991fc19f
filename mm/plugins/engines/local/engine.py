"""Batched generation in the slots of a static cache: the slot of a finished request is free for a waiting one at once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm.contracts import Completion, Engine, OnToken, Request
from mm.core.errors import MMError, UsageError
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.penalties import Penalties
from mm.plugins.engines.local.sampling import Sampler, check_sampling, uniform
from mm.plugins.engines.local.slots import Placed, Row, SlotTable
from mm.plugins.engines.local.uncached import FullForwards
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.cache import SupportsCache, SupportsFastDecode
from mm.runtime.nn.model import Model

if TYPE_CHECKING:
    from mm.runtime.nn.cache import Decode

_SMALLEST = 256


class LocalEngine(Engine):
    """Generates with a model in this process. The model computes in the type of its weights.

    It uses `SupportsCache` and `SupportsFastDecode` if the model implements them; without a cache, every token takes a forward
    over its whole document. Requests with equal prompts read the prompt once. A prompt that begins with the tokens of a slot
    reads only the new ones. If only a part of the slot's tokens fits, the cache must support `SupportsTruncate` for it. The
    host waits for the device once per forward, to read the tokens.
    """

    def __init__(self, config: LocalConfig | None, model: Model, backend: Backend) -> None:
        super().__init__(config or LocalConfig(), model, backend)
        self.cached: SupportsCache = model if isinstance(model, SupportsCache) else FullForwards(model)
        self.version = 0
        self._table: SlotTable | None = None
        self._decode: Decode | None = None
        self._sampler: tuple[list[Any], Sampler] | None = None
        self._penalties: Penalties | None = None

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
        """See `Engine`. Raises UsageError for an empty prompt, a request that exceeds the model's positions, or invalid sampling
        settings."""
        for index, request in enumerate(requests):
            self._check(index, request)
        rows = [Row(index, request) for index, request in enumerate(requests)]
        waiting = deque(row for row in rows if not row.reason)
        if not waiting:
            return [row.completion() for row in rows]
        table = self._ensure_table([row.request for row in waiting])
        try:
            self._run(waiting, table, on_token)
        except BaseException:
            # an interrupted step may have stored only some layers, so later prompts must not continue these slots
            self._table = None
            raise
        return [row.completion() for row in rows]

    @torch.no_grad()
    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine`; tensors are cast to the types of the model. Raises MMError for a name that the model does not have."""
        own = self.model.state_dict(keep_vars=True)
        for name, tensor in named_tensors:
            if name not in own:
                raise MMError(f"The engine's model has no tensor {name!r}.")
            own[name].copy_(tensor, non_blocking=True)
        self.version = version
        self.release()

    def release(self) -> None:
        """See `Engine`. Frees the cache and the second copy of the weights."""
        self._table = self._decode = self._sampler = self._penalties = None
        self.backend.empty_cache()

    def notes(self) -> list[str]:
        """See `Engine`."""
        if isinstance(self.model, SupportsCache):
            return []
        name = type(self.model).__name__
        return [f"generation is slow: {name} has no cache, so every token takes a forward over its whole document"]

    def _check(self, index: int, request: Request) -> None:
        check_sampling(request.sampling)
        if not request.ids:
            raise UsageError(f"Request {index} has an empty prompt; give at least the token that begins a document.")
        if request.max_new_tokens < 0:
            raise UsageError(f"Request {index}: max_new_tokens is {request.max_new_tokens}, expected 0 or more.")
        longest = self.model.config.max_position_embeddings
        if longest is not None and len(request.ids) + request.max_new_tokens > longest:
            raise UsageError(
                f"Request {index}: {len(request.ids)} prompt tokens and {request.max_new_tokens} new ones are more than "
                f"the model's {longest} positions; shorten the prompt or lower max_new_tokens."
            )

    def _ensure_table(self, requests: Sequence[Request]) -> SlotTable:
        capacity = max(len(r.ids) + r.max_new_tokens for r in requests)
        # a power of two, so that a growing conversation keeps its cache for many turns
        capacity = max(_SMALLEST, 1 << (capacity - 1).bit_length())
        slots = max(1, min(self.config.slots, len(requests), self.config.cache_tokens // capacity))
        if self._table is None or not self._table.fits(slots, capacity):
            self._table = None  # free its memory before the new one is allocated
            self._table = SlotTable(self.cached.new_cache(slots, capacity))
        return self._table

    def _run(self, waiting: deque[Row], table: SlotTable, on_token: OnToken | None) -> None:
        while waiting or table.active:
            if placed := table.place(waiting):
                self._prefill(table, placed, on_token)
            table.compact()
            if active := table.active:
                self._step(table, active, on_token)

    def _prefill(self, table: SlotTable, placed: list[Placed], on_token: OnToken | None) -> None:
        prompts = [torch.tensor(p.row.request.ids[p.known :]) for p in placed]
        batch = pack([Unit((Tokens(ids),)) for ids in prompts]).to(table.cache.device)
        logits_NV = self.cached.prefill(batch, [p.slot for p in placed], table.cache)
        table.share(placed)
        slots = [(n, slot) for n, p in enumerate(placed) for slot in (p.slot, *p.twins)]
        if len(slots) > len(placed):
            logits_NV = logits_NV[torch.tensor([n for n, _ in slots]).to(logits_NV.device)]
        self._draw([table.row(slot) for _, slot in slots], logits_NV, on_token)

    def _step(self, table: SlotTable, active: list[tuple[int, Row]], on_token: OnToken | None) -> None:
        # outside inference mode, autograd's bookkeeping takes a tenth of a small model's step
        with torch.inference_mode():
            ids_A = torch.tensor([row.ids[-1] for _, row in active]).to(table.cache.device, non_blocking=True)
            logits_AV = self._decoder()(ids_A, [slot for slot, _ in active], table.cache)
            self._draw([row for _, row in active], logits_AV, on_token)

    def _decoder(self) -> Decode:
        if self._decode is None:
            model, fast = self.model, self.config.fast
            self._decode = model.fast_decode() if fast and isinstance(model, SupportsFastDecode) else self.cached.decode
        return self._decode

    def _draw(self, rows: list[Row], logits_AV: Tensor, on_token: OnToken | None) -> None:
        settings = [row.request.sampling for row in rows]
        if self._sampler is None or self._sampler[0] != settings:
            self._sampler = settings, Sampler(settings, logits_AV.device)
        sampler = self._sampler[1]
        if sampler.penalises:
            logits_AV = self._penalise(rows, logits_AV)
        uniforms = [] if sampler.all_greedy else [uniform(row.seed, len(row.ids)) for row in rows]
        ids, logprobs = sampler(logits_AV, uniforms).tolist()
        if any(map(math.isnan, logprobs)):
            raise MMError("The model's logits are NaN: its activations overflow. Use --dtype fp32, or an earlier checkpoint.")
        for row, token, logprob in zip(rows, ids, logprobs, strict=True):
            row.append(int(token), logprob)
            if on_token is not None and on_token(row.index, int(token), logprob):
                row.reason = "stop"

    def _penalise(self, rows: list[Row], logits_AV: Tensor) -> Tensor:
        if self._penalties is None or not self._penalties.are_of(rows):
            self._penalties = Penalties(rows, logits_AV.shape[1], logits_AV.device)
        return self._penalties(logits_AV)
