"""Generation in the slots of a static cache, for requests that come together or one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mm.contracts import Completion, Engine, OnToken, Request, Running
from mm.core.errors import MMError, UsageError
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.rows import Row
from mm.plugins.engines.local.sampling import check_sampling
from mm.plugins.engines.local.scheduler import Scheduler
from mm.plugins.engines.local.uncached import FullForwards
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.cache import SupportsCache
from mm.runtime.nn.model import Model

_SMALLEST = 256  # tokens of a slot
_FEWEST = 16  # slots, if a slot need not hold as many tokens as the model has positions


class LocalEngine(Engine):
    """Generates with a model in this process. The model computes in the type of its weights. `SupportsContinuous`.

    It uses `SupportsCache` and `SupportsFastDecode` if the model implements them; without a cache, every token takes a forward
    over its whole document. Requests with equal prompts read the prompt once. A prompt that begins with the tokens of a slot
    reads only the new ones. If only a part of the slot's tokens fits, the cache must support `SupportsTruncate` for it. The
    host waits for the device once per forward, to read the tokens.
    """

    def __init__(self, config: LocalConfig | None, model: Model, backend: Backend) -> None:
        super().__init__(config or LocalConfig(), model, backend)
        self.cached: SupportsCache = model if isinstance(model, SupportsCache) else FullForwards(model)
        self.version = 0
        self._scheduler = Scheduler(model, self.cached, fast=self.config.fast)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
        """See `Engine`. Raises UsageError for an empty prompt, a request that exceeds the model's positions, or invalid sampling
        settings. Requests that were submitted go on beside these, if there are any."""
        for index, request in enumerate(requests):
            self._check(f"Request {index}", request)
        rows = [Row(index, request, on_token) for index, request in enumerate(requests)]
        scheduler = self._scheduler
        self._make_room([row.request for row in rows if row.request.max_new_tokens])
        try:
            for row in rows:
                scheduler.add(row)
            while any(not row.reason for row in rows):
                scheduler.step(None)
                for row in rows:
                    if row.error is not None:
                        raise row.error
        finally:
            own = set(rows)
            for row in rows:
                scheduler.cancel(row)
            scheduler.ended = [row for row in scheduler.ended if row not in own]
        return [row.completion() for row in rows]

    def submit(self, request: Request, on_token: OnToken | None = None) -> Running:
        """See `SupportsContinuous`. The first call allocates the cache that later ones share."""
        self._check("The request", request)
        size, longest = len(request.ids) + request.max_new_tokens, self.context_size
        if longest is not None and request.max_new_tokens and size > longest:
            raise UsageError(
                f"The request: {len(request.ids)} prompt tokens and {request.max_new_tokens} new ones are more than the "
                f"{longest} tokens of a slot; shorten the prompt, lower max_new_tokens, or raise --local-slot-tokens."
            )
        row = Row(0, request, on_token)
        self._scheduler.add(row)
        return row

    def cancel(self, running: Running) -> None:
        """See `SupportsContinuous`."""
        assert isinstance(running, Row)
        self._scheduler.cancel(running)

    @torch.no_grad()
    def step(self) -> list[Running]:
        """See `SupportsContinuous`."""
        self._scheduler.step(self.config.prefill_tokens)
        ended, self._scheduler.ended = self._scheduler.ended, []
        return list(ended)

    @property
    def busy(self) -> bool:
        """See `SupportsContinuous`."""
        return self._scheduler.busy

    @property
    def context_size(self) -> int | None:
        """See `SupportsContinuous`. Allocates the cache, as its kind decides."""
        positions, tokens = self.model.config.max_position_embeddings, self.config.cache_tokens
        wanted = self.config.slot_tokens or max(_SMALLEST, tokens // _FEWEST)
        capacity = wanted if positions is None else min(wanted, positions)
        if capacity > tokens:
            raise UsageError(
                f"A slot of {capacity} tokens does not fit into a cache of {tokens}; raise --local-cache-tokens, or give fewer "
                "--local-slot-tokens."
            )
        cache = self._scheduler.open(max(1, min(self.config.slots, tokens // capacity)), capacity).cache
        if cache.capacity is None:
            return positions
        return cache.capacity if positions is None else min(cache.capacity, positions)

    @torch.no_grad()
    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine`; tensors are cast to the types of the model. Raises MMError for a name that the model does not have,
        or while submitted requests run."""
        self._refuse_if_busy()
        own = self.model.state_dict(keep_vars=True)
        for name, tensor in named_tensors:
            if name not in own:
                raise MMError(f"The engine's model has no tensor {name!r}.")
            own[name].copy_(tensor, non_blocking=True)
        self.version = version
        self.release()

    def release(self) -> None:
        """See `Engine`. Frees the cache and the second copy of the weights. Raises MMError while submitted requests run."""
        self._refuse_if_busy()
        self._scheduler.release()
        self.backend.empty_cache()

    def notes(self) -> list[str]:
        """See `Engine`."""
        if isinstance(self.model, SupportsCache):
            return []
        name = type(self.model).__name__
        return [f"generation is slow: {name} has no cache, so every token takes a forward over its whole document"]

    def _refuse_if_busy(self) -> None:
        if self.busy:
            raise MMError("The engine's requests are still running: call step until it is not busy, or cancel them.")

    def _make_room(self, requests: Sequence[Request]) -> None:
        """Prepare the cache for these requests. Submitted ones that run keep theirs."""
        if not requests:
            return
        longest = max(len(r.ids) + r.max_new_tokens for r in requests)
        if self.busy:
            most = self.context_size
            if most is not None and longest > most:
                raise UsageError(f"A request of {longest} tokens does not fit into a slot of {most} beside those that run.")
            return
        # a power of two, so that a growing conversation keeps its cache for many turns
        capacity = max(_SMALLEST, 1 << (longest - 1).bit_length())
        self._scheduler.resize(max(1, min(self.config.slots, len(requests), self.config.cache_tokens // capacity)), capacity)

    def _check(self, name: str, request: Request) -> None:
        check_sampling(request.sampling)
        config, size = self.model.config, len(request.ids)
        if not request.ids:
            raise UsageError(f"{name} has an empty prompt; give at least the token that begins a document.")
        if request.max_new_tokens < 0:
            raise UsageError(f"{name}: max_new_tokens is {request.max_new_tokens}, expected 0 or more.")
        if not 0 <= request.min_new_tokens <= request.max_new_tokens:
            raise UsageError(
                f"{name}: min_new_tokens is {request.min_new_tokens}, expected 0 to max_new_tokens ({request.max_new_tokens})."
            )
        if not 0 <= request.top_logprobs <= config.vocab_size:
            raise UsageError(f"{name}: top_logprobs is {request.top_logprobs}, expected 0 to {config.vocab_size}.")
        for part, ids in (("The prompt", request.ids), ("logit_bias", [token for token, _ in request.sampling.logit_bias])):
            if ids and not 0 <= min(ids) <= max(ids) < config.vocab_size:
                wrong = next(token for token in ids if not 0 <= token < config.vocab_size)
                raise UsageError(f"{name}: {part} has the token {wrong}, and the vocabulary {config.vocab_size} tokens.")
        longest = config.max_position_embeddings
        if longest is not None and size + request.max_new_tokens > longest:
            raise UsageError(
                f"{name}: {size} prompt tokens and {request.max_new_tokens} new ones are more than "
                f"the model's {longest} positions; shorten the prompt or lower max_new_tokens."
            )
