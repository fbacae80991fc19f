"""A recurrent model: minGRU blocks (arXiv:2410.01201), a gated linear recurrence in place of attention. Imports no torch."""

from collections.abc import Iterable

import attrs

from mm.contracts import ArchitectureConfig, ArchitectureSpec, hookimpl, option


@attrs.frozen(kw_only=True)
class MinGRUConfig(ArchitectureConfig):
    """Sizes. Documents may be of any length: there are no positions, and the state does not grow with the tokens."""

    vocab_size: int = option(6400, help="Rows of the embedding; follows the tokenizer.", within="[1, inf)")
    hidden_size: int = option(512, help="Width of the residual stream.", within="[1, inf)")
    state_size: int = option(1024, help="Width of each block's recurrent state.", within="[1, inf)")
    num_hidden_layers: int = option(8, help="Recurrent blocks.", within="[1, inf)")

    @property
    def block_parameters(self) -> int:
        """Matrix weights of one block: update, candidate, gate and output."""
        return 4 * self.hidden_size * self.state_size

    def num_parameters(self) -> int:
        """With every norm, the embedding and the output layer."""
        norms = (self.num_hidden_layers + 1) * self.hidden_size
        return self.num_hidden_layers * self.block_parameters + norms + 2 * self.vocab_size * self.hidden_size

    def flops_per_token(self, context: int) -> float:
        """6 per weight of a product, and 6 per number of a state; the context does not matter."""
        layers = self.num_hidden_layers
        return 6.0 * (layers * (self.block_parameters + self.state_size) + self.vocab_size * self.hidden_size)


@hookimpl
def mm_architectures() -> Iterable[ArchitectureSpec]:
    """The architecture."""
    yield ArchitectureSpec(
        name="mingru",
        summary="Recurrent model of minGRU blocks.",
        target="mm_example.mingru.model:MinGRU",
        config=MinGRUConfig,
        presets={
            "tiny": {"hidden_size": 48, "state_size": 64, "num_hidden_layers": 2, "vocab_size": 2048},
            "small": {"hidden_size": 512, "state_size": 1024, "num_hidden_layers": 12},
        },
    )
