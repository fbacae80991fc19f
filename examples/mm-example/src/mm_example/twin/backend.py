"""The backend: what the chip does differently from mm.runtime.devices.backend.Backend, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm.runtime.devices.backend import Backend

if TYPE_CHECKING:
    from mm.contracts import Model


class Twin(Backend):
    """A chip without kernels of its own: the portable attention and scan, float32, gloo between ranks."""

    collective = "gloo"
    device_type = "cpu"

    def compile(self, model: Model) -> str | None:
        """Declined, with the reason that the user reads."""
        return "the twin has no compiler"

    def capabilities(self) -> dict[str, Any]:
        """Facts for the run's manifest."""
        return {**super().capabilities(), "twin_of": "cpu"}
