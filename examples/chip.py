"""A chip that trains in fp16 with a gradient scaler of its own: `mm -p examples/chip.py train --backend half`.

The host stands in for it. Its scaler moves in powers of two, which change no digit of a gradient.
"""

from mm.contracts import Backend, BackendSpec, Probe, hookimpl


@hookimpl
def mm_backends():
    yield BackendSpec(
        name="half",
        summary="The host in fp16, with a gradient scaler of its own.",
        target=f"{__name__}:Half",
        probe=lambda: Probe(True, "the host stands in for the chip"),
        priority=-1,
    )


class Half(Backend):
    """What differs from a CPU: the compute type, and its scaler."""

    def default_dtype(self):
        return "fp16"

    def scaler(self, dtype):
        return PowerOfTwoScaler() if dtype == "fp16" else None


class PowerOfTwoScaler:
    """Halves the scale after an overflow and doubles it after 200 steps without one."""

    def __init__(self):
        self.exponent, self.healthy, self.overflow = 16, 0, False

    def get_scale(self):
        return 2.0**self.exponent

    def scale(self, loss):
        return loss * self.get_scale()

    def unscale_(self, optimizer):
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            parameter.grad /= self.get_scale()
            self.overflow |= not parameter.grad.isfinite().all()

    def step(self, optimizer):
        if not self.overflow:
            optimizer.step()

    def update(self):
        self.healthy = 0 if self.overflow else self.healthy + 1
        self.exponent += -1 if self.overflow else self.healthy % 200 == 0
        self.overflow = False

    def state_dict(self):
        return {"exponent": self.exponent, "healthy": self.healthy}

    def load_state_dict(self, state):
        self.exponent, self.healthy = state["exponent"], state["healthy"]
