"""The checks that every architecture must pass: those of its model, and those of generation. Legend: mm.runtime.nn.batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.core.records import ArchitectureSpec
from mm.runtime.generation.engine import Engine, Request, Sampling
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.nn.cache import Cache, SupportsCache, SupportsFastDecode, SupportsTruncate
from mm.runtime.nn.model import Model
from mm.testing.suites.author import members
from mm.testing.suites.check import Skip
from mm.testing.suites.model import NEAR, VOCABULARY
from mm.testing.suites.running import about
from mm.testing.suites.tensors import assert_near, documents
from mm.testing.suites.trained_model import TrainedModelSuite

_SLOTS, _CAPACITY = 4, 32
# the tolerance for bfloat16 through several layers, compared with the same forward in bfloat16
_HALF = 0.1


class ArchitectureSuite(TrainedModelSuite):
    """The checks of an architecture. `make_engine(model)` makes the engine for the check of generation."""

    def __init__(
        self, spec: ArchitectureSpec, module: str | None = None, *, make_engine: Callable[[Model], Engine] | None = None
    ) -> None:
        super().__init__(spec, module)
        self.make_engine = make_engine

    @cached_property
    def ids(self) -> list[Tensor]:
        """Documents of 9, 5, 3 and 6 tokens."""
        return [unit.sequences[0].ids for unit in documents([9, 5, 3, 6], VOCABULARY, seed=1)]

    @property
    def cached_model(self) -> SupportsCache:
        """The model. Raises Skip if it has no cache, and AssertionError if it has only some of the methods of one."""
        present = {name for name in members(SupportsCache) if hasattr(self.model, name)}
        if not present:
            raise Skip("no cache: every token takes a forward over its whole document")
        if missing := sorted(members(SupportsCache) - present):
            raise AssertionError(f"it has {', '.join(sorted(present))} but not {', '.join(missing)}: all or none are needed")
        assert isinstance(self.model, SupportsCache)
        return self.model

    def read(self, cache: Cache, pieces: dict[int, Tensor]) -> dict[int, Tensor]:
        """Prefill each slot with its piece, in one pack. Returns slot -> the logits of the next token, (V,)."""
        return dict(zip(pieces, self.cached_model.prefill(packed(pieces.values()), list(pieces), cache), strict=True))

    def feed(self, cache: Cache, rest: dict[int, Tensor], decode: Any = None) -> dict[int, Tensor]:
        """Decode each slot's tokens; a step has all slots with tokens left. Returns slot -> logits after each token, (n, V)."""
        found: dict[int, list[Tensor]] = {slot: [] for slot in rest}
        for step in range(max(map(len, rest.values()))):
            active = [slot for slot, ids in rest.items() if step < len(ids)]
            ids_A = torch.stack([rest[slot][step] for slot in active])
            for slot, logits_V in zip(active, (decode or self.cached_model.decode)(ids_A, active, cache), strict=True):
                found[slot].append(logits_V)
        return {slot: torch.stack(rows) for slot, rows in found.items()}

    def compare(self, found: dict[int, Tensor], whole: dict[int, Tensor], what: str) -> float:
        """Raise AssertionError unless each slot's logits are those at the end of a full forward of its document. Returns the
        largest relative error."""
        errors = []
        for slot, logits_nV in found.items():
            expected = self.model(packed([whole[slot]]))[0][-len(logits_nV) :]
            errors.append(assert_near(logits_nV, expected, NEAR, f"{what}: the logits of slot {slot} are not a full forward's"))
        return max(errors)

    @about("new_cache")
    def check_cache(self) -> str:
        """`new_cache` returns a `Cache`; prefill and decode return float32 logits and count the tokens in `lengths`."""
        self.require("check_packed_equals_unpacked")
        cache = self.cached_model.new_cache(_SLOTS, _CAPACITY)
        missing = ", ".join(sorted(name for name in members(Cache) if not hasattr(cache, name)))
        assert not missing, f"new_cache returns a {type(cache).__name__} without {missing} (see mm.contracts.Cache)"
        assert cache.slots == _SLOTS, f"new_cache({_SLOTS}, {_CAPACITY}) has {cache.slots} slots"
        assert cache.capacity is None or cache.capacity >= _CAPACITY, f"a capacity of {cache.capacity}, not {_CAPACITY}"
        assert isinstance(cache.device, torch.device), f"cache.device is {cache.device!r}"
        with torch.no_grad():
            first = self.cached_model.prefill(packed(self.ids[:2]), [2, 0], cache)
            second = self.cached_model.decode(self.ids[2][:2], [0, 2], cache)
        for name, found in (("prefill", first), ("decode", second)):
            assert found.shape == (2, VOCABULARY), f"{name} returns {tuple(found.shape)}, not one row of logits per document"
            assert found.dtype == torch.float32, f"{name} returns {found.dtype}, not float32"
        lengths = list(cache.lengths)
        assert lengths == [6, 0, 10, 0], f"lengths {lengths} after 5 + 1 tokens in slot 0 and 9 + 1 in slot 2"
        assert all(type(length) is int for length in lengths), "lengths are host integers: a tensor would wait for the device"
        return f"{'any number of' if cache.capacity is None else cache.capacity} tokens in a slot"

    @about("decode", "prefill")
    @torch.no_grad()
    def check_cached_decoding_equals_forward(self) -> str:
        """`prefill` and `decode` return the logits of a full forward, for any set of active slots in any order."""
        self.require("check_cache")
        cache, whole = self.cached_model.new_cache(_SLOTS, _CAPACITY), dict(zip((2, 0, 3), self.ids, strict=False))
        begin = {slot: ids[:2] for slot, ids in whole.items()}
        first = {slot: row[None] for slot, row in self.read(cache, begin).items()}
        found = self.feed(cache, {slot: ids[2:] for slot, ids in whole.items()})
        errors = self.compare(first, begin, "prefill"), self.compare(found, whole, "decode")
        return f"largest error {max(errors):.1g}"

    @about("prefill")
    @torch.no_grad()
    def check_continuing_a_slot(self) -> None:
        """`prefill` continues slots that hold tokens, in one pack with an empty slot."""
        self.require("check_cached_decoding_equals_forward")
        cache = self.cached_model.new_cache(_SLOTS, _CAPACITY)
        whole = dict(zip((1, 3, 0), self.ids, strict=False))
        self.read(cache, {1: whole[1][:6], 3: whole[3][:1]})
        found = self.read(cache, {1: whole[1][6:], 0: whole[0], 3: whole[3][1:]})
        self.compare({slot: row[None] for slot, row in found.items()}, whole, "prefill after tokens that the slot holds")

    @about("new_cache")
    @torch.no_grad()
    def check_copied_slots_are_independent(self) -> None:
        """`copy` gives slots the state of another one. Tokens that are read into one of them later do not change the others."""
        self.require("check_cached_decoding_equals_forward")
        cache, (prompt, *rest) = self.cached_model.new_cache(_SLOTS, _CAPACITY), self.ids
        self.read(cache, {1: prompt})
        cache.copy(1, [3, 0])
        assert [cache.lengths[slot] for slot in (1, 3, 0)] == [len(prompt)] * 3, f"lengths {list(cache.lengths)} after copy"
        tails = dict(zip((0, 1, 3), rest, strict=True))
        whole = {slot: torch.cat((prompt, tail)) for slot, tail in tails.items()}
        self.compare(self.feed(cache, tails), whole, "decode after copy")

    @about("new_cache")
    @torch.no_grad()
    def check_cleared_slots(self) -> None:
        """`clear` empties a slot for another document and does not change the others."""
        self.require("check_cached_decoding_equals_forward")
        cache, (first, second, third, _) = self.cached_model.new_cache(_SLOTS, _CAPACITY), self.ids
        self.read(cache, {0: first, 1: second[:2]})
        cache.clear([0])
        assert list(cache.lengths) == [0, 2, 0, 0], f"lengths {list(cache.lengths)} after clear([0])"
        found = {0: self.read(cache, {0: third})[0][None], **self.feed(cache, {1: second[2:]})}
        self.compare(found, {0: third, 1: second}, "prefill or decode after clear")

    @about("new_cache")
    @torch.no_grad()
    def check_truncation(self) -> None:
        """A truncated slot continues as if it had read only its first tokens."""
        self.require("check_cached_decoding_equals_forward")
        cache, (first, second, *_) = self.cached_model.new_cache(_SLOTS, _CAPACITY), self.ids
        if not isinstance(cache, SupportsTruncate):
            raise Skip("the cache has no truncate: a prompt continues all tokens of a slot, or is read from its beginning")
        self.read(cache, {0: second, 2: first})
        cache.truncate([2], 4)
        assert list(cache.lengths) == [len(second), 0, 4, 0], f"lengths {list(cache.lengths)} after truncate([2], 4)"
        self.compare(self.feed(cache, {2: second}), {2: torch.cat((first[:4], second))}, "decode after truncate")

    @about("fast_decode")
    @torch.no_grad()
    def check_fast_decode(self) -> str:
        """The function that `fast_decode` returns computes and stores the same as `decode`."""
        self.require("check_cached_decoding_equals_forward")
        cached, results = self.cached_model, list[Tensor]()
        if not isinstance(cached, SupportsFastDecode):
            raise Skip("no fast_decode: decode is used")
        fast = cached.fast_decode()
        for decode in (fast, None):
            cache = cached.new_cache(_SLOTS, _CAPACITY)
            self.read(cache, {0: self.ids[0], 2: self.ids[1]})
            steps = self.feed(cache, {2: self.ids[2], 0: self.ids[2]}, decode)
            results.append(torch.cat([*steps.values(), *self.feed(cache, {2: self.ids[3]}).values()]))
        return f"largest error {assert_near(results[0], results[1], NEAR, 'the step of fast_decode against decode'):.1g}"

    @about("prefill")
    @torch.no_grad()
    def check_half_precision(self) -> str:
        """A copy with bfloat16 weights, as reinforcement learning generates from, decodes close to its own full forward."""
        self.require("check_cached_decoding_equals_forward")
        model: Any = copy.deepcopy(self.cached_model)
        model.to(torch.bfloat16)
        cache, ids = model.new_cache(1, _CAPACITY), self.ids[0]
        found = [model.prefill(packed([ids[:5]]), [0], cache), *(model.decode(i[None], [0], cache) for i in ids[5:])]
        error = assert_near(torch.cat(found), model(packed([ids]))[0][4:], _HALF, "logits in bfloat16")
        return f"largest error {error:.1g}"

    @about("forward")
    def check_generation(self) -> str:
        """An engine generates the tokens of full forwards, and those of a request do not depend on the other requests."""
        self.require("check_cached_decoding_equals_forward")
        if self.make_engine is None:
            raise Skip("no engine here")
        engine = self.make_engine(self.model)
        greedy = [Request(ids=tuple(ids.tolist()), max_new_tokens=4, sampling=Sampling(temperature=0)) for ids in self.ids]
        drawn = [attrs.evolve(greedy[0], sampling=Sampling(), key=(1, number)) for number in range(3)]
        found = engine.generate([*greedy, *drawn])
        for request, completion in zip(greedy, found, strict=False):
            ids = list(request.ids)
            for _ in range(4):
                with torch.no_grad():
                    ids.append(int(self.model(packed([torch.tensor(ids)]))[0][-1].argmax()))
            assert tuple(ids[len(request.ids) :]) == completion.ids, f"greedy tokens {completion.ids} are not the forward's"
        for request, completion in zip(drawn, found[len(greedy) :], strict=True):
            (alone,) = engine.generate([request])
            assert alone.ids == completion.ids, "a request alone draws other tokens than together with others"
        return "; ".join(engine.notes())


def packed(pieces: Any) -> Packed:
    """A pack with one document per tensor of ids."""
    return pack([Unit((Tokens(ids),)) for ids in pieces])
