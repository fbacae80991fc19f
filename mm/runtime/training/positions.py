"""The check that no sequence is longer than a model can number. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mm.core.errors import UsageError

if TYPE_CHECKING:
    from mm.runtime.training.roles import Role


def check_positions(roles: Mapping[str, Role], parts: Mapping[str, int]) -> None:
    """Raise UsageError if a sequence of these parts, in tokens by the option that bounds each, is too long for a role's model."""
    sums = "is" if len(parts) == 1 else "are together"
    for role in roles.values():
        positions = role.model.config.max_position_embeddings
        if positions is not None and sum(parts.values()) > positions:
            raise UsageError(
                f"{' and '.join(parts)} {sums} more than the {positions} positions of the {role.name} (max_position_embeddings "
                "of its architecture): lower it, or take a model with more positions."
            )
