"""The common behaviour of accelerators, by torch's per-device module (`torch.cuda`, `torch.npu`, ...)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm.core.errors import UsageError
from mm.runtime.devices.backend import Backend

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class AcceleratorBackend(Backend):
    """A chip with its own memory and streams. A subclass sets `device_type` and `collective`, and overrides what differs."""

    @property
    def api(self) -> Any:
        """torch's module for this device type."""
        import torch

        return getattr(torch, self.device_type)

    def setup(self) -> None:
        """Raises UsageError if torch does not know the chip or finds no card, or the requested one does not exist."""
        import torch

        if not hasattr(torch, self.device_type):
            raise self.unusable(f"torch has no torch.{self.device_type}: the chip's extension is missing or not loaded.")
        count = self.api.device_count() if self.api.is_available() else 0
        if not count:
            raise self.unusable("torch finds no card.")
        if self.index is not None and self.index >= count:
            raise UsageError(f"--backend {self.device_type}:{self.index}: this machine has cards 0 to {count - 1}.")
        if self.index is not None:
            self.device()  # what is asked of the chip before a model is placed is asked of this card

    def unusable(self, reason: str) -> UsageError:
        """The error for a chip that cannot be used here. It may have been chosen automatically."""
        return UsageError(f"backend {self.device_type}: {reason} --backend cpu runs without it.")

    def device(self, local_rank: int = 0) -> torch.device:
        """The requested card, or by default the local rank's. Makes it the current one. Raises UsageError if there is none for
        this rank."""
        import torch

        if self.index is not None and local_rank:
            raise UsageError(
                f"--backend {self.device_type}:{self.index} is one card, for one rank: leave its number out, or --nproc."
            )
        if self.index is None and local_rank >= (count := self.api.device_count()):
            raise UsageError(
                f"Rank {local_rank} of this machine has no card: {count} can be seen. Lower --nproc to {count}, or let each "
                "process see all cards."
            )
        device = torch.device(self.device_type, local_rank if self.index is None else self.index)
        self.api.set_device(device)
        return device

    def ranks(self) -> int:
        """One rank a card; one rank if a card is requested."""
        return 1 if self.index is not None else int(self.api.device_count())

    def default_dtype(self) -> str:
        """bf16 if the chip supports it, otherwise fp16, which needs a gradient scaler."""
        return "bf16" if self.api.is_bf16_supported() else "fp16"

    def memory(self) -> dict[str, int]:
        """In bytes: "peak" of the allocations since the start, and "total" of the card."""
        return {"peak": self.api.max_memory_allocated(), "total": self.api.get_device_properties(self.card).total_memory}

    def is_out_of_memory(self, error: BaseException) -> bool:
        """As `Backend.is_out_of_memory`, and for errors of drivers and libraries that allocate outside torch."""
        return super().is_out_of_memory(error) or (isinstance(error, RuntimeError) and "out of memory" in str(error))

    @property
    def card(self) -> int:
        """The index of the current card."""
        return int(self.api.current_device())

    def profiler_activities(self) -> list[torch.profiler.ProfilerActivity]:
        """The host's operators, and the chip's kernels if this torch can record them; adds a note if it cannot."""
        from torch.profiler import ProfilerActivity, supported_activities

        own = getattr(ProfilerActivity, self.device_type.upper(), ProfilerActivity.PrivateUse1)
        if own in supported_activities():
            return [*super().profiler_activities(), own]
        self.notes.append(f"profile: torch.profiler records no kernels of {self.device_type}, only the host's operators")
        return super().profiler_activities()

    def synchronize(self) -> None:
        """Wait for the current card."""
        self.api.synchronize()

    def empty_cache(self) -> None:
        """Release the allocator's cached memory."""
        self.api.empty_cache()

    def capabilities(self) -> dict[str, Any]:
        """The card's name and its memory in bytes."""
        return {"device": self.api.get_device_name(self.card), "memory": self.memory()["total"]}

    def seed(self, seed: int) -> None:
        """Seed the generators of the host and of every card."""
        super().seed(seed)
        self.api.manual_seed_all(seed)

    def rng_state(self) -> dict[str, Tensor]:
        """The generator states of the host and of the current card, by device type."""
        return {**super().rng_state(), self.device_type: self.api.get_rng_state()}

    def set_rng_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `rng_state` returned. Of a state from another chip, only the host's part is restored."""
        super().set_rng_state(state)
        if self.device_type in state:
            self.api.set_rng_state(state[self.device_type].cpu())
