"""A loss without a gradient ends a training with one sentence, not with torch's words about a graph."""

from __future__ import annotations

import pytest
from twins import ALGORITHM

from mm.core.errors import MMError
from mm.testing.pytest_plugin import Plugins, Train


def test_a_training_with_a_detached_loss_says_so(mm_plugins: Plugins, mm_train: Train) -> None:
    mm_plugins(part=ALGORITHM.replace("logprobs(batch)", "logprobs(batch).detach()"))
    with pytest.raises(MMError, match=r"^The loss of Part has no gradient: it is detached from the models\.$"):
        mm_train("part")
