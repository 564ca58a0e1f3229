"""What a low-rank adapter adds to the decoder, and where its files lie.

An adapter (LoRA, Hu et al. 2021, arXiv 2106.09685) adds ``alpha / rank * B A`` to the weight of
linear layers, A (rank, inputs) and B (outputs, rank). It is small, so its matrices are stored
whole, a file a decoder layer: they are the same for every tensor-parallel and pipeline layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.checkpoint.format.layout import LANGUAGE, layer_part

# Linear layers that can be adapted, by the names people use, and where they are in a layer.
TARGETS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The manifest's entry of an adapter. Raises ValueError if it means nothing."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # of TARGETS: the same ones in every layer

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: {self.rank} should be 1 or more")
        if not self.alpha > 0:
            raise ValueError(f"alpha: {self.alpha} should be more than 0")
        unknown = set(self.targets) - set(TARGETS)
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"targets: {list(self.targets)} should name some of {list(TARGETS)}, each once"
            )

    @property
    def scaling(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def adapter_path(layer: int) -> str:
    """Where the matrices of decoder layer ``layer`` lie in a checkpoint."""
    return f"adapter/{layer_part(LANGUAGE, layer)}.safetensors"
