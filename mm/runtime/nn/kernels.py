"""The kernels that a backend gives to a model's constructor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from mm.runtime.nn.attention import packed_attention
from mm.runtime.nn.scan import packed_scan

if TYPE_CHECKING:
    from mm.runtime.nn.attention import Attention
    from mm.runtime.nn.scan import Scan

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


@attrs.frozen(kw_only=True)
class Kernels:
    """The kernels that a chip may replace. The defaults use torch's own operators, and document the contracts.

    - `attention`: (q_THD, k_TKD, v_TKD, batch) -> o_THD, causal within each document.
    - `scan`: (decay_TE, input_TE, batch) -> h_TE, a linear recurrence within each document.
    - `others`: further kernels by name, such as "mypackage.delta_rule", on which a chip and an architecture agree.
    """

    attention: Attention = packed_attention
    scan: Scan = packed_scan
    others: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)

    def get(self, name: str, default: _Kernel) -> _Kernel:
        """The chip's kernel of that name or, if it has none, `default`, whose arguments and result define the contract."""
        return self.others.get(name, default)  # type: ignore[return-value]
