"""What differs between the configs of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import transformers

VERSION_5 = int(transformers.__version__.partition(".")[0]) >= 5


def rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings in version 5's form as arguments of this version's config classes."""
    if VERSION_5:
        return {"rope_parameters": parameters}
    scaling = {k: v for k, v in parameters.items() if k != "rope_theta"}
    plain = scaling.get("rope_type", "default") == "default"
    return {"rope_theta": parameters["rope_theta"], "rope_scaling": None if plain else scaling}
