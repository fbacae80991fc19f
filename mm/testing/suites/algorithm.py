"""The checks of an algorithm, with those of a short training that is stopped and resumed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mm.core.errors import MMError
from mm.testing.suites.kept import assert_restored, kept, saved as state_of
from mm.testing.suites.loss import LossSuite
from mm.testing.suites.running import about
from mm.testing.suites.training import ShortTraining, UnitStore

_NO_STATE = ("config", "models", "context")  # attributes that every algorithm is made with
_BATCHES, _SAVED = 6, 3  # global batches of a training, and those before its checkpoint


class AlgorithmSuite(LossSuite):
    """The checks of an algorithm; see `MinibatchSuite` for the arguments."""

    @cached_property
    def trainings(self) -> tuple[ShortTraining, ShortTraining]:
        """(A training that goes through, one that is resumed from its checkpoint in the middle), both at their end.

        The checkpoint falls between the mini-batches of one `prepare` if it makes several. Raises Skip if the loss is wrong.
        """
        for check in ("check_prepare", "check_loss", "check_counts"):
            self.require(check)
        steps = self.needs.steps
        saved = _SAVED * steps + (steps > 1)
        with TemporaryDirectory() as name:
            whole = self._training(Path(name), save_interval=saved)
            self._before = kept(whole.state.algorithm, _NO_STATE)
            whole.fit()
            resumed = self._training(Path(name), resume_at=saved)
            resumed.fit()
        return whole, resumed

    def _training(self, folder: Path, **settings: Any) -> ShortTraining:
        store, steps = UnitStore(self.units, self.rows), self.needs.steps
        return ShortTraining(
            lambda roles, more_rows: self.make(roles, more_rows)[0], self.make_roles(torch.float32), store, self.tokenizer,
            folder, steps=_BATCHES * steps, batch_steps=steps, **settings,
        )  # fmt: skip

    @about("loss")
    def check_training(self) -> str:
        """In a few optimizer steps exactly the trained roles change; without rollouts the loss falls."""
        try:
            whole, _ = self.trainings
        except MMError as error:  # such as a gradient that is not finite after some steps
            raise AssertionError(str(error)) from error
        roles = self.make_roles(torch.float32)
        for name, role in whole.state.roles.items():
            before = roles[name].model.state_dict()
            moved = any(not torch.equal(v, before[k]) for k, v in role.model.state_dict().items())
            assert moved == role.trainable, f"{name} {'was changed' if moved else 'did not change'} by training"
        if self.prepared != [self.units]:
            return f"{whole.state.step} steps"
        first, last = ShortTraining.loss(*self.make(roles), self.units), whole.loss_of(self.units)
        assert last < first, f"the loss went from {first:.4g} to {last:.4g} in {whole.state.step} steps"
        return f"loss {first:.4g} to {last:.4g} in {whole.state.step} steps"

    @about("state_dict", "state", "after_step")
    def check_changed_attributes(self) -> None:
        """The public attributes that changed in the training are in `state`, whether or not they have had an effect in these few
        steps."""
        self.require("check_training")
        algorithm = self.trainings[0].state.algorithm
        restored, _ = self.make()
        restored.load_state_dict(state_of(algorithm.state_dict))
        cure = "add it to `state`, or let its name begin with _ if no resume needs it"
        assert_restored(self._before, kept(algorithm, _NO_STATE), restored, cure)

    @about("state_dict", "state", "after_step")
    def check_resume(self) -> str:
        """A training that is resumed from a checkpoint ends with the same weights and state, bit for bit. So `state` has
        everything that the algorithm keeps from step to step."""
        self.require("check_changed_attributes")
        whole, resumed = self.trainings
        for name, role in whole.state.roles.items():
            found = resumed.state.roles[name].model.state_dict()
            differ = [key for key, value in role.model.state_dict().items() if not torch.equal(value, found[key])]
            cure = "is an attribute missing in `state` (or state_dict), such as one that begins with _?"
            assert not differ, f"after a resume {len(differ)} tensors of the {name} differ: {cure}"
        return f"at step {resumed.resumed_at} of {whole.state.step}"
