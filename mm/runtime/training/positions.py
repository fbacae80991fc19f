"""The check that no sequence exceeds a model's number of positions. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mm.core.errors import UsageError

if TYPE_CHECKING:
    from mm.runtime.training.roles import Role


def check_positions(roles: Mapping[str, Role], parts: Mapping[str, int]) -> None:
    """Raise UsageError if a sequence exceeds the positions of a role's model. `parts` maps the option that bounds each part of
    the sequence to that bound in tokens."""
    sums = "is" if len(parts) == 1 else "are together"
    for role in roles.values():
        positions = role.model.config.max_position_embeddings
        if positions is not None and sum(parts.values()) > positions:
            raise UsageError(
                f"{' and '.join(parts)} {sums} more than the {positions} positions of the {role.name} (max_position_embeddings "
                "of its architecture): lower it, or take a model with more positions."
            )
